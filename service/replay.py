"""`replay`: a logged request, scored again under the versions that answered it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from service.contract.bundle import Bundle
from service.contract.exposure import LogError, read
from service.question import from_bytes
from service.rescoring import Rescorer


@dataclass(frozen=True)
class Replayed:
    """An answer, and the same answer again."""

    request_id: str
    domain: str
    pack: str
    items: str | None
    ids: list[str]
    logged: npt.NDArray[np.float32]
    """(B,) as they were answered."""
    again: npt.NDArray[np.float32]
    """(B,)"""

    @property
    def summary(self) -> dict[str, Any]:
        """What was replayed, and how it came out."""
        of = {"request_id": self.request_id, "domain": self.domain, "pack": self.pack, "items": self.items}
        return {**of, "same": self.same, "off": self.off}

    @property
    def same(self) -> bool:
        """Whether every score is the same, bit for bit."""
        return self.logged.tobytes() == self.again.tobytes()

    @property
    def off(self) -> float:
        """The largest difference, in probability."""
        return float(np.abs(self.logged - self.again).max(initial=0.0))


def find(log: Path, request_id: str, bundle: Bundle) -> Mapping[str, Any]:
    """A request's row in a log.

    Raises:
        LogError: there is none, it was not answered with scores, another bundle answered it, or what was
            asked was not logged.
    """
    exposures = read(log).exposures
    rows = exposures.filter(pc.equal(exposures["request_id"], request_id))
    if not rows.num_rows:
        raise LogError(f"{log} has no request {request_id}")
    row: Mapping[str, Any] = rows.slice(0, 1).to_pylist()[0]
    if not row["ids"] or row["pack"] is None:
        raise LogError(f"{request_id} was not answered with scores")
    if row["bundle"] != bundle.manifest.bundle:
        raise LogError(f"{request_id} was answered by {row['bundle']}, and this is {bundle.manifest.bundle}")
    if row["request"] is None:
        raise LogError(f"what {request_id} asked is not in the log: MDCTR_EXPOSURES_REQUESTS was not set")
    return row


async def replay(row: Mapping[str, Any], rescorer: Rescorer) -> Replayed:
    """Score a logged request again.

    Args:
        row: of the log, with what was asked.
        rescorer: of the bundle that answered.

    Raises:
        QuestionError: what was asked cannot be read.
        StoreError: a version is not kept any more.
    """
    question = from_bytes(row["request"])
    pack = await rescorer.pack(row["pack_domain"] or row["domain"], row["pack"])
    await rescorer.table(row["items"])
    again = rescorer.score(question, row["ids"], pack)
    return Replayed(
        row["request_id"],
        row["domain"],
        row["pack"],
        row["items"],
        row["ids"],
        np.asarray(row["scores"], np.float32),
        again.astype(np.float32),
    )
