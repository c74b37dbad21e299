"""`verdict`: what to make of a report, in sentences that somebody understands who was not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FEW = 1000
"""Units of an arm below which a normal distribution describes a click rate badly."""
_CROSSED = 0.01
"""Share of units in two arms that is too much."""
_UNCALIBRATED = 0.1
"""Relative distance of mean probability and click rate that is worth a sentence."""
_UNLIKE = 0.01
"""p of the heterogeneity test below which domains are said to differ."""


def verdict(report: Mapping[str, Any]) -> list[str]:
    """The sentences; on a sample-ratio mismatch that one thing alone."""
    ratio = report["sample_ratio"]
    if ratio["mismatch"]:
        units = ", ".join(f"{name} {count:,}" for name, count in ratio["units"].items())
        return [
            f"STOP: the arms do not have the units that they were to have ({units}; p = {ratio['p']:.1e}).",
            (
                "Something loses or adds units in one arm, so no difference between arms can be believed, "
                "and none is shown. Look for an arm that fails, answers late or logs less."
            ),
        ]
    said = [
        sentence
        for name, found in report["comparisons"].items()
        for sentence in _of_treatment(name, report["control"], found, report["plan"]["lift"])
    ]
    return [*said, *_of_log(report)]


def percent(lift: float) -> str:
    """A relative change, signed."""
    return f"{100 * lift:+.2f} %"


def _of_treatment(name: str, control: str, found: Mapping[str, Any], planned: float) -> Iterator[str]:
    effect = found["ctr"]
    if effect["se"] is None:
        yield f"{name}: too few clicks to say anything."
        return
    low, high = effect["lift_always_valid"]
    span = f"between {percent(low)} and {percent(high)}"
    if _excludes_zero(effect["always_valid"]):
        verb = "raises" if effect["difference"] > 0 else "lowers"
        yield (
            f"{name} {verb} the click rate against {control}: {percent(effect['lift'])}, {span}. This "
            "holds on whatever day it is looked at; the experiment can end."
        )
    elif _excludes_zero(effect["fixed"]):
        yield (
            f"{name} against {control}: {percent(effect['lift'])}, not shown yet. It would count if today "
            f"was fixed beforehand as the only day to look; looked at on any day, it lies {span}. Go on."
        )
    else:
        yield f"{name} against {control}: no difference is shown; the change lies {span}."
        if max(abs(low), abs(high)) < planned:
            yield f"A change of {100 * planned:.1f} %, which it was made to find, is ruled out: it can end."
    for guardrail, moved in found["guardrails"].items():
        if moved["se"] is not None and _excludes_zero(moved["always_valid"]):
            yield f"Guardrail: {guardrail} moved by {percent(moved['lift'])} under {name}."
    spread = found["heterogeneity"]
    if spread["p"] < _UNLIKE:
        yield (
            f"The effect of {name} is not the same in all domains (p = {spread['p']:.1e}, I² = "
            f"{100 * spread['i2']:.0f} %): read the table by domain before it goes to all of them."
        )
    novelty = found["novelty"]
    if novelty and _excludes_zero(novelty["change"]):
        early, late = (percent(novelty[half]["lift"]) for half in ("first_half", "second_half"))
        yield f"The effect of {name} moves: {early} in the first half of the days, {late} in the second."


def _of_log(report: Mapping[str, Any]) -> Iterator[str]:
    for name, found in report["calibration"].items():
        predicted, observed = found["predicted"], found["observed"]
        if observed and abs(predicted / observed - 1) > _UNCALIBRATED:
            yield f"{name} predicts {predicted:.4f} where {observed:.4f} are clicked: it is not calibrated."
    units = report["sample_ratio"]["units"]
    if min(units.values()) < _FEW:
        yield f"An arm has {min(units.values()):,} units only: intervals from so few are rough."
    crossed = report["log"]["units_in_two_arms"]
    if crossed > _CROSSED * sum(units.values()):
        yield f"{crossed:,} units were seen under two arms and left out: find out why."


def _excludes_zero(interval: list[float]) -> bool:
    low, high = interval
    return low > 0 or high < 0
