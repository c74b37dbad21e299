"""`promtool test rules`: what Prometheus would say of simulated counters, under rules that are deployed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract.errors import MdctrError

_FIRING = 'ALERTS{alertstate="firing"}'
_GOT = re.compile(r"time: (\S+),\s+exp:\s*(?:nil|\[\])\s+got:\s*(.*)")
_SERIES = re.compile(r"\{([^}]*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001}


class PromtoolError(MdctrError):
    """Rules could not be worked out."""


@dataclass(frozen=True)
class Firing:
    """An alert, at a moment at which it was looked for."""

    seconds: int
    """Of that moment, since the beginning."""
    name: str
    labels: Mapping[str, str]


def write(
    path: Path,
    rules: Iterable[Path],
    series: Mapping[str, npt.NDArray[np.floating[Any]] | str],
    *,
    step: int,
    moments: Iterable[int],
    since: int | None = None,
) -> None:
    """Write a file for `promtool test rules`, that passes where no alert fires.

    Args:
        path: of the file.
        rules: files of rules and alerts.
        series: by name, a value for each scrape, or how promtool writes that.
        step: seconds between two scrapes, and between two evaluations.
        moments: seconds at which alerts are looked for.
        since: seconds before a moment in which an alert counts; by default only those of the moment do.
    """
    found = _FIRING if since is None else f"count_over_time({_FIRING}[{since}s])"
    with path.open("w") as out:
        out.write("rule_files:\n" + "".join(f"  - {rule.absolute()}\n" for rule in rules))
        out.write(f"evaluation_interval: {step}s\ntests:\n  - interval: {step}s\n    input_series:\n")
        for name, values in series.items():
            text = values if isinstance(values, str) else " ".join(f"{value:.9g}" for value in values)
            out.write(f"      - series: '{name}'\n        values: '{text}'\n")
        out.write("    promql_expr_test:\n")
        for moment in moments:
            out.write(f"      - expr: '{found}'\n        eval_time: {moment}s\n        exp_samples: []\n")


def firing(path: Path) -> list[Firing]:
    """The alerts that were found where a file looks for them; none where the test passes.

    Raises:
        PromtoolError: there is no promtool, or it could not read the file or work out a rule.
    """
    try:
        done = subprocess.run(
            ["promtool", "test", "rules", str(path)],  # noqa: S607 - wherever it is installed
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise PromtoolError("this needs promtool, which comes with Prometheus") from error
    said = done.stdout + done.stderr
    found = [
        Firing(_seconds(moment), labels["alertname"], labels)
        for moment, got in _GOT.findall(said)
        for labels in (dict(_LABEL.findall(inner)) for inner, _ in _SERIES.findall(got))
    ]
    if (done.returncode != 0) != bool(found) or "err:" in said:
        raise PromtoolError(f"promtool: {said[-2000:]}")
    return found


def _seconds(duration: str) -> int:
    return round(sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)(ms|[wdhms])", duration)))
