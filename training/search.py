"""`Search`: settings of a stage that are tried one after another, each near those that did well (TPE).

Sampling is optuna's, of the extra `search`. What is asked follows from the plan and from what the settings
before it reached, so a comparison that was killed asks the same again, and finds those runs done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.contract.errors import RunError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study as OptunaStudy

Setting = dict[str, Any]
Above = Annotated[float, Field(gt=0)]
BOUNDED = "lr", "l2", "epochs"
"""What is searched of a stage."""
_AT_RANDOM = 4
"""Settings, the plan's own among them, before what they reached is looked at."""
_DIGITS = 2
"""Of a number that is asked for, behind the first: a recipe is read by people."""


class Search(BaseModel):
    """How many settings to try beside those that the plan names, and between which bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: Annotated[int, Field(ge=1)]
    lr: tuple[Above, Above]
    """Looked at on a logarithmic scale, as `l2` is."""
    l2: tuple[Above, Above]
    epochs: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

    @model_validator(mode="after")
    def _ascending(self) -> Search:
        if wrong := [name for name in BOUNDED if getattr(self, name)[0] > getattr(self, name)[1]]:
            raise ValueError(f"bounds in descending order: {', '.join(wrong)}")
        return self


class Study:
    """The search of one row of a table.

    Args:
        search: bounds.
        seed: of what is drawn at random.
        known: what every setting that is asked has beside lr, l2 and epochs.
    """

    def __init__(self, search: Search, seed: int, known: Mapping[str, Any]) -> None:
        self._search, self._known = search, dict(known)
        self._space = _space(search)
        self._study = _open(seed)

    def ask(self) -> Setting:
        """The next setting to try; what it reaches has to be told before another is asked."""
        from optuna.trial import TrialState  # noqa: PLC0415 - only who searches needs it

        asked = self._study.ask(self._space)
        self._study.tell(asked, state=TrialState.FAIL)  # what is told has the rounded numbers
        return {**self._known, **_readable(asked.params)}

    def tell(self, setting: Mapping[str, Any], score: float) -> None:
        """What a setting reached; one outside of the bounds, or without a score, teaches nothing."""
        from optuna.trial import create_trial  # noqa: PLC0415

        params = {name: setting[name] for name in self._space if name in setting}
        bounds = (getattr(self._search, name) for name in params)
        within = all(low <= value <= high for value, (low, high) in zip(params.values(), bounds, strict=True))
        if within and len(params) == len(self._space) and not math.isnan(score):
            self._study.add_trial(create_trial(params=params, distributions=self._space, value=score))


def _readable(params: Mapping[str, Any]) -> Setting:
    return {
        name: float(f"{value:.{_DIGITS}e}") if isinstance(value, float) else value
        for name, value in params.items()
    }


def _space(search: Search) -> dict[str, BaseDistribution]:
    try:
        from optuna.distributions import FloatDistribution, IntDistribution  # noqa: PLC0415
    except ImportError as error:
        raise RunError("to search settings needs optuna: pip install 'mdctr[search]'") from error
    return {
        "lr": FloatDistribution(search.lr[0], search.lr[1], log=True),
        "l2": FloatDistribution(search.l2[0], search.l2[1], log=True),
        "epochs": IntDistribution(*search.epochs),
    }


def _open(seed: int) -> OptunaStudy:
    import optuna  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_AT_RANDOM)
    return optuna.create_study(direction="maximize", sampler=sampler)


def best(tried: Sequence[tuple[Setting, float]]) -> Setting:
    """The setting of the highest score; the first of equals. No score counts as the lowest."""
    return max(tried, key=lambda each: -math.inf if math.isnan(each[1]) else each[1])[0]
