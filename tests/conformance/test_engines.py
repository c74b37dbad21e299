"""What every engine promises, checked for every file in `service.engines`.

Expected logits are numpy's, from the same weights (`tests.service.bundles.logits`). TensorRT and its GPU are
fakes (`tests.service.fake_gpu`).
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from export import engine as plans
from service.contract import plugins
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.manifest import ItemHalves
from service.contract.pack import DomainPack
from tests.service import bundles
from tests.service.fake_gpu import gpu

OPTIONS = plugins.names("service.engines")
SCORING = [name for name in OPTIONS if name != "null"]


@pytest.fixture(scope="module", autouse=True)
def device():
    with gpu():
        yield


@pytest.fixture(scope="module")
def bundle(device, tmp_path_factory):
    bundle = bundles.with_many(bundles.make_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))
    plans.build(bundle, bundle.path / "engines", (4, 64))
    return bundle


@pytest.fixture
def engine(request, bundle):
    engine = plugins.load("service.engines", request.param).open(bundle, 1)
    yield engine
    engine.close()


every = pytest.mark.parametrize("engine", OPTIONS, indirect=True)
scoring = pytest.mark.parametrize("engine", SCORING, indirect=True)


@scoring
@pytest.mark.parametrize("candidates", [1, 7, 1000])
def test_parity_with_numpy(engine, candidates):
    pack, inputs = bundles.make_pack("books"), bundles.random_inputs(candidates, seed=candidates)
    logit = engine.score(inputs, engine.load(pack))
    assert logit.dtype == np.float32
    np.testing.assert_allclose(logit, bundles.logits(pack.tensors, inputs), atol=1e-5)


@scoring
def test_two_packs_do_not_mix(engine):
    packs = [bundles.make_pack("books"), bundles.make_pack("films")]
    handles = [engine.load(pack) for pack in packs]
    for turn in range(6):
        inputs = bundles.random_inputs(5, seed=turn)
        expected = bundles.logits(packs[turn % 2].tensors, inputs)
        np.testing.assert_allclose(engine.score(inputs, handles[turn % 2]), expected, atol=1e-5)


@scoring
def test_a_row_does_not_depend_on_its_neighbours(engine):
    handle, inputs = engine.load(bundles.make_pack("books")), bundles.random_inputs(9, seed=1)
    together = engine.score(inputs, handle)
    for at in range(9):
        alone = {k: v[at : at + 1] if k.startswith("item.") else v for k, v in inputs.items()}
        np.testing.assert_allclose(engine.score(alone, handle), together[at : at + 1], atol=1e-6)


@scoring
def test_what_was_loaded_does_not_change_with_the_arrays_it_came_from(engine):
    pack, inputs = bundles.make_pack("books"), bundles.random_inputs(3, seed=2)
    handle = engine.load(pack)
    before = engine.score(inputs, handle)
    pack.tensors["bias"][:] = 100
    np.testing.assert_array_equal(engine.score(inputs, handle), before)


@scoring
def test_each_loading_is_released_by_itself(engine):
    first, again = engine.load(bundles.make_pack("books")), engine.load(bundles.make_pack("books"))
    assert first.nbytes == again.nbytes == sum(4 * int(np.prod(shape)) for shape in bundles.OWNED.values())
    inputs = bundles.random_inputs(2, seed=0)
    expected = engine.score(inputs, first)
    engine.release(first)
    np.testing.assert_array_equal(engine.score(inputs, again), expected)
    engine.release(again)
    with pytest.raises(ValueError, match="released"):
        engine.score(inputs, again)


def fixed(tensor):
    """The same numbers in memory that nobody can write to."""
    return np.frombuffer(tensor.tobytes(), tensor.dtype).reshape(tensor.shape)


@scoring
@pytest.mark.parametrize(
    "laid",
    [np.asfortranarray, lambda tensor: np.repeat(tensor, 2, 0)[::2], lambda tensor: tensor.copy(), fixed],
    ids=["columns", "strided", "writeable", "fixed"],
)
def test_however_the_arrays_lie_the_scores_are_numpys(engine, laid):
    pack, inputs = bundles.make_pack("books"), bundles.random_inputs(4, seed=5)
    tensors = {name: laid(tensor) for name, tensor in pack.tensors.items()}
    for tensor in tensors.values():
        if laid is not fixed:
            tensor.flags.writeable = True
    other = DomainPack(pack.bundle, "books", tensors, pack.golden, pack.calibration)
    np.testing.assert_allclose(
        engine.score(inputs, engine.load(other)), bundles.logits(pack.tensors, inputs), atol=1e-5
    )


def test_the_cpu_reads_what_nobody_can_write_to_where_it_lies_and_copies_the_rest(bundle):
    engine = plugins.load("service.engines", "ort").open(bundle, 1)
    pack = bundles.make_pack("books")
    copied = engine.load(pack)
    assert not any(
        np.shares_memory(copied.tensors[f"pack.{name}"], tensor) for name, tensor in pack.tensors.items()
    )
    pack = DomainPack(
        pack.bundle, "books", {name: fixed(tensor) for name, tensor in pack.tensors.items()}, pack.golden
    )
    read = engine.load(pack)
    for name, tensor in pack.tensors.items():
        assert np.shares_memory(read.tensors[f"pack.{name}"], tensor)
    engine.close()


@every
def test_a_released_handle_is_refused(engine):
    handle, inputs = engine.load(bundles.make_pack("books")), bundles.random_inputs(2, seed=0)
    assert engine.score(inputs, handle).shape == (2,)
    engine.release(handle)
    for use in (lambda: engine.score(inputs, handle), lambda: engine.release(handle)):
        with pytest.raises(ValueError, match="released"):
            use()


@scoring
def test_handles_are_refused_after_close(engine):
    handle = engine.load(bundles.make_pack("books"))
    engine.close()
    with pytest.raises(ValueError, match="released"):
        engine.score(bundles.random_inputs(1, seed=0), handle)


@scoring
def test_threads_agree_with_one_another(engine):
    packs = [bundles.make_pack("books"), bundles.make_pack("films")]
    handles = [engine.load(pack) for pack in packs]
    cases = [(turn % 2, bundles.random_inputs(1 + turn % 13, seed=turn)) for turn in range(200)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda case: engine.score(case[1], handles[case[0]]), cases))
    for (which, inputs), logit in zip(cases, answers, strict=True):
        np.testing.assert_allclose(logit, bundles.logits(packs[which].tensors, inputs), atol=1e-5)


@scoring
def test_a_graph_that_cannot_be_read_is_refused(engine, bundle, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    broken = Bundle(tmp_path, bundle.manifest, bundle.schema, bundle.items)
    with pytest.raises(BundleError, match="cannot be opened"):
        plugins.load("service.engines", type(engine).__module__).open(broken, 1)


@pytest.fixture(scope="module")
def with_halves(bundle, tmp_path_factory):
    """The tiny bundle with a second graph: the first, behind a look-up in tables of items' fields."""
    path = tmp_path_factory.mktemp("halves") / "tiny"
    shutil.copytree(bundle.path, path)
    onnx.save(bundles.make_rows_graph(), path / "rows.onnx")
    halves = ItemHalves(
        graph="rows.onnx",
        maker="rows.onnx",
        tables={f"items.{name}": f"items/{name}.npy" for name in ("ids", "numbers")},
    )
    manifest = bundle.manifest.model_copy(update={"item_halves": halves})
    whole = bundles.with_many(Bundle(path, manifest, bundle.schema, bundle.items))
    plans.build(whole, path / "engines", (4, 64))
    return whole


@pytest.mark.parametrize("name", SCORING)
@pytest.mark.parametrize("rows", [[1], [0, 2, 2, 4], list(range(5)) * 40], ids=len)
def test_candidates_given_by_rows_score_as_by_fields(with_halves, name, rows):
    engine = plugins.load("service.engines", name).open(with_halves, 1)
    pack, inputs = bundles.make_pack("books"), bundles.random_inputs(1, seed=3)
    taken = with_halves.items.inputs.take(np.array(rows))
    request = {key: value for key, value in inputs.items() if key.startswith("request.")}
    expected = bundles.logits(pack.tensors, {**request, "item.ids": taken.ids, "item.numbers": taken.numbers})
    handle = engine.load(pack)
    found = engine.score({**request, "item.rows": np.array(rows, np.int32)}, handle)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    by_fields = {**request, "item.ids": taken.ids, "item.numbers": taken.numbers}
    np.testing.assert_allclose(engine.score(by_fields, handle), expected, atol=1e-5)
    engine.close()


@scoring
def test_rows_are_refused_where_there_is_no_graph_for_them(engine):
    inputs = {**bundles.random_inputs(1, seed=0), "item.rows": np.zeros(1, np.int32)}
    with pytest.raises(ValueError, match="no item halves"):
        engine.score(inputs, engine.load(bundles.make_pack("books")))


def test_the_cpu_reads_tables_where_they_are_mapped(with_halves):
    engine = plugins.load("service.engines", "ort").open(with_halves, 1)
    for name, table in with_halves.tables.items():
        assert isinstance(table.base, np.memmap)
        assert np.shares_memory(engine._tables[name], table)
    engine.close()


def test_null_answers_0_for_every_row(with_halves):
    engine = plugins.load("service.engines", "null").open(with_halves, 1)
    handle = engine.load(bundles.make_pack("books"))
    assert engine.score({"item.rows": np.zeros(7, np.int32)}, handle).tolist() == [0.0] * 7


def test_null_answers_0_for_every_candidate(bundle):
    engine = plugins.load("service.engines", "null").open(bundle, 1)
    logit = engine.score(bundles.random_inputs(5, seed=0), engine.load(bundles.make_pack("books")))
    assert logit.tolist() == [0.0] * 5
