"""Who may join: what a Hello must say.

What lives here: `Cluster` (what newcomers are checked against and told) and `objection`. What must
not: the list of who is here.
"""

from __future__ import annotations

import msgspec

from ipyfleet_protocol.ids import Channel, PeerId
from ipyfleet_protocol.messages import PROTOCOL_VERSION, Hello

from .peers import ROLE_OF_CHANNEL


class Cluster(msgspec.Struct):
    """The cluster, as a newcomer learns it.

    Attributes:
        instance: 16 bytes that name this run of the cluster.
        host: id of the host that the controller is on.
        blob_dir: directory of shared memory.
        release: our version, for messages.
    """

    instance: bytes
    host: str
    blob_dir: str
    release: str
    version: int = PROTOCOL_VERSION


def objection(
    cluster: Cluster, hello: Hello, peer: PeerId, channel: Channel, key_role: str | None
) -> str | None:
    """Return why a newcomer may not join, in a sentence that names both sides; None if it may."""
    who = f"this {hello.role} (ipyfleet {hello.release}, pid {hello.pid} on {hello.hostname})"
    if hello.version != cluster.version:
        return (
            f"{who} speaks protocol version {hello.version} and the controller (ipyfleet "
            f"{cluster.release}) speaks version {cluster.version}; install the same release "
            "of ipyfleet on both sides"
        )
    if hello.instance != cluster.instance:
        return (
            f"{who} wants to join cluster {hello.instance.hex()[:8]} and the controller "
            f"runs cluster {cluster.instance.hex()[:8]}; its connection file is an old one"
        )
    expected = Channel.CONTROL if hello.role == "engine" else channel
    if hello.peer != peer or ROLE_OF_CHANNEL[channel] != hello.role or channel is not expected:
        return f"{who} says Hello over a socket that is not named after it"
    # Agents come with the engines' connection file.
    needed = "client" if hello.role == "client" else "engine"
    if key_role is not None and key_role != needed:
        return f"{who} came with the key of an {key_role}; the controller wants the {needed} key"
    return None
