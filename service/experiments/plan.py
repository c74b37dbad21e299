"""`Plan`: what was decided about an experiment before it began, and what was known of its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from service.contract.errors import MdctrError
from service.experiments.document import parse

Before = Mapping[str, float]
"""A value of each unit from before the experiment."""


class ReportError(MdctrError):
    """There is nothing to report on."""


@dataclass(frozen=True)
class Plan:
    """What was decided before the experiment began."""

    arms: Mapping[str, float]
    """Weights; the first is the control."""
    lift: float = 0.02
    """The smallest relative change of the click rate that matters."""
    power: float = 0.8
    alpha: float = 0.05


def planned(experiment: str, document: Path | None, arms: Sequence[str], lift: float, alpha: float) -> Plan:
    """The plan of an experiment, its arms from a document of experiments or from `name=weight` in words.

    Raises:
        ReportError: neither or both are given, or the document has no such experiment.
        ExperimentsError: it is no such document.
    """
    if (document is None) == (not arms):
        raise ReportError("arms come from --document, or from two --arm NAME=WEIGHT")
    if document is None:
        pairs = [arm.rpartition("=") for arm in arms]
        try:
            return Plan({name: float(weight) for name, _, weight in pairs}, lift, alpha=alpha)
        except ValueError:
            raise ReportError(f"not NAME=WEIGHT: {', '.join(arms)}") from None
    try:
        there = parse(document.read_bytes(), canary=True).by_name
    except OSError as error:
        raise ReportError(f"{document} cannot be read: {error.strerror}") from error
    if experiment not in there:
        raise ReportError(f"{document} has no {experiment}; it has {', '.join(sorted(there)) or 'none'}")
    declared = there[experiment][1].arms
    control_first = sorted(declared, key=lambda name: bool(declared[name].changes))
    weights = {name: declared[name].weight for name in control_first if declared[name].weight}
    return Plan(weights, lift, alpha=alpha)


def read_before(path: Path) -> dict[str, float]:
    """Values of units from before: a Parquet file with columns `unit` and `value`.

    Raises:
        ReportError: it has none.
    """
    try:
        table = parquet.read_table(path, columns=["unit", "value"])
        columns = (table["unit"].cast(pa.string()), table["value"].cast(pa.float64()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError) as error:
        raise ReportError(f"{path} has no columns unit and value: {error}") from error
    return {
        unit: value
        for unit, value in zip(*(column.to_pylist() for column in columns), strict=True)
        if None not in (unit, value)
    }
