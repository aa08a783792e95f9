"""How an engine or agent reaches the controller, and how it introduces itself.

What lives here: `Endpoint`. What must not: what is said afterwards.
"""

from __future__ import annotations

import os
import socket as sockets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import zmq

from ipyfleet_protocol.connection import ConnectionInfo, pick_url
from ipyfleet_protocol.hosts import host_id
from ipyfleet_protocol.ids import Channel, PeerId, new_secret, socket_identity
from ipyfleet_protocol.messages import PROTOCOL_VERSION, Attach, Hello, Role
from ipyfleet_protocol.versions import package_versions, python_version

from . import __version__

LINGER_MS = 1000

RECONNECT_IVL_MS = 3_600_000
"""zmq shall not reconnect by itself: `channel` says why."""

CONNECT_TIMEOUT_MS = 5000
"""After which a host that does not answer is called anew."""


class Endpoint(NamedTuple):
    """One peer's view of the controller.

    Attributes:
        url: where it listens.
        keys: server's public key, own public key, own secret key; None for no encryption.
        instance: 16 bytes; the run of the controller that is meant.
        role, peer: what this peer is, and its id.
        host: this host's id.
        agent: for an engine: the agent that started it, or empty.
        wanted_id: for an engine: the engine id that it asks for, or -1.
        heartbeat_s: silence after which the other end is taken for dead; 0 for never.
        resources: for an engine: what it has.
        secret: part of the sockets' identities, so that nobody else can take them over.
    """

    url: str
    keys: tuple[str, str, str] | None
    instance: bytes
    role: Role
    peer: PeerId
    host: str
    agent: bytes = b""
    wanted_id: int = -1
    heartbeat_s: float = 0.0
    resources: Mapping[str, float] = MappingProxyType({})
    secret: bytes = b""

    def hello(self, incarnation: bytes = b"", received: int = 0) -> Hello:
        """Return the first message of this peer; for the arguments see `Hello`."""
        return Hello(
            version=PROTOCOL_VERSION,
            role=self.role,
            peer=self.peer,
            instance=self.instance,
            host=self.host,
            hostname=sockets.gethostname(),
            pid=os.getpid(),
            python=python_version(),
            release=__version__,
            packages=package_versions() if self.role == "engine" else {},
            agent=self.agent,
            wanted_id=self.wanted_id,
            resources=dict(self.resources),
            incarnation=incarnation,
            received=received,
        )

    def attach(self, incarnation: bytes = b"", received: int = 0) -> Attach:
        """Return the first message on an engine's TASK and OUTPUT channels."""
        return Attach(PROTOCOL_VERSION, self.instance, incarnation, received)

    def make_socket(self, context: zmq.Context[Any], channel: Channel) -> zmq.Socket[bytes]:
        """Return a DEALER for one channel of this peer, to be connected to `url`."""
        socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, socket_identity(self.peer, channel, self.secret))
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_IVL_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        # What tasks and results need is bounded by what the controller sends; nothing is dropped.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        if self.heartbeat_s:
            self._set_heartbeat(socket)
        if self.keys is not None:
            socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = (
                key.encode() for key in self.keys
            )
        return socket

    def _set_heartbeat(self, socket: zmq.Socket[bytes]) -> None:
        """Drop the connection when the controller is silent: its host or the network is gone.

        The controller does likewise. (The protocol has a time to live for the other side, but
        libzmq 4.3 forgets it when anything follows the beat that set it.)
        """
        limit_ms = int(self.heartbeat_s * 1000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, max(1, limit_ms // 3))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, limit_ms)


def make_endpoint(
    info: ConnectionInfo,
    role: Role,
    peer: PeerId,
    *,
    agent: bytes = b"",
    wanted_id: int = -1,
    resources: Mapping[str, float] = MappingProxyType({}),
) -> Endpoint:
    """Return the endpoint that a connection file describes.

    Raises:
        ConnectionFileUnreachable: if the controller does not listen for peers of this host.
    """
    url = pick_url(info)
    keys = None
    if info.server_public and (url.startswith("tcp://") or info.tunnel):
        keys = (info.server_public, info.public, info.secret)
    instance = bytes.fromhex(info.instance)
    return Endpoint(
        url,
        keys,
        instance,
        role,
        peer,
        host_id(),
        agent,
        wanted_id,
        info.heartbeat_s,
        resources,
        new_secret(),
    )
