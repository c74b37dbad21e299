"""`Manifest` and `Bundle`: what is verified before anything is served."""

import json

import pytest

from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.manifest import Manifest
from service.contract.pack import DomainPack
from tests.service import bundles


@pytest.fixture
def folder(tmp_path):
    bundles.make_bundle(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_manifest_is_the_same_after_json(folder, tmp_path):
    manifest = Manifest.load(folder / "manifest.json")
    manifest.save(tmp_path / "again.json")
    assert Manifest.load(tmp_path / "again.json") == manifest


def test_a_bundle_opens_with_its_parts(folder):
    bundle = Bundle.open(folder)
    assert bundle.graph.is_file()
    assert bundle.schema == bundles.SCHEMA
    assert len(bundle.items) == len(bundles.ITEMS["item.id"])
    domains = [domain for domain, _ in bundle.packs()]
    assert domains == ["_general", *bundles.DOMAINS]
    assert [DomainPack.from_bytes(data).domain for _, data in bundle.packs()] == domains


@pytest.mark.parametrize("name", ["graph.onnx", "schema.json", "items/ids.npy", "packs/books.safetensors"])
def test_any_damaged_or_missing_file_is_refused_by_name(folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} has another checksum"):
        Bundle.open(folder)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(folder)


def test_a_schema_that_is_not_the_manifests_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema_fingerprint": "0" * 64}))
    with pytest.raises(BundleError, match="the schema is not the manifest's"):
        Bundle.open(folder)


@pytest.mark.parametrize("change", [{"format": 2}, {"surprise": 1}, {"inputs": 3}])
def test_a_manifest_of_another_shape_is_refused(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path)
