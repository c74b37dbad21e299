from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.weights import WEIGHTS, rebuild
from service.contract.errors import BundleError
from tests.conftest import Trained, train
from tests.export.test_bundle import build
from training.model import logits


@pytest.mark.parametrize("paradigm", ["plate", "mix", "finetune", "single", "aitm", "mlora"])
def test_the_servable_rebuilt_from_a_bundle_scores_as_the_general_pack_bit_by_bit(
    paradigm: str, tiny: Trained, tmp_path: Path
) -> None:
    trained = train(tmp_path / "run", tiny.data, paradigm={"name": paradigm})
    bundle = build(trained, tmp_path / "bundles")
    assert WEIGHTS in bundle.manifest.files
    rebuilt = rebuild(bundle)
    assert rebuilt.recipe == trained.recipe
    assert rebuilt.paradigm.owned == trained.model.paradigm.owned
    rows = trained.rows()
    expected = trained.model.logits(rows, None)
    assert torch.equal(logits(rebuilt.servable, {}, rows), expected)
    for name, tensor in bundle.base.tensors.items():
        assert torch.equal(rebuilt.servable.state_dict()[name], torch.from_numpy(tensor.copy()))


def test_weights_that_are_not_all_there_or_of_another_shape_are_refused(
    tiny: Trained, tmp_path: Path
) -> None:
    bundle = build(tiny, tmp_path)
    path = bundle.path / WEIGHTS
    whole = load_file(path)
    shutil.copy(path, tmp_path / "kept")
    for changed in (
        {name: tensor for name, tensor in whole.items() if name != "head.bias"},
        {**whole, "more": torch.zeros(1)},
        {**whole, "head.bias": torch.zeros(2)},
    ):
        save_file(changed, path)
        with pytest.raises(BundleError, match="does not fit"):
            rebuild(bundle)
    path.write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="does not fit"):
        rebuild(bundle)
    path.unlink()
    with pytest.raises(BundleError, match="export the run again"):
        rebuild(bundle)
