"""The yardstick is the same model, and the benchmark says what it promises."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from loadtest import bench_engine, flat
from loadtest.exported import export
from service.contract.bundle import Bundle
from service.contract.pack import DomainPack
from training.backbones import deepfm
from training.model import Model
from training.paradigms import plate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Bundle]:
    found = export(
        tmp_path_factory.mktemp("bench"),
        {"domains": 2, "items": 300, "users": 50, "rows": 2000},
        {"dim": 8, "backbone": {"name": "deepfm", "hidden": [16, 8]}, "tuning": {"epochs": 1}},
    )
    return found.model, found.bundle


@pytest.mark.parametrize("domain", [None, "d00001"])
@pytest.mark.parametrize("n", [1, 2, 37])
def test_flat_gives_the_servables_logits(
    made: tuple[Model, Bundle], tmp_path: Path, domain: str | None, n: int
) -> None:
    model, bundle = made
    module = flat.Flat(model.paradigm.servable(), model.pack(domain))
    flat.write(module, 15, tmp_path / "flat.onnx")
    draw = np.random.default_rng(0)
    request = np.concatenate(
        [
            draw.integers(slot.offset, slot.offset + slot.field.rows, (1, 1))
            for slot in bundle.schema.scope("request")
        ],
        1,
    ).astype(np.int32)
    item = bundle.items.inputs.ids[draw.integers(0, len(bundle.items), n)]
    with torch.inference_mode():
        nothing = torch.zeros(1, 0)
        arrays = (torch.from_numpy(request), nothing, torch.from_numpy(item), torch.zeros(n, 0))
        servable = model.paradigm.servable().eval()
        expected = torch.func.functional_call(servable, model.pack(domain), arrays).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "flat.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {flat.INPUT: np.concatenate([np.repeat(request, n, 0), item], 1)})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_making_a_yardstick_leaves_the_servable_as_it_is(made: tuple[Model, Bundle]) -> None:
    model, _ = made
    servable = model.paradigm.servable()
    before = {name: tensor.clone() for name, tensor in servable.state_dict().items()}
    flat.Flat(servable, model.pack("d00001"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in servable.state_dict().items())


def test_what_it_is_not_written_for_is_refused(made: tuple[Model, Bundle]) -> None:
    model, _ = made
    backbone = partial(deepfm.build, deepfm.Options(hidden=(4,)), dim=3)
    options = plate.Options(first_order="user")
    other = plate.build(options, model.schema, backbone, 3, 2)
    with pytest.raises(TypeError, match="first-order"):
        flat.Flat(other.servable(), other.pack(None))
    with pytest.raises(TypeError, match="deepfm"):
        flat.Flat(torch.nn.Linear(1, 1), {})


def test_the_report_has_every_size_and_kind(made: tuple[Model, Bundle]) -> None:
    model, bundle = made
    pack = DomainPack.from_bytes(dict(bundle.packs())["d00001"], bundle.base)
    before = torch.get_num_threads()
    report = bench_engine.engine(bundle, model, pack, sizes=(1, 20), rounds=2)
    assert torch.get_num_threads() == before
    assert list(report) == ["engine.1", "engine.20"]
    for figures in report.values():
        for kind in ("flat", "fields", "rows"):
            keys = ("candidates_per_s", "ratio_to_flat", "p50_us", "p99_us", "floor_share", "gemm_gflops")
            assert all(figures[f"{kind}.{key}"] > 0 for key in keys)
            assert figures[f"{kind}.p99_us"] >= figures[f"{kind}.p50_us"]
        assert figures["flat.ratio_to_flat"] == 1
        # By hand: K = 8; (8 + 7 + 2 prompts) * 8 columns into 16, or the 7 items' fields, or none of it.
        rest = 16 * 8 + 8
        assert figures["fields.flop"] == 2 * (7 * 8 * 16 + rest)
        assert figures["rows.flop"] == 2 * rest
        prompt = 4 * 8 * 32 + 32 * 32 + 32 * 10
        assert figures["flat.flop"] == 2 * (17 * 8 * 16 + rest + prompt)
