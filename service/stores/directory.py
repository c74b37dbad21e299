"""Packs in a folder: for local runs, tests, and images that carry their packs.

Under `<path>/<bundle>/`:

* `packs/<domain>/<version>.safetensors`  a pack's bytes; written once, never changed
* `live.json`                             `live` (domain -> version, or null for a retired domain) and
                                          `history` (domain -> a list of `version`, `time`, `run` and `by`,
                                          oldest first), replaced whole
* `lock`                                  held by who promotes or removes

Every file appears under its name only when it is complete. Promotions that follow each other faster
than the folder is looked at are seen as one.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.contract import files
from service.contract.errors import Conflict, PackError, StoreError, UnknownOption, UnknownVersion
from service.contract.pack import version
from service.stores import _names as names
from service.stores._protocol import KEPT_HISTORY, Domain, Kept, Pointers, Promotion, Version

_POLL = 0.1
"""Seconds between two looks at the folder."""
_SETTLED = 1.0
"""Seconds after which a file's times tell it from the one before."""
_SUFFIX = ".safetensors"


def open(url: str, bundle: str) -> DirectoryStore:  # noqa: A001 - every option's entry is called so
    """A store at `directory:PATH`; the folder is made when something is put.

    Raises:
        UnknownOption: the URL has no path.
    """
    scheme, _, path = url.partition(":")
    if scheme != "directory" or not path:
        raise UnknownOption("a folder's URL is directory:PATH")
    return DirectoryStore(Path(path) / bundle)


class DirectoryStore:
    """Packs of one bundle in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def live(self) -> Pointers:
        """What is live in every domain that ever was promoted."""
        live: Pointers = (await asyncio.to_thread(self._state))["live"]
        return live

    async def fetch(self, domain: Domain, version: Version, most: int | None = None) -> bytes:
        """A pack's bytes, as put.

        Raises:
            UnknownVersion: the folder does not have it.
            PackError: it has more than `most` bytes; they were not read.
        """
        return await asyncio.to_thread(self._fetch, domain, version, most)

    async def put(self, domain: Domain, data: bytes) -> Version:
        """Keep a pack and return its version."""
        put = version(data)
        await asyncio.to_thread(self._put, self._pack(domain, put), data)
        return put

    async def promote(
        self, versions: Pointers, *, run: str = "", by: str = "", expected: Pointers | None = None
    ) -> None:
        """Make these versions live in one step.

        Raises:
            UnknownVersion: one of them was never put; nothing is promoted.
            Conflict: something else is live than expected; nothing is promoted.
        """
        await asyncio.to_thread(self._promote, versions, run, by, expected or {})

    async def history(self, domain: Domain) -> Sequence[Promotion]:
        """The last promotions of a domain, oldest first."""
        names.check(domain)
        state = await asyncio.to_thread(self._state)
        try:
            return [Promotion.read(told) for told in state["history"].get(domain, [])]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"the history in {self._folder / 'live.json'} is damaged: {error!r}") from None

    async def kept(self) -> Sequence[Kept]:
        """Every pack there is, by domain and version."""
        return await asyncio.to_thread(self._kept)

    async def remove(self, packs: Iterable[tuple[Domain, Version]], spare: int) -> Sequence[Kept]:
        """Remove packs that are neither live nor among the last `spare` versions; return those removed."""
        return await asyncio.to_thread(self._remove, list(packs), spare)

    async def changes(self) -> AsyncGenerator[Pointers, None]:
        """What is live now, whole, and again after every later promotion."""
        seen: Pointers | None = None
        looked: object = None
        while True:
            # As it was before the look at what it says, which is long where there are many domains.
            found = await asyncio.to_thread(self._seen)
            if seen is None or found is None or found != looked:
                live = await self.live()
                looked = found
                if live != seen:
                    seen = live
                    yield live
            await asyncio.sleep(_POLL)

    async def close(self) -> None:
        """Nothing is held open."""

    def _pack(self, domain: Domain, version: Version) -> Path:
        names.check(domain, version)
        return self._folder / "packs" / domain / f"{version}{_SUFFIX}"

    def _put(self, path: Path, data: bytes) -> None:
        with _as_store_error(self._folder):
            if not path.exists():
                files.write(path, data)

    def _fetch(self, domain: Domain, version: Version, most: int | None) -> bytes:
        path = self._pack(domain, version)
        try:
            with path.open("rb") as file:
                if most is not None and os.fstat(file.fileno()).st_size > most:
                    raise PackError(f"version {version} of {domain} has more than {most} bytes")
                return file.read()
        except FileNotFoundError:
            raise UnknownVersion(f"{self._folder} has no version {version} of {domain}") from None
        except OSError as error:
            raise StoreError(f"{self._folder} cannot be read: {error}") from error

    def _promote(self, versions: Pointers, run: str, by: str, expected: Pointers) -> None:
        for domain, promoted in versions.items():
            names.check(domain, promoted)
        if not versions:
            return
        with self._locked():
            for domain, promoted in versions.items():
                if promoted is not None and not self._pack(domain, promoted).is_file():
                    raise UnknownVersion(f"{self._folder} has no version {promoted} of {domain}")
            state = self._state()
            for domain, wanted in expected.items():
                live = state["live"].get(domain)
                if live != wanted:
                    raise Conflict(f"{live or 'nothing'} is live for {domain}; nothing was promoted")
            now = round(time.time(), 3)
            state["live"].update(versions)
            for domain, promoted in versions.items():
                history = state["history"].setdefault(domain, [])
                history.append({"version": promoted, "time": now, "run": run, "by": by})
                del history[:-KEPT_HISTORY]
            files.write(self._folder / "live.json", json.dumps(state, indent=1))

    def _kept(self) -> list[Kept]:
        found = []
        with _as_store_error(self._folder, "read"):
            for path in (self._folder / "packs").glob(f"*/[!.]*{_SUFFIX}"):
                with suppress(FileNotFoundError):  # somebody removed it
                    found.append(Kept(path.parent.name, path.stem, path.stat().st_size))
        return sorted(found, key=lambda pack: (pack.domain, pack.version))

    def _remove(self, packs: Iterable[tuple[Domain, Version]], spare: int) -> list[Kept]:
        paths = [(domain, old, self._pack(domain, old)) for domain, old in packs]
        removed = []
        with self._locked():
            state = self._state()
            for domain, old, path in paths:
                if old == state["live"].get(domain) or old in _last(state["history"].get(domain, []), spare):
                    continue
                try:
                    nbytes = path.stat().st_size
                    path.unlink()
                except FileNotFoundError:
                    continue
                removed.append(Kept(domain, old, nbytes))
        return removed

    def _seen(self) -> tuple[int, ...] | None:
        """What changes when `live.json` is replaced; None where there is none, or one too young to say.

        A clock's tick may hold two replacements, the second under the inode of the file before the first.
        """
        try:
            status = (self._folder / "live.json").stat()
        except OSError:
            return None
        old = time.time() - status.st_mtime > _SETTLED
        return (status.st_ino, status.st_mtime_ns, status.st_size) if old else None

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads((self._folder / "live.json").read_bytes())
            return {"live": dict(names.pointers(state["live"])), "history": dict(state["history"])}
        except FileNotFoundError:
            return {"live": {}, "history": {}}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{self._folder / 'live.json'} cannot be read: {error!r}"[:300]) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else promotes or removes while the block runs."""
        with _as_store_error(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield


def _last(history: Sequence[Mapping[str, Any]], count: int) -> set[Version]:
    """The last distinct versions of a history; a retirement is none."""
    promoted = (told["version"] for told in reversed(history) if told["version"] is not None)
    return set(list(dict.fromkeys(promoted))[:count])


@contextmanager
def _as_store_error(folder: Path, done: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{folder} cannot be {done}: {error}") from error
