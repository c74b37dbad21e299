"""Slots beside a model of them: a list in the order of use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engines._slots import Slots


def test_packs_have_distinct_slots_and_keep_them():
    slots = Slots(3)
    first = slots.take(["a", "b"])
    assert first.fresh == [("a", first.slots[0]), ("b", first.slots[1])]
    assert len({*first.slots}) == 2
    again = slots.take(["b", "a", "b"])
    assert again.slots == [first.slots[1], first.slots[0], first.slots[1]]
    assert again.fresh == []


def test_the_pack_unused_for_longest_goes_first():
    slots = Slots(2)
    for pack in ("a", "b", "a"):
        slots.take([pack])
        slots.free([pack])
    assert slots.take(["c"]).fresh == [("c", 1)]  # b's
    assert "a" in slots
    assert "b" not in slots


def test_a_pack_in_use_never_goes():
    slots = Slots(2)
    held = slots.take(["a"])
    slots.take(["b"])
    slots.free(["b"])
    assert slots.take(["c"]).slots == [1]
    assert not slots.room(["d"])
    with pytest.raises(ValueError, match="2 slots"):
        slots.take(["d"])
    slots.free(["c"])
    assert slots.take(["d", "a"]).slots == [1, held.slots[0]]


def test_what_is_asked_for_together_does_not_push_itself_out():
    slots = Slots(2)
    slots.take(["a"])
    slots.free(["a"])
    taken = slots.take(["b", "a"])
    assert sorted(taken.slots) == [0, 1]
    assert taken.fresh == [("b", 1)]


def test_nothing_is_taken_where_there_is_no_room_for_all():
    slots = Slots(2)
    with pytest.raises(ValueError, match="3 packs at once"):
        slots.take(["a", "b", "c"])
    assert slots.take(["d", "e"]).slots == [0, 1]


def test_a_dropped_pack_leaves_its_slot_after_its_last_use():
    slots = Slots(1)
    slots.take(["a"])
    slots.drop("a")
    assert not slots.room(["b"])
    slots.free(["a"])
    assert slots.take(["b"]).fresh == [("b", 0)]
    slots.drop("nobody's")


def test_there_must_be_one():
    with pytest.raises(ValueError, match="at least"):
        Slots(0)


@given(st.integers(1, 4), st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), max_size=40))
def test_as_a_list_in_the_order_of_use(count, asked):
    slots = Slots(count)
    used: list[int] = []
    for packs in asked:
        if len(set(packs)) > count:
            continue
        taken = slots.take(packs)
        expected = [pack for pack in dict.fromkeys(packs) if pack not in used]
        assert [pack for pack, _ in taken.fresh] == expected
        for pack in packs:
            if pack in used:
                used.remove(pack)
            elif len(used) == count:
                used.remove(next(each for each in used if each not in packs))
            used.append(pack)
        assert dict(zip(packs, taken.slots, strict=True)).keys() <= {*used}
        assert len({*taken.slots}) == len({*packs})
        slots.free(packs)
        assert {pack for pack in range(7) if pack in slots} == {*used}
