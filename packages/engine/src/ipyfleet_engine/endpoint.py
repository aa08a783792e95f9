"""How an engine or agent reaches the controller, and how it introduces itself.

What lives here: `Endpoint`. What must not: what is said afterwards.
"""

from __future__ import annotations

import os
import socket as sockets
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ipyfleet_protocol.connection import ConnectionInfo, pick_url
from ipyfleet_protocol.hosts import host_id
from ipyfleet_protocol.ids import Channel, PeerId, new_secret, socket_identity
from ipyfleet_protocol.messages import PROTOCOL_VERSION, Attach, Hello, Role
from ipyfleet_protocol.versions import package_versions, python_version

from . import __version__
from .connections import Connector


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
        heartbeat_s: silence after which another host is taken for dead; 0 for never.
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

    def identity(self, channel: Channel) -> bytes:
        """Return what the connections of one channel of this peer are called over there."""
        return socket_identity(self.peer, channel, self.secret)

    def connector(self) -> Connector:
        """Return what makes this peer's connections, in this process."""
        return Connector(self.url, self.keys, self.heartbeat_s)


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
