"""Index sets against Python's own sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingestion_crds.indexset import IndexSet

SETS = st.sets(st.integers(0, 60))


@given(SETS, SETS)
def test_set_operations(a: set[int], b: set[int]) -> None:
    left, right = IndexSet.of(a), IndexSet.of(b)
    assert set(left | right) == a | b
    assert set(left - right) == a - b
    assert set(left & right) == a & b
    assert (left <= right) == (a <= b)
    assert len(left) == len(a)
    assert all((index in left) == (index in a) for index in range(62))


@given(SETS)
def test_text_round_trip_and_members(a: set[int]) -> None:
    indexes = IndexSet.of(a)
    assert IndexSet.parse(str(indexes)) == indexes
    assert [indexes.member(position) for position in range(len(a))] == sorted(a)


@given(SETS, SETS)
def test_members_of_positions(a: set[int], b: set[int]) -> None:
    ordered = sorted(a)
    positions = {index for index in b if index < len(ordered)}
    assert set(IndexSet.of(a).members(IndexSet.of(positions))) == {ordered[index] for index in positions}


@given(SETS, st.integers(5, 100))
def test_as_many_ranges_as_have_room(a: set[int], length: int) -> None:
    indexes = IndexSet.of(a)
    beginning = indexes.beginning(length)
    assert len(str(beginning)) <= length
    assert beginning.ranges == indexes.ranges[: len(beginning.ranges)]
    following = indexes.ranges[: len(beginning.ranges) + 1]
    assert beginning == indexes or len(str(IndexSet(following))) > length


def test_written_as_kubernetes_writes_it() -> None:
    assert str(IndexSet.of([0, 1, 2, 5, 9, 10])) == "0-2,5,9-10"
    assert str(IndexSet()) == ""
    assert len(IndexSet.span(0)) == 0


@pytest.mark.parametrize("text", ["a", "1-", "-1", "5-3", "1,,2", "1;2", " 1"])
def test_nonsense_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="index set"):
        IndexSet.parse(text)


def test_a_member_that_is_not_there() -> None:
    with pytest.raises(IndexError, match="2 members has none at position 2"):
        IndexSet.parse("4,9").member(2)
