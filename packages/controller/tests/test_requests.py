from collections.abc import Sequence
from typing import Any

import pytest

from ipyfleet_controller.requests import GROUP_OVERHEAD_BYTES, RequestStore
from ipyfleet_controller.scheduler.group import TaskGroup
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.columns import PayloadWriter
from ipyfleet_protocol.ids import PeerId

CLIENT = PeerId(b"c" * 16)
BODIES: dict[bytes, Sequence[bytes]] = {b"f" * 16: [b"body of f"], b"g" * 16: [b"body of g"]}


def make(first: int, pickles: list[bytes], digest: bytes = b"f" * 16, **options: Any) -> TaskGroup:
    """Return a group as the scheduler keeps it."""
    writer = PayloadWriter()
    for pickle in pickles:
        writer.append(pickle, [(b"buffer of " + pickle, False)])
    columns, frames = writer.finish()
    count = options.pop("count", len(pickles))
    function = m.Function(digest, "f") if digest else None
    return TaskGroup(CLIENT, m.Group(first, count, m.Options(**options), function, columns), frames)


@pytest.fixture
def store() -> RequestStore:
    """A store with room for a few groups."""
    return RequestStore(lambda digest: BODIES.get(digest), max_bytes=3 * GROUP_OVERHEAD_BYTES)


def test_a_task_is_found_as_it_was_submitted(store: RequestStore) -> None:
    """Arguments, function and options of one task of a group."""
    store.note(make(5, [b"a", b"b"], label="mine"))
    found = store.find(CLIENT, 6)
    assert found is not None
    assert [bytes(frame) for frame in found.frames] == [b"b", b"buffer of b"]
    assert (found.body, found.options.label) == ([b"body of f"], "mine")
    assert store.find(CLIENT, 7) is None
    assert store.find(CLIENT, 4) is None
    assert store.find(PeerId(b"x" * 16), 5) is None


def test_a_call_on_several_engines(store: RequestStore) -> None:
    """One payload is that of all tasks; each has its own target."""
    store.note(make(0, [b"a"], count=2, shared=True, placement="direct", targets=[4, 9]))
    found = [store.find(CLIENT, seq) for seq in (0, 1)]
    assert [f.target for f in found if f] == [4, 9]
    assert [bytes(f.frames[0]) for f in found if f] == [b"a", b"a"]


def test_the_oldest_go_first(store: RequestStore) -> None:
    """The store keeps within its bound, and lets go of functions that nothing kept calls."""
    store.note(make(0, [b"a"], b"g" * 16))
    for seq in range(1, 6):
        store.note(make(seq, [b"a"]))
    assert store.find(CLIENT, 0) is None
    assert store.find(CLIENT, 5) is not None
    assert store.n_bytes <= 3 * GROUP_OVERHEAD_BYTES
    assert list(store._bodies) == [b"f" * 16]


def test_what_cannot_be_kept_is_not(store: RequestStore) -> None:
    """Arguments in shared memory, and those larger than all there is room for, are left out."""
    store.note(make(0, [b"a" * 10_000]))
    writer = PayloadWriter()
    writer.append(b"p", [(b"handle", True)])
    columns, frames = writer.finish()
    store.note(TaskGroup(CLIENT, m.Group(1, 1, m.Options(), None, columns), frames))
    assert store.find(CLIENT, 0) is None
    assert store.find(CLIENT, 1) is None
    assert store.n_bytes == 0
