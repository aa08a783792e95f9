"""The hub's behaviour, event by event."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_controller.hub import core
from ipyfleet_controller.hub import events as ev
from ipyfleet_controller.hub import instructions as ins
from ipyfleet_controller.hub.core import HubCore
from ipyfleet_controller.hub.departing import AGENT_WAIT_S, LAST_WORDS_S, SWEEP_AFTER_S
from ipyfleet_controller.hub.joining import Cluster
from ipyfleet_controller.scheduler import events as sev
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import Channel, PeerId

INSTANCE = b"i" * 16
CLIENT, AGENT, ENGINE = (PeerId(name * 16) for name in (b"c", b"a", b"e"))


class Hub:
    """A hub with a clock; `says` feeds a message and returns what is to be done."""

    def __init__(self) -> None:
        self.core = HubCore(Cluster(INSTANCE, "host", "/dev/shm/x", "0.1.0"), away_s=0.0)
        self.now = 10.0

    def says(self, peer: PeerId, channel: Channel, message: Any, **more: Any) -> list[Any]:
        return self.core.handle(ev.MessageEvent(peer, channel, message, **more), self.now)

    def hello(self, peer: PeerId, channel: Channel, role: Any, **more: Any) -> list[Any]:
        hello = m.Hello(
            m.PROTOCOL_VERSION, role, peer, INSTANCE, "host", "here", 1, "3.11", "0.1.0", **more
        )
        return self.says(peer, channel, hello)

    def tick(self, after_s: float) -> list[Any]:
        self.now += after_s
        return self.core.handle(ev.TickEvent(), self.now)

    def unreachable(self, peer: PeerId, channel: Channel) -> list[Any]:
        return self.core.handle(ev.UnreachableEvent(peer, channel), self.now)


def _lost(instructions: list[Any]) -> list[sev.EngineLostEvent]:
    told = [i.event for i in instructions if isinstance(i, ins.TellScheduler)]
    return [event for event in told if isinstance(event, sev.EngineLostEvent)]


def _sent(instructions: list[Any], kind: type[Any]) -> list[Any]:
    sent = [i for i in instructions if isinstance(i, ins.Send)]
    return [send.message for send in sent if isinstance(send.message, kind)]


@pytest.fixture
def hub() -> Hub:
    """A hub with a client, an agent and one of its engines."""
    hub = Hub()
    hub.hello(CLIENT, Channel.CLIENT, "client")
    hub.hello(AGENT, Channel.AGENT, "agent")
    hub.says(ENGINE, Channel.TASK, m.Attach(m.PROTOCOL_VERSION, INSTANCE))
    hub.hello(ENGINE, Channel.CONTROL, "engine", agent=AGENT)
    return hub


def test_an_engine_joins_when_hello_and_task_channel_are_there() -> None:
    """In either order; clients are told then."""
    for attach_first in (True, False):
        hub = Hub()
        hub.hello(CLIENT, Channel.CLIENT, "client")
        steps = [
            lambda hub=hub: hub.says(ENGINE, Channel.TASK, m.Attach(m.PROTOCOL_VERSION, INSTANCE)),
            lambda hub=hub: hub.hello(ENGINE, Channel.CONTROL, "engine"),
        ]
        first, second = steps if attach_first else steps[::-1]
        assert first() == []
        out = second()
        assert _sent(out, m.Welcome)[0].engine_id == 0
        assert _sent(out, m.EnginesChanged)[0].joined[0].peer == ENGINE


def test_the_agent_has_time_to_say_why_an_engine_died(hub: Hub) -> None:
    """After the connection broke the agent's word is waited for, but not for long."""
    out = hub.unreachable(ENGINE, Channel.CONTROL)
    assert [i.event for i in out if isinstance(i, ins.TellScheduler)] == [sev.EngineLeavingEvent(0)]
    assert not _lost(hub.tick(AGENT_WAIT_S / 2))
    hub.says(AGENT, Channel.AGENT, m.EngineExited(ENGINE, -9, "killed by SIGKILL", 17))
    [lost] = _lost(hub.tick(LAST_WORDS_S * 1.01))
    assert (lost.reason, lost.running) == ("killed by SIGKILL", 17)


def test_without_an_agents_word_the_engine_is_lost_all_the_same(hub: Hub) -> None:
    """Silence ends after `AGENT_WAIT_S`; later reports change nothing."""
    hub.unreachable(ENGINE, Channel.TASK)
    [lost] = _lost(hub.tick(AGENT_WAIT_S * 1.01))
    assert "broke" in lost.reason
    assert hub.says(AGENT, Channel.AGENT, m.EngineExited(ENGINE, -9, "late")) == []


def test_only_its_own_agent_is_believed(hub: Hub) -> None:
    """Another agent cannot declare an engine dead."""
    other = PeerId(b"o" * 16)
    hub.hello(other, Channel.AGENT, "agent")
    assert hub.says(other, Channel.AGENT, m.EngineExited(ENGINE, 0, "lies")) == []


def test_requests_to_an_engine_that_dies_are_answered(hub: Hub) -> None:
    """A ping fails with the reason; a request to stop has what it wanted."""
    hub.says(CLIENT, Channel.CLIENT, m.Control(1, [0], m.PingEngine()))
    hub.says(CLIENT, Channel.CLIENT, m.Control(2, [0], m.StopEngine()))
    hub.says(ENGINE, Channel.CONTROL, m.Goodbye("told to stop"))
    replies = {
        reply.request: reply for reply in _sent(hub.tick(LAST_WORDS_S * 1.01), m.ControlReply)
    }
    assert "told to stop" in replies[1].error.evalue
    assert replies[2].error is None


def test_signals_go_through_the_agent(hub: Hub) -> None:
    """An engine that has an agent is signalled by it; the controller answers."""
    out = hub.says(CLIENT, Channel.CLIENT, m.Control(1, [0], m.SendSignal(2)))
    assert _sent(out, m.SignalEngines) == [m.SignalEngines([ENGINE], 2)]
    assert [reply.error for reply in _sent(out, m.ControlReply)] == [None]


def test_what_a_dead_peer_left_is_swept_later(hub: Hub) -> None:
    """Shared memory of a peer that is gone is removed after a while."""
    hub.says(CLIENT, Channel.CLIENT, m.Goodbye())
    assert hub.tick(SWEEP_AFTER_S / 2) == []
    assert hub.tick(SWEEP_AFTER_S) == [ins.SweepBlobs(CLIENT)]


def test_an_answer_that_nobody_asked_for_is_dropped(hub: Hub) -> None:
    """A ControlReply is forwarded once, to who asked."""
    hub.says(CLIENT, Channel.CLIENT, m.Control(1, [0], m.PingEngine()))
    reply = m.ControlReply(CLIENT, 1, 0)
    assert hub.says(ENGINE, Channel.CONTROL, reply) == [ins.ForwardToClient(CLIENT)]
    assert hub.says(ENGINE, Channel.CONTROL, reply) == []


def test_stopping_engines_names_the_ones_that_are_not_there(hub: Hub) -> None:
    """A shutdown of an unknown engine is an error and stops nobody."""
    out = hub.says(CLIENT, Channel.CLIENT, m.Request(1, m.ShutdownCluster([0, 9])))
    assert "no engine 9" in _sent(out, m.Reply)[0].error.evalue
    assert not _sent(out, m.EngineControl)
    out = hub.says(CLIENT, Channel.CLIENT, m.Request(2, m.ShutdownCluster()))
    assert [command.action for command in _sent(out, m.EngineControl)] == [m.StopEngine()]


def test_comm_messages_are_forwarded_with_who_sent_them(hub: Hub) -> None:
    """To the engine that is meant; whatever client the message names, it is the sender."""
    message = m.CommMessage(0, AGENT, "comm_msg", b"content")
    (out,) = hub.says(CLIENT, Channel.CLIENT, message)
    assert isinstance(out, ins.ForwardToEngine) and out.engine == ENGINE
    assert out.message == m.CommMessage(0, CLIENT, "comm_msg", b"content")


def test_comm_messages_for_engines_that_are_gone_are_dropped(hub: Hub) -> None:
    """Clients hear of the end of engines anyway."""
    message = m.CommMessage(7, b"", "comm_msg", b"content")
    assert hub.says(CLIENT, Channel.CLIENT, message) == []
    hub.says(ENGINE, Channel.CONTROL, m.Goodbye("bye"))
    message = m.CommMessage(0, b"", "comm_msg", b"content")
    assert hub.says(CLIENT, Channel.CLIENT, message) == []


def _on_start(hub: Hub, name: str, *frames: bytes) -> m.Reply:
    question = m.OnEngineStart(m.StartCall(name, list(frames)))
    [reply] = _sent(hub.says(CLIENT, Channel.CLIENT, m.Request(1, question)), m.Reply)
    return reply


def _newcomer(hub: Hub, number: int) -> m.Welcome:
    peer = PeerId(bytes([number]) * 16)
    hub.says(peer, Channel.TASK, m.Attach(m.PROTOCOL_VERSION, INSTANCE))
    [welcome] = _sent(hub.hello(peer, Channel.CONTROL, "engine"), m.Welcome)
    return welcome


def test_engines_are_told_what_to_call_when_they_join(hub: Hub) -> None:
    """In the order in which it was registered; a name stands for the last function of that name."""
    for name, frame in (("f", b"old"), ("g", b"1"), ("f", b"new")):
        assert _on_start(hub, name, frame).error is None
    calls = _newcomer(hub, 1).start_calls
    assert [(call.name, call.frames) for call in calls] == [("g", [b"1"]), ("f", [b"new"])]
    assert _on_start(hub, "g").error is None
    assert [call.name for call in _newcomer(hub, 2).start_calls] == ["f"]


def test_what_engines_are_to_call_is_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says so, and what was there stays."""
    monkeypatch.setattr(core, "MAX_START_BYTES", 10)
    assert _on_start(hub, "f", b"12345").error is None
    error = _on_start(hub, "g", b"123456").error
    assert error is not None and "11 bytes" in error.evalue
    assert [call.name for call in _newcomer(hub, 1).start_calls] == ["f"]


def test_native_stacks_are_the_agents_to_tell(hub: Hub) -> None:
    """It is asked about its engine, and its answer goes to the client."""
    ask = m.Control(5, [0], m.DumpStacks(native=True))
    [sent] = hub.says(CLIENT, Channel.CLIENT, ask)
    assert (sent.peer, sent.channel, sent.message.peer) == (AGENT, Channel.AGENT, ENGINE)
    reply = m.ControlReply(CLIENT, 5, 0, content=b"stacks")
    assert hub.says(AGENT, Channel.AGENT, reply) == [ins.ForwardToClient(CLIENT)]


def test_native_stacks_of_an_engine_without_an_agent_cannot_be_told(hub: Hub) -> None:
    """The client is told why."""
    engine_id = _newcomer(hub, 1).engine_id
    out = hub.says(CLIENT, Channel.CLIENT, m.Control(5, [engine_id], m.DumpStacks(native=True)))
    [reply] = _sent(out, m.ControlReply)
    assert reply.error is not None and "has no agent" in reply.error.evalue
