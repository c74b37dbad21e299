"""`Stage`: a model of a real one's size, its bundle, and a Redis from which services have its packs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loadtest import flat
from loadtest.cores import on
from loadtest.exported import export
from loadtest.redis_server import redis_server
from loadtest.server import free_port, listening, service
from loadtest.traffic import Asked, Mix, Traffic
from service.contract.bundle import Bundle
from service.contract.pack import DomainPack
from service.stores._open import open_store
from training.model import Model

_START = 120.0
"""Seconds that a server may take to answer."""


@dataclass(frozen=True)
class Size:
    """Of the model: by default DeepFM with 8 request and 7 item fields, K = 16, as large as real ones."""

    domains: int = 4
    items: int = 200_000
    users: int = 10_000
    rows: int = 20_000
    dim: int = 16
    hidden: tuple[int, ...] = (256, 128, 64)


@dataclass(frozen=True)
class Stage:
    """What services need."""

    bundle: Bundle
    model: Model
    store: str
    """URL of a Redis that has a pack for every domain."""
    folder: Path
    """For logs; it stays."""

    @contextmanager
    def serve(self, cores: frozenset[int], workers: int = 1, **settings: str) -> Iterator[int]:
        """Run the service on these cores; gives its port once all workers are ready.

        Args:
            cores: where.
            workers: how many processes.
            settings: further ones, by their names in lower case.
        """
        port = free_port()
        given = {f"MDCTR_{name}".upper(): value for name, value in settings.items()}
        given |= {"MDCTR_PORT": str(port), "MDCTR_WORKERS": str(workers), "MDCTR_LOG_FORMAT": "json"}
        log = self.folder / f"service-{workers}.log"
        with ExitStack() as stack:
            with on(cores):
                stack.enter_context(service(self.bundle.path, self.store, log, given, timeout=_START))
            yield port

    @contextmanager
    def serve_naive(self, cores: frozenset[int], place: Path, domain: str) -> Iterator[int]:
        """Run the naive service under one domain's pack; gives its port."""
        graph = self.flat(place / "naive.onnx", domain)
        pack, port = self.pack(domain), free_port()
        command = [sys.executable, "-m", "loadtest.naive", str(graph), str(port)]
        with (self.folder / "naive.log").open("wb") as out, on(cores):
            process = subprocess.Popen(
                [*command, *map(str, pack.calibration)], stdout=out, stderr=subprocess.STDOUT
            )
        try:
            listening(port, process, _START)
            yield port
        finally:
            process.terminate()
            process.wait()

    def pack(self, domain: str) -> DomainPack:
        """A domain's pack, whole."""
        data = dict(self.bundle.packs())[domain]
        return DomainPack.from_bytes(data, self.bundle.base)

    def flat(self, path: Path, domain: str) -> Path:
        """Write the flat graph of the model under a domain's pack."""
        owned = {name: torch.from_numpy(np.array(each)) for name, each in self.pack(domain).tensors.items()}
        fields = sum(self.bundle.schema.widths(scope)[0] for scope in ("request", "item"))
        flat.write(flat.Flat(self.model.paradigm.servable(), owned), fields, path)
        return path

    def asked(self, candidates: int, count: int, seed: int = 0, *, one_domain: bool = False) -> list[Asked]:
        """Different requests of so many candidates, none popular: nothing is in a cache by chance."""
        mix = Mix(candidates={candidates: 1.0}, items_zipf=0.0, users_zipf=0.0, domains_zipf=0.0)
        domains = self.bundle.manifest.domains[: 1 if one_domain else None]
        traffic = Traffic(self.bundle.schema, self.bundle.items.keys, domains, mix, seed)
        return [traffic.ask() for _ in range(count)]


@contextmanager
def stage(size: Size, folder: Path) -> Iterator[Stage]:
    """Train a little, export, and publish to a Redis of its own.

    Args:
        size: of the model.
        folder: for logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(size, name) for name in ("domains", "items", "users", "rows")}
    recipe = {"dim": size.dim, "backbone": {"name": "deepfm", "hidden": list(size.hidden)}}
    with tempfile.TemporaryDirectory(prefix="mdctr-stage-") as name:
        made = export(Path(name), sizes, recipe)
        with redis_server() as store:
            asyncio.run(_publish(made.bundle, store))
            yield Stage(made.bundle, made.model, store, folder)


async def _publish(bundle: Bundle, url: str) -> None:
    store = open_store(url, bundle.manifest.bundle)
    try:
        await store.promote({domain: await store.put(domain, data) for domain, data in bundle.packs()})
    finally:
        await store.close()
