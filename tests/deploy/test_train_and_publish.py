"""`deploy/train-and-publish.sh`, with an interpreter that only writes down what it was asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "train-and-publish.sh"

PYTHON = r"""#!/usr/bin/env bash
set -euo pipefail
[[ $1 == -c ]] && exec "$REAL_PYTHON" "$@"
shift
if [[ " $* " == *" --dry-run "* ]]; then
    [[ ${FAIL:-} == store ]] && exit 3
    printf '[{"domain": "books", "live": %s}]\n' "${LIVE:-null}"
    exit
fi
printf '%s\n' "$*" >>"$CALLS"
[[ " $1 $2 " == *" ${FAIL:-none} "* ]] && exit 3
case "$1 $2" in
    'training fit') mkdir -p "$5" ;;
    'export build')
        name=bundle-$(basename "$3" | cut -d - -f 1)
        mkdir -p "$5/$name"
        printf '{}' >"$5/$name/manifest.json"
        printf 'a table\n%s\n' "${SAYS:-$5/$name}"
        ;;
esac
"""


class Place:
    """A folder with runs, bundles and the stand-in; `run` returns the commands of this time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "the runs"
        self.bundles = folder / "the bundles"
        self.python = folder / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        for name in ("first", "second"):
            (folder / f"{name}.yaml").write_text(f"name: {name}\n")
        self.status = 0
        self.errors = ""

    def run(self, **more: str) -> list[str]:
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {
            "PATH": os.environ["PATH"],
            "REAL_PYTHON": sys.executable,
            "PYTHON": str(self.python),
            "CALLS": str(calls),
            "RUNS": str(self.runs),
            "BUNDLES": str(self.bundles),
            "RECIPE": str(self.folder / "first.yaml"),
            "MDCTR_STORE": "redis://here/0",
            **more,
        }
        done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
        self.status, self.errors = done.returncode, done.stderr
        return [" ".join(line.split()[:2]) for line in calls.read_text().splitlines()]

    @property
    def only_run(self) -> Path:
        [run] = self.runs.iterdir()
        return run

    @property
    def current(self) -> str:
        return str((self.bundles / "current").readlink())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_goes_from_nothing_to_a_current_bundle(place: Place) -> None:
    assert place.run() == ["training fit", "export build", "export publish"]
    assert place.status == 0, place.errors
    # Relative, so that it holds wherever the volume is mounted.
    assert place.current == "bundle-first"
    assert (place.bundles / "current" / "manifest.json").is_file()


def test_publishes_the_bundle_to_the_store(place: Place) -> None:
    place.run()
    last = (place.folder / "calls").read_text().splitlines()[-1]
    assert last == f"export publish {place.bundles}/bundle-first --store redis://here/0"


def test_leaves_live_packs_alone(place: Place) -> None:
    place.run()
    assert place.run(LIVE='"a-newer-version"') == []
    assert place.status == 0
    assert place.current == "bundle-first"


def test_a_store_that_lost_its_packs_gets_them_again(place: Place) -> None:
    place.run()
    assert place.run() == ["export publish"]
    assert place.current == "bundle-first"


def test_a_lost_bundle_is_made_again_from_its_run(place: Place) -> None:
    place.run()
    run = place.only_run
    (place.bundles / "bundle-first" / "manifest.json").unlink()
    assert place.run() == ["training fit", "export build", "export publish"]
    assert place.only_run == run


def test_a_kept_bundle_needs_no_run(place: Place) -> None:
    place.run()
    place.only_run.rmdir()
    assert place.run() == ["export publish"]


def test_an_edited_recipe_is_another_run(place: Place) -> None:
    place.run()
    run = place.only_run
    (place.folder / "first.yaml").write_text("name: first\nseed: 1\n")
    assert place.run() == ["training fit", "export build", "export publish"]
    assert len(list(place.runs.iterdir())) == 2
    assert run.exists()


def test_another_recipe_takes_over_and_the_first_comes_back(place: Place) -> None:
    place.run()
    assert place.run(RECIPE=str(place.folder / "second.yaml")) == [
        "training fit",
        "export build",
        "export publish",
    ]
    assert place.current == "bundle-second"
    assert place.run() == ["export publish"]
    assert place.current == "bundle-first"


def test_a_training_that_failed_is_asked_to_go_on(place: Place) -> None:
    assert place.run(FAIL="training") == ["training fit"]
    assert place.status == 3
    assert not (place.bundles / "current").exists()
    assert place.run() == ["training fit", "export build", "export publish"]


def test_current_stays_when_publishing_fails(place: Place) -> None:
    place.run()
    assert place.run(RECIPE=str(place.folder / "second.yaml"), FAIL="publish") == [
        "training fit",
        "export build",
        "export publish",
    ]
    assert place.status == 3
    assert place.current == "bundle-first"


def test_a_store_that_does_not_answer_is_not_an_empty_one(place: Place) -> None:
    assert place.run(FAIL="store") == ["training fit", "export build"]
    assert place.status == 3
    assert not (place.bundles / "current").exists()


def test_refuses_an_export_that_names_no_bundle(place: Place) -> None:
    assert place.run(SAYS="Done.") == ["training fit", "export build"]
    assert place.status == 1
    assert "Done." in place.errors
    assert not (place.bundles / "current").exists()


def test_needs_a_recipe_that_exists(place: Place) -> None:
    assert place.run(RECIPE="no/such.yaml") == []
    assert place.status != 0
    assert "no/such.yaml" in place.errors


def test_needs_a_store(place: Place) -> None:
    assert place.run(MDCTR_STORE="") == []
    assert place.status != 0
    assert "MDCTR_STORE" in place.errors
