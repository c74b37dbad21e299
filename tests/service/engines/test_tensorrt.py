"""The TensorRT engine on a fake GPU. What every engine promises is tested with the others'.

Expected logits are numpy's, from the same weights (`tests.service.bundles.logits`).
"""

import gc
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import onnx
import pytest

from export import engine as plans
from service.contract.bundle import Bundle
from service.contract.errors import BundleError, EngineError, ItemsError
from service.contract.manifest import ItemHalves
from service.engines import tensorrt
from tests.service import bundles
from tests.service.conftest import Publisher, running
from tests.service.fake_gpu import gpu
from tests.service.waiting import eventually

SIZES = (4, 64)


@pytest.fixture
def built(tmp_path):
    """The tiny bundle with plans, to be changed by the test; and the fake GPU that they are for."""
    with gpu() as cuda:
        bundle = bundles.make_bundle(tmp_path / "tiny")
        plans.build(bundle, bundle.path / "engines", SIZES)
        yield bundle, cuda


@pytest.fixture
def engine(built):
    engine = tensorrt.open(built[0], 1)
    yield engine
    engine.close()


@pytest.fixture
def cuda(built):
    return built[1]


def expected(domain, inputs):
    return bundles.logits(bundles.make_pack(domain).tensors, inputs)


@pytest.mark.parametrize("candidates", [1, 3, 4, 5, 63, 64, 65, 128, 131, 300])
def test_requests_of_every_size(engine, candidates):
    handle, inputs = engine.load(bundles.make_pack("books")), bundles.random_inputs(candidates, candidates)
    np.testing.assert_allclose(engine.score(inputs, handle), expected("books", inputs), atol=1e-5)


def test_no_candidates_no_logits(engine):
    inputs = bundles.random_inputs(0, 0)
    assert engine.score(inputs, engine.load(bundles.make_pack("books"))).shape == (0,)


def test_one_copy_up_and_one_down(engine, cuda):
    handle = engine.load(bundles.make_pack("books"))
    cuda.copies.clear()
    engine.score(bundles.random_inputs(3, 0), handle)
    # Of the request 4 + 1 ids and 1 number, of an item 1 + 1 + 2 ids and 1 number, for 4 candidates; each of
    # the four arrays fits into 256 bytes. Down come the logits of 3.
    assert cuda.copies == [("up", 4 * 256), ("down", 3 * 4)]
    cuda.copies.clear()
    engine.score(bundles.random_inputs(66, 0), handle)
    # 64 items of 4 ids take 1,024 bytes, of a number 256; then 2 in the size of 4.
    assert cuda.copies == [("up", 256 + 256 + 1024 + 256), ("down", 64 * 4), ("up", 4 * 256), ("down", 2 * 4)]


def test_what_an_earlier_request_left_behind_does_not_matter(engine):
    handle = engine.load(bundles.make_pack("books"))
    for candidates in (64, 40, 5, 64, 1):
        inputs = bundles.random_inputs(candidates, seed=candidates)
        np.testing.assert_allclose(engine.score(inputs, handle), expected("books", inputs), atol=1e-5)


def test_an_answer_is_not_overwritten_by_the_next(engine):
    handle = engine.load(bundles.make_pack("books"))
    first, again = (bundles.random_inputs(3, seed) for seed in (1, 2))
    answer = engine.score(first, handle)
    engine.score(again, handle)
    np.testing.assert_allclose(answer, expected("books", first), atol=1e-5)


def test_a_released_packs_memory_is_free_at_once_although_a_lane_was_bound_to_it(engine, cuda):
    before = len(cuda.memory)
    handle = engine.load(bundles.make_pack("books"))
    engine.score(bundles.random_inputs(3, 0), handle)
    assert len(cuda.memory) == before + 1
    engine.release(handle)
    gc.collect()
    assert len(cuda.memory) == before


def test_a_new_pack_at_the_address_of_an_old_one_is_bound_anew(engine, cuda):
    inputs = bundles.random_inputs(3, 0)
    old = engine.load(bundles.make_pack("books"))
    (address,) = {address for name, address in old.pack.addresses if name == "pack.bias"}
    engine.score(inputs, old)
    engine.release(old)
    gc.collect()
    cuda._next = min(address, cuda._next)
    new = engine.load(bundles.make_pack("films"))
    np.testing.assert_allclose(engine.score(inputs, new), expected("films", inputs), atol=1e-5)


def test_a_pack_released_while_it_scores_lasts_until_the_answer(engine, cuda, monkeypatch):
    handle, inputs = engine.load(bundles.make_pack("books")), bundles.random_inputs(3, 0)
    wait = cuda.cudaStreamSynchronize

    def release_first(stream):
        if handle.pack is not None:
            engine.release(handle)
            gc.collect()
        return wait(stream)

    monkeypatch.setattr(cuda, "cudaStreamSynchronize", release_first)
    np.testing.assert_allclose(engine.score(inputs, handle), expected("books", inputs), atol=1e-5)


def test_close_gives_everything_back(built):
    bundle, cuda = built
    engine = tensorrt.open(bundle, 1)
    handle = engine.load(bundles.make_pack("books"))
    engine.score(bundles.random_inputs(70, 0), handle)
    engine.close()
    engine.close()
    del engine
    gc.collect()
    assert (cuda.memory, cuda.host, cuda.streams) == ({}, {}, {})


def test_threads_in_both_profiles(engine):
    handles = {name: engine.load(bundles.make_pack(name)) for name in bundles.DOMAINS}
    cases = [
        (name, bundles.random_inputs(1 + 7 * turn % 90, turn)) for turn in range(100) for name in handles
    ]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda case: engine.score(case[1], handles[case[0]]), cases))
    for (name, inputs), logit in zip(cases, answers, strict=True):
        np.testing.assert_allclose(logit, expected(name, inputs), atol=1e-5)


def test_a_device_without_memory_refuses_a_pack_and_serves_on(engine, cuda):
    handle, inputs = engine.load(bundles.make_pack("books")), bundles.random_inputs(3, 0)
    cuda.free_bytes = 100
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
        engine.load(bundles.make_pack("films"))
    np.testing.assert_allclose(engine.score(inputs, handle), expected("books", inputs), atol=1e-5)


def test_a_failed_run_has_tensorrts_words_and_the_next_one_is_right(engine, monkeypatch):
    handle, inputs = engine.load(bundles.make_pack("books")), bundles.random_inputs(3, 0)
    lane = engine._of_fields._lanes[4]
    log = lane._context._engine.logger

    def fails(stream):
        log.log(log.ERROR, "out\nof order")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(lane._context, "execute_async_v3", fails)
        with pytest.raises(EngineError, match="TensorRT does not take to run: out of order"):
            engine.score(inputs, handle)
    other = bundles.random_inputs(2, 1)
    np.testing.assert_allclose(engine.score(other, handle), expected("books", other), atol=1e-5)


def test_after_a_pack_that_was_bound_by_half_the_one_before_is_bound_anew(engine, monkeypatch):
    handles = {name: engine.load(bundles.make_pack(name)) for name in bundles.DOMAINS}
    inputs = bundles.random_inputs(3, 0)
    engine.score(inputs, handles["books"])
    context = engine._of_fields._lanes[4]._context
    take = context.set_tensor_address
    with monkeypatch.context() as patch:
        patch.setattr(context, "set_tensor_address", lambda name, at: name != "pack.rows" and take(name, at))
        with pytest.raises(
            EngineError, match=r"TensorRT does not take pack\.rows: TensorRT does not say why"
        ):
            engine.score(inputs, handles["films"])
    for name, handle in handles.items():
        np.testing.assert_allclose(engine.score(inputs, handle), expected(name, inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["item.ids", "request.numbers"])
def test_an_input_that_is_missing_is_named(engine, name):
    inputs = bundles.random_inputs(3, 0)
    del inputs[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        engine.score(inputs, engine.load(bundles.make_pack("books")))


@contextmanager
def refused(why):
    with pytest.raises(BundleError, match=why) as caught:
        yield
    assert "cannot be opened" in str(caught.value)


def table_of(bundle):
    return bundle.path / "engines" / "sm_90" / "plans.json"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"capability": (8, 9)}, "there is no .*sm_89/plans.json; build it here: python -m export engine"),
        (
            {"version": "11.3.0.9"},
            r"it is for TensorRT 11\.4\.0\.106, and this is 11\.3\.0\.9; build it here",
        ),
        ({"name": "tensorrt_lean"}, "built without --version-compatible, and this is the lean runtime"),
    ],
    ids=lambda of: next(iter(of)) if isinstance(of, dict) else "",
)
def test_plans_for_another_machine_are_refused(built, other, why):
    with gpu(**other), refused(why):
        tensorrt.open(built[0], 1)


def test_plans_of_another_bundle_or_graph_are_refused(built):
    bundle, _ = built
    table = table_of(bundle)
    whole = table.read_text()
    table.write_text(whole.replace('"tiny-00000000"', '"tiny-ffffffff"'))
    with refused("it is for bundle tiny-ffffffff, and this is tiny-00000000"):
        tensorrt.open(bundle, 1)
    table.write_text(whole)
    files = {**bundle.manifest.files, "graph.onnx": "0" * 64}
    changed = bundle.manifest.model_copy(update={"files": files})
    with refused("graph.onnx has changed since"):
        tensorrt.open(Bundle(bundle.path, changed, bundle.schema, bundle.items), 1)
    halves = ItemHalves(graph="rows.onnx", maker="halves.onnx", tables={})
    more = bundle.manifest.model_copy(update={"item_halves": halves})
    with refused("it has no plan of rows.onnx"):
        tensorrt.open(Bundle(bundle.path, more, bundle.schema, bundle.items), 1)


def test_a_damaged_table_or_plan_is_refused(built):
    bundle, _ = built
    plan = table_of(bundle).parent / "graph.plan"
    plan.write_bytes(plan.read_bytes() + b"!")
    with refused(r"graph\.plan .*: it is missing or damaged"):
        tensorrt.open(bundle, 1)
    plan.unlink()
    with refused(r"graph\.plan .*: it is missing or damaged"):
        tensorrt.open(bundle, 1)
    table_of(bundle).write_text("{}")
    with refused("validation errors"):
        tensorrt.open(bundle, 1)


def test_a_plan_that_tensorrt_does_not_read_is_refused_in_its_words(built):
    bundle, _ = built
    table = json.loads(table_of(bundle).read_text())
    with gpu(version="11.5.0.1"):
        table_of(bundle).write_text(json.dumps({**table, "tensorrt": "11.5.0.1"}))
        with refused("The engine plan file is not compatible with this version"):
            tensorrt.open(bundle, 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"sizes": [4, 32]}, "its profiles are not"), ({"sizes": [4]}, "its profiles are not")],
)
def test_a_plan_that_is_not_what_its_table_says_is_refused(built, change, why):
    bundle, _ = built
    table = json.loads(table_of(bundle).read_text())
    table["plans"][0] |= change
    table_of(bundle).write_text(json.dumps(table))
    with refused(why):
        tensorrt.open(bundle, 1)


def test_the_lean_runtime_loads_what_was_built_for_it(built):
    bundle, _ = built
    plans.build(bundle, bundle.path / "engines", SIZES, version_compatible=True)
    with gpu(name="tensorrt_lean"):
        engine = tensorrt.open(bundle, 1)
        inputs = bundles.random_inputs(3, 0)
        found = engine.score(inputs, engine.load(bundles.make_pack("books")))
        np.testing.assert_allclose(found, expected("books", inputs), atol=1e-5)
        engine.close()


def test_tensorrt_10_takes_the_same_way(tmp_path):
    with gpu(version="10.16.1.11"):
        bundle = bundles.make_bundle(tmp_path / "tiny")
        plans.build(bundle, bundle.path / "engines", SIZES)
        engine = tensorrt.open(bundle, 1)
        inputs = bundles.random_inputs(3, 0)
        found = engine.score(inputs, engine.load(bundles.make_pack("books")))
        np.testing.assert_allclose(found, expected("books", inputs), atol=1e-5)
        engine.close()


def test_the_service_ranks_with_it_and_takes_a_new_pack(built, tmp_path):
    bundle, _ = built
    publish = Publisher(f"directory:{tmp_path / 'store'}")
    publish.raw(dict(bundle.packs()))
    tuned, answers = bundles.make_pack("books", seed=7), {}
    for engine in ("ort", "tensorrt"):
        publish(bundles.make_pack("books"))
        with running(bundle, publish.url, engine=engine) as service:
            eventually(service.ready)
            answers[engine] = [service.rank(ids=[10, 11, 12, 13, 99]).json()]
            publish(tuned)
            eventually(partial(service.serves, tuned))
            answers[engine].append(service.rank(ids=[13, 10]).json())
    for one, other in zip(*answers.values(), strict=True):
        assert (one["ids"], one["pack"]) == (other["ids"], other["pack"])
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_without_tensorrt_or_a_gpu_it_says_so_in_a_line(built, monkeypatch):
    bundle, cuda = built
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "cudaGetDevice", lambda: (type(cuda.cudaMemcpyKind(1))(2), None))
        patch.setattr(cuda, "cudaGetErrorString", lambda error: (0, b"no CUDA-capable device is detected"))
        with refused("CUDA error 2: no CUDA-capable device is detected"):
            tensorrt.open(bundle, 1)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with refused("TensorRT is not installed: see docs/tensorrt.md"):
        tensorrt.open(bundle, 1)


def test_a_library_that_misses_its_own_says_what(built, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text(
        "raise ImportError('libnvinfer.so.11: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with refused(r"tensorrt cannot be imported: libnvinfer\.so\.11"):
        tensorrt.open(built[0], 1)


def test_a_runtime_that_cannot_be_made_is_an_error_of_ours(built, monkeypatch):
    """The published bindings, without a library that answers, raise this TypeError."""
    trt = sys.modules["tensorrt"]

    def none(logger):
        logger.log(logger.ERROR, "CUDA initialization failure")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Runtime", none)
    with refused("TensorRT makes no runtime: CUDA initialization failure"):
        tensorrt.open(built[0], 1)
    monkeypatch.setattr(trt, "Builder", none)
    with pytest.raises(EngineError, match="TensorRT makes no builder: CUDA initialization failure"):
        plans.build(built[0], built[0].path / "engines", SIZES)


def test_importing_the_engine_imports_neither_library():
    code = "import sys, service.engines.tensorrt, export.engine; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = set(done.stdout.split())
    assert not {"tensorrt", "tensorrt_lean", "cuda", "cuda.bindings", "cuda.bindings.runtime"} & there


@pytest.fixture
def halved(built):
    """The tiny bundle with a second graph, whose table gives an item's whole logit but the request's part."""
    bundle, cuda = built
    path = bundle.path.with_name("halved")
    shutil.copytree(bundle.path, path)
    proto = onnx.load(str(path / "graph.onnx"))
    items = [value for value in proto.graph.input if value.name.startswith("item.")]
    rest = [value for value in proto.graph.input if not value.name.startswith("item.")]
    widths = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in items}
    types = {value.name: value.type.tensor_type.elem_type for value in items}
    tables = {name.replace("item.", "items."): name for name in widths}
    value = onnx.helper.make_tensor_value_info
    rows = value("item.rows", onnx.TensorProto.INT32, ["B"])
    inputs = [
        *rest,
        rows,
        *(value(table, types[name], ["N", widths[name]]) for table, name in tables.items()),
    ]
    for node in proto.graph.node:  # the tiny graph has a tensor of this name already
        for names in (node.input, node.output):
            names[:] = ["item.looked_up" if name == "item.rows" else name for name in names]
    nodes = [onnx.helper.make_node("Gather", [table, "item.rows"], [name]) for table, name in tables.items()]
    nodes += proto.graph.node
    for field, values in (("input", inputs), ("node", nodes)):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(values)
    onnx.save(proto, path / "rows.onnx")
    halves = ItemHalves(
        graph="rows.onnx",
        maker="rows.onnx",
        tables={table: f"items/{table.removeprefix('items.')}.npy" for table in tables},
    )
    manifest = bundle.manifest.model_copy(update={"item_halves": halves})
    whole = Bundle(path, manifest, bundle.schema, bundle.items)
    plans.build(whole, path / "engines", SIZES)
    return whole, cuda


def by_rows(rows, seed=3):
    inputs = bundles.random_inputs(1, seed)
    request = {name: array for name, array in inputs.items() if name.startswith("request.")}
    return {**request, "item.rows": np.array(rows, np.int32)}


def by_fields(inputs, tables):
    rows = inputs["item.rows"]
    fields = {name.replace("items.", "item."): table[rows] for name, table in tables.items()}
    return {**inputs, **fields}


def test_tables_are_copied_once_and_another_version_may_be_longer(halved):
    bundle, cuda = halved
    engine = tensorrt.open(bundle, 1)
    handle = engine.load(bundles.make_pack("books"))
    own, old = by_rows([1, 0, 4, 2, 2]), dict(bundle.tables)
    new = {name: np.concatenate([table, table[::-1]]) for name, table in old.items()}
    before = len(cuda.memory)
    for inputs, tables in (
        (own, old),
        (by_rows([9, 5], 4) | new, new),
        (by_rows([3, 1], 5) | old, old),
        (by_rows([7, 7, 0], 6) | new, new),
    ):
        found = engine.score(inputs, handle)
        np.testing.assert_allclose(found, expected("books", by_fields(inputs, tables)), atol=1e-5)
    assert len(cuda.memory) == before + 2
    third = {name: table[::-1].copy() for name, table in old.items()}  # of the same shapes
    inputs = by_rows([1, 2]) | third
    found = engine.score(inputs, handle)
    np.testing.assert_allclose(found, expected("books", by_fields(inputs, third)), atol=1e-5)
    gc.collect()
    assert len(cuda.memory) == before + 2
    engine.close()


def test_a_table_longer_than_the_plan_allows_is_refused(halved, monkeypatch):
    bundle, _ = halved
    monkeypatch.setattr(plans, "_FEW_ROWS", 1)
    plans.build(bundle, bundle.path / "engines", SIZES)
    engine = tensorrt.open(bundle, 1)
    longer = {name: np.resize(table, (21, *table.shape[1:])) for name, table in bundle.tables.items()}
    # The bundle's has 5 rows, so the plan allows 20.
    with pytest.raises(ItemsError, match="has 21 rows; the plan was built for 20 at most"):
        engine.score(by_rows([20]) | longer, engine.load(bundles.make_pack("books")))
    engine.close()
