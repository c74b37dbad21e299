"""Packs in a folder: for local runs, tests, and images that carry their packs.

Under `<path>/<bundle>/`:

* `packs/<domain>/<version>.safetensors`  a pack's bytes; written once, never changed
* `live.json`                             `live` (domain -> version) and `history` (domain -> a list of
                                          `version` and `time`, oldest first), replaced whole
* `lock`                                  held by who promotes

Every file appears under its name only when it is complete. Promotions that follow each other faster
than the folder is looked at are seen as one.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.contract import files
from service.contract.errors import StoreError, UnknownOption, UnknownVersion
from service.contract.pack import GENERAL, valid_domain, version
from service.stores._protocol import Domain, Version

_POLL = 0.1
"""Seconds between two looks at the folder."""
_KEPT_HISTORY = 100
"""Promotions of a domain that are remembered."""


def open(url: str, bundle: str) -> DirectoryStore:  # noqa: A001 - every option's entry is called so
    """A store at `directory:PATH`; the folder is made when something is put.

    Raises:
        UnknownOption: the URL has no path.
    """
    path = url.removeprefix("directory:")
    if not path:
        raise UnknownOption("a folder's URL is directory:PATH")
    return DirectoryStore(Path(path) / bundle)


class DirectoryStore:
    """Packs of one bundle in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def live(self) -> Mapping[Domain, Version]:
        """The live version of every domain."""
        live: Mapping[Domain, Version] = (await asyncio.to_thread(self._state))["live"]
        return live

    async def fetch(self, domain: Domain, version: Version) -> bytes:
        """A pack's bytes, as put.

        Raises:
            UnknownVersion: the folder does not have it.
        """
        try:
            return await asyncio.to_thread(self._pack(domain, version).read_bytes)
        except FileNotFoundError:
            raise UnknownVersion(f"{self._folder} has no version {version} of {domain}") from None
        except OSError as error:
            raise StoreError(f"{self._folder} cannot be read: {error}") from error

    async def put(self, domain: Domain, data: bytes) -> Version:
        """Keep a pack and return its version."""
        put = version(data)
        path = self._pack(domain, put)
        if not path.exists():
            with _as_store_error(self._folder):
                await asyncio.to_thread(files.write, path, data)
        return put

    async def promote(self, versions: Mapping[Domain, Version]) -> None:
        """Make these versions live in one step.

        Raises:
            UnknownVersion: one of them was never put; nothing is promoted.
        """
        await asyncio.to_thread(self._promote, versions)

    async def changes(self) -> AsyncGenerator[Mapping[Domain, Version], None]:
        """What is live now, whole, and again after every later promotion."""
        seen: Mapping[Domain, Version] | None = None
        while True:
            live = await self.live()
            if live != seen:
                seen = live
                yield live
            await asyncio.sleep(_POLL)

    async def close(self) -> None:
        """Nothing is held open."""

    def _pack(self, domain: Domain, version: Version) -> Path:
        # A domain's name becomes a folder's, and must not lead elsewhere.
        if domain != GENERAL and not valid_domain(domain):
            raise StoreError(f"{domain!r} is not a domain's name")
        if not version.isalnum():
            raise UnknownVersion(f"{version!r} is not a version")
        return self._folder / "packs" / domain / f"{version}.safetensors"

    def _promote(self, versions: Mapping[Domain, Version]) -> None:
        for domain, promoted in versions.items():
            if not self._pack(domain, promoted).is_file():
                raise UnknownVersion(f"{self._folder} has no version {promoted} of {domain}")
        if not versions:
            return
        now = round(time.time(), 3)
        with _as_store_error(self._folder), (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._state()
            state["live"].update(versions)
            for domain, promoted in versions.items():
                history = state["history"].setdefault(domain, [])
                history.append({"version": promoted, "time": now})
                del history[:-_KEPT_HISTORY]
            files.write(self._folder / "live.json", json.dumps(state, indent=1))

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self._folder / "live.json").read_bytes())
        except FileNotFoundError:
            return {"live": {}, "history": {}}
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._folder / 'live.json'} cannot be read: {error}") from error
        return state


@contextmanager
def _as_store_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error}") from error
