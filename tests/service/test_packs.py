"""Packs that change under traffic, packs that are refused, and stores that come and go."""

import asyncio
import threading
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest

from loadtest.redis_server import redis_server
from service.contract.pack import DomainPack, Golden, version
from tests.service import bundles
from tests.service.conftest import Publisher, running
from tests.service.waiting import eventually

ROW = {key: column[:1] for key, column in bundles.ITEMS.items()}


def score(pack):
    """The probability of item 10 for nobody, by numpy."""
    return float(1 / (1 + np.exp(-bundles.logits(pack.tensors, bundles.inputs_of({}, ROW, 1))[0])))


def test_a_promoted_pack_answers(service, publish):
    for seed in (1, 2):
        pack = bundles.make_pack("books", seed)
        publish(pack)
        eventually(partial(service.serves, pack))
        answer = service.rank().json()
        assert answer["pack"] == version(pack.to_bytes())
        assert answer["probabilities"] == pytest.approx([score(pack)], abs=1e-6)
    assert service.state("books")["live"] == service.state("books")["serving"]
    assert service.metric("mdctr_packs_loaded_total", domain="books") == 3
    assert service.metric("mdctr_packs_loaded_total", domain="films") == 1


def test_a_rollback_is_a_promotion(service, publish):
    for seed in (1, 0, 1):
        publish(bundles.make_pack("books", seed))
        eventually(partial(service.serves, bundles.make_pack("books", seed)))
    assert service.rank().json()["probabilities"] == pytest.approx(
        [score(bundles.make_pack("books", 1))], abs=1e-6
    )


def test_every_answer_under_promotion_is_one_versions(service, publish):
    """While packs change as fast as they are seen, no answer mixes two, and none fails."""
    packs = [bundles.make_pack("books", seed) for seed in range(4)]
    expected = {version(pack.to_bytes()): score(pack) for pack in packs}
    answers, stop = [], threading.Event()

    def traffic():
        while not stop.is_set():
            answers.append(service.rank())

    with ExitStack() as stack:
        asking = threading.Thread(target=traffic)
        asking.start()
        stack.callback(asking.join)
        stack.callback(stop.set)
        for pack in packs:
            publish(pack)
            eventually(partial(service.serves, pack))
    assert {answer.status_code for answer in answers} == {200}
    seen = [answer.json() for answer in answers]
    assert {answer["pack"] for answer in seen} == expected.keys()
    for answer in seen:
        assert answer["probabilities"] == pytest.approx([expected[answer["pack"]]], abs=1e-6)


def test_a_superseded_pack_is_freed_only_after_its_last_request(service, publish):
    runtime = service.client.app.state.runtime
    with asyncio.run(runtime.router.route("books", 1.0)) as held:
        publish(bundles.make_pack("books", 1))
        eventually(lambda: service.serves(bundles.make_pack("books", 1)))
        assert held.handle.nbytes == service.state("books")["bytes"]
    assert held.handle.nbytes == 0


def test_a_new_domain_is_served_without_a_restart(service, publish):
    assert service.rank("cooking").status_code == 404
    publish(bundles.make_pack("cooking"))
    eventually(lambda: service.rank("cooking").status_code == 200)
    assert service.rank("cooking").json()["probabilities"] == pytest.approx(
        [score(bundles.make_pack("cooking"))], abs=1e-6
    )
    assert service.metric("mdctr_requests_total", domain="cooking", status="200") >= 1


def changed(domain="books", **parts):
    pack = bundles.make_pack(domain, 7)
    whole = {"bundle": pack.bundle, "domain": domain, "tensors": pack.tensors, "golden": pack.golden, **parts}
    return DomainPack(**whole).to_bytes()


PACK = bundles.make_pack("books", 7)
BAD = {
    "not a pack": b"no pack at all",
    "of bundle other": changed(bundle="other"),
    "of domain 'films'": changed("films"),
    "missing tensor: bias": changed(tensors={k: v for k, v in PACK.tensors.items() if k != "bias"}),
    "bias is not finite": changed(tensors={**PACK.tensors, "bias": np.array([np.inf], np.float32)}),
    "golden rows are off": changed(golden=Golden(PACK.golden.inputs, PACK.golden.logit + np.float32(0.01))),
    "the engine cannot score it": changed(
        golden=Golden(
            {**PACK.golden.inputs, "item.ids": PACK.golden.inputs["item.ids"] + 1000}, PACK.golden.logit
        )
    ),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_pack_is_refused_with_its_reason_and_the_last_good_serves_on(service, publish, reason):
    good = service.state("books")
    before = service.rank().json()["probabilities"]
    [bad] = publish.raw({"books": BAD[reason]}).values()
    eventually(lambda: service.state("books")["refused"])
    state = service.state("books")
    assert state["refused"]["version"] == state["live"] == bad
    assert reason in state["refused"]["reason"]
    assert state["serving"] == good["serving"]
    assert service.rank().json()["probabilities"] == before
    assert service.ready()
    assert service.metric("mdctr_packs_refused_total", domain="books") == 1
    assert service.state("films")["refused"] is None
    publish(bundles.make_pack("books", 2))
    eventually(lambda: service.serves(bundles.make_pack("books", 2)))
    assert service.state("books")["refused"] is None


def test_bytes_that_changed_in_the_store_are_refused(bundle, publish, tmp_path):
    [path] = (tmp_path / "store").rglob("books/*.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with running(bundle, publish.url) as service:
        eventually(lambda: service.state("books")["refused"])
        assert "its content is version" in service.state("books")["refused"]["reason"]
        assert service.state("books")["serving"] is None
        assert service.rank("books").status_code == 503
        assert service.rank("films").status_code == 200
        assert not service.ready()


def test_a_live_version_that_the_store_does_not_have_is_refused(bundle, publish, tmp_path):
    [path] = (tmp_path / "store").rglob("books/*.safetensors")
    path.unlink()
    with running(bundle, publish.url) as service:
        eventually(lambda: service.state("books")["refused"])
        assert "has no version" in service.state("books")["refused"]["reason"]
        assert service.rank("films").status_code == 200


def test_everything_is_looked_at_again_now_and_then(bundle, publish, tmp_path, monkeypatch):
    """A pack that could not be had is had when the store is whole again, without a promotion."""
    monkeypatch.setattr("service.packs._RECONCILE", 0.3)
    [path] = (tmp_path / "store").rglob("books/*.safetensors")
    data = path.read_bytes()
    path.unlink()
    with running(bundle, publish.url) as service:
        eventually(lambda: service.state("books")["refused"])
        path.write_bytes(data)
        eventually(service.ready)
        assert service.state("books")["refused"] is None


def test_redis_lost_after_start_changes_nothing_and_promotions_go_on_when_it_is_back(bundle, tmp_path):
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        url = server.enter_context(redis_server(folder=tmp_path))
        publish = Publisher(url)
        publish.raw(dict(bundle.packs()))
        service = stack.enter_context(running(bundle, url))
        eventually(service.ready)
        publish(bundles.make_pack("books", 1))
        eventually(lambda: service.serves(bundles.make_pack("books", 1)))
        before = service.rank().json()["probabilities"]
        contact = service.metric("mdctr_store_contact_timestamp_seconds")
        server.close()
        for _ in range(20):
            assert service.rank().json()["probabilities"] == before
        assert service.ready()
        assert service.client.get("/healthz").status_code == 200
        stack.enter_context(redis_server(int(url.rsplit(":", 1)[1].split("/")[0]), tmp_path))
        publish(bundles.make_pack("books", 2))
        eventually(lambda: service.serves(bundles.make_pack("books", 2)))
        assert service.metric("mdctr_store_contact_timestamp_seconds") > contact


def test_a_store_that_lost_its_data_takes_no_pack_away(bundle):
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        url = server.enter_context(redis_server())
        Publisher(url).raw(dict(bundle.packs()))
        service = stack.enter_context(running(bundle, url))
        eventually(service.ready)
        contact = service.metric("mdctr_store_contact_timestamp_seconds")
        server.close()
        stack.enter_context(redis_server(int(url.rsplit(":", 1)[1].split("/")[0])))
        eventually(lambda: service.metric("mdctr_store_contact_timestamp_seconds") > contact)
        assert service.ready()
        assert service.rank().status_code == 200


def test_a_store_that_is_down_at_the_start_is_waited_for(bundle):
    with redis_server() as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
    with running(bundle, url) as service:
        assert service.client.get("/healthz").status_code == 200
        answer = service.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {
            "ready": False,
            "draining": False,
            "settled": False,
            "from_shelf": False,
            "items": True,
            "domains": {"books": False, "films": False},
        }
        assert service.metric("mdctr_ready") == 0
        refused = service.rank()
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:mdctr:problem:not-ready")
        with redis_server(port):
            Publisher(url).raw(dict(bundle.packs()))
            eventually(service.ready)
            assert service.rank().status_code == 200
            assert service.metric("mdctr_ready") == 1
