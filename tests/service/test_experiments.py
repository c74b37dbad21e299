"""Experiments in the request path: who gets what, what is logged, and what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import runtime
from service.__main__ import app
from service.contract import cli
from service.contract.errors import SettingsError
from service.contract.exposure import read
from service.contract.pack import GENERAL, version
from service.contract.schema import FeatureSchema
from service.experiments import canary, guard
from service.experiments.assign import assign
from service.experiments.document import Experiments, Trial, parse
from service.experiments.forced import HEADER, sign
from service.experiments.place import open_place
from service.settings import Settings
from service.stores._open import open_store
from tests.service import bundles, logs
from tests.service.experiments.documents import document, experiment
from tests.service.waiting import eventually

OLD, NEW = (bundles.make_pack("books", seed) for seed in (0, 9))
V_OLD, V_NEW = (version(pack.to_bytes()) for pack in (OLD, NEW))
GENERAL_PACK, FILMS = (bundles.make_pack(name) for name in (GENERAL, "films"))
SECRET = "sixteen characters or more"
USER = {"id": 1, "age": 40.0}


@pytest.fixture
def live(start, publish, tmp_path):
    """Starts a service that follows a document and writes a log; `put` writes another document."""
    path = tmp_path / "experiments.json"
    publish(NEW)
    publish(OLD)

    class Live:
        log = tmp_path / "log"
        path = str(tmp_path / "experiments.json")

        def __init__(self, whole: dict[str, Any] | None, **settings: Any) -> None:
            if whole is not None:
                path.write_text(json.dumps(whole))
            self.service = start(
                experiments=str(path),
                experiments_seconds=0.02,
                exposures=self.log,
                **{"exposures_requests": True, **settings},
            )
            if whole is not None:
                eventually(lambda: self.state()["version"] is not None)

        def state(self) -> Any:
            return self.service.client.get("/info").json()["experiments"]

        def put(self, whole: dict[str, Any]) -> None:
            path.write_text(json.dumps(whole))

        def rows(self, count: int) -> list[dict[str, Any]]:
            """The log once it has so many rows."""
            eventually(lambda: read(self.log).exposures.num_rows >= count)
            found: list[dict[str, Any]] = read(self.log).exposures.sort_by("time").to_pylist()
            assert len(found) == count
            return found

    return Live


def versions(**arms: Any) -> dict[str, Any]:
    """An experiment over books: control `a`, and `b` with the new version."""
    given = {"a": {"weight": 1}, "b": {"weight": 1, "version": {"books": V_NEW}, **arms}}
    return experiment("trial", domains=["books"], arms=given)


def read_document(whole: dict[str, Any]) -> Experiments:
    return parse(json.dumps(whole).encode(), canary=True)


def test_users_get_the_arm_that_the_document_gives_them(live) -> None:
    whole = document([versions()])
    running = live(whole)
    seen = set()
    for user in range(40):
        answer = running.service.rank(ids=[10, 11], user={"id": user}, headers={"x-request-id": f"r-{user}"})
        (found,) = assign(read_document(whole), {"user": str(user)}, "books", {}, time.time())
        body = answer.json()
        assert (body["experiment"], body["arm"]) == ("trial", found.arm)
        pack = {"a": OLD, "b": NEW}[found.arm]
        assert (body["pack"], body["bundle"]) == (version(pack.to_bytes()), bundles.BUNDLE)
        assert body["probabilities"] == pytest.approx(logs.probabilities(pack, {"id": user}, [10, 11]))
        seen.add(found.arm)
    assert seen == {"a", "b"}
    for row in running.rows(40):
        user = row["request_id"].removeprefix("r-")
        (found,) = assign(read_document(whole), {"user": user}, "books", {}, time.time())
        assert (row["unit"], row["experiment"], row["arm"], row["propensity"]) == (
            user,
            "trial",
            found.arm,
            0.5,
        )
        assert (row["domain"], row["status"], row["ids"]) == ("books", 200, ["10", "11"])
        assert row["ms"] > 0
    shares = [running.service.metric("mdctr_arms_total", arm=arm, experiment="trial") for arm in "ab"]
    assert sum(shares) == 40
    assert running.service.rank("films", ids=[10], user={"id": 1}).json()["experiment"] is None


@pytest.mark.parametrize(
    ("arm", "pack"),
    [
        ({"domain": "films"}, FILMS),
        ({"fallback": "general"}, GENERAL_PACK),
        ({"version": {"books": V_NEW}}, NEW),
    ],
)
def test_an_arm_changes_one_thing(live, arm, pack) -> None:
    arms = {"a": {"weight": 0}, "b": {"weight": 1, **arm}}
    running = live(document([experiment("trial", domains=["books"], arms=arms)]))
    answer = running.service.rank(ids=[12, 10], user=USER).json()
    assert (answer["arm"], answer["pack"]) == ("b", version(pack.to_bytes()))
    assert answer["probabilities"] == pytest.approx(logs.probabilities(pack, USER, [12, 10]))
    (row,) = running.rows(1)
    assert row["pack_domain"] == (None if pack.domain == "books" else pack.domain)


def test_without_experiments_answers_are_logged_all_the_same(start, tmp_path) -> None:
    service = start(exposures=tmp_path / "log")
    assert service.client.get("/info").json()["experiments"] is None
    headers = {"x-force-arm": "not read"}
    answer = service.rank(ids=[10, 11, 12], top_k=2, user=USER, headers=headers).json()
    assert (answer["experiment"], answer["arm"]) == (None, None)
    service.rank("films", ids=[10], headers={"x-request-id": "own"})
    eventually(lambda: read(tmp_path / "log").exposures.num_rows == 2)
    one, two = read(tmp_path / "log").exposures.sort_by("time").to_pylist()
    assert one["ids"] == [str(each) for each in answer["ids"]]
    assert one["scores"] == pytest.approx(answer["probabilities"])
    assert (one["unit"], one["experiment"], one["propensity"], one["request"]) == ("1", None, None, None)
    assert (one["request_id"], one["pack"], one["bundle"]) == (
        answer["request_id"],
        answer["pack"],
        bundles.BUNDLE,
    )
    assert (two["unit"], two["domain"]) == ("own", "films")


def test_a_unit_is_what_the_request_names(live) -> None:
    arms = {"a": {"weight": 1}, "b": {"weight": 0, "fallback": "general"}}
    layers = ([experiment(f"by-{unit}", unit=unit, arms=arms)] for unit in ("user", "session", "request"))
    running = live(document(*layers))
    running.service.rank(user=USER, unit="somebody", headers={"x-session-id": "s-1", "x-request-id": "r-1"})
    assert {row["experiment"]: row["unit"] for row in running.rows(3)} == {
        "by-user": "somebody",
        "by-session": "s-1",
        "by-request": "r-1",
    }
    headers = {"x-session-id": "not well-formed", "x-request-id": "r-2"}
    assert running.service.rank(headers=headers).json()["experiment"] == "by-request"


def test_the_first_change_has_the_request_to_itself(live) -> None:
    arms = {"a": {"weight": 0}, "b": {"weight": 1, "fallback": "general"}}
    controls = {"a": {"weight": 1}, "b": {"weight": 0, "fallback": "general"}}
    layers = [
        [experiment("first", arms=controls)],
        [experiment("second", arms=arms)],
        [experiment("third", arms=arms)],
    ]
    running = live(document(*layers))
    answer = running.service.rank(user=USER).json()
    assert (answer["experiment"], answer["arm"]) == ("second", "b")
    assert [(row["experiment"], row["arm"]) for row in running.rows(2)] == [("first", "a"), ("second", "b")]


def test_a_tester_sees_a_forced_arm_and_no_analysis_does(live) -> None:
    arms = {"a": {"weight": 1}, "b": {"weight": 0, "version": {"books": V_NEW}}}
    whole = document([experiment("trial", domains=["books"], arms=arms)])
    running = live(whole, force_secret=SECRET)
    soon = int(time.time()) + 60
    forced = running.service.rank(user=USER, headers={HEADER: sign(SECRET, "trial", "b", soon)}).json()
    assert (forced["experiment"], forced["arm"], forced["pack"]) == ("trial", "b", V_NEW)
    (row,) = running.rows(1)
    assert (row["experiment"], row["arm"], row["unit"], row["pack"]) == (None, None, "1", V_NEW)
    for header, said in (
        (sign("another secret of 16", "trial", "b", soon), "signature"),
        (sign(SECRET, "trial", "b", soon - 120), "expired"),
        (sign(SECRET, "trial", "c", soon), "no arm c"),
        ("trial=b", "is not"),
        ("\xff", "is not"),
    ):
        answer = running.service.rank(user=USER, headers={HEADER.encode(): header.encode("latin-1")})
        assert answer.status_code == 403
        problem = answer.json()
        assert problem["type"] == "urn:mdctr:problem:arm-refused"
        assert said in problem["detail"]
    assert running.service.metric("mdctr_arms_total", arm="b", experiment="trial") == 0


def test_without_a_secret_no_arm_is_forced(live) -> None:
    running = live(document([versions()]))
    header = {HEADER: sign("", "trial", "b", int(time.time()) + 60)}
    assert running.service.rank(user=USER, headers=header).status_code == 403


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"version": {"books": "f" * 16}}, "version ffffffffffffffff of books cannot be served"),
        ({"domain": "music"}, "no pack is live in music"),
        ({"bundle": "star-1a2b3c4d"}, "star-1a2b3c4d is not served here"),
        ({"weight": -1, "fallback": "general"}, "layers.l0.experiments[0].arms.b.weight: "),
    ],
)
def test_a_document_that_cannot_be_served_is_refused_and_the_last_one_stays(live, arm, said) -> None:
    whole = document([versions()])
    running = live(whole)
    before = running.state()
    arms = {"a": {"weight": 1}, "b": {"weight": 1, **arm}}
    running.put(document([experiment("other", domains=["books"], arms=arms)]))
    eventually(lambda: running.state()["refused"] is not None)
    after = running.state()
    assert said in after["refused"]["reason"]
    assert (after["version"], after["since"]) == (before["version"], before["since"])
    assert running.service.rank(user=USER).json()["experiment"] == "trial"
    assert running.service.metric("mdctr_experiments_refused_total") == 1
    running.put(document([experiment("third", domains=["books"])]))
    eventually(lambda: running.state()["version"] != before["version"])
    assert running.state()["refused"] is None
    assert running.service.rank(user=USER).json()["experiment"] == "third"


def test_a_document_may_come_and_go_while_it_serves(live) -> None:
    running = live(None)
    assert running.state() == {"version": None, "since": None, "refused": None}
    assert running.service.rank(user=USER).json()["experiment"] is None
    running.put(document([versions()]))
    eventually(lambda: running.service.rank(user=USER).json()["experiment"] == "trial")
    running.put(document())
    eventually(lambda: running.service.rank(user=USER).json()["experiment"] is None)


def test_a_request_that_fails_in_an_arm_is_a_row_of_that_arm(live, monkeypatch) -> None:
    arms = {"a": {"weight": 0}, "b": {"weight": 1, "version": {"books": V_NEW}}}
    running = live(document([experiment("trial", domains=["books"], arms=arms)]))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        broken.setattr("service.scoring.Scorer.rank", fail)
        assert running.service.rank(user=USER).status_code == 500
        assert running.service.rank("films", user=USER).status_code == 500  # in no experiment
    assert running.service.rank(user={"id": [1]}).status_code == 422  # not our fault
    (row,) = running.rows(1)
    assert (row["status"], row["arm"], row["ids"], row["pack"], row["unit"]) == (500, "b", [], None, "1")


def test_a_shadow_scores_and_answers_nothing(live) -> None:
    arms = {"a": {"weight": 0}, "b": {"weight": 1, "version": {"books": V_NEW}, "shadow": True}}
    running = live(document([experiment("trial", domains=["books"], arms=arms)]), shadow_share=1.0)
    time.sleep(0.05)
    answer = running.service.rank(ids=[10, 11, 12, 13], top_k=2, user=USER).json()
    assert (answer["arm"], answer["pack"]) == ("b", V_OLD)
    (row,) = running.rows(1)
    assert (row["pack"], row["shadow_pack"]) == (V_OLD, V_NEW)
    assert row["scores"] == pytest.approx(logs.probabilities(OLD, USER, answer["ids"]))
    assert row["shadow_scores"] == pytest.approx(logs.probabilities(NEW, USER, answer["ids"]))
    assert running.service.metric("mdctr_shadows_total", outcome="scored") == 1
    assert running.service.metric("mdctr_shadow_difference_count") == 1


def test_a_shadow_without_time_to_spare_is_dropped_and_its_answer_logged(live) -> None:
    arms = {"a": {"weight": 0}, "b": {"weight": 1, "version": {"books": V_NEW}, "shadow": True}}
    running = live(document([experiment("trial", domains=["books"], arms=arms)]), shadow_share=0.0)
    assert running.service.rank(user=USER).status_code == 200
    (row,) = running.rows(1)
    assert (row["pack"], row["shadow_pack"], row["shadow_scores"]) == (V_OLD, None, None)
    assert running.service.metric("mdctr_shadows_total", outcome="dropped") == 1


OTHER = "other-11111111"


@pytest.fixture
def other(tmp_path, publish, monkeypatch):
    """Another bundle, whose packs have other weights, in the same store."""
    with monkeypatch.context() as renamed:
        renamed.setattr(bundles, "BUNDLE", OTHER)
        made = bundles.make_bundle(tmp_path / "other")
        packs = [bundles.make_pack(domain, 5) for domain in ("books", "films")]
        publish(*packs, bundles.make_pack(GENERAL, 5))
    return made, packs[0]


def test_an_arm_may_have_another_bundle(live, other) -> None:
    second, pack = other
    arms = {"a": {"weight": 1}, "b": {"weight": 1, "bundle": OTHER}}
    running = live(document([experiment("trial", arms=arms)]), bundles=(second.path,))
    answers = [running.service.rank(ids=[10, 13], user={"id": user}).json() for user in range(30)]
    by_arm = {answer["arm"]: answer for answer in answers}
    assert (by_arm["a"]["bundle"], by_arm["b"]["bundle"]) == (bundles.BUNDLE, OTHER)
    assert by_arm["b"]["pack"] == version(pack.to_bytes())
    user = next(at for at, answer in enumerate(answers) if answer is by_arm["b"])
    assert by_arm["b"]["probabilities"] == pytest.approx(logs.probabilities(pack, {"id": user}, [10, 13]))
    assert {row["bundle"] for row in running.rows(30)} == {bundles.BUNDLE, OTHER}


def test_a_bundle_that_takes_other_requests_is_no_arm(publish, bundle, tmp_path) -> None:
    settings: dict[str, Any] = {"bundle": bundle.path, "store": publish.url}
    with pytest.raises(SettingsError, match=f"is {bundles.BUNDLE} again"):
        asyncio.run(_started(Settings(**settings, bundles=(bundle.path,))))
    renamed = tmp_path / "renamed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "BUNDLE", "third-22222222")
        fields = tuple(each for each in bundles.SCHEMA.fields if each.name != "hour")
        patch.setattr(bundles, "SCHEMA", FeatureSchema(fields=fields))
        patch.setattr(bundles, "OWNED", {**bundles.OWNED, "rows": (bundles.SCHEMA.rows,)})
        bundles.make_bundle(renamed)
    with pytest.raises(SettingsError, match=r"takes other requests than the first: context\.hour"):
        asyncio.run(_started(Settings(**settings, bundles=(renamed,))))


async def _started(settings: Settings) -> None:
    async with runtime.run(settings):
        pass


@pytest.fixture
def replay(bundle, publish, monkeypatch, capsys):
    def run(name: str, log: Path) -> tuple[object, str, str]:
        monkeypatch.setenv("MDCTR_BUNDLE", str(bundle.path))
        monkeypatch.setenv("MDCTR_STORE", publish.url)
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: app(["replay", name, "--log", str(log)]))
        return (ended.value.code, *capsys.readouterr())

    return run


def test_what_was_answered_is_replayed_bit_for_bit(live, replay) -> None:
    running = live(document([versions()]))
    random = np.random.default_rng(1)
    asked = []
    for at in range(24):
        ids = random.choice([10, 11, 12, 13, 99, 500], 1 + at % 6, replace=False).tolist()
        body: dict[str, Any] = {"user": {"id": at, "age": float(random.normal(30, 9))}, "ids": ids}
        if at % 3 == 1:
            body["top_k"] = 1 + at % 4
        if at % 4 == 2:
            body["items"] = {"price": random.normal(5, 2, len(ids)).tolist(), "brand": ["acme"] * len(ids)}
        if at % 5 == 3:
            body["context"] = {"hour": int(at)}
        domain = ("books", "films")[at % 2]
        assert running.service.rank(domain, headers={"x-request-id": f"r-{at}"}, **body).status_code == 200
        asked.append(len(ids) if "top_k" not in body else min(len(ids), body["top_k"]))
    running.rows(24)
    for at, count in enumerate(asked):
        code, out, err = replay(f"r-{at}", running.log)
        assert (code, err) == (0, "")
        assert f"{count} scores" in out
        assert out.endswith("are the same, bit for bit\n")


@pytest.mark.parametrize("better", [True, False])
def test_a_trial_ends_by_what_users_clicked(live, publish, better) -> None:
    """Users click by one pack's probabilities and see the best of four, so that pack is the better one."""
    old, new = (OLD, NEW) if better else (NEW, OLD)
    publish(old)
    plan = Trial(
        bundle=bundles.BUNDLE,
        against={"books": version(old.to_bytes())},
        shares=(0.5,),
        hold_seconds=1e-3,
        margin=0.05,
        until=datetime.now(UTC) + timedelta(days=1),
    )
    declared = canary.declared({"books": version(new.to_bytes())}, [], plan, datetime.now(UTC))
    running = live(canary.begun(None, declared))
    random, events = np.random.default_rng(4), []
    for at in range(700):
        user = {"id": at, "age": float(random.normal(30, 10))}
        answer = running.service.rank(ids=[10, 11, 12, 13], top_k=1, user=user).json()
        (item,) = answer["ids"]
        told = {"user": at, "domain": "books", "item": item, "request_id": answer["request_id"]}
        events.append({**told, "kind": "shown"})
        if random.random() < logs.probabilities(NEW, user, [item])[0]:
            events.append({**told, "kind": "click"})
    for start in range(0, len(events), 1000):
        some = {"events": events[start : start + 1000]}
        assert running.service.client.post("/v1/events", json=some).status_code == 202
    clicks = sum(each["kind"] == "click" for each in events)
    eventually(lambda: read(running.log).clicks.num_rows == clicks)

    async def look() -> list[str]:
        place = open_place(running.path)
        stores = partial(open_store, publish.url)
        return [event.what for event in await guard.look(place, running.log, stores)]

    assert asyncio.run(look()) == ["promoted" if better else "taken back"]
    eventually(lambda: running.service.state("books")["serving"] == V_NEW)
    eventually(lambda: running.service.rank(user=USER).json()["experiment"] is None)
    assert running.service.rank(user=USER).json()["pack"] == V_NEW
