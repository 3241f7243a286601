"""Index sets, written the way Kubernetes writes a Job's `completedIndexes`: `0-2,5,9-40`.

Source: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/ (completedIndexes)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final, Self

PATTERN: Final = r"^([0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*)?$"

Range = tuple[int, int]


class IndexSet:
    """An immutable set of non-negative integers, kept as sorted ranges.

    Args:
        ranges: sorted, disjoint, non-adjacent (first, last) pairs, both ends included;
            use `parse`, `of` and `span` instead of building them by hand.
    """

    __slots__ = ("_offsets", "ranges")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self.ranges: tuple[Range, ...] = tuple(ranges)
        self._offsets = tuple(accumulate((last - first + 1 for first, last in self.ranges), initial=0))

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read `0-2,5`; the empty string and None are the empty set. Order and overlaps do not matter.

        Raises:
            ValueError: naming the part that is not a number or a range.
        """
        ranges: list[Range] = []
        for part in (text or "").split(","):
            if not part and not text:
                continue
            first, dash, last = part.partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise ValueError(f"index set: {part!r} is neither a number nor a range like 9-40")
            low, high = int(first), int(last) if dash else int(first)
            if high < low:
                raise ValueError(f"index set: the range {part!r} ends before it begins")
            ranges.append((low, high))
        return cls(_merged(ranges))

    @classmethod
    def of(cls, indexes: Iterable[int]) -> Self:
        """Return the set of the given integers."""
        return cls(_merged([(index, index) for index in indexes]))

    @classmethod
    def span(cls, count: int) -> Self:
        """Return {0, …, count - 1}."""
        return cls([(0, count - 1)] if count > 0 else [])

    def __len__(self) -> int:
        return self._offsets[-1]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, int):
            return False
        at = bisect_right(self.ranges, (index, float("inf"))) - 1
        return at >= 0 and self.ranges[at][1] >= index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IndexSet) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)

    def beginning(self, length: int) -> Self:
        """Return as many of the first ranges as are written in `length` characters."""
        text = str(self)
        return self if len(text) <= length else type(self).parse(text[: length + 1].rpartition(",")[0])

    def __repr__(self) -> str:
        return f"IndexSet({self!s})"

    def __or__(self, other: IndexSet) -> IndexSet:
        return IndexSet(_merged([*self.ranges, *other.ranges]))

    def __sub__(self, other: IndexSet) -> IndexSet:
        ranges: list[Range] = []
        cuts = iter(other.ranges)
        cut = next(cuts, None)
        for first, last in self.ranges:
            low = first
            while cut is not None and cut[1] < low:
                cut = next(cuts, None)
            while cut is not None and cut[0] <= last:
                if cut[0] > low:
                    ranges.append((low, cut[0] - 1))
                low = cut[1] + 1
                if cut[1] > last:
                    break
                cut = next(cuts, None)
            if low <= last:
                ranges.append((low, last))
        return IndexSet(ranges)

    def __and__(self, other: IndexSet) -> IndexSet:
        return self - (self - other)

    def __le__(self, other: IndexSet) -> bool:
        return not self - other

    def member(self, position: int) -> int:
        """Return the member at a position, counted from 0 in ascending order: a Job index's segment.

        Raises:
            IndexError: when there are not so many members.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"index set of {len(self)} members has none at position {position}")
        at = bisect_right(self._offsets, position) - 1
        return self.ranges[at][0] + position - self._offsets[at]

    def members(self, positions: IndexSet) -> IndexSet:
        """Return the members at a set of positions: the segments of a Job's indexes."""
        ranges: list[Range] = []
        for low, high in positions.ranges:
            at = max(bisect_right(self._offsets, low) - 1, 0)
            while at < len(self.ranges) and self._offsets[at] <= high:
                (first, last), offset = self.ranges[at], self._offsets[at]
                ranges.append((first + max(low - offset, 0), min(first + high - offset, last)))
                at += 1
        return IndexSet(_merged(ranges))


def _merged(ranges: list[Range]) -> list[Range]:
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged
