"""Scoring on a GPU: the engine beside bare torch, many domains in one launch, float16, memory, and HTTP.

The parts are measured one after another, each on a model that is made here, so no data are needed. A part
that fails has its `error` in the report, and the others are measured. On a machine without a GPU all of it
runs on the CPU provider, which measures nothing but shows that it runs.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from loadtest import gpu_engine, gpu_memory, gpu_mixes, gpu_precision, gpu_throughput
from loadtest.gpu_stage import DTYPES, Ground, Size
from loadtest.gpu_stage import ground as stage
from service.contract import files
from service.contract.errors import UnknownOption


def _over_http(ground: Ground) -> dict[str, Any]:
    """What `gpu_http` measures; it needs the service's libraries, and the other parts do not."""
    from loadtest import gpu_http  # noqa: PLC0415

    return gpu_http.measure(ground)


def _plain(ground: Ground) -> dict[str, Any]:
    """What `gpu_engine` measures, of DeepFM alone."""
    other = stage(ground.size, ground.folder, "mix")
    return gpu_engine.measure(replace(other, until=ground.until))


PARTS: Mapping[str, Callable[[Ground], dict[str, Any]]] = {
    "engine": gpu_engine.measure,
    "throughput": gpu_throughput.measure,
    "mixes": gpu_mixes.measure,
    "http": _over_http,
    "memory": gpu_memory.measure,
    "precision": gpu_precision.measure,
    "engine_plain": _plain,
}
_SHARES = {"engine": 0.06, "throughput": 0.17, "mixes": 0.17, "http": 0.4}
"""Of the time of all parts, which those have that can stop early."""


def bench(size: Size, folder: Path, console: Console, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Run some parts, or all; the report is also written to `folder/report.json`, after each part.

    Parts that an earlier report has and that are not measured now are kept. A part that fails has an `error`.

    Raises:
        UnknownOption: there is no such part.
    """
    if strange := sorted(set(parts) - PARTS.keys()):
        raise UnknownOption(f"no part {', '.join(strange)}; there are {', '.join(PARTS)}")
    path = folder / "report.json"
    report: dict[str, Any] = json.loads(path.read_text()) if parts and path.is_file() else {}
    report |= {"conditions": conditions(size), "size": asdict(size)}
    with tempfile.TemporaryDirectory(prefix="mdctr-gpu-") as place:
        console.print("training and exporting a model", style="dim")
        base = stage(size, Path(place))
        for part in parts or PARTS:
            began = time.perf_counter()
            console.print(f"measuring {part}", style="dim")
            until = began + size.whole_seconds * _SHARES.get(part, 1.0)
            try:
                found = PARTS[part](replace(base, until=until))
            except Exception as error:  # noqa: BLE001 - the other parts may do
                console.print_exception()
                found = {"error": f"{type(error).__name__}: {error}"}
            report[part] = {**found, "measured_seconds": time.perf_counter() - began}
            files.write(path, json.dumps(report, indent=1))
    return report


def failed(report: Mapping[str, Any]) -> dict[str, str]:
    """Why, by part."""
    return {part: report[part]["error"] for part in PARTS if "error" in report.get(part, {})}


def conditions(size: Size) -> dict[str, Any]:
    """Of which machine and versions the figures are."""
    on_gpu = size.device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if on_gpu else f"CPU, {platform.machine()}",
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """A table a part."""
    for part, error in failed(report).items():
        console.print(f"{part} failed: {error}", soft_wrap=True, markup=False)
    report = {name: each for name, each in report.items() if set(each) != {"error", "measured_seconds"}}
    console.print(" ".join(f"{name}={value}" for name, value in report["conditions"].items()), soft_wrap=True)
    for part, title in (("engine", "PLATE over DeepFM"), ("engine_plain", "DeepFM")):
        if part in report:
            console.print(_engine(report[part], title))
    if "throughput" in report:
        console.print(_throughput(report["throughput"]))
    if "mixes" in report:
        console.print(_by_type(report["mixes"], "random mixes beside single requests"))
    if "precision" in report:
        console.print(_precision(report["precision"]))
    if "http" in report:
        console.print(_http(report["http"]))
    if "memory" in report:
        console.print(_by_type(report["memory"], "domains on the device"))


def _engine(figures: Mapping[str, Any], title: str) -> Table:
    table = Table(title=f"ms a request of {figures['candidates']:,} candidates: {title}")
    columns = "engine", "to torch", "host to host", "p99", "on its thread"
    for name in ("type", "items by", "torch", *columns):
        table.add_column(name, justify="right")
    for dtype in DTYPES:
        for form in ("rows", "fields"):
            name = f"{dtype}.{form}"
            names = (
                f"{name}_ms",
                f"{name}_ratio",
                f"{name}_host_ms",
                f"{name}_host_p99_ms",
                f"{name}_direct_ms",
            )
            cells = (figures[each] for each in (f"{dtype}.torch_ms", *names))
            table.add_row(dtype, form, *(f"{cell:.3f}" for cell in cells))
    return table


def _throughput(figures: Mapping[str, Any]) -> Table:
    table = Table(title="million candidates/s when there is always more to do")
    kinds = (
        *gpu_throughput.RATES,
        *(f"{way}_{what}" for way in gpu_throughput.WAYS for what in ("gain", "kept")),
    )
    for name in ("type", "candidates", "domains", *kinds):
        table.add_column(name, justify="right")
    for dtype in DTYPES:
        for name, each in figures[dtype].items():
            table.add_row(dtype, *name.split("."), *(_rate(kind, each[kind]) for kind in kinds))
    return table


def _rate(kind: str, figure: float) -> str:
    if kind.endswith("gain"):
        return f"{figure:.1f}x"
    return f"{figure:.3f}" if kind.endswith("kept") else f"{figure / 1e6:.2f}"


def _precision(figures: Mapping[str, Any]) -> Table:
    table = Table(title="what float16 costs on the device, simulated clicks")
    names = "rows", "max_abs_diff", "auc", "auc_loss", "ece", "ece_change"
    for name in ("domain", *names):
        table.add_column(name, justify="right")
    for domain, each in figures.items():
        if isinstance(each, dict):
            table.add_row(domain, *(f"{each[name]:.3g}" for name in names))
    return table


def _http(figures: Mapping[str, Any]) -> Table:
    table = Table(title="over HTTP: all connections busy, and at a share of that rate")
    names = "rps", "p50_ms", "p99_ms", "open_rate", "open_p50_ms", "open_p99_ms", "open_answered"
    for name in ("engine", "workers", "candidates", "domains", *names):
        table.add_column(name, justify="right")
    for engine, each in figures.items():
        if isinstance(each, dict):
            for what, found in each.items():
                name, _, workers = engine.rpartition("_")
                table.add_row(name, workers, *what.split("."), *(f"{found[key]:,.2f}" for key in names))
    return table


def _by_type(figures: Mapping[str, Any], title: str) -> Table:
    table = Table(title=title)
    names = [*figures[DTYPES[0]]]
    for name in ("type", *names):
        table.add_column(name, justify="right")
    for dtype in DTYPES:
        cells = (figures[dtype][name] for name in names)
        table.add_row(dtype, *(f"{cell:.3g}" if isinstance(cell, float) else f"{cell:,}" for cell in cells))
    return table


def float16_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of a page: what float16 costs, the worst domain of each data set and model."""
    lines = ["| data | model | domains, test rows | probability | AUC lost | ECE moved |", "| --- " * 6 + "|"]
    for each in found:
        domains = each["domains"]
        off, lost = (max(one[name] for one in domains) for name in ("max_abs_diff", "auc_loss"))
        moved = max(abs(one["ece_change"]) for one in domains)
        count = f"{len(domains)}, {sum(one['rows'] for one in domains):,}"
        cells = (
            each["source"],
            each["paradigm"],
            count,
            f"{off:.1e}",
            f"{max(0.0, lost):.1e}",
            f"{moved:.1e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a page: the engine beside torch, and many domains in one launch."""
    columns = "type", "items by", "torch, ms", "engine, ms", "to torch", "host to host, ms", "p99"
    lines = []
    for part, title in (("engine", "PLATE over DeepFM"), ("engine_plain", "DeepFM")):
        if part not in report:
            continue
        lines += [f"{title}:", "", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
        for dtype in DTYPES:
            for form in gpu_engine.FORMS:
                name = f"{dtype}.{form}"
                keys = (
                    f"{dtype}.torch_ms",
                    f"{name}_ms",
                    f"{name}_ratio",
                    f"{name}_host_ms",
                    f"{name}_host_p99_ms",
                )
                lines.append(
                    f"| {' | '.join((dtype, form, *(f'{report[part][key]:.3f}' for key in keys)))} |"
                )
        lines.append("")
    kinds = "mixed_bulk", "single_bulk", "bulk_gain", "bulk_kept", "mixed_asked", "asked_gain", "asked_kept"
    rated = "type", "candidates", "domains", "together, M/s", "one by one, M/s", "gain", "of fewest domains"
    lines += [f"| {' | '.join((*rated, 'asked, M/s', 'gain', 'of fewest domains'))} |", "| --- " * 10 + "|"]
    for dtype in DTYPES:
        for name, each in report["throughput"][dtype].items():
            rates = (_rate(kind, each[kind]) for kind in kinds)
            lines.append(f"| {' | '.join((dtype, *name.split('.'), *rates))} |")
    names = "rps", "p50_ms", "p99_ms", "open_rate", "open_p50_ms", "open_p99_ms"
    columns = "engine", "workers", "candidates", "domains", "requests/s", "p50, ms", "p99, ms"
    lines += ["", f"| {' | '.join((*columns, 'at requests/s', 'p50, ms', 'p99, ms'))} |", "| --- " * 10 + "|"]
    for engine, each in report["http"].items():
        if isinstance(each, dict):
            name, _, workers = engine.rpartition("_")
            for what, found in each.items():
                rates = (
                    f"{found[key]:,.0f}" if key in {"rps", "open_rate"} else f"{found[key]:.1f}"
                    for key in names
                )
                lines.append(f"| {' | '.join((name, workers, *what.split('.'), *rates))} |")
    return "\n".join(lines)
