"""`DomainPack`: bytes and back, and what is refused."""

import json
import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from service.contract.errors import PackError
from service.contract.manifest import GraphInput
from service.contract.pack import Base, DomainPack, Golden, valid_domain, version
from tests.service import bundles

NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,10}", fullmatch=True)
TENSORS = st.dictionaries(
    NAMES,
    arrays.arrays(
        st.sampled_from([np.float32, np.int32]), arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)
    ),
    max_size=4,
)

PACK = bundles.make_pack("books")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return bundles.make_bundle(tmp_path_factory.mktemp("bundle") / "tiny").manifest


@settings(deadline=None)
@given(
    st.text(max_size=10),
    NAMES,
    TENSORS,
    TENSORS.map(lambda tensors: {f"x.{k}": v for k, v in tensors.items()}),
)
def test_a_pack_is_the_same_after_bytes(bundle, domain, tensors, inputs):
    golden = Golden(inputs, np.array([0.5, -1.0], np.float32))
    pack = DomainPack(bundle, domain, tensors, golden, np.array([1.5, -0.5], np.float32))
    data = pack.to_bytes()
    again = DomainPack.from_bytes(data)
    assert (again.bundle, again.domain, again.nbytes) == (bundle, domain, pack.nbytes)
    for have, want in ((again.tensors, tensors), (again.golden.inputs, inputs)):
        assert have.keys() == want.keys()
        for name, tensor in want.items():
            np.testing.assert_array_equal(have[name], tensor, strict=True)
    np.testing.assert_array_equal(again.calibration, pack.calibration)
    np.testing.assert_array_equal(again.golden.logit, golden.logit)
    assert again.to_bytes() == data


def test_equal_packs_have_equal_bytes_in_any_process_and_order():
    pack = bundles.make_pack("books")
    shuffled = DomainPack(pack.bundle, pack.domain, dict(reversed(list(pack.tensors.items()))), pack.golden)
    assert shuffled.to_bytes() == pack.to_bytes()
    code = (
        "from tests.service.bundles import make_pack; from service.contract.pack import version;"
        "print(version(make_pack('books').to_bytes()))"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == version(pack.to_bytes())


def test_strided_tensors_are_written_as_they_read():
    pack = bundles.make_pack("books")
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    strided = DomainPack(pack.bundle, "books", {"m": matrix.T}, pack.golden)
    assert DomainPack.from_bytes(strided.to_bytes()).tensors["m"].tolist() == [[0, 3], [1, 4], [2, 5]]


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_have_another_version(data):
    whole = bundles.make_pack("books").to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.sampled_from([whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :], whole[at:]])
    )
    assume(damaged != whole)
    assert version(damaged) != version(whole)
    with suppress(PackError):  # no other error; a flipped bit of a weight is found by the version alone
        assert DomainPack.from_bytes(damaged).to_bytes() != whole


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        b"8" * 7,
        (2**62).to_bytes(8, "little"),
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_what_is_not_a_pack_is_refused(data):
    with pytest.raises(PackError):
        DomainPack.from_bytes(data)


def written(parts, **header):
    """A pack's file, by hand."""
    about = {"format": 2, "bundle": bundles.BUNDLE, "domain": "books", **header}
    return save(parts, {"mdctr": json.dumps(about, sort_keys=True)})


def dense(pack):
    """The parts of a pack's file, nothing left out."""
    parts = {f"pack.{name}": tensor for name, tensor in pack.tensors.items()}
    parts |= {f"golden.{name}": tensor for name, tensor in pack.golden.inputs.items()}
    return {**parts, "golden.logit": pack.golden.logit, "calibration": pack.calibration}


def same(have, want):
    """Bit for bit, type and shape included."""
    return (have.shape, have.dtype) == (want.shape, want.dtype) and have.tobytes() == want.tobytes()


def test_format_1_is_still_read():
    pack = bundles.make_pack("books")
    again = DomainPack.from_bytes(written(dense(pack), format=1))
    assert again.tensors.keys() == pack.tensors.keys()
    assert all(same(again.tensors[name], tensor) for name, tensor in pack.tensors.items())
    assert same(again.golden.logit, pack.golden.logit)


@pytest.mark.parametrize("number", [0, 3, "2", None])
def test_another_format_is_refused_by_name(number):
    with pytest.raises(PackError, match=f"format {number}; this version reads 2"):
        DomainPack.from_bytes(written(dense(PACK), format=number))


FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.floats(width=16, allow_nan=False),
    st.sampled_from([0.0, -0.0, 65504.0, 65520.0, -65536.0, 2.0**-24, 2.0**-25, np.inf, -np.inf]),
)
LIKE = st.sampled_from([np.dtype(np.float32), np.dtype(np.int32)])


@st.composite
def tensors_and_base(draw):
    """Tensors, and others of which some are like them but for some rows."""
    tensors, common = {}, {}
    for name in draw(st.lists(NAMES, max_size=3, unique=True)):
        shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
        if draw(st.booleans()):
            shape = (draw(st.integers(50, 300)), *shape[1:])
        dtype = draw(LIKE)
        elements = FLOATS if dtype == np.float32 else st.integers(-(2**31), 2**31 - 1)
        fill = st.just(0)
        base = draw(arrays.arrays(dtype, shape, elements=elements, fill=fill))
        kind = draw(st.sampled_from(["near", "same", "far", "other shape", "other type", "missing"]))
        tensor = base.copy()
        if kind == "near" and shape and shape[0]:
            for row in draw(st.lists(st.integers(0, shape[0] - 1), max_size=4)):
                tensor[row] = draw(elements)
        elif kind == "far":
            tensor = draw(arrays.arrays(dtype, shape, elements=elements, fill=fill))
        elif kind == "other shape":
            base = np.zeros((*shape, 2), dtype)
        elif kind == "other type":
            base = np.zeros(shape, np.int32 if dtype == np.float32 else np.float32)
        tensors[name] = tensor
        if kind != "missing":
            common[name] = base
    return tensors, common


@settings(deadline=None)
@given(tensors_and_base())
def test_whatever_the_base_the_same_bits_come_back_from_no_more_bytes(drawn):
    tensors, common = drawn
    pack, base = DomainPack("b", "books", tensors, PACK.golden), Base("0123456789abcdef", common)
    data = pack.to_bytes(base)
    assert data == pack.to_bytes(base)
    again = DomainPack.from_bytes(data, base)
    assert again.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(again.tensors[name], tensor), name
    assert again.to_bytes(base) == data
    # What a file may have beside its numbers: the base's version, and 100 bytes a tensor left to the header.
    slack = 40 + 60 * len(tensors)
    assert len(data) <= len(pack.to_bytes()) + slack
    assert len(pack.to_bytes()) <= len(written(dense(pack), bundle="b")) + 8
    for name, part in load(data).items():
        if name.startswith("values."):
            assert part.nbytes < tensors[name.removeprefix("values.")].nbytes


@settings(deadline=None)
@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=2, max_side=6), elements=FLOATS))
def test_half_precision_is_written_exactly_where_it_loses_nothing(tensor):
    data = DomainPack("b", "books", {"t": tensor}, PACK.golden).to_bytes()
    # Python's own half-precision packing, which refuses what overflows.
    fits = True
    for number in tensor.ravel().tolist():
        try:
            fits &= struct.unpack("<e", struct.pack("<e", number))[0] == number
        except OverflowError:
            fits = False
    assert load(data)["pack.t"].dtype == (np.float16 if fits else np.float32)
    assert same(DomainPack.from_bytes(data).tensors["t"], tensor)


def test_nan_stays_nan_in_half_precision_and_outside():
    tensor = np.array([np.nan, 1.0], np.float32)
    for also in (1.0, 1e-30):
        tensor[1] = also
        data = DomainPack("b", "books", {"t": tensor}, PACK.golden).to_bytes()
        np.testing.assert_array_equal(DomainPack.from_bytes(data).tensors["t"], tensor, strict=True)


TABLE = np.arange(400, dtype=np.float32).reshape(100, 4) + np.float32(0.3)
BASE = Base("0123456789abcdef", {"t": TABLE})
ROWS = np.array([3, 50, 99], np.int32)


def differing(rows=ROWS, values=None, base="0123456789abcdef", name="t"):
    """A file of rows that differ, by hand."""
    parts = dense(PACK) | {f"rows.{name}": rows}
    parts[f"values.{name}"] = np.full((len(rows), 4), 7, np.float32) if values is None else values
    return written(parts, base=base)


def test_rows_that_differ_are_all_that_is_written():
    table = TABLE.copy()
    table[ROWS] = 7
    data = DomainPack("b", "books", {"t": table}, PACK.golden).to_bytes(BASE)
    parts = load(data)
    assert parts["rows.t"].tolist() == ROWS.tolist()
    assert parts["values.t"].shape == (3, 4)
    assert parts["values.t"].dtype == np.float16
    assert "pack.t" not in parts
    assert same(DomainPack.from_bytes(data, BASE).tensors["t"], table)
    assert same(DomainPack.from_bytes(differing(), BASE).tensors["t"], table)
    equal = DomainPack("b", "books", {"t": TABLE}, PACK.golden).to_bytes(BASE)
    assert load(equal)["rows.t"].shape == (0,)
    assert same(DomainPack.from_bytes(equal, BASE).tensors["t"], TABLE)


@pytest.mark.parametrize(
    ("base", "data"),
    [(None, differing()), (Base("another", {"t": TABLE}), differing()), (BASE, differing(base="another"))],
)
def test_differences_from_another_base_are_refused(base, data):
    with pytest.raises(PackError, match="differences from general pack"):
        DomainPack.from_bytes(data, base)


@pytest.mark.parametrize(
    "data",
    [
        differing(np.array(rows, np.int32))
        for rows in ([-1], [100], [5, 4], [5, 5], [0, 2**31 - 1, -5], [2**31 - 1], [-(2**31), 0])
    ]
    + [
        differing(np.array([1.0], np.float32)),
        differing(np.array([1], np.int64)),
        differing(np.array([[1]], np.int32), np.zeros((1, 4), np.float32)),
        differing(values=np.zeros((2, 4), np.float32)),
        differing(values=np.zeros((4, 4), np.float32)),
        differing(values=np.zeros((3, 3), np.float32)),
        differing(values=np.zeros(12, np.float32)),
        differing(values=np.zeros((), np.float32)),
        differing(values=np.zeros((3, 4, 1), np.float32)),
        differing(values=np.zeros((3, 4), np.int32)),
        differing(values=np.zeros((3, 4), np.float64)),
    ],
)
def test_rows_that_are_not_the_bases_are_refused(data):
    with pytest.raises(PackError, match="rows of t are not rows of the general pack's"):
        DomainPack.from_bytes(data, BASE)


@pytest.mark.parametrize(
    "data", [differing(name="u"), written(dense(PACK) | {"rows.t": ROWS}, base=BASE.version)]
)
def test_rows_of_nothing_and_without_values_are_refused(data):
    with pytest.raises(PackError):
        DomainPack.from_bytes(data, BASE)


def changed(**parts):
    pack = bundles.make_pack("books")
    whole = {
        "bundle": pack.bundle,
        "domain": pack.domain,
        "tensors": pack.tensors,
        "golden": pack.golden,
        "calibration": pack.calibration,
        **parts,
    }
    return DomainPack(**whole)


WRONG = {
    "of bundle other": changed(bundle="other"),
    "not a domain's name": changed(domain="Books & Films"),
    "missing tensor: bias": changed(tensors={k: v for k, v in PACK.tensors.items() if k != "bias"}),
    "unknown tensor: more": changed(tensors={**PACK.tensors, "more": np.zeros(1, np.float32)}),
    r"bias is float32\[2\], not float32\[1\]": changed(
        tensors={**PACK.tensors, "bias": np.zeros(2, np.float32)}
    ),
    "bias is float64": changed(tensors={**PACK.tensors, "bias": np.zeros(1)}),
    "bias is not finite": changed(tensors={**PACK.tensors, "bias": np.array([np.nan], np.float32)}),
    "calibration must": changed(calibration=np.array([0, 0], np.float32)),
    "calibration must be two": changed(calibration=np.array([1, np.inf], np.float32)),
    "golden logits must": changed(
        golden=Golden(bundles.random_inputs(1, 0), np.array([np.nan], np.float32))
    ),
    "missing golden input: item.ids": changed(
        golden=Golden({k: v for k, v in PACK.golden.inputs.items() if k != "item.ids"}, PACK.golden.logit)
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", WRONG)
def test_a_pack_that_does_not_belong_is_refused_with_the_reason(manifest, reason):
    with pytest.raises(PackError, match=reason):
        WRONG[reason].check(manifest)


def test_a_pack_that_belongs_passes(manifest):
    assert {spec.scope for spec in manifest.inputs} == {"pack", "request", "item"}
    assert isinstance(manifest.inputs[0], GraphInput)
    bundles.make_pack("books").check(manifest)
    bundles.make_pack("_general").check(manifest)


@pytest.mark.parametrize(
    ("name", "valid"),
    [("books", True), ("a", True), ("0.9-b_c", True), ("a" * 64, True), ("a" * 65, False), ("", False)]
    + [(name, False) for name in ("Books", "_general", "a b", "../x", "a/b", "é", "a\n", "-a", ".a")],
)
def test_names_of_domains(name, valid):
    assert valid_domain(name) is valid
