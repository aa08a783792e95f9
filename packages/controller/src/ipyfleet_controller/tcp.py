"""The door for peers of other hosts: a zmq ROUTER at a TCP port, encrypted.

What lives here: `TcpDoor`, and all that the controller knows of zmq but its keys (`curve`); without
``--ip`` neither is imported. What must not: who peers are.

A connection that breaks is told by the socket's monitor, which does not say whose it was. So all
that have been heard of are sent a `Probe`, which fails for those that are gone. Heartbeats, which
zmq's own threads send and answer, break connections whose other end is silent.

A zmq descriptor tells of news once, and whoever uses the socket may take the news away. So the
ROUTER is looked at before each sleep, and what is read after others are told of is read until
nothing is left.

Fast paths, in microseconds of the main thread per round trip of one task:

- `_receive_parts` instead of `recv_multipart`, with small frames copied: -25
- the socket is asked whether more is there; `zmq.Again` is not waited for: -20
- flags of sends are plain ints, not `|` of enum members: -10
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import zmq

from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import Channel, split_routing_id
from ipyfleet_protocol.local import Unreachable
from ipyfleet_protocol.messages import Probe, Refused

from .curve import Doorkeeper, KeyRing

SEND_QUEUE = 1024
"""Messages that the socket keeps for a peer that does not read; the rest waits in the outbox."""

RECEIVE_QUEUE = 512
"""Messages of a peer that the socket takes in before the loop has read them."""

MESSAGES_PER_TURN = 512
"""Messages taken out of the socket at a time."""

RECEIVE_COPY_MAX_BYTES = 8192
"""Received frames are copied out of the socket's buffers up to this size. That is cheaper than to
handle a `zmq.Frame`, and one so small may hold on to a whole receive buffer of this size.
"""

SEND_COPY_MAX_BYTES = 1 << 16
"""Frames that are not the socket's own are copied up to this size: that is cheaper than telling
another thread when they are free again."""

RETRY_S = 0.005
"""How often a peer with a full pipe is tried again: the socket does not tell when it has room."""

PROBE_AFTER_S = (0.0, 0.005, 0.030, 0.120)
"""When peers are probed after a connection broke: the socket forgets a dead peer with some
delay.
"""

_PROBE = (encode(Probe()),)

_DONTWAIT = int(zmq.DONTWAIT)
_EVENTS = int(zmq.EVENTS)
_MORE = int(zmq.SNDMORE | zmq.DONTWAIT)
_POLLIN = int(zmq.POLLIN)
# pyzmq types say nothing of the buffer protocol, which its frames have.
_FRAME: type[object] = zmq.Frame


class TcpDoor:
    """See the module docstring; `send` and the attributes are those of `local.LocalRouter`.

    Attributes:
        inbox, on_room: as there. The end of a connection may be told more than once.
        n_refused: messages that came with the wrong key.
        port: at which it listens.
    """

    def __init__(self, ip: str, port: int, keys: KeyRing, heartbeat_s: float) -> None:
        """Listen.

        Args:
            ip: at which address; ``*`` for all.
            port: 0 for any free one.
            keys: of the cluster; nobody else gets in.
            heartbeat_s: silence after which a connection is ended; 0 for never.

        Raises:
            OSError: one cannot listen there.
        """
        self.inbox: deque[list[Frame]] = deque()
        self.on_room: Callable[[bytes], object] = _do_nothing
        self.n_refused = 0
        self._known: set[bytes] = set()
        self._full: set[bytes] = set()
        self._probes: Sequence[float] = ()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._doorkeeper = Doorkeeper(self._context, keys)
        self._socket = router = self._context.socket(zmq.ROUTER)
        # Past the wrapper in Python, which is there for other kinds of sockets: a call a frame.
        self._send: Callable[..., object] = super(zmq.Socket, router).send
        try:
            router.router_mandatory = True
            router.router_handover = True
            router.linger = 0
            router.sndhwm = SEND_QUEUE
            # A peer that sends faster than it is served waits; nothing is dropped.
            router.rcvhwm = RECEIVE_QUEUE
            limit_ms = int(heartbeat_s * 1000)
            if limit_ms:
                router.heartbeat_ivl = max(1, limit_ms // 3)
                router.heartbeat_timeout = limit_ms
            router.curve_server = True
            router.curve_secretkey = keys.server.secret
            router.bind(f"tcp://{ip}:{port or '*'}")
            bound = cast("bytes", router.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
            self.port = int(bound.rpartition(":")[2])
            self._monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        except zmq.ZMQError as error:
            self.close(0.0)
            raise OSError(error.errno, zmq.strerror(error.errno or 0)) from error

    def join(self, add_reader: Callable[[int, Callable[[], object]], None]) -> None:
        """Have the loop woken by what happens here; `add_reader` is `Doors.add_reader`."""
        add_reader(_descriptor(self._socket), _wake_up)
        for socket, callback in (
            (self._doorkeeper.socket, self._doorkeeper.answer),
            (self._monitor, self._on_disconnect),
        ):
            add_reader(_descriptor(socket), callback)
            callback()  # only who has looked and found nothing is told of news

    def close(self, linger_s: float) -> None:
        """Close; what was sent last has a moment to leave. Idempotent."""
        # Waits for that; without it there may be sockets to close still.
        self._context.destroy(linger=int(linger_s * 1000))

    # -- in -----------------------------------------------------------------------------------

    def patience_s(self, wanted_s: float | None) -> float | None:
        """Return for how long the loop may sleep if it would for `wanted_s`."""
        if cast("int", self._socket.get(_EVENTS)) & _POLLIN:
            return 0.0
        limits = [] if wanted_s is None else [wanted_s]
        if self._full:
            limits.append(RETRY_S)
        if self._probes:
            limits.append(max(0.0, self._probes[0] - time.monotonic()))
        return min(limits, default=None)

    def take_in(self) -> None:
        """Put what has arrived into `inbox`; do what is due."""
        if self._probes:
            self._probe(time.monotonic())
        if self._full:
            self._retry()
        events: Callable[[int], Any] = self._socket.get
        for _ in range(MESSAGES_PER_TURN):
            if not events(_EVENTS) & _POLLIN:
                return
            parts = self._receive_parts()
            if parts is not None:
                self.inbox.append(parts)

    def _receive_parts(self) -> list[Frame] | None:
        """Return the parts of a message: identity, header, payload; None if it was turned away."""
        receive = self._socket.recv
        parts: list[Frame] = []
        role = ""
        while True:
            part = receive(_DONTWAIT, copy=False)
            if len(parts) == 1:
                role = _role_of_key(part)
            # pyzmq types say nothing of the buffer protocol, which its frames have.
            is_small = len(part) <= RECEIVE_COPY_MAX_BYTES
            parts.append(part.bytes if is_small else cast("Frame", part))
            if not part.more:
                break
        address = cast("bytes", parts[0])
        name = split_routing_id(address)
        wanted = "client" if name is not None and name[1] is Channel.CLIENT else "engine"
        if role != wanted:
            self._turn_away(address, f"this channel needs the key of a {wanted}")
            return None
        self._known.add(address)
        return parts

    def _turn_away(self, address: bytes, reason: str) -> None:
        self.n_refused += 1
        try:
            self.send(address, (encode(Refused(reason)),))
        except Unreachable:
            return

    # -- who is still there -------------------------------------------------------------------

    def _on_disconnect(self) -> None:
        while cast("int", self._monitor.get(_EVENTS)) & _POLLIN:
            self._monitor.recv_multipart(zmq.DONTWAIT)
            now = time.monotonic()
            self._probes = [now + after_s for after_s in PROBE_AFTER_S]

    def _probe(self, now: float) -> None:
        if self._probes[0] > now:
            return
        self._probes = [at for at in self._probes if at > now]
        for address in list(self._known):
            try:
                if address not in self._full:  # a full pipe is a connection
                    self.send(address, _PROBE)
            except Unreachable:
                self.inbox.append([address])

    # -- out ----------------------------------------------------------------------------------

    def send(self, identity: bytes, frames: Sequence[Frame]) -> bool:
        """Send a message; see `local.LocalRouter.send`."""
        send = self._send
        try:
            # Only the first part can fail: it chooses the pipe, and that takes whole messages.
            send(identity, _MORE)
        except zmq.Again:
            self._full.add(identity)
            return False
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, zmq.EHOSTUNREACH):
                raise
            self._known.discard(identity)
            raise Unreachable from None
        left = len(frames)
        for part in frames:
            left -= 1
            copy = type(part) is not _FRAME and len(part) <= SEND_COPY_MAX_BYTES
            send(part, _MORE if left else _DONTWAIT, copy)
        return True

    def _retry(self) -> None:
        full, self._full = self._full, set()
        for identity in full:
            self.on_room(identity)


def _role_of_key(frame: zmq.Frame) -> str:
    """Return whose key a frame's connection has; empty if it has none."""
    try:
        return str(frame.get("User-Id"))
    except (zmq.ZMQError, KeyError):
        return ""


def _descriptor(socket: zmq.Socket[Any]) -> int:
    return int(socket.getsockopt(zmq.FD))


def _do_nothing(identity: bytes) -> None:
    return


def _wake_up() -> None:
    return  # `patience_s` and `take_in` look into the socket


__all__ = ["TcpDoor"]
