"""The engine of many requests: on the CPU's provider here, on a GPU with `pytest -m gpu`.

Expected logits are numpy's, from the same weights (`tests.service.bundles.logits`).
"""

import asyncio
import shutil
import weakref
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from service.contract.bundle import Bundle
from service.contract.errors import BundleError, DeadlineExceeded, EngineError, SettingsError
from service.contract.manifest import ItemHalves
from service.engines import ort_cuda
from service.engines._host import Host
from service.engines._launch import Launch
from service.engines.ort_cuda import Options, OrtCudaEngine
from service.features import RequestEncoder
from service.resident import Resident
from service.runtime import open_engine
from service.scoring import Scorer
from service.settings import Settings
from tests.service import bundles
from tests.service.conftest import Publisher, running
from tests.service.waiting import eventually

CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
MIXES = 300
WHERE = [
    pytest.param(("cpu", MIXES), id="cpu"),
    pytest.param(
        ("cuda", 10_000),
        id="cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="there is no GPU of CUDA")],
    ),
]
SMALL = {"candidates": 4, "pieces": (1, 2, 8), "slots": 6}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The tiny bundle, with tables of items, and a graph over them."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    made = bundles.make_bundle(path)
    halves = ItemHalves(
        graph="rows.onnx",
        maker="rows.onnx",
        tables={f"items.{name}": f"items/{name}.npy" for name in ("ids", "numbers")},
    )
    onnx.save(bundles.make_rows_graph(), path / "rows.onnx")
    manifest = made.manifest.model_copy(update={"item_halves": halves})
    return bundles.with_many(Bundle(path, manifest, made.schema, made.items))


@pytest.fixture
def opened(bundle):
    engines = []

    def open_(device="cpu", **options):
        engines.append(ort_cuda.open(bundle, 1, Options(device=device, **{**SMALL, **options})))
        return engines[-1]

    yield open_
    for engine in engines:
        engine.close()


def asked(bundle, seed):
    """A request by its fields or by rows, and what numpy reads of it."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 23))
    inputs = bundles.random_inputs(count, seed)
    if seed % 2:
        return inputs, inputs
    rows = draw.integers(0, len(bundle.items) + 1, count).astype(np.int32)
    taken = bundle.items.inputs.take(rows)
    request = {name: each for name, each in inputs.items() if name.startswith("request.")}
    return {**request, "item.rows": rows}, {**request, "item.ids": taken.ids, "item.numbers": taken.numbers}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_random_mixes_are_answered_as_alone_while_packs_are_swapped(bundle, opened, where, dtype):
    device, mixes = where
    engine = opened(device, dtype=dtype)
    packs = [bundles.make_pack("books", seed) for seed in range(12)]  # twice as many as slots
    requests = [asked(bundle, seed) for seed in range(40)]
    expected = [[bundles.logits(pack.tensors, known) for _, known in requests] for pack in packs]
    handles = [engine.load(pack) for pack in packs]

    async def mix(seed):
        draw = np.random.default_rng([7, seed])
        chosen = [(int(draw.integers(12)), int(draw.integers(40))) for _ in range(draw.integers(1, 9))]
        futures = [engine.submit(requests[at][0], handles[pack]) for pack, at in chosen]
        if draw.random() < 0.3:
            gone = chosen[-1][0]
            old, handles[gone] = handles[gone], engine.load(packs[gone])
            engine.release(old)
        for (pack, at), logit in zip(chosen, await asyncio.gather(*futures), strict=True):
            np.testing.assert_allclose(logit, expected[pack][at], rtol=0, atol=1e-5)

    async def all_of_them():
        left = iter(range(mixes))

        async def some():
            for seed in left:
                await mix(seed)

        await asyncio.gather(*(some() for _ in range(4)))

    asyncio.run(all_of_them())
    assert engine.line.launches < engine.line.jobs  # some did go together
    assert engine.resident <= 6


@pytest.mark.parametrize("where", WHERE)
def test_a_request_longer_than_a_launch_is_answered_in_parts(opened, where):
    engine = opened(where[0])
    pack, inputs = bundles.make_pack("books"), bundles.random_inputs(101, seed=1)  # 8 pieces of 4 are 32
    logit = engine.score(inputs, engine.load(pack))
    np.testing.assert_allclose(logit, bundles.logits(pack.tensors, inputs), atol=1e-5)


def test_a_pack_is_brought_to_the_device_once_and_again_after_it_had_to_go(opened, monkeypatch):
    engine = opened(slots=2)
    written, write = [], engine._stacks.write

    def watched(slot, *rest):
        written.append(slot)
        write(slot, *rest)

    monkeypatch.setattr(engine._stacks, "write", watched)
    handles = [engine.load(bundles.make_pack("books", seed)) for seed in range(3)]
    inputs = bundles.random_inputs(1, seed=0)
    for at in (0, 1, 0, 2, 0, 1):
        engine.score(inputs, handles[at])
    assert written == [0, 1, 1, 1]
    assert engine.resident == 2
    engine.release(handles[0])
    engine.line.do(lambda: None)
    assert engine.resident == 1


def test_another_edition_of_the_items_has_launches_of_its_own(bundle, opened):
    engine = opened()
    pack = bundles.make_pack("books")
    handle = engine.load(pack)
    request = {k: v for k, v in bundles.random_inputs(1, seed=3).items() if k.startswith("request.")}
    rows = np.array([1, 2, 3], np.int32)
    for turn in range(4):
        tables = {
            "items.ids": np.roll(bundle.items.inputs.ids, turn, 0).copy(),
            "items.numbers": np.roll(bundle.items.inputs.numbers, turn, 0).copy(),
        }
        known = {
            **request,
            "item.ids": tables["items.ids"][rows],
            "item.numbers": tables["items.numbers"][rows],
        }
        for _ in range(2):
            logit = engine.score({**request, "item.rows": rows, **tables}, handle)
            np.testing.assert_allclose(logit, bundles.logits(pack.tensors, known), atol=1e-5)
        assert len(engine._editions) <= 2
    own = bundle.items.inputs.take(rows)
    logit = engine.score({**request, "item.rows": rows}, handle)
    expected = bundles.logits(pack.tensors, {**request, "item.ids": own.ids, "item.numbers": own.numbers})
    np.testing.assert_allclose(logit, expected, atol=1e-5)


def test_what_a_request_leaves_behind_is_nobodys(opened):
    """A launch's buffer keeps what was asked before; a shorter request must not see it."""
    engine = opened(pieces=(8,))
    packs = [bundles.make_pack("books", seed) for seed in range(2)]
    handles = [engine.load(pack) for pack in packs]
    for count in (30, 1, 7, 32, 2):
        inputs = bundles.random_inputs(count, seed=count)
        at = count % 2
        logit = engine.score(inputs, handles[at])
        np.testing.assert_allclose(logit, bundles.logits(packs[at].tensors, inputs), atol=1e-5)


def test_an_engine_that_fails_says_so_to_those_it_asked_for_and_goes_on(opened, monkeypatch):
    engine = opened()
    handle, inputs = engine.load(bundles.make_pack("books")), bundles.random_inputs(2, seed=0)

    def fails(self):
        raise RuntimeError("the device fell off the bus")

    with monkeypatch.context() as patch:
        patch.setattr(Launch, "compute", fails)
        with pytest.raises(RuntimeError, match="fell off"):
            engine.score(inputs, handle)
    assert engine.score(inputs, handle).shape == (2,)
    assert engine._slots.room(range(6))  # nothing is held by what failed


def test_a_pack_whose_copy_failed_is_not_taken_for_one_that_is_there(opened, monkeypatch):
    engine = opened(slots=1)
    one, other = (bundles.make_pack("books", seed) for seed in range(2))
    inputs = bundles.random_inputs(3, seed=0)
    engine.score(inputs, engine.load(one))
    handle = engine.load(other)

    def fails(*_):
        raise EngineError("CUDA error 700: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(engine._stacks, "write", fails)
        with pytest.raises(EngineError, match="illegal"):
            engine.score(inputs, handle)
    logit = engine.score(inputs, handle)
    np.testing.assert_allclose(logit, bundles.logits(other.tensors, inputs), atol=1e-5)


@pytest.fixture
def sessions(monkeypatch):
    """Those that engines made and that are still there, and how many were when a stream was destroyed."""
    made: weakref.WeakSet[Any] = weakref.WeakSet()
    left: list[int] = []
    session = OrtCudaEngine._session

    def watched(self, *arguments):
        found = session(self, *arguments)
        made.add(found)
        return found

    monkeypatch.setattr(OrtCudaEngine, "_session", watched)
    monkeypatch.setattr(Host, "drop", lambda self, stream: left.append(len(made)))
    return made, left


def test_sessions_are_gone_before_their_stream_whoever_holds_a_launch(opened, sessions):
    made, left = sessions
    engine = opened()
    launches = [*engine.line.do(lambda: engine.prepared(rows=True)).values()]
    launches += engine.line.do(lambda: engine.prepared(rows=False)).values()
    assert len(made) == 2
    engine.close()
    assert left == [0]
    with pytest.raises(ValueError, match="closed"):
        launches[0].compute()


def test_an_engine_that_cannot_be_opened_frees_what_it_has(bundle, sessions, monkeypatch):
    made, left = sessions

    def fails(self):
        if self.pieces == 2:
            raise EngineError("CUDA error 2: out of memory")

    monkeypatch.setattr(Launch, "compute", fails)
    with pytest.raises(EngineError, match="out of memory") as kept:
        ort_cuda.open(bundle, 1, Options(device="cpu", **SMALL))
    assert left == [0]
    assert not made
    assert kept.value.__traceback__ is not None


def test_an_edition_that_went_leaves_no_session_behind(bundle, opened, sessions):
    """A session keeps all that it captured, so each edition has one of its own."""
    made, _ = sessions
    engine = opened()
    handle = engine.load(bundles.make_pack("books"))
    request = {k: v for k, v in bundles.random_inputs(1, seed=3).items() if k.startswith("request.")}
    for turn in range(5):
        tables = {
            "items.ids": np.roll(bundle.items.inputs.ids, turn, 0).copy(),
            "items.numbers": np.roll(bundle.items.inputs.numbers, turn, 0).copy(),
        }
        engine.score({**request, "item.rows": np.array([1], np.int32), **tables}, handle)
    assert len(made) == 3  # two editions, and the graph by fields


def test_a_bundle_without_such_graphs_is_refused(bundle):
    bare = bundle.manifest.model_copy(update={"many": {}})
    with pytest.raises(BundleError, match="--many"):
        ort_cuda.open(Bundle(bundle.path, bare, bundle.schema, bundle.items), 1)


@pytest.mark.skipif(CUDA, reason="there is one")
def test_a_gpu_that_is_not_there_is_refused(bundle):
    with pytest.raises(EngineError):
        ort_cuda.open(bundle, 1, Options(device="cuda"))


def test_a_table_that_nobody_can_write_to_stays_where_it_lies(opened):
    engine, pack = opened(), bundles.make_pack("books")
    handle = engine.load(pack)
    assert not any(np.shares_memory(array, pack.tensors["rows"]) for array in handle.arrays)
    pack.tensors["rows"].flags.writeable = False
    handle = engine.load(pack)
    assert any(np.shares_memory(array, pack.tensors["rows"]) for array in handle.arrays)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"pieces": [4, 2]}, "pieces"), ({"half": True}, "half"), ({"wait_us": 2000}, "wait_us")],
)
def test_options_that_make_no_sense_are_refused_by_their_name(bundle, options, words):
    settings = Settings(bundle=bundle.path, engine="ort_cuda", engine_options=options)
    with pytest.raises(SettingsError, match=f"engine ort_cuda: {words}"):
        open_engine(settings, bundle)


def test_an_engine_without_options_takes_none(bundle):
    with pytest.raises(SettingsError, match="ort has no options"):
        open_engine(Settings(bundle=bundle.path, engine_options={"x": 1}), bundle)


def test_options_come_from_the_environment(bundle, monkeypatch):
    monkeypatch.setenv("MDCTR_ENGINE_OPTIONS", '{"device": "cpu", "pieces": [1, 2], "slots": 3}')
    engine = open_engine(Settings(bundle=bundle.path, engine="ort_cuda"), bundle)
    assert isinstance(engine, ort_cuda.OrtCudaEngine)
    assert (engine.options.pieces, engine.memory["slots"]) == ((1, 2), 3)
    engine.close()


def test_slots_are_as_many_as_fit(opened):
    engine = opened(slots=100, slot_bytes=1000)
    of_one = 4 * sum(int(np.prod(shape)) for shape in bundles.OWNED.values())
    assert engine.memory == {"slot_bytes": of_one, "slots": 1000 // of_one}


def test_a_scorer_waits_for_it_and_no_longer_than_asked(bundle, opened):
    engine = opened()
    scorer = Scorer(RequestEncoder(bundle, 10), engine)
    pack = Resident("v", bundles.make_pack("books"), engine)
    assert scorer.waits

    async def ask(**how):
        return await scorer.ranked(pack, {"id": 1}, {}, [10, 99, 12], {}, **how)

    ranking = asyncio.run(ask(seconds=10.0))
    together = scorer.rank(pack, {"id": 1}, {}, [10, 99, 12], {})
    np.testing.assert_array_equal(ranking.probabilities, together.probabilities)
    assert asyncio.run(ask(top_k=1)).ids == [ranking.ids[int(np.argmax(ranking.probabilities))]]

    async def too_late():
        engine.line.later(lambda: __import__("time").sleep(0.2))
        with pytest.raises(DeadlineExceeded):
            await ask(seconds=0.01)

    asyncio.run(too_late())


def test_the_service_answers_with_it_as_with_ort(bundle, tmp_path):
    path = tmp_path / "tiny"
    shutil.copytree(bundle.path, path)
    bundle.manifest.save(path / "manifest.json")
    publisher = Publisher(f"directory:{tmp_path / 'store'}")
    publisher.raw(dict(bundle.packs()))
    answers = {}
    for engine, options in (("ort", {}), ("ort_cuda", {"device": "cpu", **SMALL})):
        with running(
            Bundle(path, bundle.manifest, bundle.schema, bundle.items),
            publisher.url,
            engine=engine,
            engine_options=options,
        ) as service:
            eventually(service.ready)
            asked_for: list[dict[str, Any]] = [
                {"ids": [10, 11, 12, 13], "user": {"id": 1, "age": 40.0}},
                {"ids": [99, 10], "items": {"brand": ["zeta", None]}},
                {"ids": [11], "top_k": 1, "user": {"genres": ["crime"]}},
            ]
            found = [service.rank(domain, **body) for body in asked_for for domain in bundles.DOMAINS]
            assert [each.status_code for each in found] == [200] * 6
            answers[engine] = [each.json()["probabilities"] for each in found]
            assert service.rank("books", user={"age": "old"}).status_code == 422
            assert service.rank("nowhere").status_code == 404
    for one, other in zip(*answers.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
