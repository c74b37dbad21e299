"""Tables and pictures of a comparison. Pictures need matplotlib, of the `report` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract.errors import RunError

_BLUE, _ORANGE = "#0072b2", "#d55e00"
"""Told apart by colour-blind readers too (Okabe and Ito)."""
_BYTES = 4
"""Of a float32."""
_SPARSE = 8
"""Of an id and a float32."""
_SLICES = ("macro", "thin domains", "new items")
_NEWCOMER = {"general_auc": "general pack", "best_own_auc": "best own domain", "tuned_auc": "tuned"}
_WIDE = 5
"""A curve whose last x is more times its first has a logarithmic axis."""
_MOST_DOMAINS = 8
"""Columns of domains that a table has; with more domains it has none."""


def table(report: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table: mean over seeds, and its deviation for the macro AUC."""
    domains = shown(report)
    head = [
        "model",
        *(f"AUC {domain}" for domain in domains),
        "macro AUC",
        "±",
        "GAUC",
        "log loss",
        "NE",
        "ECE",
    ]
    head += ["log loss before calibration", "owned, floats", "pack, bytes", "as differences"]
    timed = all("seconds" in row for row in report["rows"].values())
    head += ["of all, %", "seconds"] if timed else []
    lines = [head, ["---"] * len(head)]
    for name, row in report["rows"].items():
        macro = row["macro"]
        chosen = name == report["chosen_on_validation"]
        cells = [f"**{name}**" if chosen else name]
        cells += [f"{row[domain]['auc_mean']:.4f}" for domain in domains]
        cells += [f"{macro['auc_mean']:.4f}", f"{macro['auc_std']:.4f}"]
        cells += [f"{macro[f'{figure}_mean']:.4f}" for figure in ("gauc", "logloss", "ne", "ece")]
        cells += [f"{macro['uncalibrated_logloss_mean']:.4f}", f"{row['parameters_of_domain']:,}"]
        cells += [f"{size:,}" for size in pack_bytes(row)]
        if timed:
            cells += [f"{100 * row['parameters_of_domain'] / row['parameters']:.2f}", f"{row['seconds']:.0f}"]
        lines.append(cells)
    return _markdown(lines)


def beside(report: Mapping[str, Any], published: Mapping[str, Mapping[str, float]]) -> str:
    """AUC of each domain, and what was published of the same model, as a Markdown table.

    Args:
        report: of a comparison.
        published: AUC by row, then domain; rows that the report lacks are left out.
    """
    domains = [name for name in report["domains"] if all(name in row for row in published.values())]
    lines = [["model", *(cell for name in domains for cell in (name, "published"))]]
    lines.append(["---"] * len(lines[0]))
    for name, aucs in published.items():
        if name in report["rows"]:
            row = report["rows"][name]
            found = [(row[domain]["auc_mean"], aucs[domain]) for domain in domains]
            lines.append([name, *(f"{auc:.4f}" for both in found for auc in both)])
    return _markdown(lines)


def pairs(report: Mapping[str, Any], question: str) -> str:
    """Differences of macro AUC between two rows each, under one question, as a Markdown table."""
    lines = [["model", "less", "macro AUC", "p"], ["---"] * 4]
    lines += [
        [pair["row"], pair["less"], f"{pair['difference']:+.4f}", f"{pair['p']:.3f}"]
        for pair in report["pairs"][question]
    ]
    return _markdown(lines)


def differences(report: Mapping[str, Any]) -> str:
    """AUC by slice, and how much it differs from one row's, with 95 % intervals, as a Markdown table."""
    ((against, found),) = report["differences_from"].items()
    slices = [name for name in _SLICES if name in report["rows"][against]["slices"]]
    lines = [["model", *(cell for name in slices for cell in (f"AUC, {name}", f"against {against}"))]]
    lines.append(["---"] * len(lines[0]))
    for name, row in report["rows"].items():
        cells = [f"**{name}**" if name == report["chosen_on_validation"] else name]
        for where in slices:
            auc, gap = row["slices"][where], found.get(name, {}).get(where)
            spread = f" ± {auc['auc_std']:.4f}" if len(row["runs"]) > 1 else ""
            cells.append(f"{auc['auc_mean']:.4f}{spread}")
            cells.append(f"{gap['difference']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})" if gap else "")
        lines.append(cells)
    return _markdown(lines)


def newcomers(report: Mapping[str, Any]) -> str:
    """AUC on the test rows of domains that no model has seen, as a Markdown table."""
    domains = [*next(iter(report["unseen"].values()))]
    lines = [["model", *(f"{head}, {domain}" for domain in domains for head in _NEWCOMER.values())]]
    lines.append(["---"] * len(lines[0]))
    for name, row in report["unseen"].items():
        found = [row[domain].get(f"{figure}_mean") for domain in domains for figure in _NEWCOMER]
        lines.append([name, *("" if auc is None else f"{auc:.4f}" for auc in found)])
    return _markdown(lines)


def shown(report: Mapping[str, Any]) -> list[str]:
    """The domains that have a column of their own in a table."""
    domains: list[str] = report["domains"]
    return domains if len(domains) <= _MOST_DOMAINS else []


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def pack_bytes(row: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of a pack's tensors: whole, and as ids and values where they differ from the general pack."""
    return row["parameters_of_domain"] * _BYTES, round(row["changed_of_domain"] * _SPARSE)


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """One PNG for each curve and each group of bars of the plan, and one of AUC over a pack's bytes.

    A curve or group of which not all rows were run is left out.

    Raises:
        RunError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only who draws needs it
    except ImportError as error:
        raise RunError("figures need matplotlib: pip install 'mdctr[report]'") from error
    mpl.use("Agg")
    plan, there = report["plan"], report["rows"].keys()
    curves = {name: curve for name, curve in plan["curves"].items() if there >= curve["points"].keys()}
    bars = {name: rows for name, rows in plan["bars"].items() if there >= {*rows}}
    made = [_curve(report, name, curve, folder) for name, curve in curves.items()]
    made += [_bars(report, name, rows, folder) for name, rows in bars.items()]
    sized = [name for name in plan["sizes"] if name in there]
    return [*made, _sizes(report, sized, folder)] if sized else made


def scatter(layers: Mapping[str, npt.NDArray[np.floating]], domain: Sequence[str], path: Path) -> None:
    """t-SNE of what each layer makes of n rows, one picture beside the other, coloured by domain.

    Args:
        layers: by name, (n, width).
        domain: n names.
        path: of the PNG.

    Raises:
        RunError: matplotlib or scikit-learn is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only who draws needs them
        from sklearn.manifold import TSNE  # noqa: PLC0415
    except ImportError as error:
        raise RunError("figures need matplotlib and scikit-learn: pip install 'mdctr[report]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = sorted(set(domain))
    figure, axes = plt.subplots(1, len(layers), figsize=(3.2 * len(layers), 3.6), layout="constrained")
    for (name, rows), place in zip(layers.items(), np.atleast_1d(axes), strict=True):
        neighbours = min(30, len(rows) // 4)
        found = TSNE(perplexity=neighbours, random_state=0, init="pca").fit_transform(rows.astype(np.float32))
        for each in names:
            mine = found[[at for at, of in enumerate(domain) if of == each]]
            place.scatter(mine[:, 0], mine[:, 1], s=4, label=each)
        place.set_title(name)
        place.set_xticks([])
        place.set_yticks([])
    figure.legend(names, loc="outside lower center", ncols=min(len(names), 7), fontsize=8, markerscale=3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _macro(report: Mapping[str, Any], names: Sequence[str]) -> tuple[list[float], list[float]]:
    rows = [report["rows"][name]["macro"] for name in names]
    return [row["auc_mean"] for row in rows], [row["auc_std"] for row in rows]


def _curve(report: Mapping[str, Any], name: str, curve: Mapping[str, Any], folder: Path) -> Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    points = sorted(curve["points"].items(), key=lambda point: point[1])
    means, stds = _macro(report, [row for row, _ in points])
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.errorbar([x for _, x in points], means, yerr=stds, marker="o", color=_BLUE, capsize=3)
    if points[-1][1] > _WIDE * points[0][1]:
        axes.set_xscale("log")
    axes.set_xlabel(curve["label"])
    return _save(figure, axes, report, folder / f"{name}.png")


def _bars(report: Mapping[str, Any], name: str, rows: Sequence[str], folder: Path) -> Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    means, stds = _macro(report, rows)
    figure, axes = plt.subplots(figsize=(6, 0.45 * len(rows) + 1), layout="constrained")
    colours = [_ORANGE if row == report["chosen_on_validation"] else _BLUE for row in rows]
    axes.barh(rows, means, xerr=stds, color=colours, capsize=3)
    axes.invert_yaxis()
    axes.set_xlim(min(means) - 0.004, max(means) + 0.002)
    axes.set_title(name)
    axes.set_xlabel(f"macro AUC on the test split, {len(report['seeds'])} seeds, mean and deviation")
    return _save(figure, None, report, folder / f"{name.replace(' ', '-')}.png")


def _sizes(report: Mapping[str, Any], names: Sequence[str], folder: Path) -> Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    means, stds = _macro(report, names)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for marker, label, which, colour in (("o", "whole", 0, _BLUE), ("x", "as differences", 1, _ORANGE)):
        sizes = [max(pack_bytes(report["rows"][name])[which], 1) for name in names]
        axes.errorbar(sizes, means, yerr=stds, fmt=marker, color=colour, capsize=3, label=label)
    for name, mean, above in zip(names, means, cycle((True, False)), strict=False):
        at = (max(pack_bytes(report["rows"][name])[0], 1), mean)
        axes.annotate(name, at, xytext=(5, 6 if above else -12), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel("bytes of a domain's pack")
    axes.legend(loc="best")
    return _save(figure, axes, report, folder / "pack-bytes.png")


def _save(figure: Any, axes: Any, report: Mapping[str, Any], path: Path) -> Path:  # noqa: ANN401
    from matplotlib import pyplot as plt  # noqa: PLC0415

    if axes is not None:
        axes.set_ylabel(f"macro AUC, test, {len(report['seeds'])} seeds")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
