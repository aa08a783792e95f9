"""The table of messages: who sends each, who handles it, what it means.

The one place that says so. Tests walk it: every message is here exactly once, every handler named
here exists, and the router refuses what a peer of the wrong role sends (`SENDERS`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from . import messages as m

Party: TypeAlias = Literal["client", "controller", "engine", "agent"]


class Entry(NamedTuple):
    """One message of the protocol.

    Attributes:
        message: the struct.
        senders: who sends it.
        receivers: who receives it.
        handlers: ``module:function`` of each receiver's handler.
        meaning: one sentence.
    """

    message: type[m.Message]
    senders: tuple[Party, ...]
    receivers: tuple[Party, ...]
    handlers: tuple[str, ...]
    meaning: str


_HUB = "ipyfleet_controller.hub.core:HubCore.handle"
_SCHEDULER = "ipyfleet_controller.scheduler.core:SchedulerCore.handle"
_ENGINE = "ipyfleet_engine.link:EngineLink.handle"
_RUNNER = "ipyfleet_engine.runner:TaskRunner.handle"
_AGENT = "ipyfleet_engine.agent:Agent.handle"
_CLIENT = "ipyfleet_client.link:ClientLink.handle"

TABLE: tuple[Entry, ...] = (
    Entry(m.Hello, ("client", "engine", "agent"), ("controller",), (_HUB,), "a peer wants to join"),
    Entry(
        m.Attach,
        ("engine",),
        ("controller",),
        (_HUB,),
        "one more channel of an engine is connected",
    ),
    Entry(
        m.Attached,
        ("controller",),
        ("engine",),
        (_ENGINE,),
        "a channel of an engine goes on after a break",
    ),
    Entry(
        m.Ack,
        ("client", "engine", "agent", "controller"),
        ("controller", "client", "engine", "agent"),
        ("ipyfleet_controller.router:Router.note_ack", _CLIENT, _ENGINE, _AGENT),
        "so many messages have arrived over this channel",
    ),
    Entry(
        m.Welcome,
        ("controller",),
        ("client", "engine", "agent"),
        (_CLIENT, _ENGINE, _AGENT),
        "the peer has joined",
    ),
    Entry(
        m.Refused,
        ("controller",),
        ("client", "engine", "agent"),
        (_CLIENT, _ENGINE, _AGENT),
        "the peer may not join, or its message was refused",
    ),
    Entry(
        m.Goodbye,
        ("client", "engine", "agent"),
        ("controller",),
        (_HUB,),
        "a peer leaves on purpose",
    ),
    Entry(
        m.Probe,
        ("controller",),
        ("client", "engine", "agent"),
        (_CLIENT, _ENGINE, _AGENT),
        "nothing; sent to see whether the peer is still connected",
    ),
    Entry(
        m.Closing,
        ("controller",),
        ("client", "engine", "agent"),
        (_CLIENT, _ENGINE, _AGENT),
        "the controller goes away for good",
    ),
    Entry(m.Submit, ("client",), ("controller",), (_SCHEDULER,), "groups of tasks to run"),
    Entry(m.RunTasks, ("controller",), ("engine",), (_RUNNER,), "tasks placed at this engine"),
    Entry(
        m.Results,
        ("engine", "controller"),
        ("controller", "client"),
        (_SCHEDULER, _CLIENT),
        "how tasks ended",
    ),
    Entry(
        m.ResultsTaken,
        ("controller",),
        ("engine",),
        (_ENGINE,),
        "results that need not be kept any more",
    ),
    Entry(
        m.Recall,
        ("controller",),
        ("engine",),
        (_ENGINE,),
        "tasks that have not started are wanted back",
    ),
    Entry(m.Recalled, ("engine",), ("controller",), (_SCHEDULER,), "tasks given back, not run"),
    Entry(
        m.Cancel,
        ("client",),
        ("controller",),
        (_SCHEDULER,),
        "tasks that shall start no more, or end",
    ),
    Entry(
        m.DropTasks, ("controller",), ("engine",), (_ENGINE,), "queued tasks that shall not start"
    ),
    Entry(
        m.KillRunning,
        ("controller",),
        ("agent", "engine"),
        (_AGENT, _ENGINE),
        "the engine dies if it still runs one of these tasks",
    ),
    Entry(
        m.Output,
        ("engine",),
        ("controller", "client"),
        ("ipyfleet_controller.router:Router.forward_output", _CLIENT),
        "output of tasks",
    ),
    Entry(
        m.CommMessage,
        ("client", "controller"),
        ("controller", "engine"),
        (_HUB, _ENGINE),
        "a message of a widget's front end to its engine",
    ),
    Entry(
        m.EnginesChanged, ("controller",), ("client",), (_CLIENT,), "engines joined or were lost"
    ),
    Entry(
        m.EngineExited,
        ("agent",),
        ("controller",),
        (_HUB,),
        "an engine's process has ended, and how",
    ),
    Entry(m.SignalEngines, ("controller",), ("agent",), (_AGENT,), "send a signal to engines"),
    Entry(m.Control, ("client",), ("controller",), (_HUB,), "ask something of busy engines"),
    Entry(
        m.EngineControl,
        ("controller",),
        ("engine", "agent"),
        (_ENGINE, _AGENT),
        "one engine's part of it",
    ),
    Entry(
        m.ControlReply,
        ("engine", "agent", "controller"),
        ("controller", "client"),
        (_HUB, _CLIENT),
        "one engine's answer",
    ),
    Entry(m.Request, ("client",), ("controller",), (_HUB,), "ask the hub"),
    Entry(m.Reply, ("controller",), ("client",), (_CLIENT,), "the hub's answer"),
)

SENDERS: dict[type[m.Message], tuple[Party, ...]] = {e.message: e.senders for e in TABLE}
"""For each message, the parties from which a receiver accepts it."""
