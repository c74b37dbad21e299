"""`ExperimentsProvider`: experiments as flags of OpenFeature, for programs that decide by its SDK.

A flag is an experiment, its value the arm that the service would give the same request. It needs the extra
`openfeature`, and nothing else imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import FlagNotFoundError, TargetingKeyMissingError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

from service.contract import hashing
from service.experiments.assign import Assignment, assign
from service.experiments.document import Experiment, Unit, parse

Object = Sequence[FlagValueType] | Mapping[str, FlagValueType]


class ExperimentsProvider(AbstractProvider):
    """Resolves flags from a document alone: no store, no network, and the same answer everywhere."""

    def __init__(self, text: bytes, clock: Callable[[], float] = time.time) -> None:
        """Flags of a document.

        Args:
            text: the document, as JSON.
            clock: seconds since 1970.

        Raises:
            ExperimentsError: it is wrong.
        """
        super().__init__()
        self._clock = clock
        self._read(text)

    def update(self, text: bytes) -> None:
        """Take over another document.

        Raises:
            ExperimentsError: it is wrong; the one before stays.
        """
        before = self._document.by_name
        self._read(text)
        after = self._document.by_name
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=changed))

    def get_metadata(self) -> Metadata:
        """Who resolves."""
        return Metadata(name="mdctr experiments")

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """The arm's name."""
        return self._resolved(flag_key, default_value, evaluation_context, lambda found: found.arm)

    def resolve_object_details(
        self, flag_key: str, default_value: Object, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Object]:
        """What the arm changes: nothing in the control, or where it is a shadow, which answers nothing."""
        return self._resolved(flag_key, default_value, evaluation_context, _changes)

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,  # noqa: ARG002 - the SDK's protocol
        evaluation_context: EvaluationContext | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """An arm is no boolean."""
        self._refuse(flag_key)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,  # noqa: ARG002 - the SDK's protocol
        evaluation_context: EvaluationContext | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """An arm is no number."""
        self._refuse(flag_key)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,  # noqa: ARG002 - the SDK's protocol
        evaluation_context: EvaluationContext | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """An arm is no number."""
        self._refuse(flag_key)

    def _read(self, text: bytes) -> None:
        self._document, self._version = parse(text, canary=True), hashing.content(text)

    def _refuse(self, flag: str) -> NoReturn:
        self._experiment(flag)
        raise TypeMismatchError(f"{flag} is an experiment: ask for its arm, a string, or what that changes")

    def _experiment(self, flag: str) -> tuple[str, Experiment]:
        if flag not in self._document.by_name:
            raise FlagNotFoundError(f"there is no experiment {flag}")
        return self._document.by_name[flag]

    def _resolved(
        self,
        flag: str,
        default: Any,  # noqa: ANN401 - a string or an object, as is the result
        context: EvaluationContext | None,
        value: Callable[[Assignment], Any],
    ) -> FlagResolutionDetails[Any]:
        layer, experiment = self._experiment(flag)
        if context is None or not context.targeting_key:
            raise TargetingKeyMissingError(f"the targeting key of {flag} is the id of its {experiment.unit}")
        about = {"document": self._version, "layer": layer, "unit": experiment.unit}
        now = self._clock()
        found = self._assigned(flag, experiment, context, now)
        if found is None:
            over = experiment.end(now) <= experiment.slice[0]
            reason = Reason.DISABLED if over else Reason.DEFAULT
            return FlagResolutionDetails(default, reason=reason, flag_metadata=about)
        reason = Reason.TARGETING_MATCH if experiment.targeting else Reason.SPLIT
        return FlagResolutionDetails(value(found), reason=reason, variant=found.arm, flag_metadata=about)

    def _assigned(
        self, flag: str, experiment: Experiment, context: EvaluationContext, now: float
    ) -> Assignment | None:
        """The arm; None where the service would give none, also because a layer before has the request."""
        fields = {owner: _mapping(context.attributes.get(owner)) for owner in ("user", "context")}
        units: dict[Unit, str] = {}
        if type(given := fields["user"].get("id")) in {int, str}:
            units["user"] = str(given)
        units[experiment.unit] = context.targeting_key or ""
        domain = str(context.attributes.get("domain", ""))
        for found in assign(self._document, units, domain, fields, now):
            if found.experiment == flag:
                return found
            if found.change.changes:
                return None
        return None


def _changes(found: Assignment) -> dict[str, Any]:
    if found.change.shadow:
        return {}
    change = found.change
    return {kind: given for kind, given in change.model_dump(mode="json").items() if kind in change.changes}


def _mapping(given: object) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}
