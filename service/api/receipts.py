"""`Receipts`: what is noted of each answer for the exposure log, and counted of its arms."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from service.experiments.arms import Membership
from service.experiments.shadows import Shadowed
from service.features import Ids
from service.question import Question
from service.runtime import Runtime
from service.scoring import Ranking

if TYPE_CHECKING:
    from service.api.direct import Asked
    from service.exposures import Exposure

_OUTSIDE = Membership("", "", "", 0.0, forced=True)
"""Of a request that is in no experiment. What is forced has no arm in the log, either."""


class Receipts:
    """Made by whoever answers. Where there is neither a log nor an experiment, there are none."""

    def __init__(self, runtime: Runtime) -> None:
        """Receipts of a service's answers."""
        self._log, self._serving, self._metrics = runtime.exposures, runtime.experiments, runtime.metrics
        self._whole = runtime.settings.exposures_requests
        if self._log is not None:
            from service.exposures import Exposure  # noqa: PLC0415 - a service without a log has no pyarrow

            self._exposure = Exposure

    def answered(self, asked: Asked, ranking: Ranking, name: str, seconds: float) -> None:
        """Note an answer with scores.

        Args:
            asked: what was asked.
            ranking: what was answered.
            name: the request's id.
            seconds: that it took.
        """
        self._count(asked)
        rows = []
        if self._log is not None:
            members = asked.chosen.memberships or (_OUTSIDE,)
            rows = [self._row(asked, each, name, seconds, ranking) for each in members]
        if asked.chosen.shadow is not None:
            self._shadow(asked, ranking, rows)
        elif self._log is not None:
            for row in rows:
                self._log.add(row)

    def failed(self, asked: Asked, status: int, name: str, seconds: float) -> None:
        """Note that a request in an experiment was not answered, by our fault; of others the metrics tell.

        Args:
            asked: what was asked.
            status: of the answer.
            name: the request's id.
            seconds: that it took.
        """
        self._count(asked)
        if self._log is not None:
            for each in asked.chosen.memberships:
                if not each.forced:
                    self._log.add(self._row(asked, each, name, seconds)._replace(status=status))

    def _count(self, asked: Asked) -> None:
        for each in asked.chosen.memberships:
            if not each.forced:
                self._metrics.arms.labels(each.experiment, each.arm).inc()

    def _row(
        self, asked: Asked, member: Membership, name: str, seconds: float, ranking: Ranking | None = None
    ) -> Exposure:
        """One row, without scores where there is no ranking."""
        question = None
        if self._whole and ranking is not None:
            question = Question(
                asked.user, asked.context, None if asked.top_k is None else asked.ids, asked.items
            )
        ids: Ids = []
        if ranking is not None:
            ids = ranking.ids if ranking.numbers is None else ranking.numbers
        user = asked.user.get("id")
        known = asked.unit or (str(user) if type(user) in {int, str} else name)
        borrowed = ranking is not None and ranking.pack_domain != asked.domain
        return self._exposure(
            request_id=name,
            time=time.time(),
            unit=known if member.forced else member.unit,
            experiment=None if member.forced else member.experiment,
            arm=None if member.forced else member.arm,
            domain=asked.domain,
            bundle=asked.bundle,
            pack=None if ranking is None else ranking.pack,
            propensity=None if member.forced else member.propensity,
            status=200,
            ms=seconds * 1e3,
            pack_domain=ranking.pack_domain if borrowed and ranking else None,
            items=None if ranking is None else ranking.items,
            request=question,
            shadow_pack=None,
            ids=ids,
            scores=np.zeros(0) if ranking is None else ranking.probabilities,
        )

    def _shadow(self, asked: Asked, ranking: Ranking, rows: list[Exposure]) -> None:
        """Have a request scored besides; its rows go to the log afterwards."""
        change = asked.chosen.shadow
        if self._serving is None or change is None:
            return

        def done(pack: str | None, scores: npt.NDArray[np.float64] | None) -> None:
            for row in rows:
                if self._log is not None:
                    self._log.add(row._replace(shadow_pack=pack, shadow_scores=scores))

        self._serving.shadows.take(
            Shadowed(
                change=change,
                domain=asked.domain,
                user=asked.user,
                context=asked.context,
                ids=asked.ids,
                items=asked.items,
                answered=ranking.ids,
                probabilities=ranking.probabilities,
                done=done,
            )
        )
