"""The site builds without a warning, hangs together, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from export import __main__ as exporting
from service.settings import PREFIX, Settings
from service.telemetry import Metrics
from tests.docs import reference, site

LOADED = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
    ("video", "src"),
}
"""What a browser fetches by itself."""


class Page(HTMLParser):
    """What a page has, loads, and leads to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif (tag, name) in LOADED and value:
                self.loads.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    site.build(out)  # strict: a warning of the builder is an error
    return out


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in built.rglob("*.html")}


def test_links_lead_somewhere(built: Path, pages: dict[Path, Page]) -> None:
    seen = 0
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the site's root
            continue
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            assert there.is_relative_to(built), f"{path}: {link}"
            assert there.exists(), f"{path}: {link}"
            if parts.fragment and there in pages:
                assert unquote(parts.fragment) in pages[there].ids, f"{path}: {link}"
            seen += 1
    assert seen > 1000


def test_nothing_is_loaded_from_elsewhere(built: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert [link for link in page.loads if urlsplit(link).scheme or link.startswith("//")] == [], path
        # The theme's script fetches a library where a page draws with Mermaid, runs Python, or edits code.
        text = path.read_text()
        assert not re.search(r'class="[^"]*(mermaid|glightbox|pyodide)', text), path
    for path in built.rglob("*.css"):
        assert not re.search(r"""(@import|url\()\s*["']?(https?:)?//""", path.read_text()), path
    for path in built.rglob("*.svg"):
        assert not re.search(r"""(href|src)=["'](https?:)?//""", path.read_text()), path


def leaves(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        (found,) = entry.values()
        if isinstance(found, str):
            yield found
        else:
            yield from leaves(found)


def test_every_page_is_in_the_navigation_once(tmp_path: Path) -> None:
    there = site.assemble(tmp_path)
    listed = [*leaves(tomllib.loads(site.CONFIG.read_text())["project"]["nav"])]
    assert sorted(listed) == there
    assert {page.name for page in site.DOCS.glob("*.md")} < set(there)


def test_a_broken_link_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    for name in (*site.BESIDE, "docs/site.css", "docs/zensical.toml"):
        (tmp_path / name).write_text("")
    (tmp_path / "docs" / "page.md").write_text("[there](../README.md) and [gone](../service/nowhere.py)\n")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(site, "CONFIG", tmp_path / "docs" / "zensical.toml")
    (tmp_path / "out").mkdir()
    with pytest.raises(site.SiteError, match=r"docs/page.md: \.\./service/nowhere.py is not there"):
        site.assemble(tmp_path / "out")


def test_a_warning_of_the_builder_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = reference.pages() | {"reference/metrics.md": "# Metrics\n\n[nowhere](two.md)\n"}
    monkeypatch.setattr(reference, "pages", lambda: made)
    with pytest.raises(site.SiteError, match="page does not exist"):
        site.build(tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_links_to_files_become_their_paths(tmp_path: Path) -> None:
    site.assemble(tmp_path)
    text = (tmp_path / "pages" / "backbones.md").read_text()
    assert "`training/backbones/autoint.py`" in text
    assert "](../" not in text
    assert "(contributing.md#adding-a-thing)" in text
    assert "[docs/architecture.md](architecture.md)" in (tmp_path / "pages" / "contributing.md").read_text()


def test_reference_pages_have_everything() -> None:
    settings = reference.settings()
    for name in Settings.model_fields:
        assert f"| `{PREFIX}{name.upper()}` | " in settings
    assert (
        "| `MDCTR_PORT` | `int`, ≥ 0, ≤ 65535 | `8080` | The port to listen on; 0 takes a free one. |"
        in settings
    )
    metrics = reference.metrics()
    shown = {row.split("`")[1] for row in metrics.splitlines() if row.startswith("| `")}
    assert {family.name for family in Metrics().registry.collect()} == {
        name.removesuffix("_total") for name in shown
    }
    assert "| `mdctr_requests_total` | counter | `domain`, `status` | Rank requests answered. |" in metrics
    commands = reference.commands()
    assert commands.count("### python -m export ") == len(exporting.app.registered_commands) + sum(
        len(group.typer_instance.registered_commands)
        for group in exporting.app.registered_groups
        if group.typer_instance is not None
    )
    api = reference.http_api()
    assert "### POST /v1/domains/{domain}/rank" in api
    assert "| `ids` | " in api
    assert "| `graph` | `str` | required | The ONNX file" in reference.manifests()
    assert "| `lr` | `float`, > 0 | `0.002` |" in reference.recipes()
    assert "| propensity | float32 |" in reference.exposure_log()
