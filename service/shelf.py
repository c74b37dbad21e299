"""`Shelf`: packs on this machine's disk, whole and mapped, so that all workers share one copy of each.

Under `<folder>/<bundle>/`:

* `<domain>@<version>.pack`  the content hash of what follows (16 bytes), then a safetensors file with every
                             tensor of the pack written out, however the store had it
* `serving.json`             domain -> version: what served last, for a start without the store

A file that was cut short or changed does not match its hash and is as if it were not there, so nothing waits
for the disk. A file may be removed at any time: who has mapped it keeps it.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from safetensors.numpy import save

from service.contract import files, hashing
from service.contract.pack import DomainPack, Golden
from service.stores._protocol import Domain, Version

_DIGEST = 16
_DTYPES = {"F32": np.float32, "I32": np.int32}
_SERVING = "serving.json"
_LOOKS = 10
"""How often the folder's size is looked at while as much is added as it may hold."""

log = structlog.get_logger()


class Shelf:
    """Packs of one bundle. Its methods may be called from any thread; they read and write files."""

    def __init__(self, folder: Path, bundle: str, most_bytes: int) -> None:
        """A shelf in a folder, made if need be.

        Args:
            folder: on this machine; several bundles may share it.
            bundle: `Manifest.bundle`.
            most_bytes: that the bundle's packs may take; those unused for longest go first.
        """
        self._folder = folder / bundle
        self._bundle = bundle
        self._most = most_bytes
        self._added = most_bytes  # so that the first look comes with the first pack

    def find(self, domain: Domain, version: Version) -> DomainPack | None:
        """A pack that was kept, its tensors views of the mapped file; None if it is not there whole."""
        path = self._path(domain, version)
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None
        with suppress(OSError):  # a disk that is only read
            os.utime(path)
        body = mapped[_DIGEST:]
        if bytes(mapped[:_DIGEST]).decode("ascii", "replace") != hashing.content(body):
            self.drop(domain, version)
            return None
        return _read(body, self._bundle, domain)

    def keep(self, version: Version, pack: DomainPack) -> DomainPack:
        """Keep a pack, and return it as `find` does; where the disk does not take it, as it was given."""
        body = _written(pack)
        path = self._path(pack.domain, version)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Workers come with the same pack at the same time, and all of them are to map one file.
            with _alone(path.parent):
                found = self.find(pack.domain, version)
                if found is not None:
                    return found
                _replace(path, body)
        except OSError as error:
            # A copy of its own costs memory, and a service that stops costs more.
            log.warning("a pack cannot be kept on disk, and takes memory", reason=str(error))
            return pack
        self._added += len(body)
        if self._added > self._most / _LOOKS:
            self._added = 0
            self._trim()
        return self.find(pack.domain, version) or pack

    def drop(self, domain: Domain, version: Version) -> None:
        """Remove a pack that nobody will ask for again."""
        with suppress(OSError):  # what cannot be removed takes room, and no more
            self._path(domain, version).unlink()

    def remember(self, serving: Mapping[Domain, Version]) -> None:
        """Note what serves now."""
        try:
            files.write(self._folder / _SERVING, json.dumps(dict(serving)))
        except OSError as error:
            log.warning("what serves cannot be noted on disk", reason=str(error))

    def remembered(self) -> dict[Domain, Version]:
        """What was noted last; nothing if nothing was, or it cannot be read."""
        with suppress(OSError, ValueError):
            found = json.loads((self._folder / _SERVING).read_bytes())
            if isinstance(found, dict):
                return {str(domain): str(version) for domain, version in found.items()}
        return {}

    def _path(self, domain: Domain, version: Version) -> Path:
        return self._folder / f"{domain}@{version}.pack"

    def _trim(self) -> None:
        found = []
        for path in self._folder.glob("*.pack"):
            with suppress(FileNotFoundError):  # another worker trims, too
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._most:
                break
            with suppress(OSError):
                path.unlink()
            total -= size


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else keeps a pack in the folder while the block runs."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, body: bytes) -> None:
    # One name, for who is alone: what a killed process left is overwritten, and does not pile up.
    part = path.with_name(".part")
    try:
        with part.open("wb") as out:
            out.write(hashing.content(body).encode())
            out.write(body)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()  # a full disk would stay full
        raise


def _written(pack: DomainPack) -> bytes:
    parts = {f"pack.{name}": tensor for name, tensor in pack.tensors.items()}
    parts |= {f"golden.{name}": tensor for name, tensor in pack.golden.inputs.items()}
    parts |= {"golden.logit": pack.golden.logit, "calibration": pack.calibration}
    return save({name: np.asarray(tensor, order="C") for name, tensor in parts.items()})


def _read(body: memoryview, bundle: str, domain: Domain) -> DomainPack:
    """What `_written` wrote, without a copy; safetensors itself would make one."""
    size = int.from_bytes(body[:8], "little")
    header = json.loads(bytes(body[8 : 8 + size]))
    parts: dict[str, npt.NDArray[Any]] = {
        name: np.ndarray(
            spec["shape"], _DTYPES[spec["dtype"]], buffer=body, offset=8 + size + spec["data_offsets"][0]
        )
        for name, spec in header.items()
    }
    golden = {
        name.removeprefix("golden."): part for name, part in parts.items() if name.startswith("golden.")
    }
    logit = golden.pop("logit")
    tensors = {name.removeprefix("pack."): part for name, part in parts.items() if name.startswith("pack.")}
    return DomainPack(bundle, domain, tensors, Golden(golden, logit), parts["calibration"])
