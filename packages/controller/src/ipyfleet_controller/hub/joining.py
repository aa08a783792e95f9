"""Who may join: what a Hello must say.

What lives here: `Cluster` (what newcomers are checked against and told), `objection`, and what
newcomers are warned of. What must not: the list of who is here.

Client and engines must run the same minor version of Python. What decides is the controller's,
which unpickles nothing itself: so it does not matter who comes first, and each of them gets one
answer, the same each time.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ipyfleet_protocol.ids import Channel, PeerId
from ipyfleet_protocol.messages import PROTOCOL_VERSION, Hello
from ipyfleet_protocol.versions import misfits, same_release

from .peers import ROLE_OF_CHANNEL, Peer

MAX_NAMED = 4
"""Peers or hosts that a warning names."""


class Cluster(msgspec.Struct):
    """The cluster, as a newcomer learns it.

    Attributes:
        instance: 16 bytes that name this run of the cluster.
        host: id of the host that the controller is on.
        blob_dir: directory of shared memory.
        release: our version.
        python: the minor version of Python that peers must have; empty for any.
        incarnation: 8 bytes that name this run of the controller.
    """

    instance: bytes
    host: str
    blob_dir: str
    release: str
    version: int = PROTOCOL_VERSION
    python: str = ""
    incarnation: bytes = b""


def objection(cluster: Cluster, hello: Hello, peer: PeerId, channel: Channel) -> str | None:
    """Return why a newcomer may not join, in a sentence that names both sides; None if it may."""
    who = f"this {hello.role} (ipyfleet {hello.release}, pid {hello.pid} on {hello.hostname})"
    if hello.version != cluster.version:
        return (
            f"{who} speaks protocol version {hello.version} and the controller (ipyfleet "
            f"{cluster.release}) speaks version {cluster.version}; install the same release "
            "of ipyfleet on both sides"
        )
    if not same_release(hello.release, cluster.release):
        return (
            f"{who} and the controller (ipyfleet {cluster.release}) are of different releases; "
            f"install ipyfleet {cluster.release} here, or {hello.release} there"
        )
    if cluster.python and hello.role != "agent" and hello.python != cluster.python:
        return (
            f"{who} runs Python {hello.python} and the cluster (its controller) runs Python "
            f"{cluster.python}; functions cannot travel between the two, so clients, engines and "
            "controller must run the same minor version"
        )
    if hello.instance != cluster.instance:
        return (
            f"{who} wants to join cluster {hello.instance.hex()[:8]} and the controller "
            f"runs cluster {cluster.instance.hex()[:8]}; its connection file is an old one"
        )
    expected = Channel.CONTROL if hello.role == "engine" else channel
    if hello.peer != peer or ROLE_OF_CHANNEL[channel] != hello.role or channel is not expected:
        return f"{who} says Hello over a socket that is not named after it"
    return None


def warnings_for(hello: Hello, others: Iterable[Peer]) -> list[str]:
    """Return what a newcomer should know of the peers that it will exchange data with."""
    by_text: dict[tuple[str, str], list[Peer]] = {}
    for other in others:
        for name in misfits(hello.packages, other.packages):
            by_text.setdefault((name, other.packages[name]), []).append(other)
    return [
        _warning(f"this {hello.role}", name, hello.packages[name], peers, version)
        for (name, version), peers in by_text.items()
    ]


def news_for(client: Peer, engine: Peer) -> list[str]:
    """Return what a client should know of an engine that has joined; of each difference once."""
    news = []
    for name in misfits(client.packages, engine.packages):
        version = engine.packages[name]
        if (name, version) not in client.warned_of:
            client.warned_of.add((name, version))
            news.append(_warning("this client", name, client.packages[name], [engine], version))
    return news


def _warning(who: str, package: str, mine: str, others: list[Peer], theirs: str) -> str:
    names = [
        f"engine {other.engine_id}" if other.role == "engine" else f"a {other.role}"
        for other in others
    ]
    hosts = sorted({other.hostname for other in others})
    named = ", ".join(dict.fromkeys(names[:MAX_NAMED])) + (" …" if len(names) > MAX_NAMED else "")
    places = ", ".join(hosts[:MAX_NAMED]) + (" …" if len(hosts) > MAX_NAMED else "")
    have = "has" if len(names) == 1 else "have"
    return (
        f"{who} has {package} {mine}, and {named} on {places} {have} {package} {theirs}: what one "
        "sends the other may not be able to read; install the same version"
    )
