"""Sending to peers that do not read, or are not there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from ipyfleet_controller.outbox import OUTPUT_MAX_BYTES, Outbox
from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.ids import Channel, PeerId, routing_id
from ipyfleet_protocol.messages import Output, OutputItem

PEER = PeerId(b"p" * 16)


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """A ROUTER with short pipes, and a connected DEALER."""
    context: zmq.Context[Any] = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.router_mandatory = True
    router.sndhwm = dealer.rcvhwm = 1
    router.linger = dealer.linger = 0
    dealer.identity = routing_id(PEER, Channel.CLIENT)
    router.bind("inproc://outbox")
    dealer.connect("inproc://outbox")
    dealer.send(b"here")
    router.recv_multipart()
    yield router, dealer
    router.close()
    dealer.close()
    context.term()


def test_what_does_not_fit_waits_and_arrives_in_order(pair: tuple[Any, Any]) -> None:
    """A full pipe delays messages and loses none."""
    router, dealer = pair
    outbox = Outbox(router)
    for number in range(50):
        outbox.send(PEER, Channel.CLIENT, b"%d" % number, [b"frame"])
    assert outbox.is_waiting
    got: list[bytes] = []
    deadline = time.monotonic() + 5
    while len(got) < 50 and time.monotonic() < deadline:
        outbox.retry()
        while dealer.poll(10):
            got.append(dealer.recv_multipart()[0])
    assert got == [b"%d" % number for number in range(50)]
    outbox.retry()
    assert not outbox.is_waiting


def test_output_is_given_up_first_and_counted(pair: tuple[Any, Any]) -> None:
    """Above the bound the items of an output stay, without content, and say how much it was."""
    router, _ = pair
    outbox = Outbox(router)
    for _ in range(4):
        outbox.send(PEER, Channel.CLIENT, b"big", [bytes(OUTPUT_MAX_BYTES // 2)])
    message = Output(b"c" * 16, 0, [OutputItem(3, 7, "stdout", b"12345", buffers=1)])
    outbox.send_output(PEER, message, encode(message), [b"678"])
    [header] = outbox._backlogs[routing_id(PEER, Channel.CLIENT)].messages[-1]
    output = decode(header)
    assert isinstance(output, Output)
    [item] = output.items
    assert (item.seq, item.index, item.content, item.dropped_bytes) == (3, 7, b"", 8)
    assert outbox.dropped_bytes == 8
    outbox.forget(PEER)
    assert not outbox.is_waiting


def test_a_client_for_which_too_much_waits_is_named(pair: tuple[Any, Any]) -> None:
    """Above the bound on waiting bytes the channel is in `overflowing`, below it is not; one large
    message is none too many.
    """
    outbox = Outbox(pair[0])
    outbox.max_bytes = 1000
    outbox.open(PEER, [Channel.CLIENT])
    outbox.send(PEER, Channel.CLIENT, b"x" * 1100)
    assert not outbox.overflowing
    outbox.send(PEER, Channel.CLIENT, b"x" * 600)
    assert outbox.overflowing == {routing_id(PEER, Channel.CLIENT)}


def test_a_broken_line_keeps_and_goes_on_where_the_peer_says(pair: tuple[Any, Any]) -> None:
    """What the peer lacks is sent again, in order, behind the answer; what it has is let go."""
    router, dealer = pair
    outbox = Outbox(router)
    other = PeerId(b"o" * 16)
    outbox.open(other, [Channel.CLIENT])
    outbox.send(other, Channel.CLIENT, b"0")
    assert outbox.unreachable == [routing_id(other, Channel.CLIENT)]
    outbox.open(PEER, [Channel.CLIENT])
    line = outbox.line(routing_id(PEER, Channel.CLIENT))
    assert line is not None
    outbox.send(PEER, Channel.CLIENT, b"0")
    line.is_broken = True
    for number in range(1, 20):
        outbox.send(PEER, Channel.CLIENT, b"%d" % number, [b"frame"])
    assert (dealer.recv_multipart(), dealer.poll(0), len(line.sent)) == ([b"0"], 0, 20)
    with pytest.raises(ProtocolError):
        outbox.resume(line, 21, b"answer")
    outbox.resume(line, 1, b"answer")
    got: list[bytes] = []
    deadline = time.monotonic() + 5
    while len(got) < 20 and time.monotonic() < deadline:
        outbox.retry()
        while dealer.poll(10):
            got.append(dealer.recv_multipart()[0])
    assert got == [b"answer", *(b"%d" % number for number in range(1, 20))]
    assert len(line.sent) == 19


def test_too_much_kept_for_a_broken_line_is_named(pair: tuple[Any, Any]) -> None:
    """The bound holds for what a peer has not acknowledged, connected or not."""
    outbox = Outbox(pair[0])
    outbox.max_bytes = 1000
    outbox.open(PEER, [Channel.CLIENT], broken=True)
    outbox.send(PEER, Channel.CLIENT, b"x" * 1100)
    assert not outbox.overflowing
    outbox.send(PEER, Channel.CLIENT, b"x")
    assert outbox.overflowing == {routing_id(PEER, Channel.CLIENT)}
    outbox.forget(PEER)
    assert outbox.kept_bytes == 0


def test_a_peer_that_is_not_there_is_noted(pair: tuple[Any, Any]) -> None:
    """Sending to nobody raises nothing and names who was missed."""
    router, _ = pair
    outbox = Outbox(router)
    outbox.send(PEER, Channel.AGENT, b"hello")
    assert outbox.unreachable == [routing_id(PEER, Channel.AGENT)]
