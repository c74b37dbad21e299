"""`CARD.md`: what a bundle is worth, for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.contract.manifest import Manifest
from service.contract.pack import Base, DomainPack, version
from training.data.prepare import About

_FIGURES = {"AUC": "auc", "GAUC": "gauc", "log loss": "logloss", "NE": "ne", "ECE": "ece"}
"""Column -> field of `training.metrics.Quality`."""


def card(manifest: Manifest, about: About, metrics: Mapping[str, Any], packs: Sequence[DomainPack]) -> str:
    """The model card, in Markdown with Hugging Face's front matter."""
    owned, tuned = manifest.parameters_of_domain, manifest.parameters_tuned
    recipe = manifest.model
    lines = [
        "---",
        "library_name: mdctr",
        "tags: [ctr, multi-domain, onnx]",
        "---",
        f"# {manifest.bundle}",
        "",
        f"{recipe['paradigm']['name']} over {recipe['backbone']['name']}, seed {recipe['seed']}.",
        "",
        "## Data",
        "",
        f"Source `{about.source}`. {about.protocol}",
        "",
        *_table(("domain", "train", "valid", "test", "positive in test"), _data_rows(about)),
        "",
        "## Quality on the test split",
        "",
        "By torch, before export, calibrated as served. The general pack answers for domains that have none.",
        "",
        *_table(("domain", *_FIGURES, "AUC, general pack", "best possible AUC"), _quality(metrics, about)),
        "",
        "## Size",
        "",
        f"{manifest.parameters:,} parameters as one domain sees them.",
        f"A domain owns {owned:,} of them ({owned / manifest.parameters:.2%});",
        f"tuning on its rows trains {tuned:,} ({tuned / manifest.parameters:.2%}).",
        "",
        *_table(("pack", "tensors, bytes", "file, bytes"), _sizes(packs)),
        "",
        "## Parity with torch",
        "",
        *_table(
            ("engine", "cases", "rows", "largest difference in probability", "budget"),
            [
                (p.engine, str(p.cases), f"{p.rows:,}", f"{p.max_abs_diff:.1e}", f"{p.budget:g}")
                for p in manifest.parity
            ],
        ),
        *_precision(manifest),
        "",
        "## Limits",
        "",
        "One seed. Users and items that training has not seen are scored by their other fields alone.",
        "",
    ]
    return "\n".join(lines)


def _precision(manifest: Manifest) -> list[str]:
    if not manifest.precision:
        return []
    head = (
        "type",
        "domain",
        "test rows",
        "largest difference in probability",
        "AUC",
        "AUC lost",
        "ECE",
        "ECE moved",
    )
    return [
        "",
        "## What float16 costs",
        "",
        "On the test split, calibrated as served, beside torch in float32.",
        "",
        *_table(
            head,
            [
                (
                    each.dtype,
                    each.domain,
                    f"{each.rows:,}",
                    f"{each.max_abs_diff:.1e}",
                    "-" if each.auc is None else f"{each.auc:.4f}",
                    f"{each.auc_loss:+.6f}",
                    f"{each.ece:.4f}",
                    f"{each.ece_change:+.6f}",
                )
                for each in manifest.precision
            ],
        ),
    ]


def _data_rows(about: About) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for domain in about.domains:
        parts = about.parts[domain]
        positive = parts["test"].positive
        counts = (f"{parts[split].rows:,}" for split in ("train", "valid", "test"))
        rows.append((domain, *counts, "-" if positive is None else f"{positive:.3f}"))
    return rows


def _quality(metrics: Mapping[str, Any], about: About) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for domain, found in (*metrics["domains"].items(), ("macro", metrics["macro"])):
        best = about.oracle_auc.get(domain)
        figures = [found["pack"][name] for name in _FIGURES.values()]
        figures.append(found["general"]["auc"])
        known = "" if domain == "macro" else "unknown" if best is None else f"{best:.4f}"
        rows.append((domain, *(f"{figure:.4f}" for figure in figures), known))
    return rows


def _sizes(packs: Sequence[DomainPack]) -> list[tuple[str, ...]]:
    general = packs[0]
    base = Base(version(general.to_bytes()), general.tensors)
    files = [(general, "general", general.to_bytes())]
    files += [(pack, pack.domain, pack.to_bytes(base)) for pack in packs[1:]]
    return [(name, f"{pack.nbytes:,}", f"{len(data):,}") for pack, name, data in files]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
