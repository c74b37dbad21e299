"""`Engine`: scores candidates under a domain's pack."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from service.contract.pack import DomainPack

Arrays = Mapping[str, npt.NDArray[Any]]


class Handle(Protocol):
    """A pack's tensors, resident where the engine computes."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        ...


class Engine(Protocol):
    """Scores candidates under one domain's pack. Thread-safe.

    An option is a module with `open(bundle: Bundle, threads: int) -> Engine`. Where there is more to decide,
    it also has a pydantic model `Options`, and `open` takes one as a third argument, None for the defaults.
    """

    def load(self, pack: DomainPack) -> Handle:
        """Make a pack's tensors resident. Arrays that nobody can write to need not be copied."""
        ...

    def score(self, inputs: Arrays, under: Handle) -> npt.NDArray[np.float32]:
        """Logits (B,) float32, before calibration, of one request.

        Args:
            inputs: the graph's request inputs (1, ...) and item inputs (B, ...), by name; or `item.rows` (B,)
                in the place of item inputs, if the bundle has item halves. Its tables may come along, in the
                place of those that the bundle was made with.
            under: what `load` gave.

        Raises:
            ValueError: the handle was released, or the bundle has no item halves.
        """
        ...

    def release(self, handle: Handle) -> None:
        """Free a pack's tensors; the handle is refused from then on."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


@runtime_checkable
class Together(Protocol):
    """An engine that scores requests together, and has them wait for one another."""

    def submit(self, inputs: Arrays, under: Handle) -> asyncio.Future[npt.NDArray[np.float32]]:
        """As `score`, without keeping the running event loop from anything else."""
        ...
