import threading
from collections.abc import Callable

import pytest

from ipyfleet_testing.clock import MockClock
from ipyfleet_testing.memory import (
    DelayingPeer,
    DroppingPeer,
    Peer,
    PeerClosed,
    RecordingPeer,
    linked_pair,
)

WRAPPERS: list[Callable[[Peer], Peer]] = [
    lambda peer: peer,
    RecordingPeer,
    lambda peer: DroppingPeer(peer, lambda frames, number: False),
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["endpoint", "recording", "dropping"])
def test_messages_arrive_whole_and_in_order(wrap: Callable[[Peer], Peer]) -> None:
    """Every kind of peer hands over each message with its frames, in the order sent, both ways."""
    left, right = linked_pair()
    near = wrap(left)
    near.send([b"a", b""])
    near.send([memoryview(b"b")])
    right.send([b"back"])
    assert right.receive() == [b"a", b""]
    assert right.receive_nowait() == [b"b"]
    assert right.receive_nowait() is None
    assert near.receive() == [b"back"]
    assert near.receive_nowait() is None


def test_what_the_sender_does_to_its_buffer_later_is_not_seen() -> None:
    """Frames are copied when they are sent, as a wire would."""
    left, right = linked_pair()
    buffer = bytearray(b"before")
    left.send([buffer])
    buffer[:] = b"after!"
    assert right.receive() == [b"before"]


def test_receiving_waits_for_another_thread() -> None:
    """A receive that finds nothing waits until something is sent."""
    left, right = linked_pair()
    timer = threading.Timer(0.02, left.send, [[b"late"]])
    timer.start()
    assert right.receive(timeout_s=10) == [b"late"]
    timer.join()


def test_receiving_gives_up_after_its_timeout() -> None:
    """When nothing is sent, receiving raises TimeoutError and says how long it waited."""
    left, _right = linked_pair()
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        left.receive(timeout_s=0.01)


def test_closing_lets_the_rest_be_received_first() -> None:
    """What was sent before the close still arrives; then both directions say the link is closed."""
    left, right = linked_pair()
    left.send([b"last"])
    left.close()
    left.close()
    assert right.receive() == [b"last"]
    with pytest.raises(PeerClosed):
        right.receive()
    with pytest.raises(PeerClosed):
        right.send([b"too late"])


def test_recording_keeps_both_directions() -> None:
    """A recording peer remembers what went out and what came in, but nothing that failed."""
    left, right = linked_pair()
    recorder = RecordingPeer(left)
    recorder.send([b"out"])
    right.send([b"in"])
    recorder.receive()
    assert recorder.receive_nowait() is None
    right.close()
    with pytest.raises(PeerClosed):
        recorder.send([b"lost"])
    assert (recorder.sent, recorder.received) == ([[b"out"]], [[b"in"]])


def test_dropping_loses_what_it_is_told_to() -> None:
    """Messages are numbered from 0 and only those chosen are lost."""
    left, right = linked_pair()
    lossy = DroppingPeer(left, lambda frames, number: number == 1 or frames == [b"x"])
    for text in (b"0", b"1", b"x", b"3"):
        lossy.send([text])
    assert [right.receive_nowait() for _ in range(3)] == [[b"0"], [b"3"], None]
    assert lossy.dropped == 2


def test_delaying_waits_for_the_clock() -> None:
    """Messages are held back until the clock has moved on, and keep their order."""
    left, right = linked_pair()
    clock = MockClock()
    slow = DelayingPeer(left, clock, delay_s=2)
    slow.send([b"first"])
    clock.advance(1)
    slow.send([b"second"])
    assert (slow.deliver(), slow.held, right.receive_nowait()) == (0, 2, None)
    clock.advance(1)
    assert (slow.deliver(), right.receive_nowait()) == (1, [b"first"])
    clock.advance(1)
    assert (slow.deliver(), right.receive_nowait()) == (1, [b"second"])
