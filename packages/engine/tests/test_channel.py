"""A channel and its connections, against a raw ROUTER."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from ipyfleet_engine.channel import ReliableChannel
from ipyfleet_engine.endpoint import Endpoint
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.ids import Channel, new_peer_id
from ipyfleet_protocol.reliable import ACK_AFTER_S, ACK_MESSAGES

FIRST, SECOND = b"first---", b"second--"


class Other:
    """The other side, and the channel under test, `channel`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.greetings: list[tuple[bytes, int]] = []
        self.handled: list[Any] = []
        self.context = zmq.Context()
        endpoint = Endpoint(url, None, bytes(16), "agent", new_peer_id(), "here")
        self.channel = ReliableChannel(endpoint, Channel.AGENT, self._greet, self._handle)
        self.listen()
        self.own = zmq.Context()
        self.channel.open(self.own)
        self.expect(m.Hello)

    def _greet(self, incarnation: bytes, received: int) -> m.Hello:
        self.greetings.append((incarnation, received))
        return self.channel._endpoint.hello(incarnation, received)

    def _handle(self, message: m.AnyMessage, frames: Any) -> None:
        if isinstance(message, m.Welcome):
            self.channel.answer(message.incarnation, message.received)
        self.handled.append(message)

    def listen(self) -> None:
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 1000
        self.router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.router.bind(self.url)

    def go_down(self, wait: Any) -> None:
        """Break the connection; returns when the channel has noticed."""
        self.router.close()
        self.context.term()
        wait(lambda: self.tend() or not self.channel.is_attached)
        self.context = zmq.Context()

    def tend(self, now: float | None = None) -> bool:
        return self.channel.tend(time.monotonic() if now is None else now)

    def expect(self, kind: type[Any]) -> Any:
        """Return the next message, which is of a kind."""
        assert self.router.poll(10_000), "nothing arrives"
        self.identity, header, *_ = self.router.recv_multipart()
        message = decode(header)
        assert isinstance(message, kind), message
        return message

    def send(self, message: m.Message) -> None:
        self.router.send_multipart([self.identity, encode(message)])

    def welcome(self, wait: Any, received: int = 0, incarnation: bytes = FIRST) -> None:
        self.send(m.Welcome(bytes(16), incarnation=incarnation, received=received))
        wait(lambda: self.channel.receive() and self.channel.is_attached)

    def close(self) -> None:
        self.channel.close(0)
        self.own.term()
        self.router.close(0)
        self.context.term()


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Other]:
    """The other side, which has got the first hello."""
    path = tmp_path_factory.mktemp("x") / "s"
    other = Other(f"ipc://{path}")
    yield other
    other.close()
    path.unlink(missing_ok=True)


def report(status: int) -> m.EngineExited:
    """Return a counted message."""
    return m.EngineExited(bytes(16), status, "")


def test_nothing_but_the_greeting_is_sent_before_the_answer(other: Other, wait: Any) -> None:
    """What is sent before the first answer follows it."""
    other.channel.send(report(1))
    assert not other.router.poll(50)
    other.welcome(wait)
    assert other.expect(m.EngineExited).status == 1


def test_what_the_other_side_lacks_follows_the_answer(other: Other, wait: Any) -> None:
    """After a break the messages that did not arrive come again, in order, then the new ones."""
    other.welcome(wait)
    for status in range(3):
        other.channel.send(report(status))
    assert other.expect(m.EngineExited).status == 0
    other.send(m.Ack(1))
    wait(other.channel.receive)
    other.go_down(wait)
    other.channel.send(report(3))
    other.listen()
    wait(lambda: other.tend() or other.router.poll(0))
    assert other.expect(m.Hello).incarnation == FIRST
    other.welcome(wait, received=1)
    assert [other.expect(m.EngineExited).status for _ in range(3)] == [1, 2, 3]


def test_another_run_starts_from_nothing(other: Other, wait: Any) -> None:
    """An answer that names another run lets go of what the last one did not acknowledge."""
    other.welcome(wait)
    other.channel.send(report(1))
    other.expect(m.EngineExited)
    other.go_down(wait)
    other.listen()
    wait(lambda: other.tend() or other.router.poll(0))
    other.expect(m.Hello)
    other.welcome(wait, incarnation=SECOND)
    other.channel.send(report(2))
    assert other.expect(m.EngineExited).status == 2
    assert other.channel.incarnation == SECOND


def test_what_comes_before_the_answer_is_not_taken(other: Other, wait: Any) -> None:
    """Counted messages that overtake the answer are neither handled nor counted."""
    other.welcome(wait)
    other.send(m.SignalEngines([], 1))
    wait(other.channel.receive)
    other.go_down(wait)
    other.listen()
    wait(lambda: other.tend() or other.router.poll(0))
    assert other.expect(m.Hello).received == 1
    other.send(m.SignalEngines([], 2))
    other.welcome(wait)
    other.send(m.SignalEngines([], 3))
    wait(other.channel.receive)
    signals = [s.signum for s in other.handled if isinstance(s, m.SignalEngines)]
    assert signals == [1, 3] and other.channel._received.count == 2


def test_the_last_words_before_a_break_are_heard(other: Other, wait: Any) -> None:
    """A Closing right before the end of the connection is handled, though the break is known."""
    other.welcome(wait)
    other.send(m.Closing("done"))
    other.go_down(wait)
    assert any(isinstance(message, m.Closing) for message in other.handled)
    other.listen()


def test_a_controller_that_is_gone_is_called_more_and_more_rarely(other: Other, wait: Any) -> None:
    """The first attempt is made at once, the others after growing pauses, up to a limit."""
    other.welcome(wait)
    other.go_down(wait)
    pauses = []
    for _ in range(6):
        start = time.monotonic()
        wait(lambda now=start: other.tend(now) or other.channel._reopen_at is not None)
        at = other.channel.next_at
        assert at is not None
        pauses.append(at - start)
        assert other.tend(at)
    other.listen()
    assert pauses == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.25, 0.25])
    assert other.channel.broken_since is not None
    assert len(other.greetings) == 8


def test_many_messages_are_acknowledged_at_once(other: Other, wait: Any) -> None:
    """After so many messages an Ack leaves without waiting for its time."""
    other.welcome(wait)
    for _ in range(ACK_MESSAGES):
        other.send(m.SignalEngines([], 1))
    wait(lambda: [other.channel.receive(), other.router.poll(0)][1])
    assert other.expect(m.Ack).received <= ACK_MESSAGES
    assert not other.router.poll(50)


def test_a_lone_message_is_acknowledged_later(other: Other, wait: Any) -> None:
    """One message costs nothing soon; after a while it is acknowledged, once."""
    other.welcome(wait)
    assert other.channel.next_at is None
    other.send(m.SignalEngines([], 1))
    wait(other.channel.receive)
    at = other.channel.next_at
    assert at is not None and at > time.monotonic() + ACK_AFTER_S / 2
    other.tend(at - 0.01)
    assert not other.router.poll(50)
    other.tend(at)
    assert other.expect(m.Ack).received == 1
    assert other.channel.next_at is None


def test_one_greeting_has_one_answer(other: Other, wait: Any) -> None:
    """A second answer sends nothing again."""
    other.welcome(wait)
    other.channel.send(report(1))
    other.expect(m.EngineExited)
    other.send(m.Welcome(bytes(16), incarnation=FIRST))
    other.send(m.SignalEngines([], 9))
    wait(lambda: other.channel.receive() and isinstance(other.handled[-1], m.SignalEngines))
    assert not other.router.poll(50)


def test_a_controller_without_runs_is_owed_nothing(other: Other, wait: Any) -> None:
    """With one that names no incarnation nothing is kept and nothing acknowledged."""
    other.welcome(wait, incarnation=b"")
    for status in range(3):
        other.channel.send(report(status))
    assert len(other.channel._sent) == 0
    other.send(m.SignalEngines([], 1))
    wait(other.channel.receive)
    other.tend(time.monotonic() + 2 * ACK_AFTER_S)
    assert [other.expect(m.EngineExited).status for _ in range(3)] == [0, 1, 2]
    assert not other.router.poll(50)
