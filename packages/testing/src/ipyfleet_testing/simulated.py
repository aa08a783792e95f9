"""Engines and clients that only speak the protocol: thousands in one thread.

What lives here: `SimulatedPeers`, which connects them and runs their loop, `SimulatedEngine`, which
answers each task with the task's own payload, and `SimulatedClient`. What must not: user code;
nothing is unpickled and nothing runs.

The loop waits with `epoll`. The descriptors of zmq sockets tell that something has changed, once:
so after whatever was done with a channel, it is read until it is empty.
"""

from __future__ import annotations

import os
import resource
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from ipyfleet_protocol import __version__
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, encode, split
from ipyfleet_protocol.columns import Frame, PayloadWriter, float64_column
from ipyfleet_protocol.connection import ConnectionInfo, pick_url
from ipyfleet_protocol.ids import Channel, PeerId, new_peer_id, new_secret, socket_identity
from ipyfleet_protocol.reliable import SESSION_MESSAGES, Received
from ipyfleet_protocol.versions import python_version

from .raw import RawChannel, RawChannels

DIGEST = b"simulated-digest"
"""Of the function that simulated clients submit."""


class SimulatedPeer:
    """One peer: its connections by channel, and what it has received over each."""

    role: m.Role = "client"
    channels: tuple[Channel, ...] = (Channel.CLIENT,)

    def __init__(
        self, peers: SimulatedPeers, peer: PeerId | None = None, secret: bytes | None = None
    ) -> None:
        self.peer = peer or new_peer_id()
        self.secret = new_secret() if secret is None else secret
        self.is_welcome = False
        self.refused = ""
        self.incarnation = b""
        self.instance = peers.instance
        self._peers = peers
        self.connections = {channel: peers.connect(self, channel) for channel in self.channels}
        self._received = {channel: Received() for channel in self.channels}

    def hello(self, **changes: Any) -> m.Hello:
        """Return what it says first; with some fields changed."""
        hello = m.Hello(
            m.PROTOCOL_VERSION,
            self.role,
            self.peer,
            self.instance,
            self._peers.info.host,
            "simulated",
            os.getpid(),
            python_version(),
            __version__,
        )
        for name, value in changes.items():
            setattr(hello, name, value)
        return hello

    def send(self, channel: Channel, message: m.Message, *frames: Frame) -> None:
        """Send a message over one of its channels."""
        self.send_raw(channel, [encode(message), *frames])

    def send_raw(self, channel: Channel, frames: Sequence[Frame]) -> None:
        """Send frames, whatever they are, over one of its channels."""
        connection = self.connections[channel]
        connection.send(frames)
        self._peers.look_again(connection)

    def join(self) -> None:
        """Say hello."""
        self.send(self.channels[0], self.hello())

    def come_back(self, channel: Channel) -> None:
        """Say hello again after a break."""
        self.is_welcome = False
        received = self._received[channel].told()
        self.send(channel, self.hello(incarnation=self.incarnation, received=received))

    def take(self, channel: Channel, parts: list[bytes]) -> None:
        """Take in what has arrived over a channel."""
        message = decode(parts[0])
        if type(message) not in SESSION_MESSAGES:
            received = self._received[channel]
            if received.note(sum(map(len, parts)), 0.0):
                count = received.ack_due(0.0)
                assert count is not None
                self.send(channel, m.Ack(count))
        if isinstance(message, m.Welcome):
            self.is_welcome = True
            self.incarnation = message.incarnation
        elif isinstance(message, m.Refused):
            self.refused = message.reason
        self.handle(channel, message, parts[1:])

    def handle(self, channel: Channel, message: m.AnyMessage, frames: Sequence[bytes]) -> None:
        """Do what the message asks for."""

    def close(self) -> None:
        """Vanish."""
        for connection in self.connections.values():
            self._peers.disconnect(connection)
        self.connections.clear()


class SimulatedEngine(SimulatedPeer):
    """An engine that answers each task with the task's own payload.

    Attributes:
        engine_id: -1 until it is welcome.
        n_tasks: tasks that it has answered.
        is_busy: it takes tasks and answers none.
    """

    role = "engine"
    channels = (Channel.TASK, Channel.CONTROL, Channel.OUTPUT)

    def __init__(
        self, peers: SimulatedPeers, peer: PeerId | None = None, secret: bytes | None = None
    ) -> None:
        super().__init__(peers, peer, secret)
        self.engine_id = -1
        self.n_tasks = 0
        self.is_busy = False
        self._number = 0

    def join(self) -> None:
        """Say hello."""
        attach = m.Attach(m.PROTOCOL_VERSION, self.instance)
        self.send(Channel.TASK, attach)
        self.send(Channel.OUTPUT, attach)
        self.send(Channel.CONTROL, self.hello())

    def handle(self, channel: Channel, message: m.AnyMessage, frames: Sequence[bytes]) -> None:
        """Run tasks, give nothing back."""
        match message:
            case m.Welcome():
                self.engine_id = message.engine_id
            case m.RunTasks() if not self.is_busy:
                self._run(message, frames)
            case m.Recall():
                self.send(Channel.CONTROL, m.Recalled(1, 0))
            case m.EngineControl():
                reply = m.ControlReply(message.client, message.request, self.engine_id)
                self.send(Channel.CONTROL, reply)

    def _run(self, message: m.RunTasks, frames: Sequence[bytes]) -> None:
        now = time.time()
        for piece, part in zip(message.slices, split(message, frames), strict=True):
            columns, payload = piece.columns, part.payload
            if piece.shared and piece.count > 1:
                writer = PayloadWriter()
                writer.extend([bytes(payload[0])] * piece.count)
                columns, payload = writer.finish()
            times = float64_column([now] * piece.count)
            result = m.ResultSlice(
                piece.first,
                piece.count,
                piece.attempt,
                piece.ordinal,
                bytes(piece.count),
                times,
                times,
                b"",
                columns,
            )
            self._number += 1
            results = m.Results(piece.client, self.engine_id, [result], self._number)
            self.send(Channel.TASK, results, *payload)
            self.n_tasks += piece.count


class SimulatedClient(SimulatedPeer):
    """A client.

    Attributes:
        n_ended: tasks whose results have arrived.
        n_failed: those among them that did not end with a value.
        replies: answers of the hub by request.
        engines: ids of the engines that it knows of.
    """

    def __init__(
        self, peers: SimulatedPeers, peer: PeerId | None = None, secret: bytes | None = None
    ) -> None:
        super().__init__(peers, peer, secret)
        self.n_ended = 0
        self.n_failed = 0
        self.next_seq = 0
        self.replies: dict[int, m.Reply] = {}
        self.engines: set[int] = set()
        self._requests = 0

    def submit(self, count: int, payload: bytes = b"x", **options: Any) -> None:
        """Submit one group of tasks, each with the same payload."""
        writer = PayloadWriter()
        writer.extend([payload] * (1 if options.get("shared") else count))
        columns, frames = writer.finish()
        body = [b"body"] if not self.next_seq else []
        function = m.Function(DIGEST, "simulated", True, "", len(body))
        group = m.Group(self.next_seq, count, m.Options(**options), function, columns)
        self.next_seq += count
        self.send(Channel.CLIENT, m.Submit([group]), *body, *frames)

    def apply_to(self, engine_ids: Sequence[int], payload: bytes = b"x") -> None:
        """Submit the same call to each of several engines."""
        targets = list(engine_ids)
        self.submit(len(targets), payload, placement="direct", targets=targets, shared=True)

    def ask(self, question: m.Question) -> int:
        """Ask the hub; return the number under which `replies` has the answer."""
        self._requests += 1
        self.send(Channel.CLIENT, m.Request(self._requests, question))
        return self._requests

    def handle(self, channel: Channel, message: m.AnyMessage, frames: Sequence[bytes]) -> None:
        """Count results, keep answers."""
        match message:
            case m.Welcome():
                self.engines = {engine.engine_id for engine in message.engines}
            case m.EnginesChanged():
                self.engines |= {engine.engine_id for engine in message.joined}
                self.engines -= {engine.engine_id for engine in message.lost}
            case m.Results():
                for piece in message.slices:
                    self.n_ended += piece.count
                    self.n_failed += piece.count - piece.status.count(m.OK)
            case m.Reply():
                self.replies[message.request] = message


class SimulatedAgent(SimulatedPeer):
    """A host's agent, without engines."""

    role = "agent"
    channels = (Channel.AGENT,)


class SimulatedPeers:
    """Peers of one controller and the loop that they share; a context manager.

    Attributes:
        engines, clients: those that were added.
    """

    def __init__(self, info: ConnectionInfo, url: str = "") -> None:
        """Connect nobody yet.

        Args:
            info: a connection file's content; over TCP its keys are used.
            url: where to connect to, if not to where `info` says.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.info = info
        self.instance = bytes.fromhex(info.instance)
        self.url = url or pick_url(info)
        self.engines: list[SimulatedEngine] = []
        self.clients: list[SimulatedClient] = []
        self._channels = RawChannels(self.url, info)
        self._epoll = select.epoll()
        self._owners: dict[int, tuple[SimulatedPeer, Channel, RawChannel]] = {}
        self._again: deque[int] = deque()

    def __enter__(self) -> SimulatedPeers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_engines(self, count: int) -> list[SimulatedEngine]:
        """Connect engines, which say hello; return those."""
        added = [SimulatedEngine(self) for _ in range(count)]
        for engine in added:
            engine.join()
        self.engines += added
        return added

    def add_clients(self, count: int) -> list[SimulatedClient]:
        """Connect clients, which say hello; return those."""
        added = [SimulatedClient(self) for _ in range(count)]
        for client in added:
            client.join()
        self.clients += added
        return added

    def run_until(self, condition: Callable[[], object], timeout_s: float) -> None:
        """Let the peers work until a condition holds.

        Raises:
            TimeoutError: it does not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"the condition does not hold after {timeout_s:g} s")
            self.turn(left_s)

    def turn(self, timeout_s: float) -> None:
        """Wait for messages and take in those that are there."""
        if not self._again:
            for fd, _ in self._epoll.poll(timeout_s, 256):
                self._again.append(fd)
        while self._again:
            self._read(self._again.popleft())

    def _read(self, fd: int) -> None:
        owner = self._owners.get(fd)
        if owner is None:
            return
        peer, channel, connection = owner
        while (frames := connection.take()) is not None:
            peer.take(channel, frames)
        if connection.is_over:
            self.disconnect(connection)

    # -- for the peers ------------------------------------------------------------------------

    def connect(self, peer: SimulatedPeer, channel: Channel) -> RawChannel:
        """Return a connection with the identity of a peer's channel."""
        connection = self._channels.open(socket_identity(peer.peer, channel, peer.secret))
        fd = connection.fileno()
        self._owners[fd] = (peer, channel, connection)
        self._epoll.register(fd, select.EPOLLIN)
        return connection

    def disconnect(self, connection: RawChannel) -> None:
        """Close a connection at once. May be repeated."""
        fd = connection.fileno()
        if fd >= 0:
            self._epoll.unregister(fd)
            del self._owners[fd]
            connection.close()

    def look_again(self, connection: RawChannel) -> None:
        """A connection was used: what its descriptor would have told may have been taken away."""
        self._again.append(connection.fileno())

    def close(self) -> None:
        """Close all connections. May be repeated."""
        for _, _, connection in list(self._owners.values()):
            self.disconnect(connection)
        if not self._epoll.closed:
            self._epoll.close()
        self._channels.close()


__all__ = [
    "SimulatedAgent",
    "SimulatedClient",
    "SimulatedEngine",
    "SimulatedPeer",
    "SimulatedPeers",
]
