"""What is in stored packs, and how they differ, over the folder store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service import inspection, lifecycle
from service.contract.bundle import Bundle
from service.contract.errors import PackError, UnknownVersion
from service.contract.pack import GENERAL, DomainPack, version
from service.engines import ort
from service.engines._protocol import Engine
from tests.service import bundles
from tests.service.bad_packs import BAD
from tests.service.desk import Counted, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(f"directory:{tmp_path}")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return ort.open(bundle, 1)


def test_the_contents_of_a_version(desk, bundle):
    general = bundles.make_pack(GENERAL)
    tensors = {name: np.array(tensor) for name, tensor in general.tensors.items()}
    tensors["rows"][[3, 5]] = 0.5
    pack = DomainPack(bundles.BUNDLE, "books", tensors, general.golden, np.array([2, -1], np.float32))
    data = pack.to_bytes(bundle.base)
    desk(lifecycle.put, "books", data)
    holds = desk(inspection.contents, "books", version(data)[:4], bundle)
    assert (holds.domain, holds.version, holds.bytes) == ("books", version(data), len(data))
    assert holds.calibration == (2, -1)
    assert holds.golden_rows == len(general.golden.logit)
    assert (holds.header["bundle"], holds.header["domain"]) == (bundles.BUNDLE, "books")
    rows = next(each for each in holds.tensors if each.name == "rows")
    assert (rows.shape, rows.dtype) == ([bundles.SCHEMA.rows], "float32")
    assert {each.name for each in holds.tensors} == set(bundles.OWNED)


def test_rows_kept_as_differences_are_told(bundle):
    """By the reader of the header, on the form that a pack large enough takes."""
    header = {
        "rows.table": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]},
        "values.table": {"dtype": "F16", "shape": [2, 4], "data_offsets": [8, 24]},
        "pack.bias": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]},
    }
    table = inspection._stored("table", np.zeros((100, 4), np.float32), header)
    assert (table.shape, table.dtype, table.stored, table.rows, table.bytes) == (
        [100, 4],
        "float32",
        "float16",
        2,
        24,
    )
    bias = inspection._stored("bias", np.zeros(1, np.float32), header)
    assert (bias.stored, bias.rows, bias.bytes) == ("float32", None, 4)


def test_two_versions_differ_by_what_numpy_says(desk, bundle, engine):
    one, two = (bundles.make_pack("books", seed, calibration=(1.0 + seed, -0.5)) for seed in (1, 2))
    for pack in (one, two):
        desk(lifecycle.put, "books", pack.to_bytes())
        desk(lifecycle.promote, {"books": version(pack.to_bytes())})
    found = desk(inspection.difference, "books", None, None, bundle=bundle, engine=engine)
    assert (found.a, found.b) == (version(one.to_bytes()), version(two.to_bytes()))
    rows = next(each for each in found.tensors if each.name == "rows")
    off = two.tensors["rows"].astype(float) - one.tensors["rows"].astype(float)
    assert (rows.rows, rows.of_rows, rows.numbers, rows.of_numbers) == (31, 31, 31, 31)
    assert rows.largest == pytest.approx(np.abs(off).max())
    assert rows.rms == pytest.approx(np.sqrt(np.mean(off**2)))
    assert (found.calibration_a, found.calibration_b, found.calibration) == ((2, -0.5), (3, -0.5), (1, 0))
    before, after = (bundles.logits(pack.tensors, two.golden.inputs) for pack in (one, two))
    assert found.golden.rows == 8
    assert found.golden.largest == pytest.approx(np.abs(after - before).max(), abs=1e-5)
    assert found.golden.rms == pytest.approx(np.sqrt(np.mean((after - before) ** 2)), abs=1e-5)
    served = [1 / (1 + np.exp(-(a * logit - 0.5))) for a, logit in ((2, before), (3, after))]
    assert found.golden.probability == pytest.approx(np.abs(served[1] - served[0]).max(), abs=1e-5)


def test_a_version_does_not_differ_from_itself_and_one_row_is_one_row(desk, bundle, engine):
    pack = bundles.make_pack("books", 1)
    tensors = {name: np.array(tensor) for name, tensor in pack.tensors.items()}
    tensors["rows"][4] += np.float32(0.25)
    other = DomainPack(pack.bundle, "books", tensors, pack.golden)
    (one,) = desk.put("books", 1)
    desk(lifecycle.put, "books", other.to_bytes())
    same = desk(inspection.difference, "books", one, one[:8], bundle=bundle, engine=engine)
    assert all((each.rows, each.largest, each.rms) == (0, 0, 0) for each in same.tensors)
    assert (same.golden.largest, same.golden.probability) == (0, 0)
    counted = Counted(engine)
    found = desk(
        inspection.difference, "books", one, version(other.to_bytes()), bundle=bundle, engine=counted
    )
    assert {each.name: each.rows for each in found.tensors} == {
        "bias": 0,
        "item_numbers": 0,
        "rows": 1,
        "user_numbers": 0,
    }
    assert (counted.loads, counted.releases) == (2, 2)


def test_what_cannot_be_compared_is_a_clear_error(desk, bundle, engine):
    def compare(a=None, b=None):
        desk(inspection.difference, "books", a, b, bundle=bundle, engine=engine)

    (one,) = desk.put("books", 1)
    with pytest.raises(UnknownVersion, match="nothing is live in books"):
        compare()
    with pytest.raises(UnknownVersion, match="no earlier version"):
        compare(None, one)
    desk(lifecycle.promote, {"books": one})
    with pytest.raises(UnknownVersion, match="no earlier version"):
        compare()
    with pytest.raises(UnknownVersion, match="no version"):
        compare("0" * 16)
    desk(lifecycle.put, "books", BAD["not finite"][0])
    with pytest.raises(PackError, match="not finite"):
        compare(one, version(BAD["not finite"][0]))


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3,), (3, 0), (2, 3, 4)], ids=str)
def test_tensors_of_any_shape_can_be_compared(shape):
    found = inspection._tensor("t", np.zeros(shape, np.float32), np.ones(shape, np.float32))
    assert found.of_numbers == found.numbers == np.ones(shape).size
    assert found.largest == (1 if found.of_numbers else 0)
    assert found.of_rows == (shape[0] if shape else 1)


def test_more_bytes_than_a_pack_can_have_are_not_read(desk, bundle, engine):
    (one,) = desk.put("books", 1)
    large = bytes(bundle.manifest.most_pack_bytes + 1)
    desk(lifecycle.put, "books", large)
    with pytest.raises(PackError, match="has more than"):
        desk(inspection.contents, "books", version(large), bundle)
    with pytest.raises(PackError, match="has more than"):
        desk(inspection.difference, "books", one, version(large), bundle=bundle, engine=engine)
