"""The engine alone, beside the same network in bare torch: a CUDA graph of either, replayed.

torch has the one-domain form with a pack's numbers in its own tensors, by fields, since it has no item
halves; its float16 is all of it, tables and sums included, which is the fastest it can do, and not as exact.
The engine has many packs in slots, and its launch is of 8 pieces of 128 for 1,000 candidates. Both are timed
back to back, many replays for one synchronisation; from host to host, one request is timed at a time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from loadtest.gpu_stage import DTYPES, DType, Ground, interleaved, ratio, timed
from service.contract.pack import DomainPack
from service.engines._launch import Launch
from service.engines._protocol import Arrays, Handle
from service.engines.ort_cuda import OrtCudaEngine

CANDIDATES, PIECES = 1000, 8
FORMS = ("rows", "fields")
_REPLAYS = 200
_ASKED = 32


@dataclass(frozen=True)
class _Contender:
    """The engine with one type and form, and requests of this form."""

    engine: OrtCudaEngine
    handle: Handle
    launch: Launch
    asked: Sequence[Arrays]

    def replays(self, times: int) -> float:
        """Seconds of one among many, without copies."""
        return self.engine.line.do(partial(self._replay, times))

    def _replay(self, times: int) -> float:
        self.launch.wait()
        began = time.perf_counter()
        for _ in range(times):
            self.launch.compute()
        self.launch.wait()
        return (time.perf_counter() - began) / times

    def figures(self, times: int) -> dict[str, float]:
        """Milliseconds from host to host."""
        turn = cycle(self.asked)
        host = timed(lambda: self.engine.score(next(turn), self.handle), times)
        jobs = cycle(self.engine.jobs([(each, self.handle) for each in self.asked]))
        direct = self.engine.line.do(lambda: timed(lambda: self.engine.answer([next(jobs)]), times))
        return {
            "host_ms": 1e3 * float(np.median(host)),
            "host_p99_ms": 1e3 * float(np.percentile(host, 99)),
            "direct_ms": 1e3 * float(np.median(direct)),
        }


def measure(ground: Ground, candidates: int = CANDIDATES) -> dict[str, Any]:
    """Milliseconds of a request of 1,000 candidates, by type, form and contender; medians over rounds.

    `<dtype>.rows_ms` and `.fields_ms` are the engine's, `.torch_ms` the yardstick's, `.rows_ratio` and
    `.fields_ratio` the engine's to torch's; `<form>_host_ms` and `<form>_host_p99_ms` are from host ids to
    host scores through the engine's line, `<form>_direct_ms` on the thread that owns the device.
    """
    (pack,) = ground.packs(1)
    found: dict[str, Any] = {"candidates": candidates}
    replays = _REPLAYS if ground.size.rounds > 3 else 5
    with ExitStack() as stack:
        engines: dict[str, _Contender] = {}
        asks: dict[str, Callable[[], float]] = {}
        for dtype in DTYPES:
            engine = stack.enter_context(ground.engine(dtype=dtype, pieces=(1, 4, PIECES)))
            handle = engine.load(pack)
            for form in FORMS:
                name, by_rows = f"{dtype}.{form}", form == "rows"
                asked = [ground.request(candidates, seed, rows=by_rows) for seed in range(_ASKED)]
                engine.score(asked[0], handle)
                launch = engine.line.do(partial(engine.prepared, rows=by_rows))[PIECES]
                engines[name] = _Contender(engine, handle, launch, asked)
                asks[name] = partial(engines[name].replays, replays)
            asks[f"{dtype}.torch"] = _torch(ground, pack, dtype, candidates, replays)
        for ask in asks.values():
            ask()
        seconds = interleaved(asks, ground.size.rounds, ground.share(2))
        found |= {f"{name}_ms": 1e3 * float(np.median(each)) for name, each in seconds.items()}
        for name, contender in engines.items():
            yardstick = f"{name.partition('.')[0]}.torch"
            found[f"{name}_ratio"] = ratio(seconds[name], seconds[yardstick])
            figures = contender.figures(max(20, int(300 * ground.size.seconds)))
            found |= {f"{name}_{what}": figure for what, figure in figures.items()}
    return found


def _torch(
    ground: Ground, pack: DomainPack, dtype: DType, candidates: int, replays: int
) -> Callable[[], float]:
    """What says the seconds of a replay of the servable under a pack."""
    on_gpu = torch.cuda.is_available() and ground.size.device != "cpu"
    device, kind = torch.device("cuda" if on_gpu else "cpu"), getattr(torch, dtype)
    servable = copy.deepcopy(ground.made.model.paradigm.servable()).eval()
    own = {name: torch.from_numpy(np.array(tensor)) for name, tensor in pack.tensors.items()}
    servable.load_state_dict({**servable.state_dict(), **own})
    servable = servable.to(device=device, dtype=kind)
    request = ground.request(candidates, 0, rows=False)
    asked, items = (torch.from_numpy(np.array(request[f"{scope}.ids"])) for scope in ("request", "item"))
    asked, items = asked.to(device), items.to(device)
    none = torch.zeros(1, 0, device=device, dtype=kind)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        logit: torch.Tensor = servable(asked, none, items, none)
        return logit

    if not on_gpu:
        return lambda: float(np.mean(timed(run, replays)))
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # engines' threads go on
        kept = run()

    def replay() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(replays):
            graph.replay()
        torch.cuda.synchronize()
        if kept.shape != (candidates,):  # it also keeps the graph's output
            raise RuntimeError("torch answers for other candidates")
        return (time.perf_counter() - began) / replays

    return replay
