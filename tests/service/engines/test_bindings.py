"""From where a plan's inputs come, by the tiny bundle's manifest."""

import numpy as np
import pytest

from service.contract.errors import BundleError
from service.contract.manifest import ItemHalves
from service.engines._bindings import Bindings, check
from tests.service import bundles

REQUEST, ITEM = ["request.ids", "request.numbers"], ["item.ids", "item.numbers"]
PACK = [f"pack.{name}" for name in bundles.OWNED]


@pytest.fixture(scope="module")
def manifest(bundle):
    halves = ItemHalves(graph="rows.onnx", maker="halves.onnx", tables={"items.half0": "items/half0.npy"})
    return bundle.manifest.model_copy(update={"item_halves": halves})


def names(specs):
    return [spec.name for spec in specs]


def test_by_fields(manifest):
    bindings = Bindings.of(manifest, "graph.onnx", {*PACK, *ITEM, *REQUEST})
    assert names(bindings.staged) == [*REQUEST, *ITEM]
    assert names(bindings.packs) == PACK
    assert bindings.tables == ()
    assert bindings.counted == "item.ids"


def test_by_rows(manifest):
    bindings = Bindings.of(manifest, "rows.onnx", {"items.half0", "item.rows", *PACK, *REQUEST})
    assert names(bindings.staged) == [*REQUEST, "item.rows"]
    assert bindings.tables == ("items.half0",)
    assert bindings.counted == "item.rows"


def test_what_a_plan_does_not_read_is_not_staged(manifest):
    bindings = Bindings.of(manifest, "graph.onnx", {"item.numbers", "pack.bias"})
    assert (names(bindings.staged), names(bindings.packs)) == (["item.numbers"], ["pack.bias"])


def test_what_nothing_brings_is_refused(manifest):
    with pytest.raises(BundleError, match=r"reads item\.rows, which nothing brings"):
        Bindings.of(manifest, "graph.onnx", {"item.rows", "item.ids"})
    with pytest.raises(BundleError, match="reads nothing of candidates"):
        Bindings.of(manifest, "graph.onnx", REQUEST)


@pytest.mark.parametrize("of", ["type", "width", "rank", "request rows"])
def test_arrays_are_neither_converted_nor_broadcast(manifest, of):
    inputs = bundles.random_inputs(3, seed=0)
    specs = {spec.name: spec for spec in manifest.inputs}
    name, array = {
        "type": ("item.numbers", inputs["item.numbers"].astype(np.float64)),
        "width": ("item.ids", inputs["item.ids"][:, :1]),
        "rank": ("item.ids", inputs["item.ids"][0]),
        "request rows": ("request.ids", inputs["request.ids"].repeat(2, 0)),
    }[of]
    with pytest.raises(ValueError, match=f"{name} is"):
        check(specs[name], array)
    check(specs[name], inputs[name])
