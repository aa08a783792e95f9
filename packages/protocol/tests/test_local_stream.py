"""Unix sockets at which many peers meet a router."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipyfleet_protocol.local import (
    LocalRouter,
    LocalStream,
    Unreachable,
    connect_local,
    frame_prefix,
    local_url,
    socket_path,
)
from ipyfleet_testing.limits import without_descriptors

PATIENCE_S = 30.0


class Meeting:
    """A router, and what its owner's loop does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoll = select.epoll()
        self.router = LocalRouter(path, self.epoll)
        self._streams: list[LocalStream] = []

    def connect(self, identity: bytes = b"me") -> LocalStream:
        stream = connect_local(self.path, identity)
        self._streams.append(stream)
        return stream

    def turn(self, timeout_s: float = 0.0) -> None:
        for fd, events in self.epoll.poll(timeout_s):
            assert self.router.on_ready(fd, events)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            self.turn(0.01)

    def next(self) -> list[bytes]:
        """Return the next message, or of an end the identity alone."""
        self.until(lambda: self.router.inbox)
        return [bytes(frame) for frame in self.router.inbox.popleft()]

    def receive(self, stream: LocalStream) -> list[bytes]:
        deadline = time.monotonic() + PATIENCE_S
        while (frames := stream.receive()) is None:
            assert time.monotonic() < deadline and not stream.is_over
            self.turn(0.001)
        return [bytes(frame) for frame in frames]

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self.router.close()
        self.epoll.close()


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    """Let a router listen."""
    made = Meeting(tmp_path / "router")
    yield made
    made.close()


def test_there_and_back(meeting: Meeting) -> None:
    """A message comes with the identity of its sender, and an answer goes to an identity."""
    one, two = meeting.connect(b"one"), meeting.connect(b"two")
    assert one.send([b"hello", b"", b"x" * 100_000])
    assert meeting.next() == [b"one", b"hello", b"", b"x" * 100_000]
    assert two.send([b"me too"])
    assert meeting.next() == [b"two", b"me too"]
    assert meeting.router.send(b"one", [b"first"])
    assert meeting.router.send(b"one", [b"second", b"part"])
    assert meeting.receive(one) == [b"first"]
    assert meeting.receive(one) == [b"second", b"part"]
    assert one.receive() is None and two.receive() is None
    assert b"one" in meeting.router and len(meeting.router) == 2


def test_nobody_there(meeting: Meeting) -> None:
    """Sending to an identity that nobody has says so."""
    with pytest.raises(Unreachable):
        meeting.router.send(b"nobody", [b"hello"])


def test_a_large_message_to_a_reader(meeting: Meeting) -> None:
    """What the system does not take at once follows as the other end reads."""
    stream = meeting.connect()
    data = os.urandom(1 << 20) * 8
    assert not stream.send([b"head", data])
    assert stream.unsent_bytes > 0
    meeting.until(lambda: stream.flush() and meeting.router.inbox)
    assert meeting.next() == [b"me", b"head", data]


def test_the_rest_of_a_message_is_not_what_the_sender_makes_of_it_later(meeting: Meeting) -> None:
    """Of frames that can be changed the rest is copied."""
    stream = meeting.connect()
    data = bytearray(4 << 20)
    assert not stream.send([data])
    data[:] = b"\1" * len(data)
    meeting.until(lambda: stream.flush() and meeting.router.inbox)
    assert meeting.next() == [b"me", bytes(4 << 20)]


def test_very_many_frames(meeting: Meeting) -> None:
    """More frames than the system takes at a time are one message all the same."""
    stream = meeting.connect()
    frames = [b"%d" % number for number in range(5000)]
    stream.send(frames)
    meeting.until(lambda: stream.flush() and meeting.router.inbox)
    assert meeting.next() == [b"me", *frames]


def test_messages_behind_one_that_waits(meeting: Meeting) -> None:
    """They keep their order."""
    stream = meeting.connect()
    sizes = [3 << 20, 10, 1 << 20, 5]
    for size in sizes:
        stream.send([bytes(size)])
    received: list[int] = []
    while len(received) < len(sizes):
        meeting.until(lambda: stream.flush() or meeting.router.inbox)
        received.append(len(meeting.next()[1]))
    assert received == sizes


def test_a_peer_that_does_not_read(meeting: Meeting) -> None:
    """The router is told that there is no room, nothing is sent then, and it hears of room, and
    whose.
    """
    stream = meeting.connect()
    meeting.until(lambda: b"me" in meeting.router)
    calls: list[bytes] = []
    meeting.router.on_room = calls.append
    n_sent = 0
    while meeting.router.send(b"me", [b"x" * 50_000]):
        n_sent += 1
        assert n_sent < 1000
    meeting.turn()
    assert not calls
    for _ in range(n_sent):
        assert meeting.receive(stream) == [b"x" * 50_000]
    meeting.until(lambda: calls)
    assert calls == [b"me"]
    assert meeting.router.send(b"me", [b"last"])
    assert meeting.receive(stream) == [b"last"]


def test_waiting_for_what_is_sent(meeting: Meeting) -> None:
    """A wait for a router that does not read ends at its timeout."""
    stream = meeting.connect()
    assert not stream.send([bytes(4 << 20)])
    assert not stream.wait_sent(0.01)
    assert stream.unsent_bytes


def test_waiting_for_what_a_closed_connection_has_sent(meeting: Meeting) -> None:
    """There is nothing to wait for."""
    stream = meeting.connect()
    assert not stream.send([bytes(4 << 20)])
    stream.close()
    assert stream.wait_sent(PATIENCE_S)


def test_a_peer_that_goes(meeting: Meeting) -> None:
    """What it had sent is received, and then that it is gone."""
    stream = meeting.connect()
    stream.send([b"last words"])
    stream.close()
    assert stream.is_over
    assert [meeting.next(), meeting.next()] == [[b"me", b"last words"], [b"me"]]
    assert b"me" not in meeting.router


def test_a_router_that_goes(meeting: Meeting) -> None:
    """What it had sent is received; then the stream is over and sends to nobody."""
    stream = meeting.connect()
    meeting.until(lambda: b"me" in meeting.router)
    meeting.router.send(b"me", [b"last words"])
    meeting.router.close()
    assert not meeting.path.exists()
    assert meeting.receive(stream) == [b"last words"]
    meeting.until(lambda: stream.receive() is None and stream.is_over)
    assert stream.send([b"too late"])
    with pytest.raises(OSError):
        connect_local(meeting.path, b"me")


def test_the_same_identity_again(meeting: Meeting) -> None:
    """A peer that connects anew takes its own place; what it sent before comes first."""
    before = meeting.connect()
    before.send([b"before"])
    after = meeting.connect()
    after.send([b"after"])
    received = [meeting.next() for _ in range(3)]
    assert received == [[b"me", b"before"], [b"me"], [b"me", b"after"]]
    assert meeting.router.send(b"me", [b"answer"])
    assert meeting.receive(after) == [b"answer"]
    meeting.until(lambda: before.receive() is None and before.is_over)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        frame_prefix([1, 1]) + b"ab",
        frame_prefix([]),
        frame_prefix([0]),
        frame_prefix([65]) + bytes(65),
        frame_prefix([1 << 60]),
    ],
    ids=["noise", "two frames", "no frame", "empty", "too long", "absurd"],
)
def test_a_connection_that_does_not_begin_with_an_identity(meeting: Meeting, data: bytes) -> None:
    """It is closed, and others notice nothing."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(meeting.path))
        stranger.sendall(data)
        stranger.setblocking(False)
        meeting.until(lambda: _has_ended(stranger))
    stream = meeting.connect()
    stream.send([b"hello"])
    assert meeting.next() == [b"me", b"hello"]


def _wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline


def _has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_noise_behind_an_identity(meeting: Meeting) -> None:
    """A peer whose stream stops making sense loses its connection."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(meeting.path))
        stranger.sendall(frame_prefix([2]) + b"me" + frame_prefix([2]) + b"ok" + b"\xff" * 40)
        assert [meeting.next(), meeting.next()] == [[b"me", b"ok"], [b"me"]]


def test_the_end_in_the_middle_of_a_message(meeting: Meeting) -> None:
    """Half a message is none."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(meeting.path))
        stranger.sendall(frame_prefix([2]) + b"me" + frame_prefix([2 << 20]) + bytes(50_000))
    assert meeting.next() == [b"me"]
    assert not meeting.router.inbox


def test_a_message_of_nothing(meeting: Meeting) -> None:
    """Nobody sends one, and it would look like the news of an end: who does is parted with."""
    stream = meeting.connect()
    stream.send([b"hello"])
    stream.send([])
    stream.send([b"too late"])
    assert [meeting.next(), meeting.next()] == [[b"me", b"hello"], [b"me"]]
    meeting.until(lambda: stream.receive() is None and stream.is_over)
    assert not meeting.router.inbox


def test_what_was_sent_before_the_end_counts_when_a_write_finds_it(meeting: Meeting) -> None:
    """However much it is, and although the router has tried to send meanwhile."""
    stream = meeting.connect()
    meeting.until(lambda: b"me" in meeting.router)
    sent = [[b"%d" % number, bytes(30_000)] for number in range(6)]
    for frames in sent:
        assert stream.send(frames)
    stream.close()
    assert meeting.router.send(b"me", [b"too late"])
    assert [meeting.next() for _ in sent] == [[b"me", *frames] for frames in sent]
    assert meeting.next() == [b"me"]


def test_what_was_sent_before_the_end_counts_when_what_waits_finds_it(meeting: Meeting) -> None:
    """Also if the poll has told of nothing but room."""
    stream = meeting.connect()
    meeting.until(lambda: b"me" in meeting.router)
    while meeting.router.send(b"me", [bytes(1 << 20)]):
        pass
    told: list[tuple[int, int]] = []

    def has_room() -> bool:
        stream.receive()
        told[:] = meeting.epoll.poll(0)
        return bool(told)

    _wait_until(has_room)
    assert [events for _, events in told] == [select.EPOLLOUT]
    stream.send([b"last words"])
    stream.close()
    assert meeting.router.on_ready(*told[0])
    assert [meeting.next(), meeting.next()] == [[b"me", b"last words"], [b"me"]]


def test_what_is_received_is_not_shared_with_a_forked_child(meeting: Meeting) -> None:
    """A child may write into a large frame, and the parent's stays what it was."""
    stream = meeting.connect()
    meeting.until(lambda: b"me" in meeting.router)
    assert meeting.router.send(b"me", [bytes(2 << 20)])
    received: list[memoryview] = []

    def has_received() -> bool:
        meeting.turn()
        received.extend(stream.receive() or ())  # type: ignore[arg-type]
        return bool(received)

    _wait_until(has_received)
    [frame] = received
    child = os.fork()
    if child == 0:
        frame[0] = 1
        os._exit(frame[0])
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert frame[0] == 0


def test_a_forked_child_does_not_hold_the_connection(meeting: Meeting) -> None:
    """The other end hears of the parent's end although a child lives on."""
    stream = meeting.connect()
    meeting.until(lambda: b"me" in meeting.router)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        stream.close()
        assert meeting.next() == [b"me"]
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def test_too_many_connections(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors the router does not spin, and listens again when some are free."""
    first = meeting.connect(b"first")
    meeting.until(lambda: b"first" in meeting.router)
    late = meeting.connect(b"late")
    with without_descriptors():
        meeting.turn(0.05)
        assert b"late" not in meeting.router
        assert meeting.epoll.poll(0.05) == []
    first.close()
    assert meeting.next() == [b"first"]
    late.send([b"here"])
    assert meeting.next() == [b"late", b"here"]


def test_a_router_at_which_too_many_wait(tmp_path: Path) -> None:
    """Who comes then is told at once, and may come again."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)

        def come() -> None:
            for _ in range(10):
                waiting.callback(connect_local(tmp_path / "s", b"me").close)

        with pytest.raises(BlockingIOError):
            come()


def test_addresses() -> None:
    """What connection files say of a socket is its path."""
    assert socket_path(local_url(Path("/run/x/router"))) == "/run/x/router"
    assert socket_path("tcp://10.0.0.7:5000") is None
