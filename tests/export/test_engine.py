"""Building plans, with a TensorRT and a GPU that are fakes (`tests.service.fake_gpu`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from export import engine, engine_check
from export.__main__ import app
from export.bundle import build as build_bundle
from export.engine_check import check
from service.contract import hashing
from service.contract.bundle import Bundle
from service.contract.errors import EngineError
from service.engines import tensorrt
from service.engines._plans import Plans
from tests.conftest import Trained
from tests.service import bundles
from tests.service.fake_cuda import FakeCuda
from tests.service.fake_gpu import gpu
from training import checkpoint

SIZES = (4, 64)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with gpu() as cuda:
        yield cuda


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundles.make_bundle(tmp_path / "tiny")


@pytest.fixture(scope="module")
def trained(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a model: weights in a file beside the graph, and item halves."""
    metrics = checkpoint.load(tiny.folder, tiny.data)[3]
    return build_bundle(tiny.recipe, tiny.prepared, tiny.model, metrics, tmp_path_factory.mktemp("bundles"))


def head(plan: Path) -> dict[str, object]:
    """What the fake wrote in front of the graph."""
    found: dict[str, object] = json.loads(plan.read_bytes().partition(b"\n")[0])
    return found


def test_the_table_says_what_was_built_of_what(cuda: FakeCuda, bundle: Bundle, tmp_path: Path) -> None:
    place = engine.build(bundle, tmp_path / "out", (64, 4, 64))
    assert place == tmp_path / "out" / "sm_90"
    assert sorted(path.name for path in place.iterdir()) == ["graph.plan", "plans.json"]
    table = Plans.model_validate_json((place / "plans.json").read_bytes())
    (plan,) = table.plans
    assert (table.bundle, table.tensorrt, table.capability) == ("tiny-00000000", "11.4.0.106", "9.0")
    assert plan.sizes == (4, 64)
    assert plan.sources == {"graph.onnx": hashing.file(bundle.graph)}
    assert plan.sha256 == hashing.file(place / "graph.plan")
    assert plan.dtype == "float32"


def test_a_profile_for_each_size_and_no_tf32(cuda: FakeCuda, bundle: Bundle, tmp_path: Path) -> None:
    built = head(engine.build(bundle, tmp_path / "out", SIZES) / "graph.plan")
    # An item has 4 ids (id, brand, two tags) and a price.
    assert built["profiles"] == [
        {"item.ids": [[4, 4]] * 3, "item.numbers": [[4, 1]] * 3},
        {"item.ids": [[64, 4]] * 3, "item.numbers": [[64, 1]] * 3},
    ]
    assert built["flags"] == []
    lean = engine.build(bundle, tmp_path / "lean", SIZES, version_compatible=True)
    assert head(lean / "graph.plan")["flags"] == ["EXCLUDE_LEAN_RUNTIME", "VERSION_COMPATIBLE"]


def test_a_timing_cache_is_used_again_but_not_another_librarys(
    cuda: FakeCuda, bundle: Bundle, tmp_path: Path
) -> None:
    timing = tmp_path / "sm_90.timing"
    engine.build(bundle, tmp_path, SIZES)
    fresh = timing.read_bytes()
    engine.build(bundle, tmp_path, SIZES)
    assert timing.read_bytes() == fresh + b"+"  # a fake's build adds one
    with gpu(version="11.5.0.1"):
        engine.build(bundle, tmp_path, SIZES)
    assert timing.read_bytes() == b"11.5.0.1 (9, 0)+"


def test_a_build_that_fails_says_why_and_leaves_the_plans_before(
    cuda: FakeCuda, bundle: Bundle, tmp_path: Path
) -> None:
    place = engine.build(bundle, tmp_path / "out", SIZES)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    bundle.graph.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"TensorRT cannot read .*graph.onnx: cannot parse"):
        engine.build(bundle, tmp_path / "out", SIZES)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_what_the_builder_says_is_in_the_error(
    cuda: FakeCuda, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(of: object, network: object, config: object) -> None:
        of.logger.log(of.logger.WARNING, "slow")  # type: ignore[attr-defined]
        of.logger.log(of.logger.ERROR, "Error Code 10:\n no implementation")  # type: ignore[attr-defined]

    monkeypatch.setattr("tests.service.fake_tensorrt.Builder.build_serialized_network", nothing)
    with pytest.raises(EngineError, match=r"^graph.onnx cannot be built: Error Code 10: no implementation$"):
        engine.build(bundle, tmp_path, SIZES)


@pytest.mark.parametrize(("rows", "row", "room"), [(5, 4, 1_000_000), (400_000, 4, 1_600_000), (3, 2**30, 3)])
def test_room_for_new_items(rows: int, row: int, room: int) -> None:
    """Four times as many, a million in any case, and 2**31 - 1 numbers at most but for what there is."""
    assert engine.room(rows, row) == room


def test_weights_beside_the_graph_are_sources_too(cuda: FakeCuda, trained: Bundle, tmp_path: Path) -> None:
    place = engine.build(trained, tmp_path, SIZES)
    table = Plans.model_validate_json((place / "plans.json").read_bytes())
    files = trained.manifest.files
    assert {plan.graph: plan.sources for plan in table.plans} == {
        name: {each: files[each] for each in (name, "graph.onnx.data")}
        for name in ("graph.onnx", "rows.onnx")
    }
    rows = next(plan for plan in table.plans if plan.graph == "rows.onnx")
    assert rows.most_rows.keys() == trained.tables.keys()


def test_half_builds_from_the_graph_in_float16(cuda: FakeCuda, trained: Bundle, tmp_path: Path) -> None:
    place = engine.build(trained, tmp_path, SIZES, half=True)
    table = Plans.model_validate_json((place / "plans.json").read_bytes())
    assert {plan.graph: plan.dtype for plan in table.plans} == {
        "graph.onnx": "float16",
        "rows.onnx": "float32",
    }
    graph = onnx.load_model_from_string((place / "graph.plan").read_bytes().partition(b"\n")[2])
    types = {each.data_type for each in graph.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert {value.type.tensor_type.elem_type for value in graph.graph.output} == {onnx.TensorProto.FLOAT}


def test_the_check_compares_both_types_and_both_graphs(cuda: FakeCuda, trained: Bundle) -> None:
    found = check(trained, SIZES)
    assert {(each.dtype, each.graph) for each in found} == {
        ("float32", "graph.onnx"),
        ("float16", "graph.onnx"),
        ("float32", "rows.onnx"),
    }
    whole = [each for each in found if each.dtype == "float32"]
    # ONNX Runtime on both sides: nothing but the order of additions differs.
    assert max(each.off_ort for each in whole) < 1e-6
    assert max(each.off_golden or 0 for each in whole) < 1e-5
    half = [each for each in found if each.dtype == "float16"]
    assert 0 < max(each.off_ort for each in half) < 1e-2
    assert all(each.good for each in found)
    assert {each.candidates for each in whole} >= {1, 3, 4, 5, 63, 64, 65, 131}
    assert cuda.memory == {}


def test_the_check_finds_an_engine_that_is_wrong(
    cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = tensorrt.TensorRtEngine.score
    monkeypatch.setattr(tensorrt.TensorRtEngine, "score", lambda *given: score(*given) + np.float32(0.01))
    monkeypatch.setattr(engine_check, "_TIMED", 1)
    done = CliRunner().invoke(app, ["engine-check", str(bundle.path), "--candidates", "4,64"])
    assert done.exit_code == 1
    assert "above 0.0001" in done.stdout


def test_the_commands(cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_check, "_TIMED", 1)
    made = CliRunner().invoke(app, ["engine", str(bundle.path), "--candidates", "4,64"])
    assert made.exit_code == 0
    assert made.stdout.strip() == str(bundle.path / "engines" / "sm_90")
    checked = CliRunner().invoke(app, ["engine-check", str(bundle.path), "--candidates", "4,64"])
    assert checked.exit_code == 0, checked.output
    assert "float16" in checked.stdout
    served = tensorrt.open(Bundle.open(bundle.path), 1)  # plans in its folder are not of the manifest
    served.close()


@pytest.mark.parametrize("candidates", ["", "4,x", "0,4", "-1"])
def test_sizes_that_are_none_are_refused(cuda: FakeCuda, bundle: Bundle, candidates: str) -> None:
    done = CliRunner().invoke(app, ["engine", str(bundle.path), "--candidates", candidates])
    assert isinstance(done.exception, EngineError)
    assert str(done.exception).startswith("--candidates")


@pytest.mark.parametrize("command", ["engine", "engine-check"])
def test_without_tensorrt_a_command_says_so_in_one_line_and_exits_2(command: str, bundle: Bundle) -> None:
    # None in the place of the module: it is not found, even where it is installed.
    code = "import sys; sys.modules.update(tensorrt=None); from export.__main__ import app, cli; cli.run(app)"
    done = subprocess.run(
        [sys.executable, "-c", code, command, str(bundle.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: TensorRT is not installed: see docs/tensorrt.md"
    assert done.stdout == ""
