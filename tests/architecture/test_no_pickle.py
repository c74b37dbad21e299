"""Nothing that is read can run: no pickle, and nothing that falls back to it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for package in ("service", "training", "export", "loadtest", "deploy")
    for path in (ROOT / package).rglob("*.py")
)
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
BARE = {"eval", "exec", "compile", "__import__"}
NEEDED = {
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
"""By function, the argument that must be given, and its value."""
NEVER = {
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
    "numpy.fromregex",
}


OWN = {"loadtest/sender.py"}
"""A measuring process gives its own child a plan, in a folder that it made a moment before."""


def faults(source):
    """Lines that could run what they read, and why."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            yield from ((node.lineno, name) for name in modules if name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            first, dot, rest = called.partition(".")
            whole = names.get(first, first) + dot + rest
            given = {each.arg: getattr(each.value, "value", None) for each in node.keywords}
            if called in BARE or whole in NEVER:
                yield node.lineno, called
            if whole in NEEDED and given.get(NEEDED[whole][0]) is not NEEDED[whole][1]:
                yield node.lineno, f"{called} without {NEEDED[whole][0]}={NEEDED[whole][1]}"


def _imported(tree):
    """What each imported name stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                top = each.name.partition(".")[0]
                yield each.asname or top, each.name if each.asname else top
        elif isinstance(node, ast.ImportFrom):
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reads_what_could_run(path):
    found = list(faults(path.read_text()))
    assert ({name for _, name in found} == {"pickle"}) if str(path.relative_to(ROOT)) in OWN else not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from numpy import load as read\nread('x')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=False)",
        "import yaml\nyaml.load('x', yaml.Loader)",
        "eval('1')",
    ],
)
def test_it_would_be_seen(source):
    assert len(list(faults(source))) == 1


def test_what_is_safe_passes():
    assert not list(
        faults("import numpy as np, torch, yaml\nnp.load('x', allow_pickle=False)\nyaml.safe_load('')")
    )
    assert not list(
        faults("import torch\ntorch.load('x', map_location='cpu', weights_only=True)\nmodel.eval()")
    )
