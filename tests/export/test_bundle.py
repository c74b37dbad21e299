from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from export import bundle as module
from export.__main__ import app
from export.packs import domain_pack, golden_request
from service.contract.bundle import Bundle
from service.contract.errors import BundleError, PackError
from service.contract.pack import GENERAL, DomainPack, version
from service.engines import ort
from tests.conftest import Trained, train
from training import checkpoint


@pytest.fixture(scope="module")
def built(tiny: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(tiny, tmp_path_factory.mktemp("bundles"))


def build(trained: Trained, out: Path) -> Bundle:
    metrics = checkpoint.load(trained.folder, trained.data)[3]
    return module.build(trained.recipe, trained.prepared, trained.model, metrics, out)


def test_every_file_is_in_the_manifest_and_a_changed_byte_is_found(tiny: Trained, tmp_path: Path) -> None:
    bundle = build(tiny, tmp_path)
    on_disk = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert on_disk == {*bundle.manifest.files, "manifest.json"}
    for name in bundle.manifest.files:
        path = bundle.path / name
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(BundleError, match=re.escape(name)):
            Bundle.open(bundle.path)
        path.unlink()
        with pytest.raises(BundleError, match="missing"):
            Bundle.open(bundle.path)
        path.write_bytes(original)
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_the_same_run_gives_the_same_bundle_and_packs(tiny: Trained, built: Bundle, tmp_path: Path) -> None:
    again = build(tiny, tmp_path)
    assert again.manifest == built.manifest
    assert list(again.packs()) == list(built.packs())


def test_packs_hold_what_the_manifest_lists_and_score_their_golden_rows(built: Bundle) -> None:
    engine = ort.open(built, threads=1)
    names = []
    for domain, data in built.packs():
        pack = DomainPack.from_bytes(data, built.base)
        pack.check(built.manifest)
        found = engine.score(pack.golden.inputs, engine.load(pack))
        np.testing.assert_allclose(found, pack.golden.logit, atol=1e-5)
        names.append(domain)
    assert names == [GENERAL, "big", "mid", "small"]
    assert len({version(data) for _, data in built.packs()}) == 4


def test_what_the_command_builds_from_disk_is_what_training_had_in_memory(
    tiny: Trained, built: Bundle, tmp_path: Path
) -> None:
    arguments = ["build", str(tiny.folder), "--data", str(tiny.data), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    from_disk = Bundle.open(Path(done.stdout.splitlines()[-1]))
    assert list(from_disk.packs()) == list(built.packs())
    for domain, data in from_disk.packs():
        expected = tiny.model.calibration[None if domain == GENERAL else domain]
        np.testing.assert_allclose(
            DomainPack.from_bytes(data, from_disk.base).calibration, expected, rtol=1e-6
        )
        assert expected != (1.0, 0.0)


def test_a_domain_without_validation_rows_gets_a_pack_that_services_take(
    tiny: Trained, built: Bundle
) -> None:
    nothing = tiny.rows("valid")[:0]
    golden = golden_request(nothing, tiny.model.schema)
    domain_pack(tiny.model, "small", built.manifest.bundle, built.manifest.inputs, golden).check(
        built.manifest
    )


def test_a_pack_that_services_would_refuse_makes_no_bundle(tiny: Trained, tmp_path: Path) -> None:
    calibration = tiny.model.calibration
    try:
        tiny.model.calibration = {**calibration, "mid": (float("nan"), 0.0)}
        with pytest.raises(PackError, match="calibration"):
            build(tiny, tmp_path)
    finally:
        tiny.model.calibration = calibration
    assert list(tmp_path.iterdir()) == []


def test_what_is_tuned_is_counted_by_hand(tiny: Trained, built: Bundle, tmp_path: Path) -> None:
    """PLATE tunes all it owns here; a mixed model owns its bias and tunes nothing."""
    assert built.manifest.parameters_tuned == built.manifest.parameters_of_domain
    mixed = build(train(tmp_path / "run", tiny.data, paradigm={"name": "mix"}), tmp_path / "bundles")
    assert (mixed.manifest.parameters_of_domain, mixed.manifest.parameters_tuned) == (1, 0)
    assert "trains 0 (0.00%)" in (mixed.path / "CARD.md").read_text()


def test_the_card_has_quality_share_and_sizes(tiny: Trained, built: Bundle) -> None:
    card = (built.path / "CARD.md").read_text()
    metrics = checkpoint.load(tiny.folder, tiny.data)[3]
    share = built.manifest.parameters_of_domain / built.manifest.parameters
    expected = [
        f"{share:.2%}",
        f"{metrics['macro']['pack']['auc']:.4f}",
        f"{built.manifest.parameters_of_domain:,}",
    ]
    expected += [f"| {len(data):,} |" for _, data in built.packs()]
    assert [text for text in expected if text not in card] == []


class OffByABit:
    """ONNX Runtime, but wrong for batches of one odd size."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def score(self, inputs: Mapping[str, Any], under: Any) -> Any:
        logit = np.array(self.engine.score(inputs, under))
        return logit + 1e-3 if len(logit) == 33 else logit


def test_an_engine_that_differs_makes_no_bundle(
    tiny: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ort.open
    monkeypatch.setattr(ort, "open", lambda bundle, threads: OffByABit(original(bundle, threads)))
    with pytest.raises(BundleError, match=r"parity: ort, _general, random, 33: off by"):
        build(tiny, tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from service.contract.{module} import {name}
{name}.save = lambda *arguments, **named: os.kill(os.getpid(), signal.SIGKILL)
from export.__main__ import app
app(["build", sys.argv[1], "--data", sys.argv[2], "--out", sys.argv[3]])
"""


@pytest.mark.parametrize("place", ["schema.FeatureSchema", "items.ItemTable", "manifest.Manifest"])
def test_killed_anywhere_it_leaves_nothing_that_looks_like_a_bundle(
    tiny: Trained, built: Bundle, tmp_path: Path, place: str
) -> None:
    module, name = place.split(".")
    program = KILLED.format(module=module, name=name)
    arguments = [str(tiny.folder), str(tiny.data), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert build(tiny, tmp_path).manifest == built.manifest
    assert [path.name for path in tmp_path.iterdir()] == [built.path.name]


def test_a_run_with_other_packs_replaces_the_folder(tiny: Trained, tmp_path: Path) -> None:
    first = build(tiny, tmp_path)
    original = dict(first.packs())
    tuned = tiny.model.tuned
    try:
        tiny.model.tuned = {domain: pack for domain, pack in tuned.items() if domain != "mid"}
        second = build(tiny, tmp_path)
    finally:
        tiny.model.tuned = tuned
    assert second.path == first.path
    changed = {domain for domain, data in second.packs() if data != original[domain]}
    assert changed == {"mid"}


def test_the_command_prints_the_folder_and_bad_input_is_exit_code_2(tiny: Trained, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export"]
    built = subprocess.run(
        [*command, "build", str(tiny.folder), "--data", str(tiny.data), "--out", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    path = Path(built.stdout.splitlines()[-1])
    assert json.loads((path / "manifest.json").read_text())["bundle"] == path.name
    for arguments in (["build", str(tmp_path / "nothing")], ["check", str(tmp_path)]):
        done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert CliRunner().invoke(app, ["check", str(path)]).output.strip() == path.name
