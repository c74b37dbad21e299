"""`Published`: a folder of data that others published, checked against the `SHA256SUMS` beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import polars as pl

from service.contract import hashing
from service.contract.errors import RunError


class Summed(Protocol):
    """What has a checksum."""

    @property
    def checksum(self) -> str:
        """A SHA-256."""
        ...


class Checked:
    """A source over what others published."""

    def __init__(self, read: Summed) -> None:
        self._read = read

    @property
    def checksum(self) -> str:
        """The SHA-256 of what is read.

        Raises:
            RunError: it is not there, or not what it should be.
        """
        return self._read.checksum


class Published:
    """Parquet files of one folder: `$MDCTR_DATA_DIR/NAME`, unless another is given.

    Args:
        name: the source's name, for the folder and for what errors say.
        files: the files' names.
        folder: where they are instead.
    """

    def __init__(self, name: str, files: Sequence[str], folder: Path | None) -> None:
        self._name, self._files, self._given = name, tuple(files), folder

    @cached_property
    def checksum(self) -> str:
        """The SHA-256 of the file; of several files, that of their checksums, one a line.

        Raises:
            RunError: a file is not there, or is another one than `SHA256SUMS` lists.
        """
        found = [self._check(file) for file in self._files]
        return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()

    def read(self, file: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """One of the files, or some of its columns, once all of them are known to be the published ones.

        Raises:
            RunError: a file is not there, or is another one than `SHA256SUMS` lists.
        """
        _ = self.checksum
        return pl.read_parquet(self._folder / file, columns=None if columns is None else list(columns))

    @property
    def _folder(self) -> Path:
        if self._given is not None:
            return self._given
        root = os.environ.get("MDCTR_DATA_DIR")
        if not root:
            raise RunError(
                f"{self._name}: set MDCTR_DATA_DIR to the folder that holds {self._name}/, "
                "or the option `folder`"
            )
        return Path(root) / self._name

    def _check(self, file: str) -> str:
        """The SHA-256 of a file that is the published one."""
        path, sums = self._folder / file, self._folder.parent / "SHA256SUMS"
        listing = f"{self._folder.name}/{file}"
        if not path.is_file():
            raise RunError(f"{self._name}: {path} is not there")
        if not sums.is_file():
            raise RunError(f"{self._name}: {sums}, to check the data against, is not there")
        listed = {name: digest for digest, name in map(str.split, sums.read_text().splitlines())}
        if listing not in listed:
            raise RunError(f"{self._name}: {sums} does not list {listing}")
        found = hashing.file(path)
        if found != listed[listing]:
            raise RunError(
                f"{self._name}: {path} has checksum {found[:12]}..., not {listed[listing][:12]}..."
            )
        return found
