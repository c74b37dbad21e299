"""A few seconds of `make fuzz`: what was kept, and some new damage, to every reader."""

from contextlib import ExitStack
from random import Random

import pytest

from tests.fuzz import answering, corpus, following, listening, parsers
from tests.fuzz.__main__ import table
from tests.fuzz.fuzzing import Fuzzing
from tests.fuzz.mutations import damaged, spoiled
from tests.fuzz.target import Fault, Target
from tests.service import bundles

FEW = {"Redis while packs serve": 5, "HTTP/1.1 as bytes": 60, "live.json of a folder": 60}
MANY = 150


def counted(fuzzing, inputs):
    fuzzing.start()
    until = fuzzing.inputs + inputs
    fuzzing.run(lambda: fuzzing.inputs >= until)
    return fuzzing


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    bundle = bundles.make_bundle(tmp_path_factory.mktemp("fuzz") / "bundle")
    with ExitStack() as stack:
        yield [
            target
            for module in (parsers, answering, following, listening)
            for target in stack.enter_context(module.targets(bundle))
        ]


def test_no_reader_does_more_than_refuse(targets):
    for target in targets:
        kept = corpus.load(target.name)
        if target.name in FEW:
            kept = kept[:3]
        done = counted(Fuzzing(target, Random(7), kept), FEW.get(target.name, MANY))
        assert not done.found, target.name


def test_every_seed_reaches_the_reader(targets):
    """Or a target would be of damage alone: what it begins with has to come further than to be refused."""
    for target in targets:
        if target.traced:
            done = Fuzzing(target, Random(1), [])
            done.start()
            assert done.lines > 1, target.name


def test_the_corpus_is_small_and_of_targets_that_there_are(targets):
    files = {path.name for path in corpus.FOLDER.iterdir()}
    assert files <= {f"{corpus.slug(target.name)}.txt" for target in targets}
    assert sum(path.stat().st_size for path in corpus.FOLDER.iterdir()) < 200_000


# The harness itself finds what there is to find


def faulty(data):
    if b"\xff" in data:
        raise KeyError(data)
    if len(data) > 40:
        raise Fault("too long")


def test_crashes_and_faults_are_counted_and_their_inputs_kept(tmp_path):
    done = counted(Fuzzing(Target("a reader", [b"0123456789"], faulty, damaged), Random(1), []), 2000)
    assert done.crashes
    assert done.faults
    done.save(tmp_path)
    inputs = [path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".txt"]
    assert any(b"\xff" in data for data in inputs)
    assert any(len(data) > 40 for data in inputs)


def test_what_never_ends_is_a_hang(monkeypatch):
    def endless(data):
        while True:
            try:
                while True:
                    pass
            except Exception:  # noqa: BLE001 - as a reader might
                pass

    monkeypatch.setattr("tests.fuzz.fuzzing.PATIENCE", 0.05)
    done = Fuzzing(Target("endless", [b""], endless), Random(1), [])
    done.start()
    assert (done.hangs, done.found) == (1, {"hang": b""})


def test_the_same_seed_draws_the_same():
    seeds = [b'{"a":[1,2,{"b":"c"}]}']
    one, other = (Random(3), Random(3))
    assert [spoiled(one, seeds[0], seeds) for _ in range(50)] == [
        spoiled(other, seeds[0], seeds) for _ in range(50)
    ]


def test_a_report_is_a_table():
    run = {"inputs": 12345, "seconds": 1.0, "crashes": 0, "faults": 1, "hangs": 2, "lines": 0}
    assert table({"targets": {"x": run}}).splitlines()[-1] == "| x | 12,345 | 0 | 1 | 2 | - |"
