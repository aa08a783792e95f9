"""Which groups there are, and which of their tasks have ended.

What lives here: `Coverage`, a set of task indices as intervals; `GroupIndex`, groups by client and
sequence number. Both keep records right when the same thing is told twice: a controller that was
restarted hears of groups and results again, in other pieces. What must not: storage.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from msgspec import structs

from .base import GroupEntry, ResultsEntry


class Coverage:
    """A set of numbers, compact where they are contiguous."""

    __slots__ = ("_starts", "_stops", "n_covered")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.n_covered = 0

    def add(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Add ``start … stop-1``; return the intervals of those that are new."""
        # The intervals that overlap or touch the new one are low … high-1.
        low = bisect_left(self._stops, start)
        high = bisect_right(self._starts, stop)
        fresh = []
        position = start
        for number in range(low, high):
            if self._starts[number] > position:
                fresh.append((position, self._starts[number]))
            position = max(position, self._stops[number])
        if position < stop:
            fresh.append((position, stop))
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]
        self.n_covered += sum(b - a for a, b in fresh)
        return fresh

    def copy(self) -> Coverage:
        """Return a set of its own with the same numbers."""
        other = Coverage()
        other._starts, other._stops = self._starts.copy(), self._stops.copy()
        other.n_covered = self.n_covered
        return other

    def intervals(self) -> Iterator[tuple[int, int]]:
        """Yield the intervals, ascending."""
        return zip(self._starts, self._stops, strict=True)


class HasEntry(Protocol):
    """What a `GroupIndex` holds: anything that has a group's entry."""

    @property
    def entry(self) -> GroupEntry:
        """The group's entry."""
        ...


G = TypeVar("G", bound=HasEntry)


class GroupIndex(Generic[G]):
    """Groups, found by client and sequence number; no two have a task in common."""

    def __init__(self) -> None:
        self._by_client: dict[bytes, list[G]] = {}

    def __iter__(self) -> Iterator[G]:
        for groups in self._by_client.values():
            yield from groups

    def add(self, group: G) -> None:
        """Add a group that has no task in common with another; see `uncovered`."""
        groups = self._by_client.setdefault(group.entry.client, [])
        if groups and groups[-1].entry.first > group.entry.first:
            groups.insert(bisect_right(groups, group.entry.first, key=_first), group)
        else:
            groups.append(group)

    def remove(self, group: G) -> None:
        """Remove a group."""
        groups = self._by_client[group.entry.client]
        del groups[bisect_right(groups, group.entry.first, key=_first) - 1]
        if not groups:
            del self._by_client[group.entry.client]

    def at(self, client: bytes, seq: int) -> G | None:
        """Return the group that a task is in, or None."""
        groups = self._by_client.get(client)
        if groups is None:
            return None
        position = bisect_right(groups, seq, key=_first) - 1
        if position < 0:
            return None
        group = groups[position]
        return group if seq < group.entry.first + group.entry.count else None

    def overlapping(self, client: bytes, first: int, count: int) -> list[G]:
        """Return the groups with tasks in a range of sequence numbers, ascending."""
        groups = self._by_client.get(client)
        if groups is None:
            return []
        low = max(0, bisect_right(groups, first, key=_first) - 1)
        found = []
        for group in groups[low:]:
            if group.entry.first >= first + count:
                break
            if group.entry.first + group.entry.count > first:
                found.append(group)
        return found

    def uncovered(self, entry: GroupEntry) -> list[GroupEntry]:
        """Return the parts of an entry that are in no group yet; nearly always all of it."""
        others = self.overlapping(entry.client, entry.first, entry.count)
        return parts_beside([other.entry for other in others], entry) if others else [entry]

    def runs(self, entry: ResultsEntry) -> Iterator[tuple[G, int, int]]:
        """Yield the groups with tasks of an entry, and which of the groups' tasks those are."""
        for group in self.overlapping(entry.client, entry.first, entry.count):
            first, count = group.entry.first, group.entry.count
            start = max(entry.first - first, 0)
            yield group, start, min(entry.first + entry.count - first, count)


def parts_beside(others: list[GroupEntry], entry: GroupEntry) -> list[GroupEntry]:
    """Return the parts of an entry that have no task in common with other entries."""
    covered = Coverage()
    for other in others:
        covered.add(other.first, other.first + other.count)
    return [
        structs.replace(entry, first=start, count=stop - start)
        for start, stop in covered.add(entry.first, entry.first + entry.count)
    ]


def _first(group: HasEntry) -> int:
    return group.entry.first


__all__ = ["Coverage", "GroupIndex", "HasEntry", "parts_beside"]
