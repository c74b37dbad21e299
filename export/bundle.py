"""Assemble a bundle from a complete run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from export import graph, halves, many_graphs, parity, precision, weights
from export.card import card
from export.packs import domain_pack, golden_request
from export.servable import ScopedModel, graph_inputs
from service.contract import files, hashing, plugins
from service.contract.bundle import ITEMS, MANIFEST, PACKS, SCHEMA, Bundle
from service.contract.items import ItemTable
from service.contract.manifest import GraphInput, Manifest, Parity
from service.contract.pack import GENERAL, Base, DomainPack, version
from service.engines import ort_cuda
from training.data.batches import Rows
from training.data.prepare import Prepared, columns
from training.model import Model
from training.recipe import Recipe

GRAPH = "graph.onnx"
ENGINE, MANY = "ort", "ort_cuda"
_BUDGETS = {"float32": parity.BUDGET, "float16": 2e-3}
"""Of parity, in probability: a numerical check. What float16 costs is looked at by itself (`precision`)."""


def build(
    recipe: Recipe,
    prepared: Prepared,
    model: Model,
    metrics: Mapping[str, Any],
    out: Path,
    *,
    item_halves: bool | None = None,
    half: bool = False,
    many: bool = False,
) -> Bundle:
    """Make `out/<name>-<hash>/`, whole or not at all.

    The folder's name, and the bundle's, ends in the hash of the body: graph, weights and schema. A run
    of the same body with other packs replaces the folder.

    Args:
        recipe: the run's.
        prepared: its data.
        model: what it trained.
        metrics: what it measured.
        out: the folder of bundles.
        item_halves: whether to compute in advance what depends on items alone; None: unless it is very large.
        half: round the domains' packs to float16.
        many: also make graphs that score many requests at once, in float32 and float16.

    Raises:
        BundleError: an engine differs from torch by more than the parity budget, or float16 costs a domain
            more of its AUC than it may; nothing is left behind.
        PackError: a pack would be refused by every service, because a tensor of it is not finite, say.
    """
    schema = model.schema
    inputs = graph_inputs(schema, model)
    with files.scratch(out, recipe.name) as body:
        folded = graph.write(ScopedModel(model.paradigm.servable(), inputs), inputs, body / GRAPH)
        schema.save(body / SCHEMA)
        bundle = f"{recipe.name}-{_body_hash(body)[:8]}"
        with files.new_folder(out / bundle) as folder:
            for part in sorted(body.iterdir()):
                part.rename(folder / part.name)
            weights.save(model.paradigm.servable(), folder)
            items = ItemTable.encode(schema, columns(prepared.items(), schema, "item"))
            items.save(folder / ITEMS)
            most = {None: halves.MOST, True: None, False: 0}[item_halves]
            made = halves.write(folded, items, folder, most)
            of_many = many_graphs.write(folded, folder, rows=made is not None) if many else {}
            packs = make_packs(model, prepared, bundle, inputs, half=half)
            general, *others = packs
            data = general.to_bytes()
            base = Base(version(data), general.tensors)
            files.write(folder / PACKS / f"{GENERAL}.safetensors", data)
            for pack in others:
                files.write(folder / PACKS / f"{pack.domain}.safetensors", pack.to_bytes(base))
            manifest = Manifest(
                name=recipe.name,
                bundle=bundle,
                model=recipe.model_dump(mode="json"),
                schema_fingerprint=schema.fingerprint,
                domains=model.domains,
                inputs=inputs,
                graph=GRAPH,
                parity=(),
                parameters=model.parameters(),
                parameters_of_domain=model.parameters_of_domain(),
                parameters_tuned=model.parameters_tuned(),
                item_halves=made,
                many=of_many,
                files=_checksums(folder),
            )
            for pack in packs:
                pack.check(manifest)  # as every service will, before it is anybody's business
            checked = _gate(folder, manifest, model, packs) + _gate_many(folder, manifest, model, packs)
            lost = tuple(
                each
                for dtype, graphs in of_many.items()
                if dtype != "float32"
                for each in precision.gate(model, prepared, packs, folder / graphs.fields, dtype)
            )
            manifest = manifest.model_copy(update={"parity": checked, "precision": lost})
            files.write(folder / "CARD.md", card(manifest, prepared.about, metrics, packs))
            manifest.model_copy(update={"files": _checksums(folder)}).save(folder / MANIFEST)
    return Bundle.open(out / bundle)


def make_packs(
    model: Model,
    prepared: Prepared,
    bundle: str,
    inputs: Sequence[GraphInput],
    only: str | None = None,
    *,
    half: bool = False,
) -> list[DomainPack]:
    """The packs of a trained model, the general one first, with golden rows from validation.

    Args:
        model: a trained model.
        prepared: its data.
        bundle: the id of the bundle that the packs are for.
        inputs: the bundle's graph inputs.
        only: one domain, instead of all.
        half: round the domains' tensors to float16.
    """
    rows = Rows.encode(prepared.split("valid"), model.schema, model.domains)
    wanted = [None, *model.domains] if only is None else [only]
    packs = []
    for domain in wanted:
        own = rows if domain is None else rows.of(model.domains.index(domain))
        golden = golden_request(own, model.schema)
        packs.append(domain_pack(model, domain, bundle, inputs, golden, half=half))
    return packs


def _gate(folder: Path, manifest: Manifest, model: Model, packs: Sequence[DomainPack]) -> tuple[Parity, ...]:
    unchecked = Bundle(folder, manifest, model.schema, ItemTable.load(folder / ITEMS))
    engine = plugins.load("service.engines", ENGINE).open(unchecked, threads=1)
    try:
        found = [parity.gate(model, manifest.inputs, packs, engine, ENGINE)]
        if manifest.item_halves is not None:
            name = f"{ENGINE}, item halves"
            found.append(parity.gate(model, manifest.inputs, packs, engine, name, items=unchecked.items))
        return tuple(found)
    finally:
        engine.close()


def _gate_many(
    folder: Path, manifest: Manifest, model: Model, packs: Sequence[DomainPack]
) -> tuple[Parity, ...]:
    """Of the graphs of many requests, by fields and by rows."""
    unchecked = Bundle(folder, manifest, model.schema, ItemTable.load(folder / ITEMS))
    found = []
    for dtype in manifest.many:
        # Numbers of a thousand deviations are left to the graph of one request: their sums are of another
        # order here, and round otherwise.
        limits: dict[str, Any] = {"budget": _BUDGETS[dtype], "large": False}
        options = ort_cuda.Options(device="cpu", dtype=dtype, pieces=(1, 8))
        with closing(ort_cuda.open(unchecked, 1, options)) as engine:
            name = f"{MANY}, {dtype}"
            found.append(parity.gate(model, manifest.inputs, packs, engine, name, **limits))
            if manifest.item_halves is not None:
                name, items = f"{name}, item halves", unchecked.items
                found.append(parity.gate(model, manifest.inputs, packs, engine, name, items=items, **limits))
    return tuple(found)


def _body_hash(folder: Path) -> str:
    """Of the files that decide whether a pack fits, in the order of their names."""
    digests = "".join(hashing.file(part) for part in sorted(folder.iterdir()))
    return hashlib.sha256(digests.encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): hashing.file(path) for path in found}
