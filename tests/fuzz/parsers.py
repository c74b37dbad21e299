"""What reads bytes without a service around it: packs, a bundle's documents, tensors, what a store says."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from service.api import tensors
from service.contract.bundle import Bundle
from service.contract.edition import Edition
from service.contract.errors import (
    BundleError,
    ItemsError,
    PackError,
    RequestError,
    SchemaError,
    StoreError,
    UnknownOption,
)
from service.contract.index import Index
from service.contract.manifest import Manifest
from service.contract.pack import Base, DomainPack
from service.contract.pack import version as content
from service.contract.schema import FeatureSchema
from service.engines import ort
from service.experiments import document, forced
from service.resident import load, parse
from service.stores import _redis_url
from service.stores import redis as redis_store
from service.stores.directory import DirectoryStore
from service.users import redis as redis_users
from tests.fuzz.mutations import spoiled
from tests.fuzz.target import Fault, Target
from tests.service import bundles
from tests.service.bad_packs import BAD
from tests.service.experiments import documents

_SECRET = "forced-0123456789abc"
_OTHERS = [
    documents.experiment(
        "x", ramp=[{"at": "2026-01-01T00:00:00Z", "share": 0.1}], start="2026-01-01T00:00:00Z"
    ),
    documents.experiment(
        "y",
        slice=[0, 0.5],
        targeting={"user.age": [1, "2"]},
        guardrails=[{"metric": "ctr", "min": 0.1, "action": "stop"}],
    ),
]


@contextmanager
def targets(bundle: Bundle) -> Iterator[list[Target]]:
    """All of them, over a bundle."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = ort.open(bundle, 1)
        manifest = (bundle.path / "manifest.json").read_bytes()
        schema = (bundle.path / "schema.json").read_bytes()
        text = json.dumps(documents.document(_OTHERS[:1], _OTHERS[1:], holdout=0.1)).encode()
        header = forced.sign(_SECRET, "x", "b", 4_000_000_000)
        yield [
            Target("pack", _packs(bundle), _pack(bundle, engine)),
            Target(
                "manifest", [manifest], _file(folder / "manifest.json", Manifest.load, BundleError), spoiled
            ),
            Target("schema", [schema], _file(folder / "schema.json", _schema, SchemaError), spoiled),
            Target(
                "item table", [Edition.of(bundle, bundle.item_arrays).to_bytes()], _edition(bundle), spoiled
            ),
            Target("index", [b"[[1,2,3],[3,4]]", b'[["a","b"],["b"]]', b"[[1,900000],[2]]"], _index, spoiled),
            Target("tensor as bytes", _TENSORS, _tensor_of_bytes),
            Target("tensor in JSON", _TENSORS_IN_JSON, _tensor_of_json, spoiled),
            Target("experiments", [text], _taken(document.parse, document.ExperimentsError), spoiled),
            Target("X-Force-Arm", [header.encode()], _forced(text)),
            Target("stream of changes", _CHANGES, _entry, spoiled),
            Target("history in Redis", _HISTORY, _taken(redis_store._promotion, StoreError), spoiled),
            Target("live.json of a folder", _LIVE, _live(folder), spoiled),
            Target("user in Redis", _USERS, _user, spoiled),
            Target("URL of a store", _URLS, _url),
        ]
        engine.close()


def _taken(read: Callable[[bytes], object], *errors: type[Exception]) -> Callable[[bytes], None]:
    """A reader that may raise these errors, whose text is one that can be shown."""

    def take(data: bytes) -> None:
        try:
            read(data)
        except errors as error:
            str(error).encode()

    return take


def _file(path: Path, read: Callable[[Path], object], error: type[Exception]) -> Callable[[bytes], None]:
    def take(data: bytes) -> None:
        path.write_bytes(data)
        _taken(lambda _: read(path), error)(data)

    return take


# Packs


def _packs(bundle: Bundle) -> list[bytes]:
    sparse = bundles.make_pack("books")
    tensors = {**bundle.base.tensors, "bias": sparse.tensors["bias"]}
    near = DomainPack(sparse.bundle, "books", tensors, sparse.golden)
    return [
        sparse.to_bytes(),
        near.to_bytes(bundle.base),
        *(data for data, _ in BAD.values() if len(data) < 10_000),
    ]


def _pack(bundle: Bundle, engine: ort.OrtEngine) -> Callable[[bytes], None]:
    general = bundle.base

    def read(data: bytes) -> None:
        DomainPack.from_bytes(data, Base(general.version, general.tensors))
        # As a service takes it: what passes is loaded and scored.
        load(parse(data, "books", content(data), bundle), content(data), engine, 1e-4).supersede()

    return _taken(read, PackError)


# A bundle's documents


def _schema(path: Path) -> None:
    schema = FeatureSchema.load(path)
    if sum((*schema.widths("request"), *schema.widths("item"))) < 100_000:
        schema.encode("item", {}, 2)
        assert schema.blanks["request"].ids.shape == (1, schema.widths("request")[0])


def _edition(bundle: Bundle) -> Callable[[bytes], None]:
    return _taken(lambda data: Edition.from_bytes(data).check(bundle, 10**9), ItemsError)


def _index(data: bytes) -> None:
    """The index finds what a dictionary finds."""
    try:
        keys, asked = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return
    for kind in (int, str):
        if not all(isinstance(each, list) and {*map(type, each)} <= {kind} for each in (keys, asked)):
            continue
        if kind is int and not all(-(2**63) < key < 2**63 - 1 for key in keys):
            continue
        known = {key: at for at, key in enumerate(dict.fromkeys(keys))}
        if not known:
            continue
        found = Index([*known]).positions(asked).tolist()
        if found != [known.get(each, -1) for each in asked]:
            raise Fault("the index and a dictionary differ")


# Tensors

_TENSORS = [
    b"INT64 2\n" + np.array([1, 2], "<i8").tobytes(),
    b"FP32 1 3\n" + np.ones(3, "<f4").tobytes(),
    b"FP16 2\n" + np.ones(2, "<f2").tobytes(),
    b"BOOL 2\n\x00\x01",
    b"UINT64 1\n" + b"\xff" * 8,
    b"BYTES 2\n\x02\x00\x00\x00ab\x01\x00\x00\x00c",
    b"BYTES 1\n\x02\x00\x00\x00\xc3\xa9",
]
_TENSORS_IN_JSON = [
    b'["INT64",[2],[1,2]]',
    b'["FP32",[2,1],[[1.5],[2]]]',
    b'["BYTES",[1],["a"]]',
    b'["BOOL",[1],[true]]',
    b'["UINT8",[2],[0,255]]',
]


def _tensor_of_bytes(data: bytes) -> None:
    head, _, body = data.partition(b"\n")
    kind, *shape = head.decode("latin-1").split(" ")
    with suppress(ValueError):
        sizes = [abs(int(size)) for size in shape[:4]]
        with suppress(tensors.TensorError):
            values = tensors.from_bytes(kind, sizes, body, 0, len(body))
            assert len(values) == np.prod(sizes, dtype=object)
            if kind not in {"FP16", "FP32", "FP64"}:
                assert tensors.to_bytes(values) == body


def _tensor_of_json(data: bytes) -> None:
    with suppress(ValueError, TypeError, RecursionError):
        kind, shape, elements = json.loads(data)
        sizes = [abs(size) for size in shape if type(size) is int][:2]  # as the request's model has it
        if isinstance(kind, str) and isinstance(elements, list) and max(sizes, default=0) < 2**63:
            _one_line(lambda: tensors.from_json(kind, sizes, elements))


def _one_line(read: Callable[[], Any]) -> None:
    try:
        read()
    except RequestError as error:
        if "\n" in str(error):
            raise Fault("a refusal of several lines") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise Fault(repr(error)) from error


# Experiments


def _forced(text: bytes) -> Callable[[bytes], None]:
    experiments = document.parse(text)

    def read(data: bytes) -> None:
        value = data.decode("latin-1")
        found = forced.verify(_SECRET, value, experiments, 1_700_000_000)
        if value != forced.sign(_SECRET, found.experiment, found.arm, int(value.split(";")[1])):
            raise Fault("a header that was not signed forces an arm")

    return _taken(read, forced.ForceRefused)


# What a store says

_CHANGES = [
    b'{"versions":{"books":"0123456789abcdef","films":null}}',
    b'{"versions":{"books":0},"live":{"books":"","films":"0123456789abcdef"}}',
]
_HISTORY = [
    b'{"version":"0123456789abcdef","time":1767225600.5,"run":"r","by":"b"}',
    b'{"version":null,"time":1}',
]
_LIVE = [
    json.dumps(
        {
            "live": {"books": "0123456789abcdef", "films": None},
            "history": {"books": [{"version": "0123456789abcdef", "time": 1.5, "run": "", "by": ""}]},
        }
    ).encode()
]
_USERS = [b'{"age":3,"genres":["crime"]}', b'[1767225600.5,"books",10]\n[1767225601,"films","x"]']
_URLS = [
    b"redis://user:secret@host:6379/0",
    b"rediss+sentinel://u:p@a:1,b:2/service/3?socket_timeout=1&read_replicas=yes",
    b"redis+cluster://h:1,[::1]:2?ssl_cert_reqs=none",
]


def _entry(data: bytes) -> None:
    """An entry of the stream has the JSON under `versions`; who promotes writes `live` as text."""

    def read(data: bytes) -> None:
        versions = redis_store._versions({b"versions": data})
        if not all(isinstance(at, str | None) for at in versions.values()):
            raise Fault("what is live is not a text")

    with suppress(ValueError, KeyError, TypeError, RecursionError):
        data = json.dumps(json.loads(data)["versions"]).encode()
    _taken(read, StoreError)(data)


def _live(folder: Path) -> Callable[[bytes], None]:
    store = DirectoryStore(folder)

    def read(data: bytes) -> None:
        (folder / "live.json").write_bytes(data)
        live = store._state()["live"]
        if not all(isinstance(at, str | None) for at in live.values()):
            raise Fault("what is live is not a text")
        asyncio.run(store.history("books"))

    return _taken(read, StoreError)


def _user(data: bytes) -> None:
    _taken(redis_users._profile, StoreError)(data)
    _taken(redis_users._recent, StoreError)(data)


def _url(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        target = _redis_url.parse(text)
    except UnknownOption:
        return
    password = target.client["password"]
    hosts = repr((target.hosts, target.service))
    if password and len(password) > 5 and password in repr(target) and password not in hosts:
        raise Fault("a password is shown")
