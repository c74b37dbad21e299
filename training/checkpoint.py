"""A run's folder.

`recipe.json` (as resolved), `weights.safetensors` (the paradigm, after the last stage over all domains
that is complete), `domains/<domain>.safetensors` (what tuning made of it), `calibration.json`,
`scores.parquet` (`row`, `logit` and `general` of the test rows, as served), `metrics.json` (last, so it says
that the run is complete), `log.jsonl` (a line an epoch), `tensorboard/`, and, while a stage is running,
`state.pt`, from which a killed run goes on. While several ranks tune a domain each, the others' are
`state-<rank>.pt` and `log-<rank>.jsonl`. Every file is replaced whole or not at all.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from service.contract import files
from service.contract.errors import RunError
from service.contract.pack import GENERAL
from training.data.prepare import Prepared
from training.model import Model, build
from training.ranks import ALONE, Ranks
from training.recipe import Recipe, parse

Floats = npt.NDArray[np.float64]


class Run:
    """One run's folder, made if need be.

    Raises:
        RunError: the folder belongs to another recipe, other data, another number of ranks or another start.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        prepared: Prepared,
        ranks: Ranks = ALONE,
        *,
        start: str | None = None,
    ) -> None:
        self.folder = folder
        self._suffix = "" if ranks.leads else f"-{ranks.rank}"
        described: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "data": prepared.path.name}
        if ranks.size > 1:  # a step's batch depends on it
            described["processes"] = ranks.size
        if start is not None:  # the digest of another run's weights, from which this one goes on
            described["from"] = start
        path = folder / "recipe.json"
        if not path.exists():
            files.write(path, json.dumps(described, indent=1))
        elif json.loads(path.read_text()) != described:
            raise RunError(
                f"{folder} holds a run of another recipe, other data, another number of processes or another "
                "start; choose another folder"
            )

    @property
    def stage(self) -> str | None:
        """The last stage over all domains that is complete."""
        if not self._weights.exists():
            return None
        with safe_open(self._weights, "pt") as opened:
            return str(opened.metadata()["stage"])

    @property
    def _weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def _calibration(self) -> Path:
        return self.folder / "calibration.json"

    @property
    def _state(self) -> Path:
        return self.folder / f"state{self._suffix}.pt"

    @property
    def _log(self) -> Path:
        return self.folder / f"log{self._suffix}.jsonl"

    def domain_file(self, domain: str) -> Path:
        """Where a domain's tuned pack is, once it is."""
        return self.folder / "domains" / f"{domain}.safetensors"

    def save_weights(self, stage: str, tensors: Mapping[str, Tensor]) -> None:
        """A stage over all domains is complete."""
        files.write(self._weights, save(_plain(tensors), {"stage": stage}))
        self._state.unlink(missing_ok=True)

    def save_domain(self, domain: str, pack: Mapping[str, Tensor]) -> None:
        """A domain is tuned."""
        files.write(self.domain_file(domain), save(_plain(pack)))
        self._state.unlink(missing_ok=True)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Where a running stage stands, after an epoch."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        files.write(self._state, buffer.getvalue())

    def load_state(self, key: str) -> dict[str, Any] | None:
        """Where the stage `key` stood when the run was killed; None if it had not begun."""
        if not self._state.exists():
            return None
        state: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
        return state if state["key"] == key else None

    def log(self, lines: list[dict[str, Any]]) -> None:
        """Rewrite the log: a killed run leaves no line twice."""
        files.write(self._log, "".join(json.dumps(line) + "\n" for line in lines))

    def logged(self) -> list[dict[str, Any]]:
        """The log so far."""
        return _lines(self._log) if self._log.exists() else []

    def logged_by_others(self) -> list[dict[str, Any]]:
        """What other ranks logged of the domains that they tuned."""
        return [line for path in sorted(self.folder.glob("log-*.jsonl")) for line in _lines(path)]

    def forget_others(self) -> None:
        """Remove their logs."""
        for path in self.folder.glob("log-*.jsonl"):
            path.unlink()

    def save_calibration(self, calibration: Mapping[str | None, tuple[float, float]]) -> None:
        """What makes each pack's logits mean what they say; the general pack's under its own name."""
        named = {domain or GENERAL: pair for domain, pair in calibration.items()}
        files.write(self._calibration, json.dumps(named, indent=1))

    def save_scores(self, row: pl.Series, logit: Floats, general: Floats) -> None:
        """What the test rows come to, for comparisons row by row."""
        buffer = io.BytesIO()
        pl.DataFrame({"row": row, "logit": logit, "general": general}).write_parquet(buffer)
        files.write(self.folder / "scores.parquet", buffer.getvalue())

    def scores(self) -> pl.DataFrame:
        """What `save_scores` wrote."""
        return pl.read_parquet(self.folder / "scores.parquet")

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The run is complete."""
        files.write(self.folder / "metrics.json", json.dumps(metrics, indent=1))

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the run is incomplete."""
        path = self.folder / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else None

    def restore(self, model: Model) -> None:
        """Load the weights and the tuned domains that there are."""
        if self._weights.exists():
            model.paradigm.load_state_dict(load_file(self._weights))
        if self._calibration.exists():
            named = json.loads(self._calibration.read_text())
            model.calibration = {None if name == GENERAL else name: (a, b) for name, (a, b) in named.items()}
        model.tuned = {
            d: load_file(self.domain_file(d)) for d in model.domains if self.domain_file(d).exists()
        }

    def restore_complete(self, model: Model) -> None:
        """Load a complete run.

        Raises:
            RunError: its weights, or a domain's, are gone.
        """
        ranges = {stage.rows for stage in model.paradigm.stages()}
        wanted = [self._weights] if "all domains" in ranges else []
        if "each domain" in ranges:
            wanted += [self.domain_file(domain) for domain in model.domains]
        if gone := [path.name for path in wanted if not path.exists()]:
            raise RunError(f"{self.folder} was complete, and now lacks {', '.join(gone)}")
        self.restore(model)


def load(folder: Path, data: Path) -> tuple[Recipe, Prepared, Model, dict[str, Any]]:
    """A complete run: its recipe, data, model and metrics.

    Args:
        folder: the run.
        data: the folder of prepared data sets.

    Raises:
        RunError: there is no complete run in the folder, or its data or weights are gone.
    """
    path = folder / "recipe.json"
    if not path.exists() or not (folder / "metrics.json").exists():
        raise RunError(f"{folder} is not a complete run; `python -m training fit` makes or completes one")
    described = json.loads(path.read_text())
    recipe = parse(Recipe, described["recipe"], str(path))
    prepared = Prepared.open(data / described["data"])
    model = build(recipe, prepared.schema, prepared.domains)
    ranks = Ranks(size=described.get("processes", 1))
    run = Run(folder, recipe, prepared, ranks, start=described.get("from"))
    run.restore_complete(model)
    metrics = run.metrics
    if metrics is None:
        raise RunError(f"{folder} is not a complete run")
    return recipe, prepared, model, metrics


def branch(source: Path, target: Path, recipe: Recipe, prepared: Prepared, anew: str) -> Run:
    """A run that goes on from a complete one, in a folder of its own, with one domain to be tuned anew.

    Args:
        source: the complete run.
        target: the new folder.
        recipe: the source's, with what shall be different in tuning.
        prepared: the data, the source's or newer rows under the same schema.
        anew: the domain.
    """
    run = Run(target, recipe, prepared)
    files.write(target / "weights.safetensors", (source / "weights.safetensors").read_bytes())
    for domain in prepared.domains:
        if domain != anew and (source / "domains" / f"{domain}.safetensors").exists():
            files.write(run.domain_file(domain), (source / "domains" / f"{domain}.safetensors").read_bytes())
    return run


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
