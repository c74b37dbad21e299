"""`python -m export packs`, as an operator calls it."""

from __future__ import annotations

import asyncio
import getpass
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export import lifecycle, publish
from export.__main__ import app
from service.contract import cli
from service.contract.bundle import Bundle
from service.contract.pack import GENERAL, version
from service.experiments.document import parse
from service.stores._open import open_store
from tests.service import bundles
from tests.service.bad_packs import BAD

ID = bundles.BUNDLE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


class Shell:
    """Runs `export` in this process, with the store in the environment."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def raw(self, *arguments: object) -> tuple[Any, str, str]:
        """Exit code, stdout and stderr."""
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: app([str(each) for each in arguments]))
        return (ended.value.code, *self.capsys.readouterr())

    def __call__(self, *arguments: object) -> str:
        """What a command of `packs` prints."""
        code, out, err = self.raw("packs", *arguments)
        assert (code, err) == (0, "")
        return out

    def json(self, *arguments: object) -> Any:
        """What it prints with `--json`."""
        return json.loads(self(*arguments, "--json"))

    def refused(self, *arguments: object) -> str:
        """The one line of a command that cannot be done."""
        code, out, err = self.raw("packs", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert len(err) < 400
        return err

    def file(self, seed: int, domain: str = "books") -> Path:
        """A pack as a file."""
        path = self.folder / f"{domain}-{seed}.safetensors"
        path.write_bytes(bundles.make_pack(domain, seed).to_bytes())
        return path

    def promoted(self, bundle: Bundle, *seeds: int) -> list[str]:
        """Put packs of books and promote them one after the other; their versions."""
        put = self.json("put", bundle.path, *map(self.file, seeds))
        for each in put:
            self("promote", ID, f"books={each['version']}", "--run", "by hand", "--by", "ann")
        return [each["version"] for each in put]

    def live(self, domain: str = "books") -> Any:
        return {line["domain"]: line["live"] for line in self.json("list", ID)}.get(domain)


@pytest.fixture
def packs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.setenv("MDCTR_STORE", f"directory:{tmp_path / 'store'}")
    return Shell(capsys, tmp_path)


def test_publish_names_the_bundle_and_the_account_in_the_history(packs, bundle, monkeypatch, tmp_path):
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert packs.raw("publish", bundle.path, "--store", f"directory:{tmp_path / 'store'}")[0] == 0
    lines = packs.json("list", ID)
    assert [line["domain"] for line in lines] == [GENERAL, "books", "films"]
    assert {(line["run"], line["by"]) for line in lines} == {(ID, "ann")}


def test_an_account_without_a_name_is_none(monkeypatch):
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert publish.person() == ""


def test_list(packs, bundle):
    assert packs.json("list", ID) == []
    one, two = packs.promoted(bundle, 1, 2)
    (line,) = packs.json("list", bundle.path)  # the folder is as good as the id
    assert line == {
        "domain": "books",
        "live": two,
        "since": line["since"],
        "run": "by hand",
        "by": "ann",
        "bytes": packs.file(2).stat().st_size,
        "kept": 2,
    }
    table = packs("list", ID)
    assert two in table
    assert one not in table
    assert "UTC" in table


def test_show(packs, bundle):
    one, two = packs.promoted(bundle, 1, 2)
    shown = packs.json("show", ID, "books")
    assert (shown["live"], shown["previous"], len(shown["history"])) == (two, one, 2)
    assert f"live {two}, a rollback goes to {one}" in packs("show", ID, "books")
    holds = packs.json("show", bundle.path, "books", one[:5])
    assert (holds["version"], holds["golden_rows"], holds["calibration"]) == (one, 8, [1, 0])
    text = packs("show", bundle.path, "books", one[:5])
    assert "8 golden rows" in text
    assert "user_numbers" in text
    assert "no pack of films" in packs.refused("show", ID, "films")
    assert "is not a bundle" in packs.refused("show", ID, "books", one)


def test_put_checks_all_before_it_keeps_any(packs, bundle):
    bad = packs.folder / "bad.safetensors"
    bad.write_bytes(BAD["golden rows off"][0])
    assert f"{bad} is refused: its golden rows are off" in packs.refused(
        "put", bundle.path, packs.file(1), bad
    )
    assert packs.json("list", ID) == []
    (planned,) = packs.json("put", bundle.path, packs.file(1), "--dry-run")
    assert planned["version"] == version(packs.file(1).read_bytes())
    assert packs.json("list", ID) == []
    assert "would put" in packs("put", bundle.path, packs.file(1), "--dry-run")
    done = packs.json("put", bundle.path, packs.file(1), packs.file(1, "films"))
    assert [(each["domain"], each["version"]) for each in done] == [
        ("books", planned["version"]),
        ("films", version(packs.file(1, "films").read_bytes())),
    ]
    assert [(line["live"], line["kept"]) for line in packs.json("list", ID)] == [(None, 1), (None, 1)]


@pytest.mark.parametrize("why", BAD)
def test_put_refuses_a_bad_pack_with_one_line(packs, bundle, why):
    path = packs.folder / "bad.safetensors"
    path.write_bytes(BAD[why][0])
    assert BAD[why][1] in packs.refused("put", bundle.path, path)
    assert packs.json("list", ID) == []


def test_put_compares_the_version_that_is_announced(packs, bundle):
    path = packs.file(1)
    announced = version(path.read_bytes())
    assert packs.json("put", bundle.path, path, "--version", announced)[0]["version"] == announced
    assert "its content is version" in packs.refused("put", bundle.path, path, "--version", "0" * 16)
    assert "one pack only" in packs.refused("put", bundle.path, path, path, "--version", announced)
    assert "cannot be read" in packs.refused("put", bundle.path, packs.folder / "none")
    assert "is not a bundle" in packs.refused("put", ID, path)
    assert "no 'abacus'" in packs.refused("put", bundle.path, path, "--engine", "abacus")
    assert "golden rows" in packs.refused("put", bundle.path, path, "--tolerance", "1e-12")


def test_promote(packs, bundle):
    books, films = (
        packs.json("put", bundle.path, packs.file(1, name))[0]["version"] for name in ("books", "films")
    )
    wanted = f"books={books[:4]}", f"films={films}"
    assert packs.json("promote", ID, *wanted, "--dry-run")[0]["after"] == books
    assert packs.live() is None
    assert " add " in packs("promote", ID, *wanted, "--run", "night", "--by", "job")
    assert (packs.live("books"), packs.live("films")) == (books, films)
    assert packs.json("show", ID, "films")["history"][-1]["by"] == "job"
    assert " keep " in packs("promote", ID, *wanted)


def test_promote_refuses(packs, bundle):
    one, two = packs.promoted(bundle, 1, 2)
    assert "not DOMAIN=VERSION" in packs.refused("promote", ID, "books")
    assert "stands twice" in packs.refused("promote", ID, f"books={one}", f"books={two}")
    assert "4 or more characters" in packs.refused("promote", ID, "books=abc")
    assert "no version 0000 of books" in packs.refused("promote", ID, "books=0000")
    assert "no version" in packs.refused("promote", ID, f"films={one}")
    assert two in packs.refused("promote", ID, f"books={one}", "--expected", f"books={one}")
    assert two in packs.refused("promote", ID, f"books={one}", "--expected", "books=")
    assert packs.live() == two
    packs("promote", ID, f"books={one}", "--expected", f"books={two[:6]}")
    assert packs.live() == one


def test_rollback(packs, bundle):
    one, two, three = packs.promoted(bundle, 1, 2, 3)
    assert packs.json("rollback", ID, "books", "--dry-run")[0]["after"] == two
    assert packs.live() == three
    assert " replace " in packs("rollback", ID, "books")
    assert packs.json("rollback", ID, "books") == [{"domain": "books", "before": two, "after": one}]
    assert "no earlier version" in packs.refused("rollback", ID, "books")
    packs("rollback", ID, "books", "--to", three[:6], "--by", "ann")
    assert packs.json("show", ID, "books")["history"][-1] | {"time": 0} == {
        "version": three,
        "time": 0,
        "run": f"rollback of {one}",
        "by": "ann",
    }
    assert "one domain only" in packs.refused("rollback", ID, "books", "films", "--to", one)


def test_diff(packs, bundle):
    one, two = packs.promoted(bundle, 1, 2)
    found = packs.json("diff", bundle.path, "books")
    assert (found["a"], found["b"]) == (one, two)
    assert packs.json("diff", bundle.path, "books", two[:6], one[:6])["a"] == two
    assert packs.json("diff", bundle.path, "books", two)["golden"]["largest"] == 0
    text = packs("diff", bundle.path, "books")
    assert "31 of 31" in text
    assert "golden rows (8)" in text
    assert "nothing is live in films" in packs.refused("diff", bundle.path, "films")
    assert "is not a bundle" in packs.refused("diff", ID, "books")


def test_retire(packs, bundle):
    (one,) = packs.promoted(bundle, 1)
    packs("retire", ID, "books", "--dry-run")
    assert packs.live() == one
    assert " retire " in packs("retire", ID, "books", "--run", "closed")
    assert packs.live() is None
    assert "retired" in packs("show", ID, "books")
    assert "nothing is live in books" in packs.refused("retire", ID, "books")


def test_gc(packs, bundle):
    one, two, three = packs.promoted(bundle, 1, 2, 3)
    (waiting,) = packs.json("put", bundle.path, packs.file(4))
    (planned,) = packs.json("gc", ID, "--keep", "2", "--dry-run")
    assert planned["version"] == one
    assert "would remove" in packs("gc", ID, "--keep", "2", "--dry-run")
    assert packs.json("gc", ID, "films", "--keep", "0") == []
    assert packs.json("gc", ID, "--keep", "2") == [planned]
    assert packs.json("gc", ID, "--keep", "2") == []
    assert packs.json("gc", ID, "--keep", "2", "--unpromoted")[0]["version"] == waiting["version"]
    assert packs.json("gc", ID, "books", "--keep", "0")[0]["version"] == two
    assert packs.live() == three


def test_gc_spares_what_experiments_name(packs: Shell, bundle: Bundle, tmp_path: Path) -> None:
    one, two, three = packs.promoted(bundle, 1, 2, 3)
    (waiting,) = packs.json("put", bundle.path, packs.file(4))
    where = tmp_path / "experiments.json"
    arms = {"a": {"weight": 1}, "b": {"weight": 1, "version": {"books": one}}}
    tried = {"name": "tried", "unit": "user", "slice": [0, 1], "domains": ["books"], "arms": arms}
    where.write_text(json.dumps({"version": 1, "layers": {"ranking": {"experiments": [tried]}}}))
    versions = ("promote", bundle.path, f"books={waiting['version']}")
    packs(*versions, "--canary", "--experiments", where)
    packs("promote", ID, f"books={two}")
    everything = ("gc", ID, "--keep", "0", "--unpromoted")
    # The first is an arm's, the third what the trial compares with, the fourth what it tries.
    assert packs.json(*everything, "--experiments", where) == []
    where.write_text("{")
    assert "the document is wrong" in packs.refused(*everything, "--experiments", where)
    assert packs.json(*everything, "--experiments", tmp_path / "none.json", "--dry-run") != []
    assert {each["version"] for each in packs.json(*everything)} == {one, three, waiting["version"]}


def test_what_is_neither_a_folder_nor_an_id_is_one_line(packs, tmp_path):
    for wrong in (tmp_path / "nowhere", "nowhere"):
        assert "neither a bundle's folder nor" in packs.refused("list", wrong)
    assert "is not a bundle" in packs.refused("list", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("show", "books"),
        ("promote", "books=" + "0" * 16),
        ("rollback", "books"),
        ("retire", "books"),
        ("gc",),
    ],
    ids=str,
)
def test_a_store_that_does_not_answer_is_one_line(packs, arguments):
    command, *rest = arguments
    assert "error: " in packs.refused(command, ID, *rest, "--store", "redis://user:hunter2@127.0.0.1:1/0")
    assert "hunter2" not in packs.refused(command, ID, *rest, "--store", "redis://user:hunter2@127.0.0.1:1/0")


def test_a_usage_that_is_wrong_is_exit_code_2(packs):
    for arguments in (("gc", ID, "--keep", "-1"), ("promote", ID), ("list",), ("nothing",)):
        assert packs.raw("packs", *arguments)[0] == 2


def test_the_store_is_an_option_as_well_and_no_cell_is_cut_in_a_pipe(bundle, tmp_path):
    url = f"directory:{tmp_path / 'other'}"
    data = bundles.make_pack("books", 1).to_bytes()

    async def fill() -> str:
        store = open_store(url, ID)
        kept = await store.put("books", data)
        await store.promote({"books": kept}, run="a long word on where it came from", by="somebody")
        await store.close()
        return kept

    kept = asyncio.run(fill())
    done = subprocess.run(
        [sys.executable, "-m", "export", "packs", "list", ID, "--store", url],
        capture_output=True,
        text=True,
        check=True,
    )
    assert kept in done.stdout
    assert "a long word on where it came from" in done.stdout
    assert done.stderr == ""


def test_the_operators_page_names_every_command():
    page = (Path(__file__).parents[2] / "docs" / "packs.md").read_text()
    table = {line.split("`")[1].split()[0] for line in page.splitlines() if line.startswith("| `")}
    commands = {
        command.name or getattr(command.callback, "__name__", "")
        for command in lifecycle.app.registered_commands
    }
    assert commands <= table


def test_a_pack_goes_on_trial_and_stays_what_it_was(packs: Shell, bundle: Bundle, tmp_path: Path) -> None:
    old = packs.promoted(bundle, 1)[0]
    [put] = packs.json("put", bundle.path, packs.file(2))
    new, where = put["version"], tmp_path / "experiments.json"
    try_it = ("promote", bundle.path, f"books={new[:8]}", "--canary", "--experiments", where)
    assert packs(*try_it, "--dry-run").startswith("canary-")
    assert not where.exists()
    assert packs(*try_it, "--by", "ann").endswith(f" begins: books {new}\n")
    assert packs.live() == old
    (trial,) = parse(where.read_bytes(), canary=True).layers["canary"].experiments
    assert trial.arms["new"].version == {"books": new}
    assert trial.trial is not None
    assert (trial.trial.bundle, trial.trial.against) == (ID, {"books": old})
    assert [(each.metric, each.bound) for each in trial.guardrails] == [("ctr_lift", 0), ("error_rate", 0.02)]
    second = packs.refused(*try_it)
    assert second == f"error: {trial.name} is under way in books; there is one trial at a time\n"
    assert [each.name for each in parse(where.read_bytes(), canary=True).layers["canary"].experiments] == [
        trial.name
    ]
    hold = ("--hold", "0.5", "--experiments", tmp_path / "other.json")
    assert packs.json(*try_it[:4], *hold)["trial"]["hold_seconds"] == 1800
    assert "--experiments" in packs.refused("promote", ID, f"books={new}", "--canary")
    assert "no version" in packs.refused(*try_it[:2], "books=ffffffffffffffff", *try_it[3:])
