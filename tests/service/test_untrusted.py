"""What others can write to: a store, and the files of a bundle. Nothing of it leads anywhere else."""

import asyncio
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.contract import hashing
from service.contract.bundle import Bundle
from service.contract.errors import BundleError, StoreError
from service.contract.index import Index
from service.contract.manifest import Manifest
from service.engines import ort
from service.stores import redis as redis_store
from service.stores._open import open_store
from service.users import redis as redis_users
from service.users._protocol import Damaged
from tests.service import bundles
from tests.service.caching import caching, in_loop, soon, version_of
from tests.service.conftest import Publisher

# A store


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"books": 0}',
        b'{"books": false}',
        b'{"books": ["x"]}',
        b'{"books": "\\ud800"}',
        b'{"\\ud800": "x"}',
        b'{"books": ' + b"[" * 50_000,
        b'{"books": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_an_entry_that_is_no_promotion_is_a_store_error(text):
    with pytest.raises(StoreError) as refused:
        redis_store._versions({b"versions": text})
    assert len(str(refused.value)) < 400
    with pytest.raises(StoreError):
        redis_store._versions({b"other": text})


@pytest.mark.parametrize(
    "told",
    [
        {"version": 1, "time": 1},
        {"version": "x", "time": "1"},
        {"version": "x", "time": True},
        {"version": "x", "time": -1},
        {"version": "x", "time": 10**400},
        {"version": "x", "time": float("nan")},
        {"version": "x", "time": 1, "run": 5},
        {"version": "\ud800", "time": 1},
        {"version": "x"},
        [],
        None,
    ],
    ids=lambda told: str(told)[:40],
)
def test_an_entry_of_a_history_that_is_none_is_a_store_error(told, tmp_path):
    with pytest.raises(StoreError):
        redis_store._promotion(json.dumps(told).encode())
    folder = tmp_path / bundles.BUNDLE
    folder.mkdir()
    (folder / "live.json").write_text(json.dumps({"live": {}, "history": {"books": [told]}}))
    with pytest.raises(StoreError):
        asyncio.run(open_store(f"directory:{tmp_path}", bundles.BUNDLE).history("books"))


@pytest.mark.parametrize("live", [{"books": 1}, {"books": ["x"]}, {"\ud800": "x"}, ["books"], "books"])
def test_what_is_live_is_texts(live, tmp_path):
    folder = tmp_path / bundles.BUNDLE
    folder.mkdir()
    (folder / "live.json").write_text(json.dumps({"live": live, "history": {}}))
    with pytest.raises(StoreError):
        asyncio.run(open_store(f"directory:{tmp_path}", bundles.BUNDLE).live())


@pytest.mark.parametrize("name", ["../x", "", "A", "a/b"])
@in_loop
async def test_a_name_that_no_domain_has_keeps_nothing_from_being_served(bundle, tmp_path, name):
    """It is refused, and not looked for again and again instead of what comes behind it."""
    url = f"directory:{tmp_path}"
    await asyncio.to_thread(Publisher(url).raw, dict(bundle.packs()))
    path = tmp_path / bundles.BUNDLE / "live.json"
    state = json.loads(path.read_text())
    state["live"] = {name: "0123456789abcdef", **state["live"]}
    path.write_text(json.dumps(state))
    store = open_store(url, bundles.BUNDLE)
    async with caching(store, bundle) as cache:
        await cache.settled()
        await soon(lambda: {"books", "films"} <= cache.serving().keys())
        assert name in cache.packs.refused
        new = bundles.make_pack("films", 4)
        await asyncio.to_thread(Publisher(url), new)
        await soon(lambda: cache.serving()["films"] == version_of(new))


def test_a_key_that_ends_in_a_nul_is_itself():
    assert Index(("b\x00", "a")).positions(["b", "b\x00", "a"]).tolist() == [-1, 0, 1]


def test_a_click_of_a_time_that_is_none_is_damage():
    with pytest.raises(Damaged):
        redis_users._recent(b'[%s,"books",10]' % (b"9" * 400))


# A bundle


def listed(folder, **changes):
    """Write a folder's manifest anew, with changes and the checksums of what lies there."""
    whole = json.loads((folder / "manifest.json").read_text())
    whole |= changes
    for name in whole["files"]:
        if (folder / name).is_file():
            whole["files"][name] = hashing.file(folder / name)
    (folder / "manifest.json").write_text(json.dumps(whole))


@pytest.fixture
def folder(bundle, tmp_path):
    return shutil.copytree(bundle.path, tmp_path / "bundle")


OUTSIDE = ["../outside", "/etc/passwd", "a/../../b", "..", "", "a\\b", "a\nb", "a\x00b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_names_files_of_its_own_folder_alone(folder, name):
    whole = json.loads((folder / "manifest.json").read_text())
    digest = "0" * 64
    halves = {"graph": "graph.onnx", "maker": "graph.onnx", "tables": {"items.ids": "graph.onnx"}}
    for changes in (
        {"graph": name},
        {"files": {**whole["files"], name: digest}},
        {"item_halves": {**halves, "graph": name}},
        {"item_halves": {**halves, "maker": name}},
        {"item_halves": {**halves, "tables": {"items.ids": name}}},
        {"many": {"float32": {"fields": name}}},
        {"many": {"float32": {"fields": "graph.onnx", "rows": name}}},
    ):
        listed(folder, **{**whole, **changes})
        with pytest.raises(BundleError, match=r"not a file within|without a checksum"):
            Manifest.load(folder / "manifest.json")


def test_what_is_read_has_a_checksum(folder):
    (folder / "other.onnx").write_bytes(b"x")
    listed(folder, graph="other.onnx")
    with pytest.raises(BundleError, match=r"without a checksum: other\.onnx"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "changes", [{"domains": ["../x"]}, {"domains": ["A"]}, {"bundle": "../x"}, {"bundle": ".x"}]
)
def test_names_of_a_manifest_cannot_become_other_paths(folder, changes):
    listed(folder, **changes)
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_a_link_may_lead_within_a_bundle_and_not_out_of_it(folder, tmp_path):
    data = folder / "..data"
    data.mkdir()
    (folder / "graph.onnx").rename(data / "graph.onnx")
    (folder / "graph.onnx").symlink_to("..data/graph.onnx")
    (tmp_path / "named").symlink_to(folder)
    assert Bundle.open(tmp_path / "named").graph.is_file()
    (data / "graph.onnx").rename(tmp_path / "graph.onnx")
    (folder / "graph.onnx").unlink()
    (folder / "graph.onnx").symlink_to(tmp_path / "graph.onnx")
    with pytest.raises(BundleError, match=r"graph\.onnx leads out of it"):
        Bundle.open(folder)


def test_a_manifest_is_not_read_beyond_its_bound(folder, monkeypatch):
    monkeypatch.setattr("service.contract.manifest._LARGEST", 100)
    with pytest.raises(BundleError, match="more than 100 bytes"):
        Bundle.open(folder)


def outside(location):
    """A graph with an initializer that lies in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "logit")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["logit"])], "g", value[:1], value[1:], [tensor]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    "location", ["../outside.bin", "ABSOLUTE", "link.bin", "a/../../outside.bin", "missing.bin"]
)
def test_a_graph_reads_weights_of_its_own_folder_alone(tmp_path, location):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "a").mkdir()
    numbers = np.arange(4, dtype=np.float32)
    (tmp_path / "outside.bin").write_bytes(numbers.tobytes())
    (folder / "inside.bin").write_bytes(numbers.tobytes())
    (folder / "link.bin").symlink_to("../outside.bin")
    onnx.save(outside("inside.bin"), folder / "graph.onnx")
    found = ort.session(folder / "graph.onnx", 1).run(None, {"x": numbers})[0]
    np.testing.assert_array_equal(found, 2 * numbers)
    given = str(tmp_path / "outside.bin") if location == "ABSOLUTE" else location
    (folder / "graph.onnx").write_bytes(outside(given).SerializeToString())
    with pytest.raises(BundleError, match="External data path"):
        ort.session(folder / "graph.onnx", 1)
