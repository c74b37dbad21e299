"""Files and folders that are either there whole or not there at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data.encode() if isinstance(data, str) else data)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A folder in `parent` for the time of the block.

    What killed runs left under the same name is removed first. A run that lives holds a lock on its
    folder, which ends with the process however it ends, so its folder is let be.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f".{name}.*.part"):
        with suppress(BlockingIOError, FileNotFoundError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=".part"))
    part.chmod(0o755)
    try:
        with _locked(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; `BlockingIOError` where another process does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` only when the block ends without an error.

    A folder that already has the name is replaced. A run killed between the two renames of a replacement
    is undone by the next: the old folder comes back.
    """
    old = path.with_name(f".{path.name}.old")
    if old.exists():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)
    with scratch(path.parent, path.name) as part:
        yield part
        if path.exists():
            path.rename(old)
            part.rename(path)
            shutil.rmtree(old)
        else:
            part.rename(path)
