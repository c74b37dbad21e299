"""Every public module, class, function and method of the four packages says what it is.

Ruff asks for docstrings too, but not in modules that begin with `_`, and only as long as its rules stay
chosen. Left out, as in its configuration: magic methods, which their class describes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "training", "export", "loadtest")
THEIRS = {"service/engines/_cuda.py", "service/engines/_tensorrt_api.py", "export/_tensorrt_api.py"}
"""Protocols of other people's classes: a method is what their documentation says of the name."""
Described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, Described]]:
    """A module or class, and what is public in it."""
    yield name, tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_") or redefines(node):
                continue
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{name}.{node.name}")
            else:
                yield f"{name}.{node.name}", node


def redefines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is a form, or a setter, of something that was described before."""
    text = {ast.unparse(decorator) for decorator in node.decorator_list}
    return bool({"overload", "typing.overload"} & text) or any(each.endswith(".setter") for each in text)


def found(package: str) -> list[tuple[str, Described]]:
    return [
        each
        for path in sorted((ROOT / package).rglob("*.py"))
        for each in public(ast.parse(path.read_text()), str(path.relative_to(ROOT)))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_is_described(package: str) -> None:
    names = found(package)
    assert len(names) > 100
    missing = [name for name, node in names if not ast.get_docstring(node)]
    assert [name for name in missing if name.partition(".py")[0] + ".py" not in THEIRS] == []


def test_only_methods_of_other_peoples_classes_are_left_out() -> None:
    for path in THEIRS:
        tree = ast.parse((ROOT / path).read_text())
        assert ast.get_docstring(tree)
        for name, node in public(tree, path):
            assert ast.get_docstring(node) or isinstance(node, ast.FunctionDef), name


def test_what_is_missing_is_seen() -> None:
    methods = "def b(self): ...", "def __len__(self): ...", "def _c(self): ..."
    lines = ['"""A module."""', "class A:", *(f"    {each}" for each in methods), 'def d(): "D"']
    text = "\n".join(lines)
    names = dict(public(ast.parse(text), "m"))
    assert [name for name, node in names.items() if not ast.get_docstring(node)] == ["m.A", "m.A.b"]
