"""`DomainPack`: bytes and back, and what is refused."""

import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.contract.errors import PackError
from service.contract.manifest import GraphInput
from service.contract.pack import DomainPack, Golden, valid_domain, version
from tests.service import bundles

NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,10}", fullmatch=True)
TENSORS = st.dictionaries(
    NAMES,
    arrays.arrays(
        st.sampled_from([np.float32, np.int32]), arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)
    ),
    max_size=4,
)


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


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\xff" * 64, b"8" * 7, (2**62).to_bytes(8, "little")])
def test_what_is_not_a_pack_is_refused(data):
    with pytest.raises(PackError):
        DomainPack.from_bytes(data)


def test_another_format_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("service.contract.pack.FORMAT", 2)
    data = bundles.make_pack("books").to_bytes()
    monkeypatch.undo()
    with pytest.raises(PackError, match="format 2; this version reads 1"):
        DomainPack.from_bytes(data)


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


PACK = bundles.make_pack("books")
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
