"""Item halves: what they are made of, when there are none, and that a new item table needs no export."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from export import graph, halves, parity
from export.__main__ import app
from export.bundle import build
from export.packs import named
from export.parity import by_row, row_cases
from export.servable import ScopedModel, graph_inputs
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.field import Field
from service.contract.items import ItemTable
from service.contract.pack import DomainPack
from service.contract.schema import FeatureSchema
from service.engines import ort
from tests.conftest import Trained, train
from tests.export.test_graph import AGE, ITEM_ID, MOOD, PRICE, TAGS, TEXT, USER_ID
from training import checkpoint
from training.backbones import deepfm
from training.model import Model
from training.paradigms import plate


def built(trained: Trained, out: Path, item_halves: bool | None = None) -> Bundle:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    return build(trained.recipe, trained.prepared, trained.model, metrics, out, item_halves=item_halves)


@pytest.fixture(scope="module")
def bundle(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(tiny, tmp_path_factory.mktemp("bundles"))


def proto(bundle: Bundle, name: str) -> onnx.GraphProto:
    return onnx.load(str(bundle.path / name), load_external_data=False).graph


def test_the_second_graph_reads_rows_and_tables_in_the_place_of_item_fields(bundle: Bundle) -> None:
    entry = bundle.manifest.item_halves
    assert entry is not None
    inputs = {value.name for value in proto(bundle, entry.graph).input}
    others = {spec.name for spec in bundle.manifest.inputs if spec.scope != "item"}
    assert inputs == {*others, "item.rows", *entry.tables}
    made = {value.name for value in proto(bundle, entry.maker).output}
    assert made == {name for name in entry.tables if name.startswith("items.half")}
    assert {entry.tables[name] for name in entry.tables.keys() - made} <= {
        "items/ids.npy",
        "items/numbers.npy",
    }
    assert all(len(table) == len(bundle.items) + 1 for table in bundle.tables.values())


def test_nothing_that_items_alone_decide_is_left_to_the_second_graph(bundle: Bundle) -> None:
    """The item's half of the first layer, by hand: the field vectors times the layer's weights."""
    entry = bundle.manifest.item_halves
    assert entry is not None
    read = {name for node in proto(bundle, entry.graph).node for name in node.input}
    made = {name for node in proto(bundle, entry.maker).node for name in node.input}
    assert not [name for name in read if "first.item" in name]
    assert [name for name in made if "first.item" in name]
    shapes = sorted(table.shape[1:] for name, table in bundle.tables.items() if name.startswith("items.half"))
    # One number of the FM, its sum over fields (K = 8), the layer's 8 hidden units; and what the pack's
    # first-order weights are looked up and scaled by.
    assert () in shapes
    assert shapes.count((8,)) == 2


def test_both_graphs_share_one_file_of_weights(bundle: Bundle) -> None:
    entry = bundle.manifest.item_halves
    assert entry is not None
    places: dict[str, dict[str, str]] = {}
    for name in (bundle.manifest.graph, entry.graph, entry.maker):
        for tensor in proto(bundle, name).initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                where = {each.key: each.value for each in tensor.external_data}
                assert places.setdefault(tensor.name, where) == where
    assert "servable.embedding.table" in places
    sizes = [len((bundle.path / name).read_bytes()) for name in (entry.graph, entry.maker)]
    assert max(sizes) < (bundle.path / "graph.onnx.data").stat().st_size


def scores(bundle: Bundle, by_rows: bool) -> list[np.ndarray]:
    engine = ort.open(bundle, threads=1)
    found = []
    for _, data in bundle.packs():
        handle = engine.load(DomainPack.from_bytes(data, bundle.base))
        for _, rows, arrays in row_cases(bundle.schema, bundle.items):
            given = by_row(arrays, rows, bundle.manifest.inputs)
            if not by_rows:
                del given["item.rows"]
                given |= {"item.ids": arrays[2].numpy(), "item.numbers": arrays[3].numpy()}
            found.append(np.array(engine.score(given, handle)))
    engine.close()
    return found


def agree(bundle: Bundle) -> bool:
    pairs = zip(scores(bundle, by_rows=True), scores(bundle, by_rows=False), strict=True)
    return all(np.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)


def test_a_row_scores_as_its_fields(bundle: Bundle) -> None:
    assert agree(bundle)


def test_a_new_item_table_needs_no_export(bundle: Bundle, tmp_path: Path) -> None:
    entry = bundle.manifest.item_halves
    assert entry is not None
    for part in bundle.path.glob("*.onnx*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    draw = np.random.default_rng(0)
    place = draw.permutation(len(bundle.items) + 1)[:-3]
    items = ItemTable(np.arange(len(place) - 1), bundle.items.inputs.take(place))
    items.save(tmp_path / "items")
    halves.make(tmp_path / entry.maker, items, {name: tmp_path / file for name, file in entry.tables.items()})
    anew = dataclasses.replace(bundle, path=tmp_path, items=items)
    (tmp_path / "packs").symlink_to(bundle.path / "packs")
    assert agree(anew)


@pytest.mark.parametrize("first_order", ["rows", "user", "hashed", "embedding"])
@pytest.mark.parametrize(
    "fields",
    [
        (USER_ID, ITEM_ID),
        (AGE, USER_ID, PRICE),
        (USER_ID, TAGS),
        (USER_ID, AGE, ITEM_ID, TAGS, PRICE),
        (USER_ID, TEXT),
        (MOOD, USER_ID, PRICE, TEXT, ITEM_ID, TAGS),
    ],
    ids=lambda fields: "-".join(field.key for field in fields),
)
def test_fields_of_every_kind_and_every_form_of_the_first_order_part(
    fields: tuple[Field, ...], first_order: str, tmp_path: Path
) -> None:
    """Both graphs against torch, over an item table of random rows."""
    torch.manual_seed(0)
    schema = FeatureSchema(fields=fields)
    backbone = partial(deepfm.build, deepfm.Options(hidden=(4,)), dim=3)
    options = plate.Options.model_validate({"first_order": first_order, "hash_size": 3})
    model = Model(plate.build(options, schema, backbone, 3, 2).eval(), schema, ("a", "b"))
    with torch.no_grad():
        for parameter in model.paradigm.parameters():
            parameter.normal_()
    inputs = graph_inputs(schema, model)
    folded = graph.write(ScopedModel(model.paradigm.servable(), inputs), inputs, tmp_path / "graph.onnx")
    items = ItemTable(np.arange(49), parity._random(schema, "item", 50, np.random.default_rng(0)))
    items.save(tmp_path / "items")
    entry = halves.write(folded, items, tmp_path, None)
    assert entry is not None
    tables = {name: np.load(tmp_path / file) for name, file in entry.tables.items()}
    # What is made of vectors is kept; they themselves are in the item table.
    assert not [name for name, table in tables.items() if "half" in name and table.shape[1:] == (TEXT.size,)]
    pack = {f"pack.{name}": tensor.numpy() for name, tensor in model.pack("b").items()}
    by = {name: ort.session(tmp_path / name, threads=1) for name in ("graph.onnx", entry.graph)}
    for case, rows, arrays in row_cases(schema, items):
        if "numbers" in case:  # of a thousand deviations: torch's own rounding shows
            continue
        with torch.inference_mode():
            expected = torch.func.functional_call(model.paradigm.servable().eval(), model.pack("b"), arrays)
        (found,) = by["graph.onnx"].run(None, {**named(arrays, inputs), **pack})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
        (found,) = by[entry.graph].run(None, {**by_row(arrays, rows, inputs), **tables, **pack})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_large_tables_are_made_in_parts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = bundle.manifest.item_halves
    assert entry is not None
    monkeypatch.setattr(halves, "_ROWS", 7)
    again = {name: tmp_path / Path(file).name for name, file in entry.tables.items()}
    halves.make(bundle.path / entry.maker, bundle.items, again)
    for name in entry.tables:
        if name.startswith("items.half"):
            np.testing.assert_allclose(np.load(again[name]), bundle.tables[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("paradigm", ["single", "finetune"])
def test_a_domain_that_owns_everything_leaves_nothing_to_compute(
    data_root: Path, tmp_path: Path, paradigm: str
) -> None:
    own = train(tmp_path / "run", data_root, paradigm={"name": paradigm})
    bundle = built(own, tmp_path / "bundles", item_halves=True)
    assert bundle.manifest.item_halves is None
    assert bundle.tables == {}
    assert not (bundle.path / halves.ROWS).exists()


def test_without_halves_the_id_is_the_same_and_rows_are_refused(
    tiny: Trained, bundle: Bundle, tmp_path: Path
) -> None:
    without = built(tiny, tmp_path, item_halves=False)
    assert without.manifest.bundle == bundle.manifest.bundle
    assert without.manifest.item_halves is None
    assert list(without.packs()) == list(bundle.packs())
    kept = {path.name for path in (without.path / "items").iterdir()}
    assert kept == {"id.npy", "ids.npy", "numbers.npy"}
    engine = ort.open(without, threads=1)
    handle = engine.load(DomainPack.from_bytes(next(without.packs())[1]))
    (_, rows, arrays) = next(row_cases(without.schema, without.items))
    with pytest.raises(ValueError, match="no item halves"):
        engine.score(by_row(arrays, rows, without.manifest.inputs), handle)
    engine.close()


def test_the_option_of_the_command(tiny: Trained, tmp_path: Path) -> None:
    arguments = ["build", str(tiny.folder), "--data", str(tiny.data), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--no-item-halves"], catch_exceptions=False)
    assert Bundle.open(Path(done.stdout.splitlines()[-1])).manifest.item_halves is None
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert Bundle.open(Path(done.stdout.splitlines()[-1])).manifest.item_halves is not None


def test_very_large_tables_are_made_only_when_asked_for(
    tiny: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves, "MOST", 100)
    assert built(tiny, tmp_path / "default").manifest.item_halves is None
    assert built(tiny, tmp_path / "asked", item_halves=True).manifest.item_halves is not None


def test_a_manifest_from_before_there_were_halves_is_read(bundle: Bundle) -> None:
    old = json.loads((bundle.path / "manifest.json").read_text())
    del old["item_halves"]
    for each in old["parity"]:
        del each["beyond_float32"]
    found = type(bundle.manifest).model_validate(old)
    assert found.item_halves is None
    assert found.parity == bundle.manifest.parity


def test_a_table_of_other_items_is_refused(bundle: Bundle) -> None:
    shorter = ItemTable(bundle.items.keys[1:], bundle.items.inputs.take(slice(1, None)))
    with pytest.raises(BundleError, match="rows, not"):
        ort.open(dataclasses.replace(bundle, items=shorter), threads=1)


def test_both_graphs_passed_the_gate(bundle: Bundle) -> None:
    assert [each.engine for each in bundle.manifest.parity] == ["ort", "ort, item halves"]
    assert all(each.max_abs_diff <= each.budget for each in bundle.manifest.parity)
