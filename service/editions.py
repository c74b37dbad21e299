"""Editions of the item table, as they are read from a store of packs.

An edition and its parts are kept as packs are: under a name of their own, and the hash of their bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract import files, hashing
from service.contract.edition import Edition, Stored
from service.contract.errors import ItemsError, PackError
from service.item_shelf import EDITION, header
from service.stores._names import ITEM_PARTS, ITEMS
from service.stores._protocol import PackStore, Version

_LARGEST = 8 << 20
"""Bytes of an edition; that of the largest table has a fraction."""


async def read(store: PackStore, version: Version) -> Edition:
    """An edition, without its parts.

    Raises:
        UnknownVersion: the store does not have it.
        ItemsError: it is damaged.
    """
    data = await _fetch(store, ITEMS, version, _LARGEST)
    return Edition.from_bytes(data)


async def arrays(store: PackStore, edition: Edition, names: Collection[str]) -> dict[str, npt.NDArray[Any]]:
    """Some of an edition's arrays, in memory.

    Raises:
        UnknownVersion: the store does not have a part.
        ItemsError: a part is damaged.
    """
    found = {}
    for name in names:
        stored = edition.arrays[name]
        data = b"".join([part async for part in _parts(store, stored)])
        found[name] = np.frombuffer(data, stored.dtype).reshape(stored.shape)
    return found


async def save(store: PackStore, edition: Edition, folder: Path) -> None:
    """Write an edition and its arrays into a folder, as `ItemShelf` has them.

    Raises:
        UnknownVersion: the store does not have a part.
        ItemsError: a part is damaged.
        OSError: the disk does not take it.
    """
    for name, stored in edition.arrays.items():
        # Written and not mapped: a full disk is an error then, and not a signal that ends the process.
        with (folder / f"{name}.npy").open("wb") as out:
            header(out, stored.dtype, stored.shape)
            async for part in _parts(store, stored):
                out.write(part)
    files.write(folder / EDITION, edition.to_bytes())


async def _parts(store: PackStore, stored: Stored) -> AsyncGenerator[bytes, None]:
    for part, nbytes in stored.sizes():
        data = await _fetch(store, ITEM_PARTS, part, nbytes)
        if len(data) != nbytes:
            raise ItemsError(f"its part {part} has {len(data)} bytes, not {nbytes}")
        yield data


async def _fetch(store: PackStore, name: str, version: Version, most: int) -> bytes:
    try:
        data = await store.fetch(name, version, most)
    except PackError as error:
        raise ItemsError(str(error)) from None
    if hashing.content(data) != version:
        raise ItemsError(f"the content of {name} {version} is version {hashing.content(data)}")
    return data
