"""A bundle with graphs of many requests: what is in it, and what stops it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from export import bundle as module
from export import many_graphs, parity, precision
from export.graph import WEIGHTS
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from tests.conftest import Trained
from training import checkpoint


def build(trained: Trained, out: Path) -> Bundle:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    return module.build(trained.recipe, trained.prepared, trained.model, metrics, out, many=True)


@pytest.fixture(scope="module")
def built(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(tiny, tmp_path_factory.mktemp("bundles"))


def test_it_has_both_types_by_fields_and_by_rows(built: Bundle) -> None:
    assert {*built.manifest.many} == {"float32", "float16"}
    for dtype, graphs in built.manifest.many.items():
        assert graphs.rows is not None
        for name in (graphs.fields, graphs.rows):
            assert dtype in name
            assert name in built.manifest.files
            onnx.checker.check_model(str(built.path / name), full_check=True)


def test_they_read_the_weights_of_the_graph_of_one_request(built: Bundle) -> None:
    for graphs in built.manifest.many.values():
        proto = onnx.load(str(built.path / graphs.fields), load_external_data=False)
        places = {
            entry.value
            for tensor in proto.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == {WEIGHTS}
        assert (built.path / graphs.fields).stat().st_size < (built.path / WEIGHTS).stat().st_size


def test_the_same_run_gives_the_same_graphs(tiny: Trained, built: Bundle, tmp_path: Path) -> None:
    again = build(tiny, tmp_path)
    assert again.manifest == built.manifest


def test_the_card_says_what_float16_costs(built: Bundle) -> None:
    card = (built.path / "CARD.md").read_text()
    assert "## What float16 costs" in card
    assert {each.domain for each in built.manifest.precision} == {*built.manifest.domains}
    for each in built.manifest.precision:
        assert f"| float16 | {each.domain} | {each.rows:,} | {each.max_abs_diff:.1e} |" in card
        assert each.auc_loss <= 2e-4
    for name in ("ort_cuda, float32", "ort_cuda, float16", "ort_cuda, float16, item halves"):
        assert name in {each.engine for each in built.manifest.parity}


def test_a_bundle_is_made_without_them_unless_it_is_asked_for(tiny: Trained, tmp_path: Path) -> None:
    metrics = checkpoint.load(tiny.folder, tiny.data)[3]
    bundle = module.build(tiny.recipe, tiny.prepared, tiny.model, metrics, tmp_path)
    assert (bundle.manifest.many, bundle.manifest.precision) == ({}, ())
    assert "float16" not in (bundle.path / "CARD.md").read_text()


def test_a_domain_that_loses_auc_stops_the_build(
    tiny: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = precision._logits
    monkeypatch.setattr(precision, "_logits", lambda *given: -exact(*given))
    with pytest.raises(BundleError, match=r"loses .* of its AUC"):
        build(tiny, tmp_path)
    assert not [*tmp_path.glob("tiny-*")]


def test_an_engine_that_is_off_stops_the_build(
    tiny: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._BUDGETS, "float16", 1e-12)
    monkeypatch.setattr(parity, "_ROUNDING", 0)
    with pytest.raises(BundleError, match="ort_cuda, float16"):
        build(tiny, tmp_path)


def test_a_graph_without_rows_has_fields_alone(built: Bundle, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes((built.path / WEIGHTS).read_bytes())
    proto = onnx.load(str(built.path / built.manifest.graph), load_external_data=False)
    with pytest.raises(BundleError, match="GatherElements"):  # what was fused for a CPU is not what is taken
        many_graphs.write(proto, tmp_path, rows=False)
