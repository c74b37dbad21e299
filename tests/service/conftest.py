"""A tiny bundle, a store with its packs, and the service over both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.contract.bundle import Bundle
from service.contract.pack import DomainPack, version
from service.settings import Settings
from service.stores._open import open_store
from tests.service import bundles
from tests.service.waiting import eventually

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Publisher:
    """Puts packs into a store, as `export` would."""

    url: str

    def __call__(self, *packs: DomainPack) -> dict[str, str]:
        """Put and promote; the versions by domain."""
        return self.raw({pack.domain: pack.to_bytes() for pack in packs})

    def raw(self, blobs: dict[str, bytes]) -> dict[str, str]:
        """Put and promote bytes, whatever they are."""

        async def publish() -> dict[str, str]:
            store = open_store(self.url, bundles.BUNDLE)
            versions = {domain: await store.put(domain, blob) for domain, blob in blobs.items()}
            await store.promote(versions)
            await store.close()
            return versions

        return asyncio.run(publish())


@dataclass(frozen=True)
class Service:
    """A running service."""

    client: TestClient

    def rank(self, domain: str = "books", headers: dict[str, str] | None = None, **body: Any) -> Any:
        """POST a rank request; the whole response."""
        return self.client.post(f"/v1/domains/{domain}/rank", json={"ids": [10], **body}, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, as `/metrics` shows it; 0 if it is not there yet."""
        wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        start = f"{name}{{{wanted}}} " if labels else f"{name} "
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), 0.0)

    def state(self, domain: str) -> Any:
        """A domain's entry in `/v1/domains`."""
        states = self.client.get("/v1/domains").json()["domains"]
        return next(state for state in states if state["domain"] == domain)

    def ready(self) -> bool:
        """What `/readyz` says."""
        return self.client.get("/readyz").status_code == 200

    def serves(self, pack: DomainPack) -> bool:
        """Whether this very pack answers for its domain."""
        return bool(self.state(pack.domain)["serving"] == version(pack.to_bytes()))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def publish(bundle: Bundle, tmp_path: Path) -> Publisher:
    """A folder store that holds the bundle's packs."""
    publisher = Publisher(f"directory:{tmp_path / 'store'}")
    publisher.raw(dict(bundle.packs()))
    return publisher


@contextmanager
def running(bundle: Bundle, store: str, **settings: Any) -> Iterator[Service]:
    """The service, started; not waited for."""
    app = create_app(Settings(bundle=bundle.path, store=store, **settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Service(client)


@pytest.fixture(scope="session")
def shared(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for tests that neither promote nor count."""
    publisher = Publisher(f"directory:{tmp_path_factory.mktemp('shared')}")
    publisher.raw(dict(bundle.packs()))
    with running(bundle, publisher.url) as service:
        eventually(service.ready)
        yield service


@pytest.fixture
def start(bundle: Bundle, publish: Publisher) -> Iterator[Callable[..., Service]]:
    """Start the service on the folder store, and wait until it is ready."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Service:
            service = stack.enter_context(running(bundle, publish.url, **settings))
            eventually(service.ready)
            return service

        yield start


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    return start()
