"""How often the report of an experiment is wrong: simulated experiments, looked at day by day.

Their users are those of `loadtest.users`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from loadtest import simulate_canary, simulate_http
from loadtest.simulate_canary import Worlds
from loadtest.simulate_http import Size as Http
from loadtest.users import Ints, Users
from service.contract import files
from service.experiments import statistics as of
from service.experiments.report import MISMATCH
from service.experiments.statistics import Estimate

PARTS = IN_PROCESS, OVER_HTTP = "reports", "http"
"""Reports and trials of simulated numbers; trials of simulated users who ask a service."""


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    runs: int = 1000
    """Experiments of each kind."""
    long_runs: int = 500
    """Experiments with an effect, looked at on many days, which take many more users."""
    days: int = 14
    units: int = 6000
    """Of both arms of an A/A experiment."""
    lift: float = 0.02
    """That an A/B experiment has, and is made to find."""
    power: float = 0.8
    alpha: float = 0.05
    split_units: int = 100_000
    """Of an experiment whose arms are split 49 to 51."""
    worlds: int = 100
    """In which packs are tried."""


def simulate(
    size: Size, folder: Path, console: Console, parts: Collection[str] = PARTS, http: Http | None = None
) -> dict[str, Any]:
    """Simulate, and update `folder`/report.json; the whole report.

    Args:
        size: how much.
        folder: of the report; parts that are not asked for stay as they are there.
        console: where progress is shown.
        parts: which of `PARTS`.
        http: how much of the worlds over HTTP.
    """
    place, users = folder / "report.json", Users()
    report: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    if IN_PROCESS in parts:
        over_http = report.get("canary", {}).get(OVER_HTTP)
        report = _in_process(size, users, console)
        report["canary"] |= {} if over_http is None else {OVER_HTTP: over_http}
    if OVER_HTTP in parts:
        worlds = simulate_http.simulate(http or Http(), folder / "worlds", console)
        report["canary"] = {**report.get("canary", {}), OVER_HTTP: worlds}
    files.write(place, json.dumps(report, indent=1))
    return report


def _in_process(size: Size, users: Users, console: Console) -> dict[str, Any]:
    began = time.monotonic()
    world = _World.of(users, size, console)
    report: dict[str, Any] = {
        "users": asdict(users) | {"click_rate_mean": world.rate, "deviation_by_unit": world.deviation},
        "size": asdict(size),
        "aa": world.same(),
        "ab": world.different(),
        "srm": world.split(),
        "canary": simulate_canary.simulate(Worlds(size.worlds), users, console),
    }
    flagged = report["aa"].pop("sample_ratio_flagged")
    report["srm"] |= {"flagged_aa_runs": flagged, "flagged_aa": flagged / size.runs}
    report["seconds"] = time.monotonic() - began
    return report


def shown(report: Mapping[str, Any], parts: Collection[str]) -> str:
    """Tables of some parts."""
    tables = []
    if IN_PROCESS in parts:
        tables.append(markdown(report))
    if OVER_HTTP in parts:
        tables.append(simulate_http.markdown(report["canary"][OVER_HTTP]))
    return "\n".join(tables)


def failed(report: Mapping[str, Any], parts: Collection[str]) -> bool:
    """Whether a world over HTTP ended as it should not."""
    worlds = report["canary"].get(OVER_HTTP)
    return OVER_HTTP in parts and worlds["right"] < worlds["worlds"]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a table."""
    aa, ab, srm, size = (report[part] for part in ("aa", "ab", "srm", "size"))
    long, days, false = ab["always_valid"], size["days"], "false_positive_rate"
    same, effect = f"A/A, {aa['units']:,} users", f"A/B, {100 * ab['lift']:+g} %, {{:,}} users an arm"
    one, more = (effect.format(each["units_of_an_arm"]) for each in (ab, long))
    split = f"49 : 51, {srm['units']:,} users"
    rows: list[tuple[str, int, int, str, float, str]] = [
        (same, aa["runs"], days, "always valid", aa[f"{false}_always_valid"], "at most 5 %"),
        (same, aa["runs"], days, "fixed horizon", aa[f"{false}_fixed_peeking"], "far above 5 %"),
        (same, aa["runs"], 1, "fixed horizon", aa[f"{false}_fixed"], "5 %"),
        (same, aa["runs"], 1, "impressions as units", aa[f"{false}_naive"], "far above 5 %"),
        (one, ab["runs"], 1, "fixed horizon", ab["power"], _share(ab["power_predicted"])),
        (more, long["runs"], 1, "always valid", long["power_last_day"], _share(long["power_predicted"])),
        (more, long["runs"], long["looks"], "always valid", long["power"], "more than on the last day"),
        (same, srm["runs"], 1, "sample ratio", srm["flagged_aa"], _share(MISMATCH)),
        (split, srm["runs"], 1, "sample ratio", srm["flagged_49_51"], _share(srm["flagged_49_51_predicted"])),
    ]
    cells = [
        ["experiment", "runs", "looks", "test", "found in", "expected"],
        ["---"] * 6,
        *(
            [name, f"{runs:,}", str(looks), test, _share(rate), says]
            for name, runs, looks, test, rate, says in rows
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


@dataclass(frozen=True)
class _World:
    """Users, what is known of them beforehand, and how often they are experimented with."""

    users: Users
    size: Size
    rate: float
    """Clicks over impressions."""
    deviation: float
    """Of `statistics.linearised` by unit, after all days."""
    random: np.random.Generator
    console: Console

    @classmethod
    def of(cls, users: Users, size: Size, console: Console) -> _World:
        """Measured on a million users apart from all experiments."""
        random = np.random.default_rng(0)
        clicks, impressions = users.clicks(random, 10**6, size.days, every=size.days)
        values = of.linearised(clicks[-1], impressions[-1])
        return cls(users, size, float(values.mean()), float(values.std(ddof=1)), random, console)

    def same(self) -> dict[str, Any]:
        """Experiments of two arms that are the same, planned to end when they do."""
        size = self.size
        planned = self.deviation * np.sqrt(4 / size.units)
        mixture, once = of.mixture(planned, size.alpha), of.fixed(size.alpha)
        found = {"always_valid": 0, "fixed_peeking": 0, "fixed": 0, "naive": 0}
        flagged = 0
        for _ in track(range(size.runs), "A/A", console=self.console):
            clicks, impressions = self.users.clicks(self.random, size.units, size.days)
            treated = self.random.random(size.units) < 0.5
            sides = [(clicks[:, arm], impressions[:, arm]) for arm in (treated, ~treated)]
            difference = of.ratio(*sides[0]) - of.ratio(*sides[1])
            alone = _beyond(difference, once)
            found["always_valid"] += int(
                _beyond(difference, of.always_valid(difference.se, mixture, size.alpha)).any()
            )
            found["fixed_peeking"] += int(alone.any())
            found["fixed"] += int(alone[-1])
            flagged += of.sample_ratio([int(treated.sum()), int((~treated).sum())], [1, 1]) < MISMATCH
            found["naive"] += int(_beyond(Estimate(difference.value, _binomial(sides)), once)[-1])
        return {
            "runs": size.runs,
            "units": size.units,
            "planned_lift": float(planned / of.planned_se(self.rate, size.alpha, size.power)),
            "sample_ratio_flagged": int(flagged),
            **{f"false_positive_rate_{which}": count / size.runs for which, count in found.items()},
        }

    def different(self) -> dict[str, Any]:
        """Experiments with an effect, of the size that the design asks for: n = 2 σ² / se² an arm."""
        size, effect = self.size, self.size.lift * self.rate
        planned = of.planned_se(effect, size.alpha, size.power)
        mixture, once = of.mixture(planned, size.alpha), of.fixed(size.alpha)
        # The always-valid interval reaches further, and how far depends on the standard error sought.
        longer = planned
        for _ in range(50):
            longer = effect / (float(of.always_valid(longer, mixture, size.alpha)) + effect / planned - once)
        units, more_units = (of.units_needed(self.deviation, se) for se in (planned, longer))
        every = max(1, size.days // 7)
        detected = last = any_day = 0
        for difference in self._differences(size.runs, units, size.days, "A/B, fixed horizon"):
            detected += int(_beyond(difference, once)[-1])
        for difference in self._differences(size.long_runs, more_units, every, "A/B, always valid"):
            seen = _beyond(difference, of.always_valid(difference.se, mixture, size.alpha))
            last += int(seen[-1])
            any_day += int(seen.any())
        return {
            "runs": size.runs,
            "lift": size.lift,
            "power": detected / size.runs,
            "power_predicted": of.power(effect, planned, once),
            "units_of_an_arm": units,
            "always_valid": {
                "runs": size.long_runs,
                "units_of_an_arm": more_units,
                "looks": size.days // every,
                "power": any_day / size.long_runs,
                "power_last_day": last / size.long_runs,
                "power_predicted": of.power(
                    effect, longer, float(of.always_valid(longer, mixture, size.alpha))
                ),
            },
        }

    def _differences(self, runs: int, units: int, every: int, name: str) -> Iterator[Estimate]:
        """Of one run after the other: the treatment's click rate less the control's, look by look."""
        size = self.size
        for _ in track(range(runs), name, console=self.console):
            treatment, control = (
                of.ratio(*self.users.clicks(self.random, units, size.days, lift, every))
                for lift in (size.lift, 0.0)
            )
            yield treatment - control

    def split(self) -> dict[str, Any]:
        """How often a mismatch is seen where units are drawn 49 to 51 and an even split is declared."""
        size, whole = self.size, self.size.split_units
        first = self.random.binomial(whole, 0.49, size.runs).tolist()
        flagged = sum(of.sample_ratio([one, whole - one], [1, 1]) < MISMATCH for one in first)
        return {
            "runs": size.runs,
            "units": whole,
            "flagged_49_51": flagged / size.runs,
            "flagged_49_51_predicted": of.power(0.02 * np.sqrt(whole), 1.0, of.fixed(MISMATCH)),
            "p_of_exactly_49_51": of.sample_ratio([round(0.49 * whole), round(0.51 * whole)], [1, 1]),
        }


def _beyond(difference: Estimate, reach: Any) -> npt.NDArray[np.bool_]:  # noqa: ANN401 - a number or an array
    low, high = difference.interval(reach)
    return np.asarray((low > 0) | (high < 0))


def _binomial(sides: list[tuple[Ints, Ints]]) -> npt.NDArray[np.float64]:
    """The standard error as if impressions were independent, which they are not."""
    rates = [(clicks.sum(-1) / impressions.sum(-1), impressions.sum(-1)) for clicks, impressions in sides]
    found: npt.NDArray[np.float64] = np.sqrt(sum(rate * (1 - rate) / rows for rate, rows in rates))
    return found
