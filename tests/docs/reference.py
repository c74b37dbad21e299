"""Pages of the site that are made of the code: settings, command lines, the API, metrics, recipes, formats.

They are generated when the site is built and are in no checkout, so that none can be out of date. It happens
here, beside the tests, because it reads all four packages, which none of them may.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from typer.main import get_command

import export.__main__
import loadtest.__main__
import service.__main__
import training.__main__
from service.app import create_app
from service.contract import exposure, manifest
from service.settings import PREFIX, Settings
from service.telemetry import Metrics
from training import recipe

_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "at least {} long"}


def pages() -> dict[str, str]:
    """Markdown by path, relative to the site's pages."""
    made: dict[str, Callable[[], str]] = {
        "settings": settings,
        "commands": commands,
        "http-api": http_api,
        "metrics": metrics,
        "recipes": recipes,
        "manifest": manifests,
        "exposure-log": exposure_log,
    }
    return {f"reference/{name}.md": make() for name, make in made.items()}


def settings() -> str:
    """Every variable that the service reads."""
    rows = (
        (f"`{PREFIX}{each.name.upper()}`", each.type, each.default, each.about)
        for each in attributes(Settings)
    )
    head = _head(
        "Settings",
        "What an operator decides: environment variables, read once at the start. A variable with the prefix "
        "that is none of these is an error. Lists and objects are JSON.",
    )
    return "\n".join([*head, *_table(("variable", "type", "default", ""), rows)])


def commands() -> str:
    """Every command of the four command lines, with its options."""
    lines = _head(
        "Command lines",
        "Results go to stdout, progress and errors to stderr. Exit code 1 says that what was asked for was "
        "found wanting, 2 that it could not be done.",
    )
    for module in (training, export, service, loadtest):
        name = f"python -m {module.__name__}"
        lines += ["", f"## {name}", ""]
        for words, command in _commands(get_command(module.__main__.app)):
            lines += [
                f"### {' '.join((name, *words))}",
                "",
                _said(command.help or ""),
                "",
                *_usage(command),
                "",
            ]
    return "\n".join(lines)


def http_api() -> str:
    """The OpenAPI document, as a page."""
    document = create_app(Settings()).openapi()
    lines = _head(
        "HTTP API",
        f"{document['info']['description']}\n\n"
        "`python -m service openapi` prints the OpenAPI document, which this page is made of; a running "
        "service has it under `/openapi.json`.",
    )
    lines += ["## Paths"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += ["", f"### {method.upper()} {path}", "", *_operation(operation)]
    lines += ["", "## Models"]
    for name, model in sorted(document["components"]["schemas"].items()):
        lines += ["", f"### {name}", "", *_model(model)]
    return "\n".join(lines)


def metrics() -> str:
    """Every metric of the registry."""
    registry = Metrics().registry
    rows = []
    for collector in registry._collector_to_names:
        labels = ", ".join(f"`{name}`" for name in getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, labels, family.documentation))
    head = _head(
        "Metrics",
        "What `/metrics` has, in Prometheus's text format. Labels are from closed sets; a domain without a "
        "label of its own is `other`.",
    )
    return "\n".join([*head, *_table(("metric", "type", "labels", ""), sorted(rows))])


def recipes() -> str:
    """The keys of a recipe and of its parts."""
    lines = _head(
        "Recipes",
        "A YAML file that says all of a run. An unknown key is an error. On the command line "
        "`--tuning.lr 1e-3` changes a single value. What stands beside `name` in `data`, `backbone` and "
        "`paradigm` are the options of the file of that name.",
    )
    for model in (
        recipe.Recipe,
        recipe.Choice,
        recipe.Optimisation,
        recipe.Tuning,
        recipe.Align,
        recipe.Distil,
        recipe.Graded,
    ):
        lines += ["", *_described(model)]
    return "\n".join(lines)


def manifests() -> str:
    """The keys of a bundle's manifest."""
    lines = _head("Manifest", "`manifest.json`, the table of contents of a [bundle](../formats.md#bundle).")
    parts = manifest.GraphInput, manifest.ItemHalves, manifest.ManyGraphs, manifest.Parity, manifest.Precision
    for model in (manifest.Manifest, *parts):
        lines += ["", *_described(model)]
    return "\n".join(lines)


def exposure_log() -> str:
    """The columns of the exposure log, as its module describes them."""
    about = inspect.cleandoc(exposure.__doc__ or "")
    return "\n".join(_head("Exposure log", f"{about}\n\n[What is promised](../exposures.md)"))


class Attribute:
    """A field of a model, as its class is written down."""

    def __init__(self, model: type[BaseModel], statement: ast.AnnAssign, about: str) -> None:
        assert isinstance(statement.target, ast.Name)
        self.name = statement.target.id
        self.about = _said(about)
        self.type = _typed(statement.annotation, vars(sys.modules[model.__module__]))
        field = model.model_fields[self.name]
        self.default = "required" if field.is_required() else _shown(field.default)


def attributes(model: type[BaseModel]) -> Iterator[Attribute]:
    """A model's own fields, with the docstring under each."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    for statement, after in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign):
            about = after.value if isinstance(after, ast.Expr) else None
            text = about.value if isinstance(about, ast.Constant) else ""
            yield Attribute(model, statement, inspect.cleandoc(str(text)))


def _head(title: str, text: str) -> list[str]:
    return [f"# {title}", "", text, ""]


def _typed(annotation: ast.expr, names: Mapping[str, Any]) -> str:
    """A type as a reader wants it: without what only pydantic reads, and with bounds in words."""
    bounds = [
        _BOUNDS[keyword.arg].format(ast.unparse(keyword.value))
        for node in ast.walk(annotation)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in _BOUNDS
    ]

    class Plain(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            plain = names.get(node.id)
            if not hasattr(plain, "__metadata__"):  # no alias of something annotated
                return node
            origin = get_args(plain)[0]
            return ast.Name(
                origin.__name__ if get_origin(origin) is None else str(get_origin(origin).__name__)
            )

        def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
            self.generic_visit(node)
            annotated = isinstance(node.value, ast.Name) and node.value.id == "Annotated"
            return node.slice.elts[0] if annotated and isinstance(node.slice, ast.Tuple) else node

    plain = ast.unparse(Plain().visit(annotation)).replace(" | ", " or ")
    return ", ".join([_code(plain), *bounds])


def _described(model: type[BaseModel]) -> list[str]:
    rows = ((f"`{each.name}`", each.type, each.default, each.about) for each in attributes(model))
    base = model.__mro__[1].__name__
    text = _said(inspect.cleandoc(model.__doc__ or ""))
    more = "" if base == "BaseModel" else f" And all keys of [{base}](#{base.lower()})."
    return [f"## {model.__name__}", "", text + more, "", *_table(("key", "type", "default", ""), rows)]


def _commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), command


def _usage(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        name = " / ".join((*parameter.opts, *parameter.secondary_opts))
        name = name if name.startswith("-") else (parameter.metavar or parameter.name.upper())
        flag = getattr(parameter, "is_flag", False)
        shown = "required" if parameter.required else "" if flag else _shown(parameter.default)
        about = _said(getattr(parameter, "help", None) or "")
        read = f" From `{parameter.envvar}`, if it is set." if parameter.envvar else ""
        rows.append((f"`{name}`", shown, about + read))
    return _table(("argument or option", "default", ""), rows) if rows else ["It takes nothing."]


def _shown(default: Any) -> str:
    """A default, where it is worth showing: not one that a machine decides."""
    if isinstance(default, bool):
        return _code(str(default).lower())
    if isinstance(default, recipe.Choice):
        return _code(default.name)
    plain = isinstance(default, str | int | float | Path) and str(default)
    return _code(str(default)) if plain else ""


def _operation(operation: Mapping[str, Any]) -> list[str]:
    lines = [operation["description"]]
    if parameters := operation.get("parameters"):
        rows = (
            (
                f"`{each['name']}`",
                each["in"],
                "yes" if each.get("required") else "",
                each.get("description", ""),
            )
            for each in parameters
        )
        lines += ["", *_table(("parameter", "in", "required", ""), rows)]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += ["", f"Body, `{media}`: {_schema(content.get('schema', {}))}"]
    answers = []
    for status, answer in sorted(operation["responses"].items()):
        kinds = {_schema(content.get("schema", {})) for content in answer.get("content", {}).values()}
        answers.append((status, ", ".join(sorted(kinds)), answer["description"]))
    return [*lines, "", *_table(("status", "body", ""), answers)]


def _model(model: Mapping[str, Any]) -> list[str]:
    required = model.get("required", ())
    rows = (
        (f"`{name}`", _schema(each), "yes" if name in required else "", each.get("description", ""))
        for name, each in model.get("properties", {}).items()
    )
    lines = [model.get("description", ""), "", *_table(("key", "type", "required", ""), rows)]
    for example in model.get("examples", ()):
        lines += ["", "```json", json.dumps(example, ensure_ascii=False, indent=1), "```"]
    return lines


def _schema(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema(each) for each in schema["anyOf"]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"array of {_schema(schema.get('items', {}))}"
    if "enum" in schema or "const" in schema:
        return ", ".join(_code(json.dumps(each)) for each in schema.get("enum", [schema.get("const")]))
    return kind if isinstance(kind, str) else " or ".join(kind)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *(tuple(map(_cell, row)) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"


def _said(text: str) -> str:
    """Text of a docstring: its paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
