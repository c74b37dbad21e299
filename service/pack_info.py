"""`PackInfo`: which pack serves each domain, as a metric.

A gauge could not forget a pack that was replaced where several workers count together: their files only
grow. So each worker writes down what serves in it, and whoever is asked reads what all of them wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.contract import files
from service.stores._protocol import Domain, Version

_PREFIX = "packs_"


class PackInfo(Collector):
    """`mdctr_pack_info`, 1 for each pack that serves, in any worker."""

    def __init__(self, folder: Path | None) -> None:
        """Nothing serves yet.

        Args:
            folder: where workers keep what they count; None where there is one process.
        """
        self._folder = folder
        self._by_bundle: dict[str, Mapping[Domain, Version]] = {}

    def serves(self, bundle: str, packs: Mapping[Domain, Version]) -> None:
        """Say which packs of a bundle serve here, instead of those that did. It may write a file."""
        self._by_bundle[bundle] = dict(packs)
        if self._folder is not None:
            files.write(_place(self._folder, os.getpid()), json.dumps(sorted(self._own())))

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The metric, empty."""
        return [self._family()]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What serves now."""
        found = self._family()
        for domain, pack in sorted(self._own() if self._folder is None else _everywhere(self._folder)):
            found.add_metric([domain, pack], 1.0)
        return [found]

    def _own(self) -> set[tuple[Domain, Version]]:
        return {pair for packs in self._by_bundle.values() for pair in packs.items()}

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily("mdctr_pack_info", "1 for a pack that serves.", labels=["domain", "pack"])


def forget(folder: Path, pid: int) -> None:
    """Forget what served in a worker that ended."""
    _place(folder, pid).unlink(missing_ok=True)


def _place(folder: Path, pid: int) -> Path:
    return folder / f"{_PREFIX}{pid}.json"


def _everywhere(folder: Path) -> set[tuple[Domain, Version]]:
    pairs: set[tuple[Domain, Version]] = set()
    for path in folder.glob(f"{_PREFIX}*.json"):
        with suppress(FileNotFoundError):  # its worker ended just now
            pairs |= {(domain, pack) for domain, pack in json.loads(path.read_text())}
    return pairs
