"""Reliable channels: nothing lost, nothing twice, whatever breaks when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.reliable import (
    ACK_AFTER_S,
    ACK_BYTES,
    ACK_MESSAGES,
    SESSION_MESSAGES,
    Received,
    Sent,
)


def _sent(count: int) -> Sent:
    sent = Sent()
    for number in range(count):
        sent.note([b"%d" % number, b"payload"])
    return sent


def test_what_is_acknowledged_is_let_go() -> None:
    """Messages and their bytes are kept until acknowledged, oldest first; old news is no news."""
    sent = _sent(3)
    assert (sent.count, len(sent), sent.n_bytes) == (3, 3, 24)
    sent.acknowledge(2)
    sent.acknowledge(1)
    assert (sent.count, sent.acknowledged, len(sent), sent.n_bytes) == (3, 2, 1, 8)
    assert sent.unacknowledged(2) == [[b"2", b"payload"]]
    sent.acknowledge(3)
    assert (len(sent), sent.n_bytes) == (0, 0)


def test_a_side_that_cannot_be_the_same_is_told_apart() -> None:
    """Who has what was never sent, or lacks what it acknowledged, is somebody else."""
    sent = _sent(3)
    with pytest.raises(ProtocolError, match="4 messages acknowledged, 3 were sent"):
        sent.acknowledge(4)
    sent.acknowledge(2)
    with pytest.raises(ProtocolError, match="2 messages were acknowledged"):
        sent.unacknowledged(1)
    assert len(sent.unacknowledged(2)) == 1


def test_acknowledgements_are_due_by_number_size_and_age() -> None:
    """An Ack is due after so many messages, so many bytes or so long; never for nothing."""
    received = Received()
    assert (received.ack_due(1e9), received.next_ack_at) == (None, None)
    for _ in range(ACK_MESSAGES - 1):
        assert not received.note(1, 0.0)
    assert received.ack_due(0.0) is None
    assert received.note(1, 0.0)
    assert received.ack_due(0.0) == ACK_MESSAGES
    assert (received.ack_due(1e9), received.next_ack_at) == (None, None)
    assert received.note(ACK_BYTES, 5.0)
    assert received.ack_due(5.0) == ACK_MESSAGES + 1
    assert not received.note(1, 6.0)
    assert not received.note(1, 6.5)
    assert received.next_ack_at == 6.0 + ACK_AFTER_S
    assert received.ack_due(6.9) is None
    assert received.ack_due(6.0 + ACK_AFTER_S) == ACK_MESSAGES + 3


def test_a_count_told_otherwise_needs_no_acknowledgement() -> None:
    """What a Hello tells is not told again."""
    received = Received()
    received.note(10, 0.0)
    assert received.told() == 1
    assert received.ack_due(1e9) is None


def test_messages_of_the_session_itself_are_not_counted() -> None:
    """What makes a session, ends it or probes it is outside of the count, and all else inside."""
    names = {kind.__name__ for kind in SESSION_MESSAGES}
    assert names == {
        "Hello",
        "Attach",
        "Attached",
        "Welcome",
        "Refused",
        "Goodbye",
        "Probe",
        "Closing",
        "Ack",
    }
    assert not SESSION_MESSAGES & {m.Submit, m.Results, m.Output, m.ResultsTaken, m.EngineExited}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 400)),
        st.tuples(st.just("arrive"), st.integers(1, 400)),
        st.tuples(st.just("break"), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 3)),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_message_arrives_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    """Over any series of breaks the receiver gets each message once, in order; Sent is bounded."""
    sent, received = Sent(), Received()
    pipe: list[list[bytes]] = []
    got: list[int] = []
    now = 0.0

    def arrive(count: int) -> None:
        for frames in pipe[:count]:
            got.append(int(frames[0]))
            if received.note(sum(map(len, frames)), now):
                ack()
        del pipe[:count]

    def ack() -> None:
        count = received.ack_due(now)
        if count is not None:
            sent.acknowledge(count)

    def go_on() -> None:
        pipe[:] = sent.unacknowledged(received.told())  # type: ignore[assignment]

    for what, count in steps:
        if what == "send":
            for _ in range(count):
                frames = [b"%d" % sent.count, b"x" * 5000]
                sent.note(frames)
                pipe.append(frames)
        elif what == "arrive":
            arrive(count)
        elif what == "break":
            go_on()
        else:
            now += count
            ack()
        assert len(sent) - len(pipe) <= ACK_MESSAGES
    go_on()
    arrive(len(pipe))
    assert got == list(range(sent.count))
