from __future__ import annotations

import io
import json
from importlib.resources import files as resources
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.budgets import BudgetError, Budgets, Observed, conclude, exit_code, judge

STRICT = {"all": {"p50_ms": 3, "p99_ms": 10, "errors": 0.01, "shed": 0.1}, "late_starts": 0.02}


def observed() -> Observed:
    seen = Observed()
    for at in range(200):
        seen.add("books" if at % 2 else "films", 200, 1.0 + at % 5)
    seen.add("books", 429, 0.2)
    return seen


def test_budgets_that_are_kept(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120, record=True)
    budgets = Budgets.model_validate(STRICT)
    assert conclude(budgets, observed(), tmp_path, console) == 0
    shown = console.export_text()
    assert "films" in shown
    assert ">" not in shown
    written = json.loads((tmp_path / "budgets.json").read_text())
    assert written["kept"]
    assert written["requests"] == 201
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert Observed.load(tmp_path / "observed.json") == observed()


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"all": {"p50_ms": 2.5}}, {("all", "p50_ms"), ("books", "p50_ms"), ("films", "p50_ms")}),
        ({"all": {"p999_ms": 4}, "domains": {"books": {}}}, {("all", "p999_ms"), ("films", "p999_ms")}),
        ({"all": {"shed": 0.0}}, {("all", "shed"), ("books", "shed")}),
        ({"all": {}, "domains": {"music": {"p99_ms": 10}}}, {("music", "p99_ms")}),
        ({"all": {"p99_ms": 10}, "domains": {"books": {"p99_ms": 1}}}, {("books", "p99_ms")}),
    ],
)
def test_what_breaks_a_budget(change: dict[str, object], broken: set[tuple[str, str]]) -> None:
    verdicts = judge(Budgets.model_validate(change), observed())
    assert {(each.domain, each.measure) for each in verdicts if not each.kept} == broken
    assert exit_code(verdicts) == 1


def test_lost_connections_and_late_starts_break_budgets() -> None:
    seen = observed()
    for _ in range(5):
        seen.add("films", 0, 3.0)
    seen.late_starts = 10
    broken = {each.measure for each in judge(Budgets.model_validate(STRICT), seen) if not each.kept}
    assert broken == {"errors", "late_starts"}


def test_a_test_that_asked_nothing_keeps_nothing() -> None:
    assert not any(verdict.kept for verdict in judge(Budgets.model_validate(STRICT), Observed()))


def test_the_command_judges_again(tmp_path: Path) -> None:
    observed().save(tmp_path / "observed.json")
    (tmp_path / "strict.yaml").write_text("all: {p99_ms: 1}")
    runner = CliRunner()
    assert runner.invoke(app, ["budgets", str(tmp_path / "observed.json")]).exit_code == 0
    strict = ["budgets", str(tmp_path / "observed.json"), "--file", str(tmp_path / "strict.yaml")]
    result = runner.invoke(app, strict)
    assert result.exit_code == 1
    assert "5.00 > 1.00" in result.output


@pytest.mark.parametrize("text", ["all: {p98_ms: 3}", "all: {p50_ms: -1}", "{", "domains: {}"])
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "budgets.yaml").write_text(text)
    with pytest.raises(BudgetError, match=r"budgets\.yaml"):
        Budgets.load(tmp_path / "budgets.yaml")
    with pytest.raises(BudgetError, match="no record of a load test"):
        Observed.load(tmp_path / "budgets.yaml")


def test_the_file_that_comes_along_is_right() -> None:
    assert Budgets.load(Path(str(resources("loadtest"))) / "budgets.yaml").all.p99_ms


def test_locust_stays_in_its_file() -> None:
    folder = Path(str(resources("loadtest")))
    users = {
        path.name
        for path in folder.rglob("*.py")
        if any(word in path.read_text() for word in ("import locust", "from locust", "gevent"))
    }
    assert users == {"locustfile.py"}
