"""The life cycle of packs, over the folder store."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import lifecycle
from service.contract.bundle import Bundle
from service.contract.errors import Conflict, PackError, UnknownVersion
from service.contract.pack import GENERAL, DomainPack, Golden, version
from service.engines import ort
from service.engines._protocol import Engine
from service.records import Change, Removed
from service.stores._open import open_store
from service.stores._protocol import Kept, Promotion
from tests.service import bundles
from tests.service.bad_packs import BAD, GOOD
from tests.service.desk import Counted, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(f"directory:{tmp_path / 'store'}")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return ort.open(bundle, 1)


# What is there


def test_an_empty_store_has_nothing_to_show(desk):
    assert desk(lifecycle.overview) == []
    with pytest.raises(UnknownVersion, match="no pack of books"):
        desk(lifecycle.show, "books")
    assert desk(lifecycle.gc) == []


def test_the_overview_says_what_is_live_since_when_from_where_and_by_whom(desk):
    one, two = desk.put("books", 1, 2)
    desk.put("films", 1)
    desk(lifecycle.promote, {"books": one}, run="first", by="ann")
    desk(lifecycle.promote, {"books": two}, run="second", by="bob")
    books, films = desk(lifecycle.overview)
    assert (books.domain, books.live, books.run, books.by, books.kept) == ("books", two, "second", "bob", 2)
    assert books.bytes == len(bundles.make_pack("books", 2).to_bytes())
    assert books.since == desk.history()[-1].time
    assert (films.domain, films.live, films.since, films.bytes, films.kept) == ("films", None, None, 0, 1)


def test_a_domain_shows_its_history_its_versions_and_where_a_rollback_goes(desk):
    one, two = desk.promoted("books", 1, 2)
    (never,) = desk.put("books", 3)
    shown = desk(lifecycle.show, "books")
    assert (shown.domain, shown.live, shown.previous) == ("books", two, one)
    assert [step.version for step in shown.history] == [one, two]
    assert [(pack.version, pack.promoted is None) for pack in shown.kept] == [
        (one, False),
        (two, False),
        (never, True),
    ]


# Put


def test_a_good_pack_is_checked_and_kept_and_nothing_becomes_live(desk, bundle, engine):
    pack = lifecycle.check(
        GOOD, bundle=bundle, engine=engine, tolerance=1e-4, domain="books", version=version(GOOD)
    )
    kept = desk(lifecycle.put, pack.domain, GOOD)
    assert (kept.domain, kept.version, kept.bytes) == ("books", version(GOOD), len(GOOD))
    assert desk.versions() == {version(GOOD)}
    assert desk.live() is None


def test_a_pack_of_differences_is_checked_against_the_bundles_general_pack(bundle, engine):
    general = bundles.make_pack(GENERAL)
    tensors = {name: np.array(tensor) for name, tensor in general.tensors.items()}
    tensors["rows"][3] += np.float32(0.123)
    golden = bundles.random_inputs(8, 5)
    logit = bundles.logits(tensors, golden).astype(np.float32)
    pack = DomainPack(bundles.BUNDLE, "books", tensors, Golden(golden, logit))
    read = lifecycle.check(pack.to_bytes(bundle.base), bundle=bundle, engine=engine, tolerance=1e-4)
    assert np.array_equal(read.tensors["rows"], tensors["rows"])


@pytest.mark.parametrize("why", BAD)
def test_a_bad_pack_is_refused_in_one_clear_line(bundle, engine, why):
    data, reason = BAD[why]
    with pytest.raises(PackError) as refused:
        lifecycle.check(data, bundle=bundle, engine=engine, tolerance=1e-4)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


def test_a_pack_of_another_hash_or_domain_than_announced_is_refused(bundle, engine):
    with pytest.raises(PackError, match="its content is version"):
        lifecycle.check(GOOD, bundle=bundle, engine=engine, tolerance=1e-4, version="0" * 16)
    flipped = GOOD[:-1] + bytes([GOOD[-1] ^ 1])
    with pytest.raises(PackError, match="its content is version"):
        lifecycle.check(flipped, bundle=bundle, engine=engine, tolerance=1, version=version(GOOD))
    with pytest.raises(PackError, match="of domain 'books', not 'films'"):
        lifecycle.check(GOOD, bundle=bundle, engine=engine, tolerance=1e-4, domain="films")


def test_nothing_stays_loaded_after_a_check(bundle):
    counted = Counted(ort.open(bundle, 1))
    lifecycle.check(GOOD, bundle=bundle, engine=counted, tolerance=1e-4)
    with pytest.raises(PackError):
        lifecycle.check(BAD["golden rows off"][0], bundle=bundle, engine=counted, tolerance=1e-4)
    assert (counted.loads, counted.releases) == (2, 2)


# Promote


def test_several_domains_are_promoted_in_one_step_or_none(desk):
    (books,), (films,) = desk.put("books", 1), desk.put("films", 1)
    with pytest.raises(UnknownVersion):
        desk(lifecycle.promote, {"books": books, "films": "0" * 16})
    assert desk.live() is None
    done = desk(lifecycle.promote, {"books": books, "films": films}, run="r", by="b")
    assert done == [Change("books", None, books), Change("films", None, films)]
    assert (desk.live("books"), desk.live("films")) == (books, films)
    step = desk.history()[-1]
    assert (step.version, step.run, step.by) == (books, "r", "b")


@pytest.mark.parametrize(("length", "enough"), [(1, False), (3, False), (4, True), (15, True), (16, True)])
def test_a_unique_beginning_of_four_characters_stands_for_a_version(desk, length, enough):
    (books,) = desk.put("books", 1)
    if enough:
        desk(lifecycle.promote, {"books": books[:length]})
        assert desk.live() == books
    else:
        with pytest.raises(UnknownVersion, match="4 or more characters"):
            desk(lifecycle.promote, {"books": books[:length]})


class Twins:
    """A store with two versions that begin alike."""

    async def kept(self) -> Any:
        return [Kept("books", start + "0" * 11, 1) for start in ("abcd1", "abcd2", "abce1")]


@pytest.mark.parametrize(
    ("start", "found"),
    [("abcd", "abcd10000000000, abcd2"), ("abce", None), ("abcf", "no version abcf of books"), ("*", "4 or")],
)
def test_an_ambiguous_or_unknown_beginning_is_a_clear_error(start, found):
    question = lifecycle.resolve(Twins(), [("books", start)])  # type: ignore[arg-type]
    if found is None:
        assert asyncio.run(question) == [("books", "abce100000000000")]
        return
    with pytest.raises(UnknownVersion) as refused:
        asyncio.run(question)
    assert found[:14] in str(refused.value)


@pytest.mark.parametrize("domain", ["../x", "Books", "", "a:b"])
def test_what_is_no_domain_is_unknown(desk, domain):
    for question, given in (
        (lifecycle.promote, {domain: "0" * 16}),
        (lifecycle.rollback, [domain]),
        (lifecycle.retire, [domain]),
        (lifecycle.show, domain),
    ):
        with pytest.raises(UnknownVersion):
            desk(question, given)


def test_what_is_live_already_gets_no_second_step(desk):
    one, two = desk.promoted("books", 1, 2)
    (films,) = desk.put("films", 1)
    assert desk(lifecycle.promote, {"books": two}) == [Change("books", two, two)]
    desk(lifecycle.promote, {"books": two, "films": films})
    assert [step.version for step in desk.history()] == [one, two]
    assert desk.live("films") == films


def test_a_promotion_in_between_is_a_conflict(desk):
    one, two = desk.promoted("books", 1, 2)
    for wrong in ({"books": one}, {"books": None}, {"books": one[:6]}):
        for wanted in (one, two):  # also where there would be nothing to do
            with pytest.raises(Conflict, match=two):
                desk(lifecycle.promote, {"books": wanted}, expected=wrong)
    assert desk.live() == two
    desk(lifecycle.promote, {"books": one}, expected={"books": two[:6]})
    (films,) = desk.put("films", 1)
    desk(lifecycle.promote, {"films": films}, expected={"films": None, "books": one})
    assert (desk.live(), desk.live("films")) == (one, films)


# Rollback


def test_rollbacks_walk_back_through_the_history(desk):
    one, two, three = desk.promoted("books", 1, 2, 3)
    assert desk(lifecycle.rollback, ["books"], by="ann") == [Change("books", three, two)]
    step = desk.history()[-1]
    assert (step.version, step.run, step.by) == (two, f"rollback of {three}", "ann")
    assert desk(lifecycle.rollback, ["books"]) == [Change("books", two, one)]
    with pytest.raises(UnknownVersion, match="no earlier version"):
        desk(lifecycle.rollback, ["books"])
    assert desk.live() == one


def test_a_promotion_after_a_rollback_is_undone_to_where_the_rollback_went(desk):
    _, two, three = desk.promoted("books", 1, 2, 3)
    desk(lifecycle.rollback, ["books"])
    (four,) = desk.promoted("books", 4)
    assert desk(lifecycle.rollback, ["books"]) == [Change("books", four, two)]
    assert three != desk(lifecycle.show, "books").previous


def test_a_rollback_of_an_old_version_promoted_by_hand_undoes_that(desk):
    one, two = desk.promoted("books", 1, 2)
    desk(lifecycle.promote, {"books": one})
    assert desk(lifecycle.rollback, ["books"]) == [Change("books", one, two)]
    assert desk(lifecycle.rollback, ["books"]) == [Change("books", two, one)]


def test_a_rollback_to_a_version_and_forward_again(desk):
    one, two, three = desk.promoted("books", 1, 2, 3)
    assert desk(lifecycle.rollback, ["books"], to=one[:5]) == [Change("books", three, one)]
    assert desk(lifecycle.show, "books").previous is None
    desk(lifecycle.rollback, ["books"], to=three)
    assert (desk.live(), desk(lifecycle.show, "books").previous) == (three, one)
    assert desk(lifecycle.rollback, ["books"], to=three) == [Change("books", three, three)]
    assert desk.history()[-1].run == f"rollback of {one}"
    with pytest.raises(UnknownVersion):
        desk(lifecycle.rollback, ["books"], to="0" * 16)
    assert two in desk.versions()


def test_several_domains_roll_back_in_one_step_or_none(desk):
    books, films = desk.promoted("books", 1, 2), desk.promoted("films", 1, 2)
    desk.promoted("cooking", 1)
    with pytest.raises(UnknownVersion, match="cooking"):
        desk(lifecycle.rollback, ["books", "cooking"])
    assert desk.live() == books[1]
    desk(lifecycle.rollback, ["books", "films", "books"])
    assert (desk.live("books"), desk.live("films")) == (books[0], films[0])
    assert desk.history("films")[-1].run == f"rollback of {books[1]}, {films[1]}"
    assert desk(lifecycle.show, "films").previous is None


def test_a_rollback_of_many_domains_does_not_name_each_in_the_history_of_all(desk):
    domains = [f"d{at:02}" for at in range(11)]
    versions = {
        domain: desk.promoted(domain, 3 * at, 3 * at + 1, 3 * at + 2) for at, domain in enumerate(domains)
    }
    for at in (1, 0):
        assert desk(lifecycle.rollback, domains) == [
            Change(domain, versions[domain][at + 1], versions[domain][at]) for domain in domains
        ]
        assert {desk.history(domain)[-1].run for domain in domains} == {"rollback of 11 versions"}
    with pytest.raises(UnknownVersion, match="no earlier version"):
        desk(lifecycle.rollback, domains)


def test_a_retirement_is_rolled_back_like_a_promotion(desk):
    one, two = desk.promoted("books", 1, 2)
    desk(lifecycle.retire, ["books"])
    assert desk(lifecycle.rollback, ["books"]) == [Change("books", None, two)]
    assert desk.history()[-1].run == "rollback of nothing"
    assert desk(lifecycle.rollback, ["books"]) == [Change("books", two, one)]


def test_a_rollback_skips_a_retirement(desk):
    (one,) = desk.promoted("books", 1)
    desk(lifecycle.retire, ["books"])
    (two,) = desk.promoted("books", 2)
    assert desk(lifecycle.rollback, ["books"]) == [Change("books", two, one)]


def test_a_rollback_does_not_overwrite_a_promotion_in_between(desk, monkeypatch):
    desk.promoted("books", 1, 2)
    (three,) = desk.put("books", 3)
    original = lifecycle.previous

    def slow(history, live):
        desk_now = open_store(desk.url, bundles.BUNDLE)
        promote = desk_now.promote({"books": three})
        # The loop runs already; the promotion of another process is done in a thread of its own.
        other = threading.Thread(target=lambda: asyncio.run(promote))
        other.start()
        other.join()
        return original(history, live)

    monkeypatch.setattr(lifecycle, "previous", slow)
    with pytest.raises(Conflict):
        desk(lifecycle.rollback, ["books"])
    assert desk.live() == three


def test_a_version_that_is_gone_is_not_rolled_back_to(desk):
    one, two = desk.promoted("books", 1, 2)
    desk(lifecycle.gc, keep=0)
    assert desk.versions() == {two}
    for dry_run in (True, False):
        with pytest.raises(UnknownVersion, match=one):
            desk(lifecycle.rollback, ["books"], dry_run=dry_run)
    assert desk.live() == two


def steps(*told: str | None) -> list[Promotion]:
    """A history: versions, and `<version` for a rollback of the one before to it."""
    history: list[Promotion] = []
    before: str | None = None
    for each in told:
        at = each.removeprefix("<") if each else None
        run = f"rollback of {before or 'nothing'}" if each and each.startswith("<") else "run"
        history.append(Promotion(at, 0.0, run))
        before = at
    return history


@pytest.mark.parametrize(
    ("told", "goes"),
    [
        ([], None),
        (["a"], None),
        (["a", "b"], "a"),
        (["a", "a", "b", "b"], "a"),
        (["a", "b", "c", "<b"], "a"),
        (["a", "b", "c", "<b", "<a"], None),
        (["a", "b", "c", "<b", "d"], "b"),
        (["a", "b", "c", "<b", "d", "<b"], "a"),
        (["a", "b", "a"], "b"),
        (["a", "b", "a", "<b"], "a"),
        (["a", "b", "c", "<b", "<c"], "b"),  # forward again
        (["a", "b", "c", "<a", "<c"], "a"),
        (["a", "b", "<x"], "a"),  # to a version that was never promoted
        (["a", "b", None], "b"),
        (["a", "b", None, "<b"], "a"),
        (["a", None, "b"], "a"),
        (["a", None, "b", "<a"], None),
        (["c", "<b"], None),  # what came before was trimmed
        (["c", "<b", "d"], "b"),
    ],
    ids=str,
)
def test_where_a_rollback_goes(told, goes):
    history = steps(*told)
    assert lifecycle.previous(history, history[-1].version if history else None) == goes


def test_only_the_undoing_of_the_step_before_counts_as_a_rollback():
    history = [*steps("a", "b"), Promotion("c", 0.0, "rollback of x")]
    assert lifecycle.previous(history, "c") == "b"


# Retire


def test_retired_domains_lose_their_pointers_and_keep_their_packs(desk):
    (books,), (films,) = desk.promoted("books", 1), desk.promoted("films", 1)
    with pytest.raises(UnknownVersion, match="nothing is live in cooking"):
        desk(lifecycle.retire, ["books", "cooking"])
    assert desk.live() == books
    done = desk(lifecycle.retire, ["books", "films"], run="closed", by="ann")
    assert done == [Change("books", books, None), Change("films", films, None)]
    assert (desk.live("books"), desk.live("films")) == (None, None)
    assert desk.versions() == {books}
    assert [line.live for line in desk(lifecycle.overview)] == [None, None]
    with pytest.raises(UnknownVersion, match="nothing is live in books"):
        desk(lifecycle.retire, ["books"])


# Collect


def test_a_collection_spares_what_is_live_and_the_last_of_each_history(desk):
    books = desk.promoted("books", *range(7))
    films = desk.promoted("films", 0, 1)
    assert desk(lifecycle.gc, dry_run=True) == [
        Removed("books", at, len(bundles.make_pack("books", seed).to_bytes()))
        for at, seed in sorted(zip(books[:2], range(2), strict=True))
    ]
    assert desk.versions() == set(books)
    assert {pack.version for pack in desk(lifecycle.gc)} == set(books[:2])
    assert desk.versions() == set(books[2:])
    assert desk.versions("films") == set(films)
    assert desk(lifecycle.gc) == []


def test_a_live_version_stays_however_old_it_is(desk):
    books = desk.promoted("books", 0, 1, 2)
    desk(lifecycle.rollback, ["books"], to=books[0])
    desk(lifecycle.gc, keep=0)
    assert desk.versions() == {books[0]}


def test_a_pack_that_waits_for_its_promotion_stays_unless_it_is_asked_for(desk):
    (live,) = desk.promoted("books", 0)
    (waiting,) = desk.put("books", 1)
    (elsewhere,) = desk.put("films", 1)
    assert desk(lifecycle.gc, keep=0) == []
    assert desk.versions() == {live, waiting}
    assert [pack.version for pack in desk(lifecycle.gc, unpromoted=True, domains=["books"])] == [waiting]
    assert desk.versions("films") == {elsewhere}


def test_a_retired_domains_packs_go_with_nothing_kept(desk):
    desk.promoted("books", 0, 1)
    (films,) = desk.promoted("films", 0)
    desk(lifecycle.retire, ["books"])
    assert desk(lifecycle.gc) == []
    assert len(desk(lifecycle.gc, keep=0, domains=["books"])) == 2
    assert desk.versions() == set()
    assert desk.versions("films") == {films}
    assert desk(lifecycle.show, "books").kept == []


def test_a_dry_run_changes_nothing(desk):
    one, two = desk.promoted("books", 1, 2)
    assert desk(lifecycle.promote, {"books": one}, dry_run=True) == [Change("books", two, one)]
    assert desk(lifecycle.rollback, ["books"], dry_run=True) == [Change("books", two, one)]
    assert desk(lifecycle.retire, ["books"], dry_run=True) == [Change("books", two, None)]
    with pytest.raises(UnknownVersion):
        desk(lifecycle.promote, {"books": "0" * 16}, dry_run=True)
    assert desk.live() == two
    assert len(desk.history()) == 2
