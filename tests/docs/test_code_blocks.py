"""Every code block of the documentation is run, or checked against what it speaks of.

Shell blocks are checked command by command (`tests.docs.shell`); those that ask a service are run, as are
Python blocks, commands of Redis, and the pages that are written to be followed. Documents are read by the
models that read them in production. What is left, being no code, is named here with a reason.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import redis
import yaml

from loadtest.redis_server import redis_server
from loadtest.server import service as served
from service.api.events_schemas import Event, Events
from service.api.schemas import RankRequest
from service.contract import plugins
from service.experiments import document, forced
from tests.docs import shell
from tests.docs.blocks import Block, blocks
from tests.service import bundles
from tests.service.conftest import Publisher
from training.recipe import Choice, Recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks(page)]
KEY = "documented-0123456789"

NO_CODE = {
    ("README", "training ──▶ export ──▶ bundle"): "a drawing",
    ("packs", "put ──▶ promote ──▶ (live)"): "a drawing",
    (
        "experiment-report",
        "var(R) = ",
    ): "a formula",
    ("experiment-report", "difference ± se √("): "a formula",
    ("experiment-report", "n = 2 σ²"): "a formula",
    ("uni-ctr", "(1 - a) BCE(z, y)"): "a formula",
    ("uni-ctr", "shop: The user ID is user_7"): "what a prompt reads like",
    (
        "experiments",
        "error: layers.ranking",
    ): "what a command says; test_the_message_of_a_wrong_document has it",
    ("experiments", "X-Force-Arm: "): "a header; the block after it, which signs it, is run",
    (
        "redis",
        "redis://[USER:PASSWORD@]HOST",
    ): "a grammar; tests/service/stores/test_redis_url.py has each form",
    ("redis", "ACL SETUSER mdctr on"): "a sentinel's; tests/service/stores/test_redis_deployments.py runs it",
    ("drift", "1.5 ((5 + 1.64)"): "a formula",
    ("security", "callers ──HTTP(S)"): "a drawing",
    ("sizing", "cores = "): "a formula",
    ("sizing", "pod = "): "a formula",
    ("sizing", "memory = "): "a formula",
    ("tensorrt", "engines/sm_90/plans.json"): "a listing of files; no plan has ever been built",
    ("formats", "manifest.json "): "a listing of files; tests/docs/test_walks.py compares it with a bundle",
}
"""By page and beginning: why a block is not checked here."""
WALKED = {"quick-start", "add-backbone", "add-source"}
"""Pages whose shell blocks are run as they stand, by tests/docs/test_walks.py."""


def reason(block: Block) -> str | None:
    return next(
        (
            why
            for (page, start), why in NO_CODE.items()
            if block.page.stem == page and block.text.startswith(start)
        ),
        None,
    )


def language(block: Block) -> str:
    """What a block is in; one that does not say is shell, unless it begins as JSON or YAML does."""
    yaml_like = re.match(r"[a-z_]+:( |$)", block.text, re.MULTILINE)
    unsaid = "json" if block.text.startswith("{") else "yaml" if yaml_like else "sh"
    return {"": unsaid, "bash": "sh"}.get(block.language, block.language)


CHECKED = [block for block in BLOCKS if reason(block) is None]


def of(name: str) -> pytest.MarkDecorator:
    """The blocks in a language, as a test's parameters."""
    return pytest.mark.parametrize("block", [block for block in CHECKED if language(block) == name], ids=str)


def asks(block: Block) -> bool:
    """Whether a shell block asks a service."""
    return block.page.stem not in WALKED and re.search(r"^curl ", block.text, re.MULTILINE) is not None


def test_every_block_has_a_check_or_a_reason() -> None:
    assert {language(block) for block in CHECKED} <= {"sh", "python", "json", "yaml", "http", "redis"}
    used = [
        (page, start) for block in BLOCKS for page, start in NO_CODE if reason(block) == NO_CODE[page, start]
    ]
    assert {*NO_CODE} == {*used}
    assert sum(reason(block) is not None for block in BLOCKS) == len(NO_CODE) == 18
    assert len(CHECKED) > 70


@of("sh")
def test_commands_are_there(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(block.page, tmp_path)
    monkeypatch.setenv("MDCTR_STORE", "directory:store")
    before = {name for each in blocks(block.page) for name in shell.functions(each.text)}
    shell.check(block.text, tmp_path, before)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("make nothing-such", "nothing-such"),
        ("make bench ARGS='--round 15'", "--round"),
        ("python -m training fit training/recipes/plate_doubam.yaml --out x", "no file"),
        ("python -m training fit training/recipes/plate_douban.yaml", "out"),
        ("python -m training fit training/recipes/plate_douban.yaml --out x --tuning.rl 1", "rl"),
        ("python -m training compare training/plans/doubam.yaml --out x", "no file"),
        ("python -m export pack list b", "pack"),
        ("python -m export packs gc b --keep many", "keep"),
        ("python -m service run --port 80", "--port"),
        ("MDCTR_WORKER=2 python -m service run", "MDCTR_WORKER"),
        ("MDCTR_WORKERS=none python -m service run", "workers"),
        ("pip install 'mdctr[servise]'", "servise"),
        ("torchrun --nproc-per-nod 2 -m training fit RECIPE --out x", "nproc-per-nod"),
        ("pytest -m gpus", "gpus"),
        ("docker compose --profile monitors up", "docker"),
        ("kubectl apply -k deploy/k8s/overlays/tpu", "no file"),
        ("mdctr serve", "mdctr"),
        ("echo 'no end", "does not end"),
    ],
)
def test_commands_that_are_not_there_are_found(wrong: str, why: str) -> None:
    with pytest.raises(shell.ShellError, match=why):
        shell.check(wrong)


def test_a_script_is_split_as_a_shell_would() -> None:
    text = "A=$(one -x 'a b' | two)/b # no\nif() { three 2> log; }\nfour \\\n  five & # six\nseven [--eight]"
    split = [["one", "-x", "a b"], ["two"], ["A=$PRINTED/b"]]
    split += [["if"], ["three"], ["four", "five"], ["seven", "--eight"]]
    assert [*shell.commands(text)] == split


class Tiny:
    """A small service, and what its store has."""

    def __init__(self, url: str, versions: dict[str, str]) -> None:
        self.url, self.versions = url, versions

    def put(self, text: str) -> str:
        """A page's text, with this service's names in the place of those of examples."""
        text = text.replace("http://127.0.0.1:8080", self.url).replace("127.0.0.1:8080", self.url[7:])
        text = re.sub(r'(models/|^ +")plate\b', r"\1tiny", text, flags=re.MULTILINE)
        for name, version in self.versions.items():
            text = text.replace(name, version)
            text = re.sub(rf'(["=]){name[:4]}\b', rf"\g<1>{version[:4]}", text)
        return text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp("documented")
    bundle = bundles.make_bundle(folder / "tiny")
    publish = Publisher(f"directory:{folder / 'store'}")
    publish.raw(dict(bundle.packs()))
    old, new = ([bundles.make_pack(domain, seed) for domain in bundles.DOMAINS] for seed in (7, 8))
    versions = {"0123456789abcdef": publish(*old)["books"], "fedcba9876543210": publish(*new)["books"]}
    settings = {
        "MDCTR_ADMIN_KEYS": json.dumps({"nightly": KEY}),
        "MDCTR_USERS": "memory:",
        "MDCTR_DRAIN_SECONDS": "0",
    }
    with served(bundle.path, publish.url, folder / "log", settings) as url:
        yield Tiny(url, versions)


@pytest.mark.parametrize("block", [block for block in CHECKED if asks(block)], ids=str)
def test_questions_are_answered(block: Block, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "books.safetensors").write_bytes(bundles.make_pack("books", 9).to_bytes())
    told = 'curl() { command curl --silent --show-error --fail-with-body --write-out "\\n" "$@"; }'
    done = bash(f"set -e\n{told}\n{tiny.put(block.text)}", tmp_path, KEY=KEY)
    answers = done.splitlines()
    assert len(answers) == len(re.findall(r"^curl ", block.text, re.MULTILINE))
    for answer in answers:
        json.loads(answer)


def bash(text: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_forced_arm_is_signed_as_the_service_does(tmp_path: Path) -> None:
    [block] = [block for block in CHECKED if block.text.startswith("printf 'books-ple=b;")]
    out = bash(block.text, tmp_path, SECRET="a secret of the service's")
    signed = forced.sign("a secret of the service's", "books-ple", "b", 1793606400)
    assert signed.endswith(f";{out.split()[-1]}")


def written(page: Path, folder: Path) -> None:
    """The files that a page has its reader write."""
    for block in blocks(page):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(f"{block.text}\n")


def clicks(folder: Path) -> None:
    """Five hundred rows of two shops, as the page on sources has them."""
    rng = np.random.default_rng(0)
    n = 500
    product = rng.integers(0, 20, n)
    frame = pl.DataFrame(
        {
            "shop": np.where(rng.random(n) < 0.6, "books", "films"),
            "time": np.arange(n),
            "clicked": rng.random(n) < 0.3 + 0.02 * product,
            "customer": [f"c{each}" for each in rng.integers(0, 30, n)],
            "age": rng.integers(18, 80, n),
            "hour": rng.integers(0, 24, n),
            "product": [f"p{each}" for each in product],
            "brand": [f"b{each % 5}" for each in product],
            "price": 5.0 + product,
        }
    )
    frame.write_parquet(folder / "clicks.parquet")


def experiments(folder: Path) -> None:
    """The document of the page."""
    [text] = [
        block.text for block in CHECKED if block.page.stem == "experiments" and block.language == "json"
    ]
    (folder / "experiments.json").write_text(text)


PREPARED: dict[str, Callable[[Path], None]] = {"add-source": clicks, "experiments": experiments}
"""What a page's reader has beforehand."""


@of("python")
def test_python_runs(block: Block, tiny: Tiny, tmp_path: Path) -> None:
    PREPARED.get(block.page.stem, lambda _: None)(tmp_path)
    written(block.page, tmp_path)
    path = tmp_path / (block.title or "block.py")
    path.write_text(tiny.put(block.text))
    # A process of its own, because tritonclient imports gevent.
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@of("json")
def test_documents_are_read(block: Block) -> None:
    if block.text.startswith("{\n"):
        assert document.parse(block.text.encode()).layers
        return
    for line in block.text.splitlines():  # events, one a line
        Event.model_validate_json(line)


@of("yaml")
def test_recipes_are_read(block: Block, tmp_path: Path) -> None:
    found = yaml.safe_load(block.text)
    if block.title:
        written(block.page, tmp_path)
        Recipe.load(tmp_path / block.title)
        return
    if block.page.stem in YAML:
        return
    assert found.keys() <= Recipe.model_fields.keys()
    data = Choice.model_validate(found["data"])
    module: Any = plugins.load("training.data.sources", data.name)
    module.Options.model_validate(data.options)


YAML = {"alerts"}
"""Pages whose YAML is somebody else's, and only has to be YAML."""


@of("http")
def test_requests_fit_their_route(block: Block) -> None:
    first, body = block.text.split("\n", 1)
    text = re.sub(r",?\s*\.\.\.", "", body)
    if re.fullmatch(r"POST /v1/domains/[a-z]+/rank", first):
        RankRequest.model_validate_json(text)
    else:
        assert first == "POST /v1/events"
        Events.model_validate_json(text)


@of("redis")
def test_redis_takes_its_commands(block: Block) -> None:
    with redis_server() as url:
        client = redis.Redis.from_url(url, decode_responses=True)
        for line in block.text.splitlines():
            client.execute_command(*shlex.split(line.replace("PASSWORD", "hunter2")))
            if line.startswith("HSET"):
                assert json.loads(client.hget(line.split()[1], "profile"))  # type: ignore[arg-type]
        client.close()


def test_the_message_of_a_wrong_document() -> None:
    [text] = [
        block.text for block in CHECKED if block.page.stem == "experiments" and block.language == "json"
    ]
    found = json.loads(text)
    ranking = found["layers"]["ranking"]["experiments"]
    ranking[1]["arms"]["b"] = {**ranking[1]["arms"].pop("films"), "weight": -1}
    with pytest.raises(document.ExperimentsError) as caught:
        document.parse(json.dumps(found).encode())
    [said] = [block.text for block in BLOCKS if block.text.startswith("error: layers.ranking")]
    assert said == f"error: {caught.value}"
