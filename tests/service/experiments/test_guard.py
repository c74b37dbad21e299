"""The guard, from a log on disk to documents and packs."""

from __future__ import annotations

import asyncio
import functools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import app
from service.contract import cli
from service.contract.errors import StoreError
from service.experiments import canary, guard
from service.experiments.document import Trial
from service.experiments.place import open_place
from service.stores._open import open_store
from tests.service import bundles
from tests.service.experiments.documents import document, experiment
from tests.service.experiments.test_report import exposure, save

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = BEGIN.timestamp()
STOP = {"metric": "ctr_lift", "min": -0.1, "action": "stop"}


def logged(folder: Path, name: str, rates: dict[str, float], units: int = 300) -> Path:
    """Each unit of an arm sees 20 items; every tenth click is spread over the units."""
    exposures, clicks = [], []
    for arm, rate in rates.items():
        for at in range(units):
            request, items = f"{arm}{at}", [str(item) for item in range(20)]
            exposures.append(exposure(request, f"{arm}-{at}", arm, items, experiment=name))
            count = round(20 * rate) + (at % 3 - 1)
            clicks += [{"request_id": request, "item": item, "time": NOW} for item in items[:count]]
    return save(folder, exposures, clicks)


def write(path: Path, whole: dict[str, Any]) -> str:
    path.write_text(json.dumps(whole))
    return str(path)


def look(where: str, folder: Path, store: str = "directory:none", now: float = NOW) -> list[guard.Event]:
    async def once() -> list[guard.Event]:
        place = open_place(where)
        try:
            return await guard.look(place, folder, lambda bundle: open_store(store, bundle), now)
        finally:
            await place.close()

    return asyncio.run(once())


def test_an_arm_that_breaks_a_guardrail_is_stopped_once(tmp_path) -> None:
    log = logged(tmp_path / "log", "trial", {"a": 0.4, "b": 0.2})
    whole = document([experiment("trial", guardrails=[STOP])])
    where = write(tmp_path / "experiments.json", whole)
    (event,) = look(where, log)
    assert (event.experiment, event.arm, event.what) == ("trial", "b", "stopped")
    assert event.why.startswith("ctr_lift is below -0.1: -0.5, between -0.5")
    after = json.loads(Path(where).read_text())
    assert after["layers"]["l0"]["experiments"][0]["arms"]["b"].pop("stopped") is True
    assert after == whole
    assert look(where, log) == []
    (entry,) = map(json.loads, Path(f"{where}.history").read_text().splitlines())
    assert entry["by"] == "guard"
    assert "trial, b stopped: ctr_lift is below" in entry["why"]


@pytest.mark.parametrize(
    ("changes", "rates", "found"),
    [
        ({}, {"a": 0.4, "b": 0.2}, ["stopped"]),
        ({}, {"a": 0.4, "b": 0.4}, []),
        ({}, {"a": 0.4}, []),
        ({"guardrails": []}, {"a": 0.4, "b": 0.2}, []),
        ({"guardrails": [{**STOP, "action": "alert"}]}, {"a": 0.4, "b": 0.2}, ["alert"]),
        ({"start": "2026-02-01T00:00:00Z"}, {"a": 0.4, "b": 0.2}, []),
        ({"stop": "2025-02-01T00:00:00Z"}, {"a": 0.4, "b": 0.2}, []),
    ],
)
def test_what_is_done_and_what_is_let_be(tmp_path, changes, rates, found) -> None:
    log = logged(tmp_path / "log", "trial", rates)
    whole = document([experiment("trial", **{"guardrails": [STOP], **changes})])
    where = write(tmp_path / "experiments.json", whole)
    assert [event.what for event in look(where, log)] == found
    assert (json.loads(Path(where).read_text()) == whole) is (found != ["stopped"])
    assert look(str(tmp_path / "none.json"), log) == []


@pytest.fixture
def store(tmp_path) -> tuple[str, str, str]:
    """A store with two versions of one pack, the first of them live."""
    url = f"directory:{tmp_path / 'store'}"

    async def fill() -> list[str]:
        there = open_store(url, bundles.BUNDLE)
        made = [await there.put("books", bundles.make_pack("books", seed).to_bytes()) for seed in (1, 2)]
        await there.promote({"books": made[0]})
        await there.close()
        return made

    old, new = asyncio.run(fill())
    return url, old, new


def live(url: str) -> str | None:
    async def ask() -> str | None:
        there = open_store(url, bundles.BUNDLE)
        found = (await there.live()).get("books")
        await there.close()
        return found

    return asyncio.run(ask())


def on_trial(path: Path, old: str, new: str) -> tuple[str, str]:
    plan = Trial(
        bundle=bundles.BUNDLE,
        against={"books": old},
        shares=(0.01, 0.5),
        hold_seconds=3600,
        margin=0.1,
        until=BEGIN + timedelta(days=9),
    )
    declared = canary.declared({"books": new}, [], plan, BEGIN)
    return write(path, canary.begun(None, declared)), declared["name"]


def test_a_good_pack_is_promoted_and_leaves_the_document(tmp_path, store) -> None:
    url, old, new = store
    where, name = on_trial(tmp_path / "experiments.json", old, new)
    log = logged(tmp_path / "log", name, {"old": 0.4, "new": 0.45})
    assert look(where, log, url) == []
    assert [event.what for event in look(where, log, url, NOW + 3600)] == ["next"]
    assert look(where, log, url, NOW + 3601) == []
    assert live(url) == old
    assert [event.what for event in look(where, log, url, NOW + 7200)] == ["promoted"]
    assert live(url) == new
    assert json.loads(Path(where).read_text())["layers"] == {"canary": {"experiments": []}}


def test_a_bad_pack_is_taken_back(tmp_path, store) -> None:
    url, old, new = store
    where, name = on_trial(tmp_path / "experiments.json", old, new)
    log = logged(tmp_path / "log", name, {"old": 0.4, "new": 0.2})
    assert [event.what for event in look(where, log, url)] == ["taken back"]
    assert live(url) == old
    assert json.loads(Path(where).read_text())["layers"] == {"canary": {"experiments": []}}


def test_what_somebody_else_promoted_meanwhile_stays(tmp_path, store) -> None:
    url, old, new = store
    where, name = on_trial(tmp_path / "experiments.json", "0" * 16, new)
    log = logged(tmp_path / "log", name, {"old": 0.4, "new": 0.45})
    look(where, log, url, NOW + 3600)
    (event,) = look(where, log, url, NOW + 7200)
    assert (event.what, live(url)) == ("taken back", old)
    assert f"{old} is live in books" in event.why


def test_a_look_that_was_cut_short_after_it_promoted_is_finished(tmp_path, store, monkeypatch) -> None:
    url, old, new = store
    where, name = on_trial(tmp_path / "experiments.json", old, new)
    log = logged(tmp_path / "log", name, {"old": 0.4, "new": 0.45})
    look(where, log, url, NOW + 3600)

    async def lost(*_: object, **__: object) -> None:
        raise StoreError("lost")

    with monkeypatch.context() as cut:
        cut.setattr("service.experiments.place.FilePlace.replace", lost)
        with pytest.raises(StoreError):
            look(where, log, url, NOW + 7200)
    assert live(url) == new
    assert [event.what for event in look(where, log, url, NOW + 7200)] == ["promoted"]


def test_the_guard_looks_on_and_tells_an_alert_once(tmp_path) -> None:
    log = logged(tmp_path / "log", "trial", {"a": 0.4, "b": 0.2})
    whole = document([experiment("trial", guardrails=[{**STOP, "action": "alert"}])])
    where = write(tmp_path / "experiments.json", whole)
    told: list[guard.Event] = []

    async def watch() -> None:
        place = open_place(where)
        looking = asyncio.create_task(
            guard.watch(place, log, lambda bundle: open_store("directory:none", bundle), 0.01, told.append)
        )
        while not told:
            await asyncio.sleep(0.01)
        Path(where).write_text("{")
        await asyncio.sleep(0.2)
        assert not looking.done()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

    asyncio.run(watch())
    assert [event.what for event in told] == ["alert"]


def test_a_guard_that_remembers_sees_what_one_sees_that_does_not(tmp_path) -> None:
    log = logged(tmp_path / "log", "trial", {"a": 0.4, "b": 0.4})
    alert = {**STOP, "action": "alert"}
    where = write(tmp_path / "experiments.json", document([experiment("trial", guardrails=[alert])]))
    memory = guard.Memory()
    first = memory.of({"trial"})
    assert memory.of(()) is first

    def once() -> tuple[list[guard.Event], list[guard.Event]]:
        async def both() -> tuple[list[guard.Event], list[guard.Event]]:
            stores = functools.partial(open_store, "directory:none")
            place = open_place(where)
            remembering = await guard.look(place, log, stores, NOW, memory)
            return remembering, await guard.look(place, log, stores, NOW)

        return asyncio.run(both())

    assert once() == ([], [])
    # Another experiment, of which nothing was kept, in another log.
    logged(log, "later", {"a": 0.4, "b": 0.2})
    both = [[experiment(name, guardrails=[alert])] for name in ("trial", "later")]
    write(tmp_path / "experiments.json", document(*both))
    remembering, anew = once()
    assert remembering == anew
    assert [event.experiment for event in anew] == ["later"]
    assert memory.of({"later"}) is not first


def test_the_command(tmp_path, capsys) -> None:
    log = logged(tmp_path / "log", "trial", {"a": 0.4, "b": 0.2})
    where = write(tmp_path / "experiments.json", document([experiment("trial", guardrails=[STOP])]))

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: app(["guard", *arguments, "--experiments", where, "--once"]))
        return (ended.value.code, *capsys.readouterr())

    code, out, err = call(str(log))
    assert (code, err) == (0, "")
    assert json.loads(out)["what"] == "stopped"
    assert call(str(log)) == (0, "", "")
    Path(where).write_text("{")
    code, out, err = call(str(log))
    assert (code, out) == (2, "")
    assert err.startswith("error: the document is not JSON")
