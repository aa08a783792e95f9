"""Who is away, who is gone, and who comes back."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_controller.hub import events as ev
from ipyfleet_controller.hub import instructions as ins
from ipyfleet_controller.hub.core import HubCore
from ipyfleet_controller.hub.departing import AGENT_WAIT_S, LAST_WORDS_S
from ipyfleet_controller.hub.joining import Cluster
from ipyfleet_controller.scheduler import events as sev
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import Channel, PeerId

INSTANCE = b"i" * 16
NOW, BEFORE = b"this run", b"last run"
CLIENT, AGENT, ENGINE = (PeerId(name * 16) for name in (b"c", b"a", b"e"))
AWAY_S = 15.0


class Hub:
    """A hub and its clock; all instructions are kept."""

    def __init__(self) -> None:
        cluster = Cluster(INSTANCE, "host", "/x", "0.1.0", incarnation=NOW)
        self.core = HubCore(cluster, away_s=AWAY_S)
        self.now = 10.0

    def feed(self, event: ev.HubEvent) -> list[Any]:
        return self.core.handle(event, self.now)

    def says(self, peer: PeerId, channel: Channel, message: Any) -> list[Any]:
        return self.feed(ev.MessageEvent(peer, channel, message))

    def hello(self, peer: PeerId, channel: Channel, role: Any, **more: Any) -> list[Any]:
        more = {"pid": 1, **more}
        hello = m.Hello(
            m.PROTOCOL_VERSION, role, peer, INSTANCE, "host", "here", more.pop("pid"), "3.11",
            "0.1.0", **more,
        )  # fmt: skip
        return self.says(peer, channel, hello)

    def attach(self, channel: Channel, **more: Any) -> list[Any]:
        return self.says(ENGINE, channel, m.Attach(m.PROTOCOL_VERSION, INSTANCE, **more))

    def breaks(self, peer: PeerId, channel: Channel) -> list[Any]:
        return self.feed(ev.UnreachableEvent(peer, channel))

    def tick(self, after_s: float) -> list[Any]:
        self.now += after_s
        return self.feed(ev.TickEvent())


def told(out: list[Any]) -> list[sev.SchedulerEvent]:
    """What the scheduler is told."""
    return [i.event for i in out if isinstance(i, ins.TellScheduler)]


def kinds(out: list[Any]) -> set[type]:
    """The kinds of what the scheduler is told."""
    return {type(event) for event in told(out)}


def resumed(out: list[Any]) -> ins.ResumeLine:
    """The one line that goes on."""
    [line] = [i for i in out if isinstance(i, ins.ResumeLine)]
    return line


def closing(out: list[Any]) -> str:
    """Why a peer is sent away."""
    [reason] = [
        i.message.reason for i in out if isinstance(i, ins.Send) and type(i.message) is m.Closing
    ]
    return reason


@pytest.fixture
def hub() -> Hub:
    """A hub with a client, an agent and one of its engines."""
    hub = Hub()
    hub.hello(CLIENT, Channel.CLIENT, "client")
    hub.hello(AGENT, Channel.AGENT, "agent")
    hub.attach(Channel.TASK)
    hub.hello(ENGINE, Channel.CONTROL, "engine", agent=AGENT)
    assert 0 in hub.core.registry.engines
    return hub


def test_an_engine_that_comes_back_in_time_goes_on(hub: Hub) -> None:
    """An engine whose connection broke gets no tasks until it is back, and is not lost."""
    out = hub.breaks(ENGINE, Channel.CONTROL)
    assert kinds(out) == {sev.EngineAwayEvent}
    assert ins.CheckProcess(ENGINE) in out
    assert not hub.breaks(ENGINE, Channel.CONTROL)
    assert not told(hub.tick(AWAY_S * 0.9))
    out = hub.hello(ENGINE, Channel.CONTROL, "engine", incarnation=NOW, received=7, greeting=5)
    assert (resumed(out).received, resumed(out).is_known) == (7, True)
    assert (resumed(out).answer.engine_id, resumed(out).answer.greeting) == (0, 5)
    assert kinds(out) == {sev.EngineBackEvent}
    assert not told(hub.tick(AWAY_S))


def test_an_engine_without_its_task_channel_is_deaf_as_long_as_it_takes(hub: Hub) -> None:
    """An engine in user code connects TASK late; until then it gets no tasks and is not lost."""
    hub.breaks(ENGINE, Channel.CONTROL)
    assert kinds(hub.breaks(ENGINE, Channel.TASK)) == {sev.EngineAwayEvent}
    assert not told(hub.hello(ENGINE, Channel.CONTROL, "engine", incarnation=NOW))
    assert not told(hub.tick(100 * AWAY_S))
    out = hub.attach(Channel.TASK, incarnation=NOW, received=3)
    assert (resumed(out).channel, resumed(out).received) == (Channel.TASK, 3)
    assert kinds(out) == {sev.EngineBackEvent}
    assert isinstance(resumed(hub.attach(Channel.OUTPUT, incarnation=NOW)).answer, m.Attached)


def test_who_is_away_for_too_long_is_gone_and_told_so(hub: Hub) -> None:
    """After the limit an engine is lost and a client has left; both read Closing if they return."""
    hub.breaks(ENGINE, Channel.CONTROL)
    hub.breaks(CLIENT, Channel.CLIENT)
    out = hub.tick(AWAY_S)
    assert kinds(out) == {sev.EngineLostEvent, sev.ClientLeftEvent}
    assert ins.ForgetPeer(CLIENT) in out
    again = hub.hello(ENGINE, Channel.CONTROL, "engine", incarnation=NOW)
    assert "away for 15 s" in closing(again)
    assert "away for 15 s" in closing(hub.hello(CLIENT, Channel.CLIENT, "client", incarnation=NOW))


def test_who_is_known_to_be_dead_is_gone_at_once(hub: Hub) -> None:
    """A dead process ends the wait; an engine's agent has a moment to say how it ended."""
    assert not hub.feed(ev.ProcessGoneEvent(CLIENT))
    hub.breaks(CLIENT, Channel.CLIENT)
    assert kinds(hub.feed(ev.ProcessGoneEvent(CLIENT))) == {sev.ClientLeftEvent}
    hub.breaks(ENGINE, Channel.CONTROL)
    assert kinds(hub.feed(ev.ProcessGoneEvent(ENGINE))) == {sev.EngineLeavingEvent}
    assert not told(hub.tick(AGENT_WAIT_S * 0.9))
    hub.says(AGENT, Channel.AGENT, m.EngineExited(ENGINE, -9, "killed by SIGKILL"))
    [event] = told(hub.tick(LAST_WORDS_S))
    assert isinstance(event, sev.EngineLostEvent)
    assert event.reason == "killed by SIGKILL"


def test_processes_are_looked_for_as_long_as_a_peer_is_away(hub: Hub) -> None:
    """A process that dies later, or a moment after its sockets, is noticed; then nobody looks."""
    hub.breaks(CLIENT, Channel.CLIENT)
    looks = 0
    for _ in range(100):
        looks += hub.tick(0.1).count(ins.CheckProcess(CLIENT))
    assert 10 <= looks <= 30
    hub.hello(CLIENT, Channel.CLIENT, "client", incarnation=NOW)
    hub.tick(1.0)
    assert not [i for i in hub.tick(1.0) if isinstance(i, ins.CheckProcess)]


def test_a_word_from_the_agent_or_a_goodbye_is_an_end(hub: Hub) -> None:
    """Who says Goodbye is not waited for, and who left is not taken back."""
    hub.says(CLIENT, Channel.CLIENT, m.Goodbye())
    assert CLIENT not in hub.core.registry.peers
    assert "has left" in closing(hub.hello(CLIENT, Channel.CLIENT, "client", incarnation=NOW))
    hub.says(ENGINE, Channel.CONTROL, m.Goodbye("it was told to stop"))
    assert "told to stop" in closing(hub.hello(ENGINE, Channel.CONTROL, "engine", incarnation=NOW))


def test_a_hello_of_another_process_is_refused(hub: Hub) -> None:
    """The id of a peer that is here, or away, is of no use to another process."""
    hub.breaks(CLIENT, Channel.CLIENT)
    [send] = hub.hello(CLIENT, Channel.CLIENT, "client", incarnation=NOW, pid=2)
    assert "has joined already" in send.message.reason


def test_who_never_read_its_welcome_may_say_hello_again(hub: Hub) -> None:
    """A Hello without incarnation goes on from nothing, if that is true."""
    line = resumed(hub.hello(CLIENT, Channel.CLIENT, "client"))
    assert (line.received, line.is_known, line.answer.incarnation) == (0, False, NOW)
