from typing import Any

import pytest

from ipyfleet_controller.watching import ResultWatches
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import PeerId

OWNER, ASKER, OTHER = (PeerId(bytes([k]) * 16) for k in (1, 2, 3))


def ended(first: int, count: int = 1) -> m.ResultSlice:
    """Return the part of results that watches look at."""
    return m.ResultSlice(first, count, 0, 0, bytes(count), b"", b"", b"", m.Columns(b""))


def ids(*seqs: int) -> list[str]:
    """Return the public ids of the owner's tasks."""
    return [f"{OWNER.hex()}_{seq}" for seq in seqs]


@pytest.fixture
def watches() -> Any:
    """Watches in a world where tasks from 10 on have yet to end."""
    return ResultWatches(lambda client, seq: client == OWNER and seq >= 10)


def test_a_request_is_told_once_of_each_task(watches: ResultWatches) -> None:
    """What is due is what has ended of what was asked for."""
    watches.add(ASKER, 7, ids(10, 12, 300))
    watches.note(OWNER, [ended(0, 12)])
    assert watches.due == {(ASKER, 7): ids(10)}
    watches.due = {}
    watches.note(OWNER, [ended(10, 3), ended(299, 2)])
    assert watches.due == {(ASKER, 7): ids(12, 300)}
    assert len(watches) == 0


def test_several_may_wait_for_one_task(watches: ResultWatches) -> None:
    """Each request has its own answer."""
    watches.add(ASKER, 1, ids(10))
    watches.add(ASKER, 2, ids(10))
    watches.add(OTHER, 1, ids(10))
    watches.note(OWNER, [ended(10)])
    assert watches.due == {(ASKER, 1): ids(10), (ASKER, 2): ids(10), (OTHER, 1): ids(10)}


def test_what_has_ended_or_never_was_is_not_watched(watches: ResultWatches) -> None:
    """Nothing is kept for tasks that will not end any more."""
    watches.add(ASKER, 1, [*ids(3), "no id", f"{OTHER.hex()}_99"])
    assert len(watches) == 0


def test_a_client_that_leaves_is_forgotten(watches: ResultWatches) -> None:
    """What it waited for is dropped; what others wait for is not."""
    watches.add(ASKER, 1, ids(10, 11))
    watches.add(OTHER, 1, ids(11, 12))
    watches.note(OWNER, [ended(12)])
    watches.forget(ASKER)
    watches.note(OWNER, [ended(10, 2)])
    assert watches.due == {(OTHER, 1): ids(12, 11)}
    watches.forget(OTHER)
    assert watches.due == {}


def test_one_client_can_wait_for_so_many(
    watches: ResultWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a bound nothing is watched; what has ended makes room, as does a client's leaving."""
    monkeypatch.setattr("ipyfleet_controller.watching.WATCHES_MAX", 3)
    assert watches.add(ASKER, 1, ids(10, 11))
    assert not watches.add(ASKER, 2, ids(12, 13))
    assert watches.add(OTHER, 1, ids(12, 13))
    assert len(watches) == 4
    watches.note(OWNER, [ended(10)])
    assert watches.add(ASKER, 3, ids(12, 13))
    watches.forget(ASKER)
    assert watches.add(ASKER, 4, ids(20, 21, 22))
