"""`Shelf`: what is kept is found, bit for bit and without a copy; what is damaged is as if absent."""

import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from service.contract.pack import DomainPack
from service.shelf import Shelf
from tests.service import bundles
from tests.service.caching import version_of

PACK = bundles.make_pack("books")
VERSION = version_of(PACK)
NAME = f"books@{VERSION}.pack"
OPEN = """
import os, signal, sys
from pathlib import Path
from service.shelf import Shelf
from tests.service import bundles
from tests.service.caching import version_of
pack = bundles.make_pack("books")
shelf = Shelf(Path(sys.argv[1]), bundles.BUNDLE, 10**9)
"""


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path, bundles.BUNDLE, 10**9)


def arrays(pack):
    named = {**pack.tensors, **pack.golden.inputs, "logit": pack.golden.logit}
    return {**named, "calibration": pack.calibration}


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def same(found, pack):
    assert found is not None
    assert (found.bundle, found.domain) == (pack.bundle, pack.domain)
    have, want = arrays(found), arrays(pack)
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert (have[name].shape, have[name].dtype) == (tensor.shape, tensor.dtype)
        assert have[name].tobytes() == tensor.tobytes()
    return True


def test_what_is_kept_is_found_bit_for_bit_and_is_the_mapped_file(shelf, bundle):
    assert shelf.find("books", VERSION) is None
    kept = shelf.keep(VERSION, PACK)
    for found in (kept, shelf.find("books", VERSION)):
        assert same(found, PACK)
        found.check(bundle.manifest)
        for tensor in arrays(found).values():
            flags = tensor.flags
            assert (flags.writeable, flags.owndata, flags.c_contiguous, flags.aligned) == (0, 0, 1, 1)
    assert shelf.find("films", VERSION) is None
    assert shelf.find("books", version_of(bundles.make_pack("books", 1))) is None


def test_every_shape_is_kept(shelf):
    tensors = {
        "none": np.zeros((0, 3), np.float32),
        "nor here": np.zeros((4, 0), np.int32),
        "scalar": np.array(2.5, np.float32),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "signs": np.array([-0.0, 0.0, np.inf, 1e-45], np.float32),
        "whole": np.array([-(2**31), 2**31 - 1], np.int32),
    }
    pack = DomainPack(PACK.bundle, "books", tensors, PACK.golden, PACK.calibration)
    assert same(shelf.keep("1" * 16, pack), pack)


def test_who_holds_a_pack_keeps_it_when_its_file_is_gone(shelf, tmp_path):
    kept = shelf.keep(VERSION, PACK)
    shelf.drop("books", VERSION)
    assert files(tmp_path) == []
    assert shelf.find("books", VERSION) is None
    assert same(kept, PACK)
    shelf.drop("books", VERSION)
    assert same(shelf.keep(VERSION, PACK), PACK)


@pytest.mark.parametrize("at", [0, 15, 16, 24, 200, -1])
def test_a_changed_byte_makes_a_pack_absent(shelf, tmp_path, at):
    shelf.keep(VERSION, PACK)
    [path] = tmp_path.rglob("*.pack")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert shelf.find("books", VERSION) is None
    assert files(tmp_path) == []
    assert same(shelf.keep(VERSION, PACK), PACK)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 20, 24, 1000, -1])
def test_a_file_cut_short_is_absent(shelf, tmp_path, size):
    shelf.keep(VERSION, PACK)
    [path] = tmp_path.rglob("*.pack")
    path.write_bytes(path.read_bytes()[:size])
    assert shelf.find("books", VERSION) is None
    assert same(shelf.keep(VERSION, PACK), PACK)


def test_a_folder_in_the_place_of_a_file_is_absent_and_costs_a_copy(shelf, tmp_path):
    place = tmp_path / bundles.BUNDLE / NAME
    place.mkdir(parents=True)
    assert shelf.find("books", VERSION) is None
    assert shelf.keep(VERSION, PACK) is PACK
    shelf.drop("books", VERSION)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_costs_a_copy(tmp_path):
    (tmp_path / "file").touch()
    shelf = Shelf(tmp_path / "file", bundles.BUNDLE, 10**9)
    assert shelf.keep(VERSION, PACK) is PACK
    assert shelf.find("books", VERSION) is None
    shelf.drop("books", VERSION)
    shelf.remember({"books": VERSION})
    assert shelf.remembered() == {}


@contextmanager
def no_file_larger_than(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_a_copy_and_is_not_filled_further(shelf, tmp_path):
    with no_file_larger_than(1000):
        assert shelf.keep(VERSION, PACK) is PACK
    assert files(tmp_path) == []
    assert same(shelf.keep(VERSION, PACK), PACK)
    assert files(tmp_path) == [NAME]


def test_the_pack_unused_for_longest_goes_where_more_is_kept_than_fits(tmp_path):
    packs = [bundles.make_pack(f"d{at}") for at in range(4)]
    Shelf(tmp_path, bundles.BUNDLE, 10**9).keep(VERSION, packs[0])
    [path] = tmp_path.rglob("*.pack")
    size = path.stat().st_size
    shelf = Shelf(tmp_path, bundles.BUNDLE, 3 * size + size // 2)
    for pack in packs[1:3]:
        shelf.keep(VERSION, pack)
    for at, pack in enumerate(packs[:3]):
        os.utime(tmp_path / bundles.BUNDLE / f"{pack.domain}@{VERSION}.pack", (at, at))
    shelf.find("d0", VERSION)
    shelf.keep(VERSION, packs[3])
    assert {path.name[:2] for path in tmp_path.rglob("*.pack")} == {"d0", "d2", "d3"}


def test_a_shelf_without_room_keeps_nothing_and_gives_packs_back(tmp_path):
    shelf = Shelf(tmp_path, bundles.BUNDLE, 0)
    for _ in range(2):
        assert same(shelf.keep(VERSION, PACK), PACK)
        assert list(tmp_path.rglob("*.pack")) == []


def test_bundles_that_share_a_folder_do_not_meet(shelf, tmp_path):
    shelf.keep(VERSION, PACK)
    shelf.remember({"books": VERSION})
    other = Shelf(tmp_path, "other-00000000", 0)
    assert other.find("books", VERSION) is None
    assert other.remembered() == {}
    other.keep("1" * 16, bundles.make_pack("films"))
    assert shelf.find("books", VERSION) is not None


def test_what_serves_is_remembered(shelf, tmp_path):
    assert shelf.remembered() == {}
    for serving in ({"books": "a"}, {"books": "b", "_general": "c"}, {}):
        shelf.remember(serving)
        assert Shelf(tmp_path, bundles.BUNDLE, 0).remembered() == serving


@pytest.mark.parametrize("note", ["", "{", "[]", '"x"', "null", b"\xff\xfe", '{"books": "a"'])
def test_a_damaged_note_is_none(shelf, tmp_path, note):
    shelf.remember({"books": "a"})
    path = tmp_path / bundles.BUNDLE / "serving.json"
    path.write_bytes(note if isinstance(note, bytes) else note.encode())
    assert shelf.remembered() == {}


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_can_be_found(shelf, tmp_path):
    code = (
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nshelf.keep(version_of(pack), pack)"
    )
    killed = subprocess.run([sys.executable, "-c", OPEN + code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*.pack")) == []
    assert shelf.find("books", VERSION) is None
    assert same(shelf.keep(VERSION, PACK), PACK)
    assert files(tmp_path) == [NAME]


def test_processes_that_keep_packs_at_once_map_the_same_files(shelf, tmp_path):
    code = """
packs = [bundles.make_pack("books", seed) for seed in range(50)]
print("ready", flush=True)
sys.stdin.readline()
kept = [shelf.keep(version_of(pack), pack) for pack in packs]
print(sorted(line.split()[4:] for line in open("/proc/self/maps") if ".pack" in line))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN + code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(4) as threads:
        mapped = list(threads.map(lambda process: process.communicate("\n")[0], processes))
    assert len(set(mapped)) == 1
    assert "deleted" not in mapped[0]
    assert mapped[0].count(".pack") == 50 == len(files(tmp_path))
    assert NAME in mapped[0]
    assert same(shelf.find("books", VERSION), PACK)


def test_threads_that_keep_and_drop_at_once_never_find_a_part(shelf, tmp_path):
    def use(at):
        if at % 5 == 0:
            shelf.drop("books", VERSION)
            return True
        return same(shelf.keep(VERSION, PACK) if at % 2 else shelf.find("books", VERSION) or PACK, PACK)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(400)))
    assert set(files(tmp_path)) <= {NAME}


def test_the_note_is_json(shelf, tmp_path):
    shelf.remember({"books": VERSION})
    assert json.loads((tmp_path / bundles.BUNDLE / "serving.json").read_text()) == {"books": VERSION}
