"""Whether the commands of a shell block are ones that there are: programs, targets, options, files.

Nothing is run but `make -n`, and `--help` of what has no parser to ask. A word in capitals, `...` and `$NAME`
stand for something of the reader's.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from pydantic import ValidationError
from typer.main import get_command

from service.contract.errors import MdctrError
from service.settings import PREFIX, Settings
from training.plan import Plan
from training.recipe import Recipe

ROOT = Path(__file__).parents[2]
OURS = ("service", "training", "export", "loadtest")
SYSTEM = {".", "cd", "echo", "envsubst", "export", "kill", "printf", "sleep", "tail", "trap", "wait"}
"""What every shell has, and small programs whose use a reader sees through."""
_PUNCTUATION = ";&|()<>{}"
_PLACEHOLDER = re.compile(r"\.\.\.|…|\$|\b[A-Z][A-Z_]+\b")
_SUBSTITUTED = re.compile(r"\$\(([^()]*)\)")
_OURS = "deploy/", "docs/", "loadtest/", "training/"
_ELSEWHERE = {"MDCTR_DATA_DIR"}
"""Variables of ours that are no settings of the service."""


class ShellError(Exception):
    """A command that there is not."""


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a script, with what they redirect left out.

    Raises:
        ShellError: a quotation does not end.
    """
    text = re.sub(r"\[(--[^\]\n]+)\]", r"\1", text)  # what a synopsis says may be left out
    for within in _SUBSTITUTED.findall(text):
        yield from commands(within)
    for line in _lines(_SUBSTITUTED.sub("$PRINTED", text)):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=_PUNCTUATION)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        target = False
        for word in lexer:
            if target:
                target = False
            elif set(word) <= set("<>&") and set(word) & set("<>"):
                target = True
                if words and words[-1] in {"1", "2"}:
                    words.pop()
            elif set(word) <= set(_PUNCTUATION):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def functions(text: str) -> set[str]:
    """The names of the functions that a script defines."""
    return {*re.findall(r"^(\w+)\(\) *\{", text, re.MULTILINE)}


def check(text: str, folder: Path = ROOT, known: Collection[str] = ()) -> None:
    """Check a script.

    Args:
        text: its lines.
        folder: where its files are, beside the repository's.
        known: functions that were defined before.

    Raises:
        ShellError: a command is not one that there is, and why.
    """
    names = SYSTEM | functions(text) | {*known}
    given: dict[str, str] = {}
    for words in commands(text):
        rest = [*words]
        if rest[0] == "export":
            rest = rest[1:]
        while rest and (found := re.match(r"([A-Za-z_]\w*)=(.*)", rest[0], re.DOTALL)):
            given[found[1]] = found[2]
            rest = rest[1:]
        if not rest or rest[0] in names:
            continue
        program, *arguments = rest
        name = Path(program).name
        if name in PROGRAMS:
            PROGRAMS[name](arguments, folder)
        elif not ("/" in program and os.access(ROOT / program, os.X_OK)):
            raise ShellError(f"no check for {program}")
    _settings(given)


def _lines(text: str) -> Iterator[str]:
    """Lines, with those that go on put together."""
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += line
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            pending += "\n"
            continue
        yield pending
        pending = ""
    if pending:
        raise ShellError(f"a quotation does not end: {pending.splitlines()[0]}")


def _settings(given: Mapping[str, str]) -> None:
    """Whether what is set are settings that there are, with values that they take."""
    ours = {name: value for name, value in given.items() if name.startswith(PREFIX)}
    known = {f"{PREFIX}{name.upper()}": name for name in Settings.model_fields}
    if unknown := ours.keys() - known.keys() - _ELSEWHERE:
        raise ShellError(f"no such setting: {', '.join(sorted(unknown))}")
    real = {name: value for name, value in ours.items() if name in known and not _PLACEHOLDER.search(value)}
    before = {name: os.environ.get(name) for name in real}
    os.environ.update(real)
    try:
        Settings()
    except ValidationError as error:
        raise ShellError(str(error)) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _python(words: Sequence[str], folder: Path) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    if words[0] != "-m":
        if not (ROOT / words[0]).is_file():
            raise ShellError(f"no file {words[0]}")
        return
    module, *arguments = words[1:]
    if module in OURS:
        _ours(module, arguments, folder)
    else:
        _options([sys.executable, "-m", module], arguments)


def _ours(module: str, words: list[str], folder: Path) -> None:
    """Parse a command of ours as it would be, but do not run it."""
    command: Any = get_command(importlib.import_module(f"{module}.__main__").app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            raise ShellError(f"python -m {module} has no command {' '.join(words[:1])!r}")
        command, words = command.commands[words[0]], words[1:]
    store = os.environ.get("MDCTR_STORE", "directory:store")
    try:
        with (
            patch.dict(os.environ, MDCTR_STORE=store),
            command.make_context(command.name, [_plain(word) for word in words]) as context,
        ):
            _files(module, context, folder)
    except MdctrError as error:
        raise ShellError(str(error)) from error
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own, of whatever version
            raise
        raise ShellError(f"{module} {command.name}: {error.format_message()}") from error


def _files(module: str, context: Any, folder: Path) -> None:
    """Recipes and plans are there, and take what is changed of them."""
    recipe = context.params.get("recipe")
    if module == "training" and isinstance(recipe, Path) and not _PLACEHOLDER.fullmatch(recipe.name):
        Recipe.load(_there(recipe, folder), context.args)
    elif context.args:
        Recipe.load(ROOT / "training" / "recipes" / "plate_synthetic.yaml", context.args)
    plan = context.params.get("plan")
    if isinstance(plan, Path) and not _PLACEHOLDER.fullmatch(plan.name):
        Plan.load(_there(plan, folder))


def _there(path: Path, folder: Path) -> Path:
    found = next((base / path for base in (folder, ROOT) if (base / path).is_file()), None)
    if found is None:
        raise ShellError(f"no file {path}")
    return found


def _make(words: Sequence[str], folder: Path) -> None:
    """The target is there, and what it would run is, with what it is given, a command that there is."""
    options = ["--no-print-directory", f"VENV={sys.prefix}"]
    done = subprocess.run(
        ["make", "-n", *options, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ShellError(f"make {' '.join(words)}: {done.stderr.strip()}")
    for line in done.stdout.replace("\\\n", " ").splitlines():
        for part in re.findall(rf"-m (?:{'|'.join(OURS)}) .*", line):
            check(f"python {part}", folder)
        for part in re.findall(r"/locust' (.*)", line):
            check(f"locust {part}", folder)


def _torchrun(words: Sequence[str], folder: Path) -> None:
    at = words.index("-m")
    _options([sys.executable, "-m", "torch.distributed.run"], words[:at])
    _python(words[at:], folder)


def _pip(words: Sequence[str], folder: Path) -> None:
    del folder
    text = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"mdctr\[([\w,-]+)\]", " ".join(words)):
        for extra in extras.split(","):
            if not re.search(rf"^{extra} = \[", text, re.MULTILINE):
                raise ShellError(f"no extra {extra}")


def _pytest(words: Sequence[str], folder: Path) -> None:
    del folder
    marker = words[words.index("-m") + 1]
    if f'"{marker}: ' not in (ROOT / "pyproject.toml").read_text():
        raise ShellError(f"no marker {marker}")


def _docker(words: Sequence[str], folder: Path) -> None:
    """`compose up` or `down`, of profiles that there are; or an image of a Dockerfile that there is."""
    del folder
    if words[0] == "compose":
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
        profiles = {name for each in services for name in each.get("profiles", ())}
        chosen = {words[at + 1] for at, word in enumerate(words) if word == "--profile"}
        if chosen <= profiles and {"up", "down", "run"} & {*words}:
            return
    elif words[0] == "build":
        file = words[words.index("-f") + 1]
        if file == "-" or (ROOT / file).is_file():
            return
    raise ShellError(f"no check for docker {' '.join(words)}")


def _system(words: Sequence[str], folder: Path) -> None:
    """A program of the system: the files of ours that it is to read are there."""
    del folder
    for word in words:
        if word.startswith(_OURS) and not (ROOT / word).exists():
            raise ShellError(f"no file {word}")


def _locust(words: Sequence[str], folder: Path) -> None:
    """Locust's own options, and those that a file of ours adds, which `--help` leaves out."""
    del folder
    text = (ROOT / words[words.index("-f") + 1]).read_text()
    added = re.findall(r'add_argument\(\s*"(--[\w-]+)"', text)
    _options([str(Path(sys.executable).with_name("locust"))], [word for word in words if word not in added])


def _options(command: list[str], words: Sequence[str]) -> None:
    """The options are in what the command says of itself."""
    told = _help(tuple(command))
    for word in words:
        if word.startswith("-") and not re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}\b", told):
            raise ShellError(f"{' '.join(command)} has no option {word}")


@cache
def _help(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise ShellError(f"{' '.join(command)} --help: {done.stderr.strip()[-200:]}")
    return done.stdout


def _plain(word: str) -> str:
    """A word as a parser gets it: a path, where it stands for one of the reader's."""
    return "runs/some" if word.startswith("$") else word


PROGRAMS: dict[str, Callable[[Sequence[str], Path], None]] = {
    "docker": _docker,
    "locust": _locust,
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
    "python": _python,
    "torchrun": _torchrun,
    **dict.fromkeys(("curl", "kubectl", "openssl", "prometheus", "promtool"), _system),
}
