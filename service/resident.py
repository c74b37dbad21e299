"""`Resident`: one version of a domain's pack, checked and loaded where the engine computes."""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np
import numpy.typing as npt

from service.contract import pack as packs
from service.contract.bundle import Bundle
from service.contract.errors import PackError
from service.contract.pack import DomainPack
from service.engines._protocol import Engine, Handle
from service.stores._protocol import Domain, Version


class Resident:
    """A loaded pack.

    A request holds it (`with`) from its start to its end; once superseded, the last to hold it releases
    it. Both happen on the event loop only, so counting needs no lock.
    """

    __slots__ = ("_engine", "_superseded", "_uses", "domain", "handle", "scale", "shift", "since", "version")

    def __init__(self, version: Version, pack: DomainPack, engine: Engine) -> None:
        self.domain, self.version = pack.domain, version
        self.scale, self.shift = (float(value) for value in pack.calibration)
        self.handle: Handle = engine.load(pack)
        self.since = time.time()
        self._engine = engine
        self._uses = 0
        self._superseded = False

    def __enter__(self) -> Resident:
        self._uses += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._uses -= 1
        self._release_unused()

    def supersede(self) -> None:
        """Nobody new will hold it."""
        self._superseded = True
        self._release_unused()

    def _release_unused(self) -> None:
        if self._superseded and not self._uses:
            self._engine.release(self.handle)


def parse(data: bytes, domain: Domain, version: Version, bundle: Bundle) -> DomainPack:
    """Read a pack, after everything that can be known about it without scoring was checked.

    Args:
        data: the pack's bytes.
        domain: what it must be for.
        version: what its content must hash to.
        bundle: that it must belong to.

    Raises:
        PackError: it is not what it should be.
    """
    if packs.version(data) != version:
        raise PackError(f"its content is version {packs.version(data)}, not {version}")
    pack = DomainPack.from_bytes(data, bundle.base)
    if pack.domain != domain:
        raise PackError(f"it is of domain {pack.domain!r}, not {domain!r}")
    pack.check(bundle.manifest)
    return pack


def load(pack: DomainPack, version: Version, engine: Engine, tolerance: float) -> Resident:
    """Load a pack that was checked, and score its golden rows.

    Args:
        pack: what to load.
        version: which it is.
        engine: where it is loaded.
        tolerance: how far the probabilities of its golden rows may be from training's.

    Raises:
        PackError: it does not score as it should; it is not loaded.
    """
    resident = Resident(version, pack, engine)
    try:
        _check_golden(pack, resident.handle, engine, tolerance)
    except PackError:
        resident.supersede()
        raise
    return resident


def check_golden(pack: DomainPack, engine: Engine, tolerance: float) -> None:
    """Score a pack's golden rows without keeping it loaded.

    Raises:
        PackError: it does not score as it should.
    """
    load(pack, "", engine, tolerance).supersede()


def sigmoid(logit: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Logits to probabilities; exact for very small ones, and without overflow."""
    return np.exp(-np.logaddexp(0.0, -logit.astype(np.float64)))


def _check_golden(pack: DomainPack, handle: Handle, engine: Engine, tolerance: float) -> None:
    try:
        logit = engine.score(pack.golden.inputs, handle)
    except Exception as error:  # a runtime's errors have no common class, and a bad pack stops nothing
        line = (str(error).splitlines() or [""])[0]
        raise PackError(f"the engine cannot score it: {type(error).__name__}: {line}") from error
    if logit.shape != pack.golden.logit.shape or not np.isfinite(logit).all():
        raise PackError("it has no finite score for each of its golden rows")
    off = float(np.abs(sigmoid(logit) - sigmoid(pack.golden.logit)).max())
    if off > tolerance:
        raise PackError(f"its golden rows are off by {off:.2g} in probability, more than {tolerance:.2g}")
