"""What the GPU's benchmarks score: a model of a real one's size, its bundle, and as many packs as wished."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from loadtest.exported import Exported, export
from service.contract.bundle import Bundle
from service.contract.manifest import ITEM_ROWS
from service.contract.pack import GENERAL, DomainPack
from service.engines import ort_cuda
from service.engines.ort_cuda import Options, OrtCudaEngine

DType = Literal["float32", "float16"]
DTYPES: tuple[DType, ...] = ("float32", "float16")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    items: int = 200_000
    hidden: tuple[int, ...] = (256, 128, 64)
    dim: int = 16
    candidates: tuple[int, ...] = (100, 500)
    domains: tuple[int, ...] = (1, 100, 1000)
    resident: int = 10_000
    mixes: int = 10_000
    rounds: int = 15
    seconds: float = 1.0
    """Of a contender at each size, over all rounds."""
    connections: int = 64
    """Of the HTTP client."""
    whole_seconds: float = 200.0
    """Of all parts together, at most, as far as they can stop between two measurements."""

    @classmethod
    def quick(cls, device: Literal["auto", "cuda", "cpu"]) -> Size:
        """Enough to see that everything runs."""
        return cls(
            device=device,
            items=2_000,
            candidates=(100,),
            domains=(1, 10),
            resident=50,
            mixes=40,
            rounds=3,
            seconds=0.1,
            connections=8,
            whole_seconds=90.0,
        )


@dataclass(frozen=True)
class Ground:
    """A model with its bundle, and requests for it."""

    size: Size
    made: Exported
    folder: Path
    until: float = math.inf
    """When a part shall be done, by `time.perf_counter`."""

    @property
    def bundle(self) -> Bundle:
        """The bundle, which has graphs of many requests."""
        return self.made.bundle

    @property
    def late(self) -> bool:
        """Whether a part shall be done."""
        return time.perf_counter() >= self.until

    def share(self, left: int) -> float:
        """When the next of so many measurements that are left shall be done."""
        now = time.perf_counter()
        return now + (self.until - now) / left

    def packs(self, count: int) -> list[DomainPack]:
        """Different ones, around the general pack: what a domain owns is moved at random."""
        data = dict(self.bundle.packs())[GENERAL]
        general = DomainPack.from_bytes(data)
        return [_moved(general, at) for at in range(count)]

    def request(self, candidates: int, seed: int, *, rows: bool = True) -> dict[str, npt.NDArray[Any]]:
        """A random one, with items by their rows or by their fields."""
        draw = np.random.default_rng([seed, candidates])
        schema, items = self.bundle.schema, self.bundle.items
        columns = {slot.field.key: [int(draw.integers(0, 10_000))] for slot in schema.scope("request")}
        asked = {"request.ids": schema.encode("request", columns, 1).ids}
        at = draw.integers(1, len(items) + 1, candidates, dtype=np.int32)
        return {**asked, ITEM_ROWS: at} if rows else {**asked, "item.ids": items.inputs.ids[at]}

    @contextmanager
    def engine(self, **options: Any) -> Iterator[OrtCudaEngine]:  # noqa: ANN401 - as the options are
        """An engine with these options."""
        given = Options.model_validate({"device": self.size.device, **options})
        with closing(ort_cuda.open(self.bundle, 1, given)) as engine:
            yield engine


def ground(size: Size, folder: Path, paradigm: str = "plate") -> Ground:
    """Train a little, and export."""
    sizes = {"items": size.items, "rows": 20_000}
    recipe = {
        "dim": size.dim,
        "backbone": {"name": "deepfm", "hidden": list(size.hidden)},
        "paradigm": {"name": paradigm},
    }
    return Ground(size, export(folder / paradigm, sizes, recipe, many=True), folder)


def interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int, until: float = math.inf
) -> dict[str, list[float]]:
    """What each says, by round; each is asked after each other in turn.

    No round but the first begins after `until`.
    """
    order, found = [*contenders], {name: list[float]() for name in contenders}
    for at in range(rounds):
        if at and time.perf_counter() >= until:
            break
        for name in order[at % len(order) :] + order[: at % len(order)]:
            found[name].append(contenders[name]())
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of the ratios within a round."""
    return float(np.median(np.array(above) / np.array(below)))


def timed(call: Callable[[], object], times: int) -> npt.NDArray[np.float64]:
    """Seconds of each call."""
    seconds = np.empty(times)
    for at in range(times):
        began = time.perf_counter()
        call()
        seconds[at] = time.perf_counter() - began
    return seconds


def _moved(pack: DomainPack, seed: int) -> DomainPack:
    draw = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in sorted(pack.tensors.items()):
        noise = 0.02 * draw.standard_normal(tensor.shape, np.float32)
        tensors[name] = (tensor + noise).astype(np.float32)
    return DomainPack(pack.bundle, f"d{seed:05d}", tensors, pack.golden, pack.calibration)
