"""Files and folders that are there whole or not at all."""

import subprocess
import sys

import pytest

from service.contract import files

KILLED = """
import os, sys
from pathlib import Path
from service.contract import files
path, step = Path(sys.argv[1]), sys.argv[2]
die = lambda *a, **k: os._exit(9)
if step == "file":
    os.fsync = die
    files.write(path, b"new" * 1000)
elif step == "replace":
    Path.replace = die
    files.write(path, b"new" * 1000)
else:
    with files.new_folder(path) as part:
        (part / "a").write_text("new")
        if step == "fill":
            die()
        rename, count = Path.rename, []
        def dying(self, target):
            count.append(1)
            if len(count) == 2:
                die()
            return rename(self, target)
        Path.rename = dying
"""


def killed(path, step):
    assert subprocess.run([sys.executable, "-c", KILLED, str(path), step], check=False).returncode == 9


@pytest.mark.parametrize("step", ["file", "replace"])
def test_a_killed_write_leaves_the_old_content(tmp_path, step):
    path = tmp_path / "f"
    files.write(path, "old")
    killed(path, step)
    assert path.read_text() == "old"


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "f"
    files.write(path, "one")
    files.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["f"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("service.contract.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        files.write(tmp_path / "f", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_when_it_is_full(tmp_path):
    with files.new_folder(tmp_path / "out") as part:
        (part / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert [found.name for found in tmp_path.iterdir()] == ["out"]


def test_a_folder_whose_filling_fails_is_not_there(tmp_path):
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fill", "between the renames"])
def test_a_killed_folder_is_the_old_one_or_made_so_by_the_next_run(tmp_path, step):
    path = tmp_path / "out"
    with files.new_folder(path) as part:
        (part / "a").write_text("old")
    killed(path, step)
    with files.new_folder(path) as part:
        assert (path / "a").read_text() == "old"  # what the killed run left was put right first
        (part / "a").write_text("new")
    assert (path / "a").read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["out"]
