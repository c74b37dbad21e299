"""Logged requests scored again: one at a time, and all of them under two packs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.__main__ import app
from service.contract import cli
from service.contract.pack import version
from service.question import Question, QuestionError, from_bytes, to_bytes
from tests.service import bundles, logs

OLD, NEW = (bundles.make_pack("books", seed) for seed in (0, 9))
"""The first is the bundle's own."""


@pytest.fixture
def call(bundle, publish, monkeypatch, capsys):
    """Runs a command of the service; gives exit code, stdout and stderr."""
    monkeypatch.setenv("MDCTR_BUNDLE", str(bundle.path))
    monkeypatch.setenv("MDCTR_STORE", publish.url)

    def run(*arguments: object):
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: app([str(each) for each in arguments]))
        return (ended.value.code, *capsys.readouterr())

    return run


def traffic(pack=OLD, requests: int = 150):
    """Answers, and clicks as the new pack would have it."""
    random = np.random.default_rng(3)
    rows, clicks = [], []
    for at in range(requests):
        user = {"id": at % 40, "age": float(random.normal(30, 10))}
        ids = random.permutation([10, 11, 12, 13])[: random.integers(2, 5)].tolist()
        rows.append(logs.answer(at, pack, user, ids))
        chance = logs.probabilities(NEW, user, ids)
        clicks += [(f"r{at}", str(item)) for item, p in zip(ids, chance, strict=True) if random.random() < p]
    return rows, clicks


def test_a_question_comes_back_as_it_was() -> None:
    question = Question(
        {"id": 7, "genres": ["crime"], "age": 30.5}, {"hour": 3}, None, {"brand": ["acme", None]}
    )
    assert from_bytes(to_bytes(question)) == question
    arrays = Question({}, {}, np.array([1, 2]), {"price": np.array([0.1], np.float32)})
    found = from_bytes(to_bytes(arrays))
    assert found.ids == [1, 2]
    assert np.float32(found.items["price"][0]) == np.float32(0.1)
    for wrong in (b"{", b"[]", b'{"user": {}}', b'{"other": 1}'):
        with pytest.raises(QuestionError):
            from_bytes(wrong)


def test_a_request_is_scored_again_under_its_own_pack(call, tmp_path, publish) -> None:
    publish(NEW)  # what is live now is another
    user = {"id": 1, "genres": ["crime"], "age": 40.0}
    rows = [
        logs.answer(0, OLD, user, [10, 99, 12]),
        logs.answer(1, OLD, user, [11]),
        logs.answer(2, OLD, user, [13, 10], request=None),
        logs.answer(3, OLD, user, [13], bundle="other-00000000"),
        logs.answer(4, OLD, user, [], status=503, scores=np.zeros(0)),
        # Of four the best two, and in their order.
        logs.answer(5, NEW, user, [12, 10], request=Question(user, {}, [10, 11, 12, 13], {}),
                    scores=logs.probabilities(NEW, user, [12, 10])),
        logs.answer(6, OLD, user, [10], scores=np.array([0.5])),
    ]  # fmt: skip
    folder = logs.write(tmp_path / "log", rows)
    for name, pack, count in (("r0", OLD, 3), ("r1", OLD, 1), ("r5", NEW, 2)):
        # Against numpy, whose sums are in another order than the graph's.
        code, out, err = call("replay", name, "--log", folder, "--json", "--tolerance", "1e-6")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert found["pack"] == version(pack.to_bytes())
        assert len(found["again"]) == count
        assert found["again"] == pytest.approx(found["logged"], abs=1e-6)
    for name, said in (
        ("r2", "MDCTR_EXPOSURES_REQUESTS"),
        ("r3", "answered by other-00000000"),
        ("r4", "not answered with scores"),
        ("r7", "has no request r7"),
    ):
        code, out, err = call("replay", name, "--log", folder)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
    code, out, _ = call("replay", "r6", "--log", folder)
    assert code == 1
    assert "r6: 1 scores of books" in out
    assert "are off by" in out


def test_packs_are_compared_on_logged_traffic(call, tmp_path, publish) -> None:
    publish(NEW)
    publish(OLD)
    rows, clicks = traffic()
    folder = logs.write(tmp_path / "log", [*rows, rows[0]], clicks)
    old, new = (version(pack.to_bytes()) for pack in (OLD, NEW))
    code, out, err = call("policy", f"books={new[:8]}", "--log", folder, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    books = found["domains"]["books"]
    assert books["requests"] == 150
    assert books["impressions"] == sum(len(row.ids) for row in rows)
    assert books["clicks"] == len(clicks)
    clicked = np.array([(row.request_id, str(item)) in set(clicks) for row in rows[::-1] for item in row.ids])
    for name, pack in (("old", OLD), ("new", NEW)):
        p = np.concatenate([logs.probabilities(pack, row.request.user, row.ids) for row in rows[::-1]])
        assert books[name]["log_loss"] == pytest.approx(-np.log(np.where(clicked, p, 1 - p)).mean(), rel=1e-5)
        assert books[name]["calibration"] == pytest.approx(p.sum() / len(clicks), rel=1e-5)
    assert "the new pack predicts better" in found["verdict"][0]
    code, out, _ = call("policy", f"books={new}:{old}", "--log", folder, "--most", 100)
    assert code == 0
    assert out.startswith("- books: the new pack predicts worse")
    for asked, said in (
        ("music=0123456789abcdef", "nothing is live there"),
        ("books", "is not DOMAIN=VERSION"),
        ("books=ffffffffffffffff", "no version"),
        (f"films={version(bundles.make_pack('films').to_bytes())}", "the log has nothing of films"),
    ):
        code, out, err = call("policy", asked, "--log", folder)
        assert (code, out) == (2, "")
        assert said in err
