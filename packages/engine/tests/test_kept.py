"""What an engine holds, as ranges of tasks, and the results that it keeps."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_engine.kept import KeptResults, after, joined, without
from ipyfleet_protocol.messages import Columns, HeldTasks, Results, ResultSlice

CLIENT, OTHER = b"c" * 16, b"d" * 16

ranges = st.lists(
    st.builds(
        lambda client, first, count, ordinal: HeldTasks(client, first, count, ordinal),
        st.sampled_from([CLIENT, OTHER]),
        st.integers(0, 3).map(lambda n: 100 * n),
        st.integers(1, 5),
        st.integers(0, 30),
    ),
    max_size=6,
)


def ordinals(tasks: Iterable[HeldTasks]) -> list[tuple[int, bytes, int]]:
    """Return each task as ordinal, client, seq."""
    return [
        (piece.ordinal + i, piece.client, piece.first + i)
        for piece in tasks
        for i in range(piece.count)
    ]


def results(client: bytes, number: int, first: int, count: int = 1, ordinal: int = 0) -> Results:
    """Return a message of results."""
    piece = ResultSlice(first, count, 0, ordinal, bytes(count), b"", b"", b"", Columns(b""))
    return Results(client, 0, [piece], number)


@given(ranges, st.integers(-1, 40))
def test_after_leaves_the_ordinals_above(tasks: list[HeldTasks], last: int) -> None:
    """Tasks up to an ordinal go, ranges are cut, all others stay."""
    assert ordinals(after(tasks, last)) == [t for t in ordinals(tasks) if t[0] > last]


@given(ranges, st.lists(st.tuples(st.integers(0, 35), st.integers(0, 35)), max_size=4))
def test_without_takes_exactly_the_ranges_out(
    tasks: list[HeldTasks], taken: list[tuple[int, int]]
) -> None:
    """What is in no range stays, whatever way the ranges cut and overlap."""
    left = [t for t in ordinals(tasks) if not any(a <= t[0] <= b for a, b in taken)]
    assert sorted(ordinals(without(tasks, taken))) == sorted(left)


@given(ranges)
def test_joined_holds_the_same_tasks_in_order(tasks: list[HeldTasks]) -> None:
    """Joining loses and invents no task, leaves its input alone, and sorts by ordinal."""
    before = ordinals(tasks)
    out = joined(tasks)
    assert sorted(ordinals(out)) == sorted(before) and ordinals(tasks) == before
    assert [piece.ordinal for piece in out] == sorted(piece.ordinal for piece in out)


def test_contiguous_tasks_are_one_range() -> None:
    """Ranges of one client that go on in seqs and ordinals become one; others do not."""
    parts = [HeldTasks(CLIENT, 5, 2, 2), HeldTasks(CLIENT, 3, 2, 0), HeldTasks(CLIENT, 9, 1, 4)]
    assert joined(parts) == [HeldTasks(CLIENT, 3, 4, 0), HeldTasks(CLIENT, 9, 1, 4)]


def test_results_stay_until_their_client_has_them() -> None:
    """What a client has taken goes, up to the number; other clients' stays, in order."""
    kept = KeptResults()
    for number, client in enumerate([CLIENT, OTHER, CLIENT, OTHER], 1):
        kept.add(results(client, number, first=number, ordinal=number), [b"12345"])
    kept.taken(CLIENT, 2)
    kept.taken(b"nobody" + b"\0" * 10, 9)
    assert [message.number for message, _ in kept.messages()] == [2, 3, 4]
    assert kept.n_bytes == 15
    assert [(t.client, t.first, t.ordinal) for t in kept.tasks()] == [
        (OTHER, 2, 2),
        (CLIENT, 3, 3),
        (OTHER, 4, 4),
    ]
    kept.taken(CLIENT, 3)
    kept.taken(OTHER, 4)
    assert len(kept) == 0 and kept.n_bytes == 0


def test_memory_is_bounded() -> None:
    """Beyond the bound the oldest results go, whoever's they are; the newest always stays."""
    kept = KeptResults(max_bytes=10)
    for number, client in enumerate([CLIENT, OTHER, OTHER], 1):
        kept.add(results(client, number, first=0), [b"12345"])
    assert [message.number for message, _ in kept.messages()] == [2, 3]
    kept.add(results(CLIENT, 4, first=0), [bytes(100)])
    assert [message.number for message, _ in kept.messages()] == [4]
