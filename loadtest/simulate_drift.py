"""Whether the alarms on drift are silent when nothing is wrong, and soon when something is: simulated weeks.

Their counters (`loadtest.drift_world`) go to the rules and alerts that are deployed, worked out by promtool.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from loadtest import promtool
from loadtest.drift_world import DAY, QUIET, RATES, STEP, DriftWorld, Shift
from loadtest.promtool import Firing
from loadtest.sheet import Sheet
from service.contract import files
from service.contract.errors import MdctrError

RULES = tuple(Path("deploy/prometheus") / name for name in ("rules.yml", "alerts.yml"))
SOON = 300
"""Seconds within which an alarm is to come."""
_LOOKED = 600
"""Seconds for which is looked, after a shift."""
_HOURS = (QUIET - 0.5, QUIET + 1.0, 9.0, 12.0, 16.0, 20.0)
"""Of a day, at which something goes wrong; the first two are its quietest."""
_SHIFTS: Sequence[tuple[str, Shift]] = (
    ("a pack's logits +0.4", Shift("logits", 0, domain="d0", size=0.4)),
    ("a pack's logits +0.4", Shift("logits", 0, domain="d1", size=0.4)),
    ("a pack's logits +0.4", Shift("logits", 0, domain="d3", size=0.4)),
    ("a pack's logits +0.4", Shift("logits", 0, domain="d7", size=0.4)),
    ("a pack's logits -0.4", Shift("logits", 0, domain="d0", size=-0.4)),
    ("a pack's logits -0.4", Shift("logits", 0, domain="d2", size=-0.4)),
    ("a pack's logits -0.4", Shift("logits", 0, domain="d4", size=-0.4)),
    ("a pack's logits -0.4", Shift("logits", 0, domain="d8", size=-0.4)),
    ("half of a field's values unknown", Shift("unknown", 0, size=0.5)),
    ("features are defaults", Shift("defaults", 0, domain="d1")),
    ("features are defaults", Shift("defaults", 0, domain="d4")),
    ("half of the clicks lost", Shift("lost", 0, size=0.5)),
)
_ALARMS = {
    "logits": "MdctrCalibrationOff",
    "unknown": "MdctrUnknownValues",
    "defaults": "MdctrScoresMoved",
    "lost": "MdctrClicksLost",
}
_FEW = 2
"""Requests a second below which a domain's features are too few to be judged in five minutes."""


class DriftError(MdctrError):
    """Weeks cannot be simulated here."""


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    silent: int = 4
    """Weeks in which nothing is wrong, each of another seed."""
    planted: int = 1
    """Weeks in which something is, six times a day."""
    days: int = 7
    """Of a week; the first is for learning what is usual."""


def simulate(size: Size, folder: Path, console: Console) -> dict[str, Any]:
    """Simulate, and write `folder`/report.json; the report.

    Raises:
        DriftError: it is not the repository's root in which this runs.
        PromtoolError: there is no promtool.
    """
    if not all(path.exists() for path in RULES):
        raise DriftError(f"{RULES[0].parent} is not here: run this in the repository's root")
    folder.mkdir(parents=True, exist_ok=True)
    began, steps = time.monotonic(), size.days * DAY
    silent: list[dict[str, Any]] = []
    planted: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "step_seconds": STEP,
        "days": size.days,
        "domains": _domains(),
        "planted_weeks": 0,
        "planted": planted,
        "silent": {"weeks": 0, "evaluations": 0, "alarms": silent},
    }

    def note() -> None:
        """A run takes long: what there is is kept if it ends early."""
        report["seconds"] = time.monotonic() - began
        files.write(folder / "report.json", json.dumps(report, indent=1))

    for seed in range(100, 100 + size.planted):
        console.print(f"week {seed - 99} of {size.planted} in which something is wrong six times a day")
        shifts = schedule(seed, size.days)
        world = DriftWorld(seed, [shift for _, shift in shifts], steps)
        found = _alarms(world, folder / "week.yml", [shift.start for _, shift in shifts])
        here = [_outcome(world, says, shift, found) for says, shift in shifts]
        planted += [{"seed": seed, **each} for each in here]
        report.setdefault("picture", _picture(world, here, min(size.days, 3)))
        report["planted_weeks"] += 1
        note()
    for seed in range(size.silent):
        console.print(f"week {seed + 1} of {size.silent} in which nothing is wrong")
        found = _alarms(DriftWorld(seed, steps=steps), folder / "week.yml", range(1, size.days + 1))
        silent += [{"seed": seed, "day": each.seconds // 86400, **_named(each)} for each in found]
        report["silent"] |= {"weeks": seed + 1, "evaluations": (seed + 1) * steps}
        note()
    (folder / "week.yml").unlink(missing_ok=True)
    return report


def schedule(seed: int, days: int) -> list[tuple[str, Shift]]:
    """What goes wrong, and when: every kind once at a quiet hour in six days, and twice at others."""
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(_SHIFTS)) for _ in range(3)]
    quiet, busy = list(orders[0]), [*orders[1], *orders[2]]
    planned = []
    for day in range(1, days):
        for at, hour in enumerate(_HOURS):
            which = (quiet if at < 2 else busy).pop()
            says, shift = _SHIFTS[which]
            start = day * DAY + round(hour * 3600 / STEP)
            planned.append((says, Shift(shift.kind, start, 30, shift.domain, shift.size)))
    return planned


def needed(shift: float) -> float:
    """Clicks in five minutes with which a relative change of calibration is seen within them, 19 times of 20.

    85 % of the window are behind the shift. Of that, 10 % are allowed, and what is left is to be 5 deviations
    although it varies by 1.64; the variance is half as much again as Poisson's.
    """
    return 1.5 * ((5 + 1.64) / (0.85 * shift - 0.1)) ** 2


def failed(report: Mapping[str, Any]) -> bool:
    """Whether an alarm came that should not, or did not where it should."""
    late = [each for each in report["planted"] if each["enough"] and not _soon(each)]
    return bool(report["silent"]["alarms"] or late)


def sheet(report: Mapping[str, Any]) -> Sheet:
    """What went wrong, and how soon it was said."""
    lines = []
    for says in dict(_SHIFTS):
        for enough in (True, False):
            here = [each for each in report["planted"] if (each["says"], each["enough"]) == (says, enough)]
            if not here:
                continue
            soon = [each["seconds"] for each in here if _soon(each)]
            quiet = [each for each in here if each["quiet"]]
            lines.append(
                [
                    says,
                    here[0]["alarm"],
                    "enough" if enough else "too little",
                    f"{min(each['clicks_in_5m'] for each in here):,.0f}",
                    f"{len(soon)} of {len(here)}",
                    f"{sum(map(_soon, quiet))} of {len(quiet)}",
                    f"{np.median(soon):.0f} s" if soon else "",
                    f"{max(soon):.0f} s" if soon else "",
                ]
            )
    heads = ["what goes wrong", "alarm", "traffic", "clicks in 5 min, at least", "within 5 min"]
    return Sheet([*heads, "of those at night", "median", "longest"], lines)


def silence(report: Mapping[str, Any]) -> str:
    """What came in weeks in which nothing was wrong, in words."""
    found, domains = report["silent"], len(report["domains"])
    return (
        f"In {found['weeks']} weeks of {domains} domains in which nothing was wrong, "
        f"{found['evaluations']:,} evaluations, {len(found['alarms'])} alarms came."
    )


def draw(report: Mapping[str, Any], path: Path) -> None:
    """A picture of a domain's days, with what went wrong and when it was said; it needs matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - only who draws needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    found = report["picture"]
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    hours = np.arange(len(found["ratio"])) * found["every_seconds"] / 3600
    axes.plot(
        hours, found["ratio"], color="#0072b2", linewidth=0.8, label=f"clicks / predicted, {found['domain']}"
    )
    for at, each in enumerate(found["alarms"]):
        axes.axvline(
            each["hour"],
            color="#d55e00",
            linewidth=1,
            linestyle="--",
            label=None if at else "MdctrCalibrationOff begins",
        )
    axes.set(xlabel="hours since the beginning", ylabel="clicks over predicted clicks, 5 min", ylim=(0, None))
    axes.legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _alarms(world: DriftWorld, path: Path, at: Sequence[int] | range) -> list[Firing]:
    """What fires on days (a range), or after steps (a list)."""
    steps, whole = world.steps, isinstance(at, range)
    series: dict[str, npt.NDArray[np.floating[Any]] | str] = {
        **world.counters(),
        'up{job="mdctr",instance="a"}': f"1x{steps}",
        'mdctr_ready{instance="a"}': f"1x{steps}",
        'mdctr_store_contact_timestamp_seconds{instance="a"}': f"0+{STEP}x{steps}",
    }
    if whole:
        promtool.write(path, RULES, series, step=STEP, moments=[day * 86400 for day in at], since=86400)
    else:
        moments = [start * STEP + after for start in at for after in range(STEP, _LOOKED + 1, STEP)]
        promtool.write(path, RULES, series, step=STEP, moments=moments)
    return promtool.firing(path)


def _outcome(world: DriftWorld, says: str, shift: Shift, found: Sequence[Firing]) -> dict[str, Any]:
    begin, alarm = shift.start * STEP, _ALARMS[shift.kind]
    here = [each for each in found if 0 < each.seconds - begin <= _LOOKED]
    right = [
        each.seconds - begin
        for each in here
        if each.name == alarm and each.labels.get("domain") in {None, shift.domain}
    ]
    domains = [shift.domain] if shift.domain else [*RATES]
    clicks = {domain: world.expected(domain, shift.start) for domain in domains}
    others = {each.name for each in here if each.seconds - begin <= SOON} - {alarm}
    return {
        "says": says,
        "alarm": alarm,
        "domain": shift.domain,
        "hour": shift.start % DAY * STEP / 3600,
        "start_hour": begin / 3600,
        "quiet": shift.start % DAY * STEP / 3600 < QUIET + 2,
        "clicks_in_5m": sum(clicks.values()),
        "enough": _enough(world, shift, sum(clicks.values())),
        "seconds": min(right, default=None),
        "others": sorted(others),
    }


def _enough(world: DriftWorld, shift: Shift, clicks: float) -> bool:
    """Whether the traffic at a shift is what docs/drift.md asks for."""
    if shift.kind == "logits":
        return clicks >= needed(world.moved(str(shift.domain), shift.size))
    if shift.kind == "lost":
        return clicks >= needed(shift.size)
    return shift.domain is None or RATES[shift.domain] >= _FEW


def _soon(outcome: Mapping[str, Any]) -> bool:
    return outcome["seconds"] is not None and outcome["seconds"] <= SOON


def _named(each: Firing) -> dict[str, Any]:
    labels = {name: each.labels[name] for name in ("domain", "field", "window") if name in each.labels}
    return {"alarm": each.name, **labels}


def _domains() -> dict[str, Any]:
    """Of each domain, requests a second, and clicks in five minutes: at the quietest hour and on average."""
    world = DriftWorld(0, steps=2 * DAY)
    night = DAY + QUIET * 3600 // STEP
    return {
        domain: {
            "requests_a_second": rate,
            "clicks_in_5m_at_night": world.expected(domain, night + 900 // STEP // 2),
            "clicks_in_5m": world.mean(domain),
        }
        for domain, rate in RATES.items()
    }


def _picture(world: DriftWorld, outcomes: Sequence[Mapping[str, Any]], days: int) -> dict[str, Any]:
    """Days of the first domain after the one for learning, and when its alarm began."""
    domain = next(iter(RATES))
    every = 300 // STEP
    ratio = world.ratio(domain)[DAY : days * DAY + DAY : every]
    alarms = [
        {"hour": each["start_hour"] - 24 + each["seconds"] / 3600, "says": each["says"]}
        for each in outcomes
        if each["seconds"] is not None
        and (each["domain"] == domain or each["alarm"] == _ALARMS["lost"])
        and each["start_hour"] < 24 * (days + 1)
    ]
    rounded = [None if np.isnan(value) else round(float(value), 3) for value in ratio]
    return {"domain": domain, "every_seconds": every * STEP, "ratio": rounded, "alarms": alarms}
