"""`python -m tests.docs.site`: builds the documentation's site, and fails at a warning or a broken link.

Its pages are `docs/*.md`, CONTRIBUTING.md, CHANGELOG.md, and what `tests.docs.reference` makes of the code.
They are put together in a temporary folder, because what is generated has no place in a checkout. A link to a
file that is no page becomes the file's path: who reads the site has the repository beside it or not.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.docs import reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = DOCS / "zensical.toml"
BESIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""Pages at the top of the repository, and which page of the site they are."""
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


class SiteError(Exception):
    """The site cannot be built; the text says where, a line each."""


def assemble(folder: Path) -> list[str]:
    """Put the site's sources into an empty folder.

    Returns:
        The pages, relative to `folder/pages`.

    Raises:
        SiteError: a link leads to a file that is not there.
    """
    made = reference.pages()
    source = {page.name: page for page in sorted(DOCS.glob("*.md"))}
    source |= {name: ROOT / file for file, name in BESIDE.items() if file != "README.md"}
    texts = {name: _linked(page, {*source, *made}) for name, page in source.items()} | made
    for name, text in texts.items():
        path = folder / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    pictures = [*(DOCS / "figures").glob("*.png"), *(DOCS / "figures").glob("*.svg")]
    reports = [*(DOCS / "figures").glob("*.json"), *(DOCS / "figures").glob("*.parquet")]
    (folder / "pages" / "figures").mkdir()
    for file in (*pictures, *reports):
        shutil.copy(file, folder / "pages" / "figures")
    shutil.copy(DOCS / "site.css", folder / "pages")
    shutil.copy(CONFIG, folder)
    return sorted(texts)


def build(out: Path) -> list[str]:
    """Build the site into a folder, in the place of what is there; returns its pages.

    Raises:
        SiteError: a page, or the configuration, has a fault.
    """
    with tempfile.TemporaryDirectory() as folder:
        pages = assemble(Path(folder))
        command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "-f"]
        done = subprocess.run(
            [*command, str(Path(folder) / CONFIG.name)], capture_output=True, text=True, check=False
        )
        if done.returncode or "No issues found" not in done.stdout + done.stderr:
            raise SiteError(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr))
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(folder) / "site", out)
    return pages


def _linked(page: Path, pages: set[str]) -> str:
    """A page's text, with links as the site has them."""
    missing = []

    def there(found: re.Match[str]) -> str:
        text, target = found.groups()
        if "://" in target or target.startswith("#"):
            return found[0]
        name, _, anchor = target.partition("#")
        if page.parent == DOCS and name in pages:
            return found[0]
        path = (page.parent / name).resolve()
        if not path.exists():
            missing.append(f"{page.relative_to(ROOT)}: {target} is not there")
            return found[0]
        inside = path.relative_to(DOCS) if path.is_relative_to(DOCS) else None
        if inside is not None and not path.is_dir():
            return f"[{text}]({inside.as_posix()}{'#' if anchor else ''}{anchor})"
        top = BESIDE.get(path.relative_to(ROOT).as_posix())
        if top is not None:
            return f"[{text}]({top}{'#' if anchor else ''}{anchor})"
        where = f"`{path.relative_to(ROOT).as_posix()}`"
        return where if text.startswith("`") else f"{text} ({where})"

    whole = outside_of_code(page.read_text(), lambda text: _LINK.sub(there, text))
    if missing:
        raise SiteError("\n".join(missing))
    return whole


def outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """Change a page's text, but nothing in its fenced blocks."""
    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "site"
    try:
        built = build(where)
    except SiteError as fault:
        raise SystemExit(str(fault)) from None
    sys.stdout.write(f"{len(built)} pages: {where / 'index.html'}\n")
