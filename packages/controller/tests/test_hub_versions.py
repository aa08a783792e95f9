"""Peers of other versions: who may join, and who is warned of whom."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipyfleet_controller.hub import events as ev
from ipyfleet_controller.hub.core import HubCore
from ipyfleet_controller.hub.instructions import HubInstruction, Send
from ipyfleet_controller.hub.joining import Cluster
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import Channel, PeerId

INSTANCE = b"i" * 16
CLIENT, OTHER, ENGINE, SECOND = (PeerId(name * 16) for name in (b"c", b"o", b"e", b"f"))


def _messages(out: list[HubInstruction], peer: PeerId, kind: type[Any]) -> list[Any]:
    sent = [item for item in out if isinstance(item, Send) and item.peer == peer]
    return [item.message for item in sent if isinstance(item.message, kind)]


class Hub:
    """A hub of release 0.3.1 under Python 3.12."""

    def __init__(self) -> None:
        self.core = HubCore(Cluster(INSTANCE, "host", "/x", "0.3.1", python="3.12"))

    def join(self, role: Any, peer: PeerId, **changes: Any) -> list[HubInstruction]:
        """Let a peer say Hello (an engine: attach, too)."""
        channel = {"client": Channel.CLIENT, "engine": Channel.CONTROL, "agent": Channel.AGENT}
        plain = m.Hello(m.PROTOCOL_VERSION, role, peer, INSTANCE, "h", "farm7", 7, "3.12", "0.3.1")
        hello = msgspec.structs.replace(plain, **changes)
        if role == "engine":
            attach = m.Attach(m.PROTOCOL_VERSION, INSTANCE)
            self.core.handle(ev.MessageEvent(peer, Channel.TASK, attach), 0.0)
        return self.core.handle(ev.MessageEvent(peer, channel[role], hello), 0.0)


@pytest.mark.parametrize(
    ("changes", "both"),
    [
        ({"python": "3.13"}, ("Python 3.13", "Python 3.12")),
        ({"release": "0.4.0"}, ("0.4.0", "0.3.1")),
        ({"version": 99}, ("version 99", f"version {m.PROTOCOL_VERSION}")),
    ],
)
@pytest.mark.parametrize("role", ["client", "engine"])
def test_a_peer_that_does_not_fit_is_refused_once(
    role: Any, changes: dict[str, Any], both: tuple[str, str]
) -> None:
    """Python, release or protocol differ: one sentence names the peer's and the controller's."""
    hub = Hub()
    peer = CLIENT if role == "client" else ENGINE
    out = hub.join(role, peer, **changes)
    [refused] = _messages(out, peer, m.Refused)
    assert all(part in refused.reason for part in both)
    assert "pid 7 on farm7" in refused.reason
    assert peer not in hub.core.registry.peers


def test_the_last_number_of_a_release_may_differ() -> None:
    """A client of 0.3.7 joins a cluster of 0.3.1; an agent runs whatever Python it likes."""
    hub = Hub()
    assert _messages(hub.join("client", CLIENT, release="0.3.7"), CLIENT, m.Welcome)
    assert _messages(hub.join("agent", OTHER, python="3.14"), OTHER, m.Welcome)


def test_a_client_is_warned_of_engines_with_other_packages() -> None:
    """Its Welcome names package, both versions and the engine; the engine's log gets the same."""
    hub = Hub()
    hub.join("engine", ENGINE, packages={"numpy": "1.26.4", "cloudpickle": "3.1.0"})
    out = hub.join("client", CLIENT, packages={"numpy": "2.1.0", "cloudpickle": "3.1.0"})
    [welcome] = _messages(out, CLIENT, m.Welcome)
    [text] = welcome.warnings
    assert "this client has numpy 2.1.0, and engine 0 on farm7 has numpy 1.26.4" in text
    out = hub.join("engine", SECOND, packages={"numpy": "1.26.4"})
    [welcome] = _messages(out, SECOND, m.Welcome)
    [text] = welcome.warnings
    assert "this engine has numpy 1.26.4, and a client on farm7 has numpy 2.1.0" in text


def test_a_client_is_warned_of_each_difference_once() -> None:
    """Of engines that come later it hears with their coming, of a second alike nothing."""
    hub = Hub()
    hub.join("client", CLIENT, packages={"cloudpickle": "3.0.0"})
    hub.join("client", OTHER)
    out = hub.join("engine", ENGINE, packages={"cloudpickle": "3.1.0"})
    [changed] = _messages(out, CLIENT, m.EnginesChanged)
    assert "cloudpickle 3.0.0" in changed.warnings[0]
    assert _messages(out, OTHER, m.EnginesChanged)[0].warnings == []
    out = hub.join("engine", SECOND, packages={"cloudpickle": "3.1.0"})
    assert _messages(out, CLIENT, m.EnginesChanged)[0].warnings == []
