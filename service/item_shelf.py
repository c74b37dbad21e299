"""`ItemShelf`: item tables on this machine's disk, mapped, so that all workers share one copy of each.

Under `<folder>/<bundle>/items/`:

* `<version>/edition.json`  the edition, whose hash is the version
* `<version>/<array>.npy`   its arrays, as a bundle has them
* `serving`                 the version that served last, for a start without the store; empty: the bundle's
* `lock`                    held by who fetches one, so that the others find it here

What does not match its hashes is as if it were not there. A table may be removed at any time: who has mapped
it keeps it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from service.contract import files, hashing
from service.contract.edition import Edition, parts
from service.contract.errors import ItemsError
from service.stores._protocol import Version

EDITION = "edition.json"
_SERVING = "serving"
_KEPT = 2
"""Tables that stay: what serves, and what served before, in case of a rollback."""

log = structlog.get_logger()


class ItemShelf:
    """Item tables of one bundle. Its methods may be called from any thread; they read and write files."""

    def __init__(self, folder: Path, bundle: str) -> None:
        """A shelf in a folder, made if need be.

        Args:
            folder: on this machine; several bundles may share it.
            bundle: `Manifest.bundle`.
        """
        self._folder = folder / bundle / "items"

    def find(self, version: Version) -> tuple[Edition, dict[str, npt.NDArray[Any]]] | None:
        """A table that was kept, its arrays mapped; None if it is not there whole."""
        path = self._folder / version
        if not version.isalnum() or not path.is_dir():
            return None
        with suppress(OSError, ValueError, ItemsError):
            data = (path / EDITION).read_bytes()
            edition = Edition.from_bytes(data)
            arrays = {
                name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))
                for name in edition.arrays
            }
            if hashing.content(data) == version and _whole(edition, arrays):
                os.utime(path)
                return edition, arrays
        self._drop(path)
        return None

    @contextmanager
    def adding(self, version: Version) -> Iterator[Path]:
        """A folder for a table's files, which is found once the block ends without an error.

        Raises:
            OSError: the disk does not take it.
        """
        with files.new_folder(self._folder / version) as folder:
            yield folder

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether it is this process that fetches tables while the block runs; only one does.

        Where the disk takes no lock, each fetches for itself.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError:
            yield True
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(handle)

    def remember(self, version: Version | None) -> None:
        """Note what serves now, and remove what has not served for longest."""
        try:
            files.write(self._folder / _SERVING, version or "")
        except OSError as error:
            log.warning("which item table serves cannot be noted on disk", reason=str(error))
        there = []
        for path in self._folder.glob("[!.]*/"):
            with suppress(FileNotFoundError):  # another worker removes, too
                there.append((path.name != version, -path.stat().st_mtime_ns, path))
        for _, _, path in sorted(there)[_KEPT:]:
            self._drop(path)

    def remembered(self) -> Version | None:
        """What was noted last; None if nothing was, or the bundle's own."""
        with suppress(OSError, UnicodeDecodeError):
            return (self._folder / _SERVING).read_text() or None
        return None

    def _drop(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


def header(stream: Any, dtype: str, shape: tuple[int, ...]) -> None:  # noqa: ANN401 - a binary file
    """Begin a `.npy` file: an array's bytes follow."""
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(stream, described)


def _whole(edition: Edition, arrays: dict[str, npt.NDArray[Any]]) -> bool:
    for name, stored in edition.arrays.items():
        array = arrays[name]
        if (array.dtype.str, array.shape) != (stored.dtype, stored.shape):
            return False
        found = (hashing.content(part) for part in parts(array))
        if any(part != other for part, other in zip(stored.parts, found, strict=True)):
            return False
    return True
