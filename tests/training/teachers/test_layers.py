"""What a teacher's layers make of rows, and the command that draws it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from typer.testing import CliRunner

from tests.training.test_compare_teachers import RECIPE
from training.__main__ import app
from training.checkpoint import Run
from training.data.batches import Rows
from training.data.prepare import prepare
from training.fit import Fit
from training.recipe import Recipe
from training.teachers.layers import layers
from training.teachers.unictr import UniCTR


def test_layers_are_read_and_drawn(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = Recipe.model_validate(RECIPE["distil"]["teacher"])
    prepared = prepare(recipe.data.name, recipe.data.options, tmp_path / "data")
    with Progress(disable=True) as bars:
        model = Fit(recipe, prepared, Run(tmp_path / "run", recipe, prepared), bars)()
    assert isinstance(model.paradigm, UniCTR)
    rows = Rows.encode(prepared.split("test")[:9], prepared.schema, prepared.domains)
    found = layers(model.paradigm, rows)
    assert {name: values.shape for name, values in found.items()} == {
        "first": (9, 64),
        "middle": (9, 64),
        "last": (9, 64),
        "network": (9, 8),
        "untrained": (9, 8),
    }
    # The last layer's mean over a row's tokens, from the language model itself.
    hidden, present = model.paradigm.reader.hidden(rows.request_ids[:1], rows.item_ids[:1])
    with torch.inference_mode():
        expected = hidden[-1][0][present[0]].mean(0).numpy()
    assert np.abs(found["last"][0] - expected).max() < 1e-5
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    arguments = ["layers", str(tmp_path / "run"), "--out", out, "--rows", "30", "--data", data]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "layers.png").stat().st_size > 10_000
    assert {*np.load(tmp_path / "out" / "layers.npz").files} == {*found, "domain"}
