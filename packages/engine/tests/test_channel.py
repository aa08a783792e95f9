"""A channel and its connections, of both kinds, against the other side of the wire."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from ipyfleet_engine.channel import ReliableChannel, wait_for_news
from ipyfleet_engine.connections import Connector, QueueFull
from ipyfleet_engine.endpoint import Endpoint
from ipyfleet_engine.zmq_connection import ZmqConnection
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.ids import Channel, new_peer_id
from ipyfleet_protocol.reliable import ACK_AFTER_S, ACK_MESSAGES
from ipyfleet_testing.limits import without_descriptors

FIRST, SECOND = b"first---", b"second--"


class Other:
    """The other side, and the channel under test, `channel`."""

    def __init__(
        self,
        make_wire: Callable[[], Any],
        *,
        channel: Channel = Channel.AGENT,
        is_bounded: bool = False,
    ) -> None:
        self.greetings: list[tuple[bytes, int]] = []
        self.handled: list[Any] = []
        self._make_wire = make_wire
        self._ahead: list[list[Any]] = []
        self.listen()
        self.endpoint = Endpoint(self.wire.url, None, bytes(16), "agent", new_peer_id(), "here")
        self.channel = ReliableChannel(
            self.endpoint, channel, self._greet, self._handle, is_bounded=is_bounded
        )
        self.connector = self.endpoint.connector()
        self.channel.open(self.connector)
        self.expect(m.Hello)

    def _greet(self, incarnation: bytes, received: int) -> m.Hello:
        self.greetings.append((incarnation, received))
        return self.endpoint.hello(incarnation, received)

    def _handle(self, message: m.AnyMessage, frames: Any) -> None:
        if isinstance(message, m.Welcome):
            self.channel.answer(message.incarnation, message.received)
        self.handled.append(message)

    def listen(self) -> None:
        self.wire = self._make_wire()

    def go_down(self, wait: Any) -> float:
        """Break the connection; returns when the channel has noticed, and what time that was."""
        now = time.monotonic()
        self.wire.close()
        wait(lambda: self.tend(now) or not self.channel.is_attached)
        return now

    def tend(self, now: float | None = None) -> bool:
        self.channel.receive()
        return self.channel.tend(time.monotonic() if now is None else now)

    def has_more(self, timeout_s: float) -> bool:
        """Whether another message arrives in time."""
        parts = None if self._ahead else self.wire.receive(timeout_s)
        # One alone is an identity that is gone, or has just come.
        if parts is not None and len(parts) > 1:
            self._ahead.append(parts)
        return bool(self._ahead)

    def expect(self, kind: type[Any]) -> Any:
        """Return the next message, which is of a kind."""
        deadline = time.monotonic() + 10
        while not self.has_more(0.1):
            assert time.monotonic() < deadline, "nothing arrives"
        identity, header, *_ = self._ahead.pop(0)
        self.identity = bytes(identity)
        message = decode(header)
        assert isinstance(message, kind), message
        if isinstance(message, m.Hello):
            self.greeting = message.greeting
        return message

    def send(self, message: m.Message) -> None:
        self.wire.send(self.identity, [encode(message)])

    def answer(self, received: int = 0, incarnation: bytes = FIRST, greeting: int = 0) -> None:
        """Answer the last greeting, or another one."""
        answer = m.Welcome(bytes(16), incarnation=incarnation, received=received)
        answer.greeting = greeting or self.greeting
        self.send(answer)

    def welcome(self, wait: Any, received: int = 0, incarnation: bytes = FIRST) -> None:
        self.answer(received, incarnation)
        wait(lambda: self.channel.receive() and self.channel.is_attached)

    def close(self) -> None:
        self.channel.close(0)
        self.connector.close()
        self.wire.close(at_once=True)


@pytest.fixture(params=["unix", "ipc"])
def make_other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, listen: Any
) -> Iterator[Callable[..., Other]]:
    """A function that makes the other side, which has got the first hello."""
    path = tmp_path_factory.mktemp("x") / "s"
    made: list[Other] = []

    def make(**options: Any) -> Other:
        made.append(Other(lambda: listen(request.param, path), **options))
        return made[-1]

    yield make
    for other in made:
        other.close()
    path.unlink(missing_ok=True)


@pytest.fixture
def other(make_other: Callable[..., Other]) -> Other:
    """The other side, which has got the first hello."""
    return make_other()


def report(status: int) -> m.EngineExited:
    """Return a counted message."""
    return m.EngineExited(bytes(16), status, "")


def test_nothing_but_the_greeting_is_sent_before_the_answer(other: Other, wait: Any) -> None:
    """What is sent before the first answer follows it."""
    other.channel.send(report(1))
    assert not other.has_more(0.05)
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
    wait(lambda: other.tend() or other.has_more(0))
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
    wait(lambda: other.tend() or other.has_more(0))
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
    wait(lambda: other.tend() or other.has_more(0))
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
    now = other.go_down(wait)
    pauses = []
    for _ in range(6):
        wait(lambda now=now: other.tend(now) or other.channel._reopen_at is not None)
        at = other.channel.next_at
        assert at is not None
        pauses.append(at - now)
        now = at
        assert other.tend(now)
    other.listen()
    assert pauses == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.25, 0.25])
    assert other.channel.broken_since is not None
    assert len(other.greetings) == 8


def test_many_messages_are_acknowledged_at_once(other: Other, wait: Any) -> None:
    """After so many messages an Ack leaves without waiting for its time."""
    other.welcome(wait)
    for _ in range(ACK_MESSAGES):
        other.send(m.SignalEngines([], 1))
    wait(lambda: [other.channel.receive(), other.has_more(0)][1])
    assert other.expect(m.Ack).received <= ACK_MESSAGES
    assert not other.has_more(0.05)


def test_a_lone_message_is_acknowledged_later(other: Other, wait: Any) -> None:
    """One message costs nothing soon; after a while it is acknowledged, once."""
    other.welcome(wait)
    assert other.channel.next_at is None
    other.send(m.SignalEngines([], 1))
    wait(other.channel.receive)
    at = other.channel.next_at
    assert at is not None and at > time.monotonic() + ACK_AFTER_S / 2
    other.tend(at - 0.01)
    assert not other.has_more(0.05)
    other.tend(at)
    assert other.expect(m.Ack).received == 1
    assert other.channel.next_at is None


def test_one_greeting_has_one_answer(other: Other, wait: Any) -> None:
    """A second answer sends nothing again."""
    other.welcome(wait)
    other.channel.send(report(1))
    other.expect(m.EngineExited)
    other.answer()
    other.send(m.SignalEngines([], 9))
    wait(lambda: other.channel.receive() and isinstance(other.handled[-1], m.SignalEngines))
    assert not other.has_more(0.05)


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
    assert not other.has_more(0.05)


def test_a_channel_with_a_bound_says_when_it_is_full(
    make_other: Callable[..., Other], wait: Any
) -> None:
    """When the other side does not read, a message is refused and not kept; those before come."""
    other = make_other(is_bounded=True)
    other.welcome(wait)
    n_sent = 0
    with contextlib.suppress(QueueFull):
        while n_sent < 1000:
            other.channel.send(report(n_sent), [bytes(100_000)])
            n_sent += 1
    assert 0 < n_sent < 1000 and len(other.channel._sent) == n_sent

    def read_on(status: int) -> bool:
        other.tend()
        return bool(other.has_more(0)) and other.expect(m.EngineExited).status == status

    for status in range(n_sent):
        wait(lambda status=status: read_on(status))
    other.channel.send(report(n_sent))
    assert other.expect(m.EngineExited).status == n_sent


def test_what_the_system_does_not_take_follows(other: Other, wait: Any) -> None:
    """Sending never waits; messages that are too much for now leave, in order, by and by."""
    other.welcome(wait)
    for status in range(3):
        other.channel.send(report(status), [bytes(5_000_000)])
    got: list[int] = []

    def read_on() -> bool:
        wait_for_news([other.channel], [], 10)
        other.tend()
        if other.has_more(0):
            got.append(other.expect(m.EngineExited).status)
        return len(got) == 3

    wait(read_on)
    assert got == [0, 1, 2] and other.channel.connection.unsent_bytes == 0
    # Nobody is told again and again that one could write.
    assert wait_for_news([other.channel], [], 0) == set()


@pytest.mark.parametrize("make_other", ["unix"], indirect=True)
def test_an_end_is_news_once(other: Other, wait: Any) -> None:
    """Who waits hears of a connection's end, and after `tend` waits in peace for the next try."""
    other.welcome(wait)
    assert not wait_for_news([other.channel], [], 0)
    other.wire.close()
    now = time.monotonic()
    wait(lambda: wait_for_news([other.channel], [], 10) and other.tend(now))
    wait(lambda: other.tend(now) or other.channel._reopen_at is not None)
    assert not wait_for_news([other.channel], [], 0) and not other.channel.is_attached
    other.listen()


def test_what_was_said_before_an_end_that_sending_meets(other: Other, wait: Any) -> None:
    """A Closing that is there already is heard when it is a send that finds the connection over."""
    other.welcome(wait)
    other.send(m.SignalEngines([], 1))
    other.send(m.Closing("done"))
    other.wire.close()
    wait(lambda: [other.channel.send(report(1)), other.channel.connection.is_over][1])
    other.channel.tend(time.monotonic())
    assert any(isinstance(message, m.Closing) for message in other.handled)
    other.listen()


@pytest.mark.parametrize("make_other", ["unix"], indirect=True)
def test_an_answer_to_an_earlier_greeting_counts_for_nothing(other: Other, wait: Any) -> None:
    """What follows the answer for a connection that was given up would come a second time."""
    other.welcome(wait)
    other.channel.reopen()
    other.channel.reopen()
    greetings = [other.expect(m.Hello).greeting for _ in range(2)]
    for greeting in greetings:
        other.answer(greeting=greeting)
        other.send(m.SignalEngines([], 7))
    other.send(m.SignalEngines([], 8))
    wait(lambda: [other.channel.receive(), other.handled[-1]][1] == m.SignalEngines([], 8))
    signals = [s.signum for s in other.handled if isinstance(s, m.SignalEngines)]
    assert signals == [7, 8] and other.channel._received.count == 2


def test_what_comes_before_the_run_is_known_waits(
    make_other: Callable[..., Other], wait: Any
) -> None:
    """It is taken, and counted, when the run is; in order, also with what comes meanwhile."""
    other = make_other(channel=Channel.TASK)
    other.send(m.SignalEngines([], 1))
    wait(other.channel.receive)
    other.channel.adopt(FIRST)
    assert other.handled == []
    other.send(m.SignalEngines([], 2))
    wait(lambda: [other.channel.receive(), len(other.handled) == 2][1])
    assert [message.signum for message in other.handled] == [1, 2]
    assert other.channel._received.count == 2


def test_what_comes_before_the_run_is_known_and_a_break(
    make_other: Callable[..., Other], wait: Any
) -> None:
    """It has not arrived: the controller is told so and sends it again, and it is taken once."""
    other = make_other(channel=Channel.TASK)
    other.send(m.SignalEngines([], 1))
    wait(other.channel.receive)
    other.wire.close()
    now = time.monotonic()
    # Until an attempt to connect again has failed: the next greeting is made after `adopt`.
    wait(lambda: [other.tend(now), other.channel._reopen_at][1])
    other.channel.adopt(FIRST)
    other.listen()
    wait(lambda: other.tend() or other.has_more(0))
    assert other.greetings[-1] == (FIRST, 0) and other.handled == []
    other.expect(m.Hello)
    other.welcome(wait)
    other.send(m.SignalEngines([], 1))
    wait(lambda: [other.channel.receive(), other.channel._received.count][1])
    assert [type(message) for message in other.handled] == [m.Welcome, m.SignalEngines]


@pytest.mark.parametrize("is_bounded", [False, True])
def test_a_handshake_that_goes_wrong_before_the_greeting_is_sent(
    wait: Any, is_bounded: bool
) -> None:
    """Such a connection is over, not full; what is sent over it goes to nobody."""
    # ZMTP 3.1, https://rfc.zeromq.org/spec/37/: another security mechanism than the engine's.
    greeting = b"\xff" + bytes(8) + b"\x7f\3\1" + b"CURVE".ljust(20, b"\0") + b"\1" + bytes(31)
    with zmq.Context() as context, socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        connection = ZmqConnection(
            context, url, b"engine", keys=None, heartbeat_s=0, is_bounded=is_bounded
        )
        with contextlib.closing(connection), server.accept()[0] as other:
            other.sendall(greeting)
            wait(lambda: not int(connection._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)
            assert connection.send([b"hello"])
            assert connection.is_over


def test_without_descriptors_there_is_no_connection_and_no_error() -> None:
    """Who has used them up is user code, and may give them back: it is tried again."""
    pytest.importorskip("resource")
    with without_descriptors():
        connection = Connector("unix:///nowhere", None, 0.0).connect(b"me")
    assert connection.is_over
    assert connection.send([b"hello"])
    assert connection.receive() is None
    assert connection.filenos() == ()
    connection.close()
