"""Build, load, run and compare: whether TensorRT on this machine scores as ONNX Runtime does."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from export.engine import SIZES, build
from service.contract.bundle import Bundle
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import DomainPack
from service.engines import ort
from service.engines._cuda import open_device
from service.engines._protocol import Arrays, Engine, Handle
from service.engines.tensorrt import TensorRtEngine, library
from service.resident import sigmoid

BUDGET = 1e-4
"""Largest difference in probability of a float32 plan: what the service allows golden rows by default."""
_TIMED = 50
"""Times that a request is scored for the median."""


HEAD = ("graph", "dtype", "candidates", "off ONNX Runtime", "off golden rows", "ms", "")
"""Of the table."""


@dataclass(frozen=True)
class Found:
    """One line of the table, over all of the bundle's packs."""

    dtype: str
    graph: str
    candidates: int
    off_ort: float
    """Largest difference in probability from ONNX Runtime."""
    off_golden: float | None
    """Largest difference in probability from training's golden rows; None where the request is another."""
    ms: float
    """Median of a request under the last pack, from arrays of the host to logits of the host."""

    @property
    def good(self) -> bool:
        """Whether a float32 plan is within the budget. What float16 may lose is not for this check to say."""
        return self.dtype != "float32" or max(self.off_ort, self.off_golden or 0.0) <= BUDGET

    @property
    def cells(self) -> tuple[str, ...]:
        """As `HEAD` has them."""
        golden = "" if self.off_golden is None else f"{self.off_golden:.1e}"
        figures = (f"{self.candidates:,}", f"{self.off_ort:.1e}", golden, f"{self.ms:.3f}")
        return (self.graph, self.dtype, *figures, "" if self.good else f"above {BUDGET:g}")


def check(bundle: Bundle, sizes: tuple[int, ...] = SIZES, *, version_compatible: bool = False) -> list[Found]:
    """Build a bundle's plans in float32 and in float16, in a temporary folder, and score under every pack.

    Raises:
        EngineError: TensorRT or the GPU is missing, or a build or a run fails.
        BundleError: TensorRT does not read back what it built.
    """
    library("tensorrt")  # before anything else takes its time
    packs = [DomainPack.from_bytes(data, bundle.base) for _, data in bundle.packs()]
    reference = ort.open(bundle, threads=1)
    found: list[Found] = []
    for half in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            build(bundle, Path(folder), sizes, version_compatible=version_compatible, half=half)
            engine = TensorRtEngine(library("tensorrt"), open_device(), bundle, Path(folder))
            try:
                dtype = "float16" if half else "float32"
                found += _Comparison(engine, reference, packs).lines(bundle, dtype, sizes)
            finally:
                engine.close()
    reference.close()
    return found


def counts(sizes: tuple[int, ...]) -> list[int]:
    """Candidates of the requests: one, every size and its neighbours, and more than two of the largest."""
    return sorted({1, *(size + step for size in sizes for step in (-1, 0, 1)), 2 * max(sizes) + 3} - {0})


@dataclass(frozen=True)
class _Comparison:
    """A TensorRT engine beside ONNX Runtime's."""

    engine: Engine
    reference: Engine
    packs: list[DomainPack]

    def lines(self, bundle: Bundle, dtype: str, sizes: tuple[int, ...]) -> Iterator[Found]:
        """One for each graph and number of candidates, the golden rows first."""
        manifest = bundle.manifest
        for count in (None, *counts(sizes)):
            yield self._line(dtype, manifest.graph, count, None)
        if manifest.item_halves is not None:
            for count in counts(sizes):
                yield self._line("float32", manifest.item_halves.graph, count, len(bundle.items))

    def _line(self, dtype: str, graph: str, count: int | None, most: int | None) -> Found:
        off_ort, off_golden, ms, candidates = 0.0, None, 0.0, 0
        for pack in self.packs:
            inputs = request(pack, count, most)
            under, beside = self.engine.load(pack), self.reference.load(pack)
            logit = self.engine.score(inputs, under)
            candidates, off_ort = len(logit), max(off_ort, _off(logit, self.reference.score(inputs, beside)))
            if count is None:
                off_golden = max(off_golden or 0.0, _off(logit, pack.golden.logit))
            if pack is self.packs[-1]:
                ms = _median_ms(self.engine, inputs, under)
            self.engine.release(under)
            self.reference.release(beside)
        return Found(dtype, graph, candidates, off_ort, off_golden, ms)


def request(pack: DomainPack, count: int | None, most: int | None) -> Arrays:
    """A pack's golden request; with `count`, its candidates over and over, or, with `most`, rows of a table.

    Args:
        pack: whose.
        count: candidates; None for the golden ones as they are.
        most: the last row of the item table; None to give candidates by their fields.
    """
    golden = pack.golden.inputs
    if count is None:
        return golden
    asked = {name: array for name, array in golden.items() if not name.startswith("item.")}
    if most is not None:
        rows = np.random.default_rng(count).integers(0, most + 1, count, dtype=np.int32)
        return {**asked, ITEM_ROWS: rows}
    fields = {name: array for name, array in golden.items() if name.startswith("item.")}
    return {**asked, **{name: np.resize(array, (count, *array.shape[1:])) for name, array in fields.items()}}


def _off(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    off = np.abs(sigmoid(one.astype(np.float64)) - sigmoid(other.astype(np.float64)))
    return float(off.max()) if np.isfinite(off).all() else float("inf")


def _median_ms(engine: Engine, inputs: Arrays, under: Handle) -> float:
    times = []
    for _ in range(_TIMED):
        started = perf_counter()
        engine.score(inputs, under)
        times.append(1e3 * (perf_counter() - started))
    return statistics.median(times)
