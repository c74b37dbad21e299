"""Documents of experiments to test with."""

from __future__ import annotations

import json
from typing import Any

from service.experiments.document import Experiments, parse


def experiment(name: str = "x", /, **changes: Any) -> dict[str, Any]:
    """An experiment of users over all of its layer: control `a`, and `b` with the general pack."""
    arms = {"a": {"weight": 1}, "b": {"weight": 1, "fallback": "general"}}
    return {"name": name, "unit": "user", "slice": [0, 1], "arms": arms} | changes


def document(*layers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A document of layers `l0`, `l1`, ..."""
    named = {f"l{at}": {"experiments": experiments} for at, experiments in enumerate(layers)}
    return {"version": 1, "layers": named} | changes


def read(*layers: list[dict[str, Any]], **changes: Any) -> Experiments:
    return parse(json.dumps(document(*layers, **changes)).encode())


def weights(*given: Any) -> dict[str, Any]:
    """Arms `a`, `b`, ... with these weights; the first is the control."""
    return {
        chr(ord("a") + at): {"weight": weight} | ({"domain": f"d{at}"} if at else {})
        for at, weight in enumerate(given)
    }
