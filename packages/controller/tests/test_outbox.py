"""Sending to peers that do not read, or are not there; through both doors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipyfleet_controller.outbox import OUTPUT_MAX_BYTES, Outbox
from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.ids import Channel, PeerId, routing_id
from ipyfleet_protocol.messages import Output, OutputItem, Probe
from ipyfleet_testing.raw import RawChannel
from ipyfleet_testing.threshold import KINDS, Threshold

PEER = PeerId(b"p" * 16)
NAME = routing_id(PEER, Channel.CLIENT)
N_MESSAGES = 4000
FRAME = bytes(4096)
"""So many of these fill every connection."""
PROBE = encode(Probe())


@pytest.fixture(params=KINDS)
def threshold(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Threshold]:
    """The doors, with peers at either."""
    threshold = Threshold(tmp_path, request.param)
    yield threshold
    threshold.close()


@pytest.fixture
def client(threshold: Threshold) -> RawChannel:
    """A client, which reads when it is told to."""
    return threshold.connect(NAME)


def _full(threshold: Threshold) -> Outbox:
    """Return an outbox in which something waits for the client, which does not read."""
    outbox = Outbox(threshold.doors)
    outbox.note_address(NAME, NAME)
    while not outbox.is_waiting:
        outbox.post(PEER, Channel.CLIENT, FRAME)
    return outbox


def _read(threshold: Threshold, client: RawChannel, count: int) -> list[bytes]:
    """Let the doors work until the client has so many messages; return their headers.

    Without probes: over TCP whoever is there is asked to say nothing when somebody is gone.
    """
    got: list[bytes] = []

    def has_all() -> bool:
        while (frames := client.receive(0)) is not None:
            if frames[0] != PROBE:
                got.append(frames[0])
        return len(got) >= count

    threshold.wait_until(has_all)
    return got


def test_what_does_not_fit_waits_and_arrives_in_order(
    threshold: Threshold, client: RawChannel
) -> None:
    """A full connection delays messages and loses none."""
    outbox = Outbox(threshold.doors)
    for number in range(N_MESSAGES):
        outbox.send(PEER, Channel.CLIENT, b"%d" % number, [FRAME])
    assert outbox.is_waiting
    got = _read(threshold, client, N_MESSAGES)
    assert got == [b"%d" % number for number in range(N_MESSAGES)]
    threshold.wait_until(lambda: not outbox.is_waiting)


def test_output_is_given_up_first_and_counted(threshold: Threshold, client: RawChannel) -> None:
    """Above the bound the items of an output stay, without content, and say how much it was."""
    outbox = Outbox(threshold.doors)
    outbox.open(PEER, [Channel.CLIENT])
    for _ in range(4):
        outbox.send(PEER, Channel.CLIENT, b"big", [bytes(OUTPUT_MAX_BYTES // 2)])
    message = Output(b"c" * 16, 0, [OutputItem(3, 7, "stdout", b"12345", buffers=1)])
    outbox.send_output(PEER, message, encode(message), [b"678"])
    output = decode(_read(threshold, client, 5)[-1])
    assert isinstance(output, Output)
    [item] = output.items
    assert (item.seq, item.index, item.content, item.dropped_bytes) == (3, 7, b"", 8)
    assert outbox.dropped_bytes == 8


def test_what_waits_for_a_peer_that_is_forgotten_is_dropped(
    threshold: Threshold, client: RawChannel
) -> None:
    """Nothing is kept for whom nobody knows any more."""
    outbox = Outbox(threshold.doors)
    for number in range(N_MESSAGES):
        outbox.send(PEER, Channel.CLIENT, b"%d" % number, [FRAME])
    outbox.forget(PEER)
    assert not outbox.is_waiting
    assert outbox.waiting_bytes == 0


def test_a_client_for_which_too_much_waits_is_named(
    threshold: Threshold, client: RawChannel
) -> None:
    """Above the bound on waiting bytes the channel is in `overflowing`, below it is not; one large
    message is none too many.
    """
    outbox = Outbox(threshold.doors)
    outbox.max_bytes = 1000
    outbox.open(PEER, [Channel.CLIENT])
    outbox.send(PEER, Channel.CLIENT, b"x" * 1100)
    assert not outbox.overflowing
    outbox.send(PEER, Channel.CLIENT, b"x" * 600)
    assert outbox.overflowing == {NAME}


def test_a_broken_line_keeps_and_goes_on_where_the_peer_says(
    threshold: Threshold, client: RawChannel
) -> None:
    """What the peer lacks is sent again, in order, behind the answer; what it has is let go."""
    outbox = Outbox(threshold.doors)
    other = PeerId(b"o" * 16)
    outbox.open(other, [Channel.CLIENT])
    outbox.send(other, Channel.CLIENT, b"0")
    assert outbox.unreachable == [routing_id(other, Channel.CLIENT)]
    outbox.open(PEER, [Channel.CLIENT])
    line = outbox.line(NAME)
    assert line is not None
    outbox.send(PEER, Channel.CLIENT, b"0")
    line.is_broken = True
    for number in range(1, 20):
        outbox.send(PEER, Channel.CLIENT, b"%d" % number, [b"frame"])
    assert _read(threshold, client, 1) == [b"0"]
    assert not client.wait(0)
    assert len(line.sent) == 20
    with pytest.raises(ProtocolError):
        outbox.resume(line, 21, b"answer")
    outbox.resume(line, 1, b"answer")
    got = _read(threshold, client, 20)
    assert got == [b"answer", *(b"%d" % number for number in range(1, 20))]
    assert len(line.sent) == 19


def test_too_much_kept_for_a_broken_line_is_named(threshold: Threshold) -> None:
    """The bound holds for what a peer has not acknowledged, connected or not."""
    outbox = Outbox(threshold.doors)
    outbox.max_bytes = 1000
    outbox.open(PEER, [Channel.CLIENT], broken=True)
    outbox.send(PEER, Channel.CLIENT, b"x" * 1100)
    assert not outbox.overflowing
    outbox.send(PEER, Channel.CLIENT, b"x")
    assert outbox.overflowing == {NAME}
    outbox.forget(PEER)
    assert outbox.kept_bytes == 0


def test_a_peer_that_is_not_there_is_noted(threshold: Threshold) -> None:
    """Sending to nobody raises nothing and names who was missed."""
    outbox = Outbox(threshold.doors)
    outbox.send(PEER, Channel.AGENT, b"hello")
    assert outbox.unreachable == [routing_id(PEER, Channel.AGENT)]


def test_what_waited_for_a_connection_that_ended_is_in_nobodys_way(
    threshold: Threshold, client: RawChannel
) -> None:
    """A peer that was parted with, did not read, and comes back is answered."""
    outbox = _full(threshold)
    client.close()
    # The doors tell of the end, or the outbox finds it out itself when it tries again.
    threshold.wait_until(lambda: threshold.doors.inbox or outbox.unreachable)
    if threshold.doors.inbox:
        assert threshold.take() == [NAME]
        outbox.note_ended(NAME)
    assert not outbox.is_waiting
    again = threshold.connect(NAME)
    outbox.post(PEER, Channel.CLIENT, b"welcome")
    assert _read(threshold, again, 1) == [b"welcome"]


def test_what_waited_for_another_socket_is_not_for_this_one(
    threshold: Threshold, client: RawChannel
) -> None:
    """A name that goes to another socket has nothing waiting."""
    outbox = _full(threshold)
    other = NAME + b"s" * 16
    again = threshold.connect(other)
    outbox.note_address(NAME, other)
    outbox.post(PEER, Channel.CLIENT, b"welcome")
    assert _read(threshold, again, 1) == [b"welcome"]


def test_the_end_of_a_stranger_with_a_peers_name_is_no_news_of_the_peer(
    threshold: Threshold, client: RawChannel
) -> None:
    """Only the connection that messages go to counts."""
    outbox = Outbox(threshold.doors)
    outbox.open(PEER, [Channel.CLIENT])
    outbox.note_address(NAME, NAME)
    outbox.note_ended(NAME + b"s" * 16)
    assert outbox.unreachable == []
    outbox.note_ended(NAME)
    assert outbox.unreachable == [NAME]
    line = outbox.line(NAME)
    assert line is not None
    assert line.is_broken
