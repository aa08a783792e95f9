"""The hub: who joins, who leaves, and what clients ask; a pure state machine.

What lives here: `HubCore` with its one door, `handle`. What must not: sockets, clocks, threads.
Time is an argument (`now`, seconds of a clock that only grows).

How peers go, or are away for a while, is `departing`'s matter; what a controller does that was
started in place of one that died is `gathering`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import NO_PEER, Channel, EngineId, PeerId

from ..scheduler import events as sev
from ..scheduler.endings import own_error
from . import events as ev
from .departing import AWAY_S, LAST_WORDS_S, Departures
from .gathering import GATHER_S, Gathering
from .instructions import (
    AnswerQuestion,
    Exit,
    ForwardToClient,
    ForwardToEngine,
    HubInstruction,
    OpenLines,
    Remember,
    ResumeLine,
    Send,
    TellScheduler,
    WakeAt,
)
from .joining import Cluster, news_for, objection, warnings_for
from .journal import CallKept, Recollection, entry_of, peer_of
from .peers import ROLE_OF_CHANNEL, Peer, Registry, channels_of, lines_of
from .telling import reply_control

MAX_START_BYTES = 64 << 20
"""Bytes of functions that joining engines are to call, all together."""

MAX_STRANGERS = 4096
"""Peers that were told to say Hello first, remembered so that each is told once."""


class HubCore:
    """Keeps the list of peers and answers them.

    Attributes:
        resubmitting: clients of an earlier run of the controller that have yet to say that they
            have submitted all that had not ended.
    """

    def __init__(self, cluster: Cluster, *, away_s: float = AWAY_S) -> None:
        """Start with nobody registered.

        Args:
            cluster: what newcomers are checked against and told.
            away_s: how long a peer may be away before it is given up.
        """
        self.registry = Registry()
        self._cluster = cluster
        self._departures = Departures(self.registry, away_s)
        self._strangers: dict[tuple[PeerId, Channel], None] = {}
        self._start_calls: dict[str, m.StartCall] = {}
        self._gathering: Gathering | None = None
        self.resubmitting: set[PeerId] = set()

    def handle(self, event: ev.HubEvent, now: float) -> list[HubInstruction]:
        """Take in one event and return what is to be done."""
        out = self._handle(event, now)
        if self._gathering is not None:
            self._gathering.note_gone(self.registry)
            if self._gathering.is_over(now):
                out += [*self._end_gathering(self._gathering), WakeAt(now)]
        return out

    def _handle(self, event: ev.HubEvent, now: float) -> list[HubInstruction]:
        if isinstance(event, ev.MessageEvent):
            return self._handle_message(event, now)
        if isinstance(event, ev.UnreachableEvent):
            return self._departures.note_broken(event.peer, event.channel, now)
        if isinstance(event, ev.ProcessGoneEvent):
            return self._departures.note_process(event, now)
        if isinstance(event, ev.OverflowEvent):
            peer = self.registry.peers.get(event.peer)
            return self._departures.remove(peer, now, event.reason) if peer else []
        if isinstance(event, ev.TickEvent):
            return self._departures.tick(now)
        if isinstance(event, ev.RestartEvent):
            return self._handle_restart(event.past, now)
        if isinstance(event, ev.RecordsReadEvent):
            if self._gathering is not None:
                self._gathering.wants_records = False
            return []
        if isinstance(event, ev.ResubmittedEvent):
            return self._handle_resubmitted(event.peer)
        return self._handle_close(event)

    def role_of(self, peer: PeerId, channel: Channel) -> m.Role | None:
        """Return a peer's role if it has joined and has this channel."""
        entry = self.registry.peers.get(peer)
        if entry is None or entry.is_missing or ROLE_OF_CHANNEL[channel] != entry.role:
            return None
        return entry.role

    def refuse(self, peer: PeerId, channel: Channel, reason: str) -> list[HubInstruction]:
        """Return the refusal of a peer that has not joined; nothing if it was told before."""
        if (peer, channel) in self._strangers or peer in self.registry.peers:
            return []  # one of the latter says Hello when it has noticed that it should
        if len(self._strangers) >= MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[peer, channel] = None
        if peer in self._departures.given_up:
            return self._departures.send_away(peer, channel)
        return [Send(peer, channel, m.Refused(reason))]

    # -- joining and leaving ------------------------------------------------------------------

    def _handle_message(self, event: ev.MessageEvent, now: float) -> list[HubInstruction]:
        handler = self._HANDLERS.get(type(event.message))
        if handler is None:
            return []
        return handler(self, event, event.message, now)

    def _on_hello(self, event: ev.MessageEvent, hello: m.Hello, now: float) -> list[HubInstruction]:
        complaint = objection(self._cluster, hello, event.peer, event.channel)
        complaint = complaint or self._clash(hello)
        if complaint is not None:
            return [Send(event.peer, event.channel, m.Refused(complaint))]
        self._strangers.pop((event.peer, event.channel), None)
        if event.peer in self._departures.given_up:
            return self._departures.send_away(event.peer, event.channel)
        known = self.registry.peers.get(event.peer)
        if known is not None:
            return self._go_on(known, event.channel, hello)
        if hello.incarnation and hello.incarnation == self._cluster.incarnation:
            gone = f"this {hello.role} has left the cluster, or was away for too long"
            return [Send(event.peer, event.channel, m.Closing(gone))]
        if hello.role != "engine":
            return self._welcome(hello)
        entry = self.registry.half_open(event.peer)
        entry.hello = hello
        # One that was here before an earlier controller died may be in user code; its main thread
        # attaches TASK when it comes back.
        return self._welcome(hello) if entry.is_attached or hello.incarnation else []

    def _clash(self, hello: m.Hello) -> str | None:
        known = self.registry.peers.get(PeerId(hello.peer))
        if known is None:
            return None
        if (known.role, known.pid, known.host) == (hello.role, hello.pid, hello.host):
            return None  # its connection broke
        return (
            f"a peer with the id {hello.peer.hex()[:8]}… has joined already: {known.role} with pid "
            f"{known.pid} on {known.hostname}; this is a {hello.role} with pid {hello.pid} "
            f"on {hello.hostname}"
        )

    def _go_on(self, known: Peer, channel: Channel, hello: m.Hello) -> list[HubInstruction]:
        """Go on with a peer whose connection broke."""
        if known.leaving_at is not None:
            text = f"the engine was given up: {known.reason}"
            return [Send(known.peer, channel, m.Closing(text))]
        is_same = hello.incarnation == self._cluster.incarnation
        welcome = self._welcome_of(known, hello)
        resume = ResumeLine(known.peer, channel, hello.received if is_same else 0, welcome, is_same)
        out: list[HubInstruction] = [resume, *self._departures.note_back(known, channel)]
        known.is_missing = False
        for attached, resume_too in known.attaching.items():
            out += [resume_too, *self._departures.note_back(known, attached)]
        known.attaching = {}
        if is_same or not hello.incarnation:
            return out
        return self._meet_again(known, hello, welcome, out)

    def _meet_again(
        self, peer: Peer, hello: m.Hello, welcome: m.Welcome, out: list[HubInstruction]
    ) -> list[HubInstruction]:
        """Deal with a peer that an earlier run of the controller has welcomed.

        Args:
            peer, hello: who, and what it says.
            welcome: what it will be told.
            out: what is to be done with it.
        """
        if peer.role == "client":
            welcome.engines = self._engines()
            self.resubmitting.add(peer.peer)
            if self._gathering is not None:
                self._gathering.expect(peer.peer)
        if peer.role != "engine":
            return out
        holds = TellScheduler(sev.EngineHoldsEvent(peer.engine_id, hello.held, hello.next_ordinal))
        if self._gathering is None:
            return [holds, *out]
        self._gathering.welcomes[peer.peer] = out
        self._gathering.note(peer.peer)
        return [holds]

    def _on_attach(
        self, event: ev.MessageEvent, message: m.Attach, now: float
    ) -> list[HubInstruction]:
        peer, channel = event.peer, event.channel
        if message.instance != self._cluster.instance or message.version != self._cluster.version:
            return []  # the Hello over CONTROL is told why
        if channel not in (Channel.TASK, Channel.OUTPUT) or peer in self._departures.given_up:
            return []
        known = self.registry.peers.get(peer)
        attached = m.Attached(self._cluster.incarnation, 0, message.greeting)
        if known is not None:
            if not message.incarnation and channel is Channel.OUTPUT:
                return []  # the first time; it may come after the Welcome
            is_same = message.incarnation == self._cluster.incarnation
            received = message.received if is_same else 0
            resume = ResumeLine(peer, channel, received, attached, is_same)
            if known.is_missing:
                # It may go on when what it holds is known.
                known.attaching[channel] = resume
                return []
            out: list[HubInstruction] = [resume, *self._departures.note_back(known, channel)]
            if self._gathering is None or peer not in self._gathering.welcomes:
                return out
            self._gathering.welcomes[peer] += out
            return []
        out = []
        if message.incarnation:
            again = ResumeLine(peer, channel, 0, attached, False)
            self.registry.half_open(peer).attaching[channel] = again
        if channel is Channel.TASK:
            entry = self.registry.half_open(peer)
            entry.is_attached = True
            if entry.hello is not None:
                out += self._welcome(entry.hello)
        return out

    def _welcome_of(self, peer: Peer, hello: m.Hello) -> m.Welcome:
        """Return what a peer is told that has been here before."""
        return m.Welcome(
            self._cluster.instance,
            engine_id=peer.engine_id,
            host=self._cluster.host,
            blob_dir=self._cluster.blob_dir,
            incarnation=self._cluster.incarnation,
            greeting=hello.greeting,
        )

    def _welcome(self, hello: m.Hello) -> list[HubInstruction]:
        half_open = self.registry.half_open(PeerId(hello.peer))
        is_deaf = not half_open.is_attached
        peer = self.registry.add(hello)
        welcome = self._welcome_of(peer, hello)
        welcome.warnings = self._warnings(hello, peer)
        if peer.role == "client":
            welcome.engines = self._engines()
        elif peer.role == "engine" and not hello.incarnation:
            welcome.start_calls = list(self._start_calls.values())
        out: list[HubInstruction] = [
            Remember(entry_of(peer)),
            OpenLines(peer.peer, lines_of(peer.role)),
        ]
        send = Send(peer.peer, channels_of(peer.role)[0], welcome)
        if not hello.incarnation:
            out.append(send)
        if peer.role == "engine":
            joined = sev.EngineJoinedEvent(peer.engine_id, peer.peer, peer.resources)
            out.append(TellScheduler(joined))
            if is_deaf:
                peer.is_deaf = True
                out.append(TellScheduler(sev.EngineAwayEvent(peer.engine_id)))
            out += [
                Send(
                    client.peer,
                    Channel.CLIENT,
                    m.EnginesChanged(joined=[peer.info()], warnings=news_for(client, peer)),
                )
                for client in self.registry.of_role("client")
            ]
        if not hello.incarnation:
            return out
        return [
            *out,
            *self._meet_again(peer, hello, welcome, [send, *half_open.attaching.values()]),
        ]

    def _warnings(self, hello: m.Hello, peer: Peer) -> list[str]:
        if peer.role == "client":
            others = list(self.registry.engines.values())
            for engine in others:
                news_for(peer, engine)  # the Welcome has them all
            return warnings_for(hello, others)
        if peer.role == "engine":
            return warnings_for(hello, self.registry.of_role("client"))
        return []

    def _on_goodbye(
        self, event: ev.MessageEvent, message: m.Goodbye, now: float
    ) -> list[HubInstruction]:
        peer = self.registry.peers.get(event.peer)
        if peer is None:
            return []
        if peer.role == "engine":
            reason = message.reason or "it left the cluster"
            return self._departures.leave(peer, reason, now, LAST_WORDS_S)
        return self._departures.remove(peer, now)

    def _on_engine_exited(
        self, event: ev.MessageEvent, message: m.EngineExited, now: float
    ) -> list[HubInstruction]:
        engine = self.registry.peers.get(PeerId(message.peer))
        if engine is None or engine.agent != event.peer:
            return []
        engine.running = message.running
        return self._departures.leave(engine, message.reason, now, LAST_WORDS_S)

    # -- in place of a controller that died -----------------------------------------------------

    def _handle_restart(self, past: Recollection, now: float) -> list[HubInstruction]:
        """Go on where another left off: all that were there are away."""
        self.registry.note_given(past.engine_ids)
        self._start_calls.update(past.calls)
        self._departures.given_up.update({p: reason for p, reason in past.left.items() if reason})
        out: list[HubInstruction] = [TellScheduler(sev.GatherEvent())]
        for entry in past.peers.values():
            peer = peer_of(entry)
            self.registry.restore(peer)
            out.append(OpenLines(peer.peer, lines_of(peer.role), broken=True))
            if peer.role == "engine":
                peer.is_deaf = True
                joined = sev.EngineJoinedEvent(peer.engine_id, peer.peer, peer.resources)
                out.append(TellScheduler(joined))
            out += self._departures.note_away(peer, now, GATHER_S)
        expected = [peer for peer in self.registry.peers.values() if peer.role != "agent"]
        self._departures.is_gathering = True
        self._gathering = Gathering(expected, self._cluster.host, now)
        return [*out, WakeAt(self._gathering.deadline)]

    def _handle_resubmitted(self, client: PeerId) -> list[HubInstruction]:
        self.resubmitting.discard(client)
        if self._gathering is not None:
            self._gathering.note(client)
        return [TellScheduler(sev.ResubmittedEvent(client))]

    def _end_gathering(self, gathering: Gathering) -> list[HubInstruction]:
        """Have the scheduler put all together, then answer whoever was kept waiting."""
        self._gathering = None
        self._departures.is_gathering = False
        clients = self.registry.of_role("client")
        missing = [c.peer for c in clients if c.is_missing or c.peer in self.resubmitting]
        out: list[HubInstruction] = [TellScheduler(sev.GatheredEvent(missing))]
        for peer, instructions in gathering.welcomes.items():
            if peer in self.registry.peers:
                out += instructions
        return [*out, *gathering.questions]

    # -- end ----------------------------------------------------------------------------------

    def _handle_close(self, event: ev.CloseEvent) -> list[HubInstruction]:
        closing = m.Closing(event.reason)
        out: list[HubInstruction] = [
            Send(peer.peer, channels_of(peer.role)[0], closing)
            for peer in self.registry.peers.values()
        ]
        out.append(Exit(event.reason))
        return out

    # -- requests -----------------------------------------------------------------------------

    def _on_control(
        self, event: ev.MessageEvent, message: m.Control, now: float
    ) -> list[HubInstruction]:
        out: list[HubInstruction] = []
        for target in dict.fromkeys(message.targets):
            engine = self.registry.engines.get(EngineId(target))
            if engine is None:
                error = own_error("EngineError", f"there is no engine {target}", engine_id=target)
                out += reply_control(self.registry, event.peer, message.request, target, error)
            elif isinstance(message.action, m.SendSignal) and engine.agent in self.registry.peers:
                signal = m.SignalEngines([engine.peer], message.action.signum)
                out.append(Send(engine.agent, Channel.AGENT, signal))
                out += reply_control(self.registry, event.peer, message.request, target, None)
            elif isinstance(message.action, m.DumpStacks) and message.action.native:
                out += self._ask_agent(event.peer, message.request, engine, message.action)
            else:
                is_stop = isinstance(message.action, m.StopEngine)
                engine.requests[event.peer, message.request] = is_stop
                command = m.EngineControl(event.peer, message.request, message.action)
                out.append(Send(engine.peer, Channel.CONTROL, command))
        return out

    def _ask_agent(
        self, client: PeerId, request: int, engine: Peer, action: m.DumpStacks
    ) -> list[HubInstruction]:
        if engine.agent not in self.registry.peers:
            text = f"engine {engine.engine_id} has no agent and does not answer itself"
            error = own_error("EngineError", text, engine_id=engine.engine_id)
            return reply_control(self.registry, client, request, engine.engine_id, error)
        engine.requests[client, request] = False
        command = m.EngineControl(client, request, action, engine.peer, engine.engine_id)
        return [Send(engine.agent, Channel.AGENT, command)]

    def _on_control_reply(
        self, event: ev.MessageEvent, message: m.ControlReply, now: float
    ) -> list[HubInstruction]:
        engine = self.registry.engines.get(EngineId(message.engine))
        client = PeerId(message.client)
        if engine is None or event.peer not in (engine.peer, engine.agent):
            return []
        if (client, message.request) not in engine.requests:
            return []
        del engine.requests[client, message.request]
        return [ForwardToClient(client)] if client in self.registry.peers else []

    def _on_comm(
        self, event: ev.MessageEvent, message: m.CommMessage, now: float
    ) -> list[HubInstruction]:
        engine = self.registry.engines.get(EngineId(message.engine))
        if engine is None or engine.leaving_at is not None:
            # The client is told that the engine is lost, and closes its comms then.
            return []
        known = m.CommMessage(message.engine, event.peer, message.kind, message.content)
        return [ForwardToEngine(engine.peer, known)]

    def _on_request(
        self, event: ev.MessageEvent, message: m.Request, now: float
    ) -> list[HubInstruction]:
        question = message.question
        if isinstance(question, m.OnEngineStart):
            return self._on_engine_start(event.peer, message.request, question.call)
        if not isinstance(question, m.ShutdownCluster):
            answer = AnswerQuestion(event.peer, message.request, question)
            if self._gathering is None:
                return [answer]
            self._gathering.questions.append(answer)
            return []
        done: list[HubInstruction] = [
            Send(event.peer, Channel.CLIENT, m.Reply(message.request, b"\xc0"))
        ]
        if question.hub:
            return done + self._handle_close(ev.CloseEvent("a client shut the cluster down"))
        targets = self.registry.engines if question.targets is None else question.targets
        out: list[HubInstruction] = []
        for target in targets:
            engine = self.registry.engines.get(EngineId(target))
            if engine is None:
                error = own_error("EngineError", f"there is no engine {target}", engine_id=target)
                return [Send(event.peer, Channel.CLIENT, m.Reply(message.request, error=error))]
            out.append(
                Send(engine.peer, Channel.CONTROL, m.EngineControl(NO_PEER, 0, m.StopEngine()))
            )
        return out + done

    def _on_engine_start(
        self, client: PeerId, request: int, call: m.StartCall
    ) -> list[HubInstruction]:
        self._start_calls.pop(call.name, None)
        n_bytes = sum(len(frame) for each in self._start_calls.values() for frame in each.frames)
        n_bytes += sum(map(len, call.frames))
        error = None
        if n_bytes > MAX_START_BYTES:
            text = (
                f"the functions of on_engine_start take {n_bytes} bytes; {MAX_START_BYTES} is all"
            )
            error = own_error("KernelError", text)
        elif call.frames:
            self._start_calls[call.name] = call
        content = b"" if error else b"\xc0"
        done: list[HubInstruction] = [] if error else [Remember(CallKept(call))]
        return [*done, Send(client, Channel.CLIENT, m.Reply(request, content, error))]

    def kill_running(
        self, engine_id: EngineId, ranges: list[m.PlacedRange]
    ) -> list[HubInstruction]:
        """Return what has an engine killed if it runs one of these tasks."""
        engine = self.registry.engines.get(engine_id)
        if engine is None:
            return []
        message = m.KillRunning(engine.peer, ranges)
        if engine.agent in self.registry.peers:
            return [Send(engine.agent, Channel.AGENT, message)]
        return [Send(engine.peer, Channel.CONTROL, message)]

    # -- everybody ----------------------------------------------------------------------------

    def _engines(self) -> list[m.EngineInfo]:
        return [engine.info() for _, engine in sorted(self.registry.engines.items())]

    _HANDLERS: ClassVar[
        dict[type[m.Message], Callable[[Any, ev.MessageEvent, Any, float], list[HubInstruction]]]
    ] = {
        m.Hello: _on_hello,
        m.Attach: _on_attach,
        m.Goodbye: _on_goodbye,
        m.EngineExited: _on_engine_exited,
        m.Control: _on_control,
        m.ControlReply: _on_control_reply,
        m.CommMessage: _on_comm,
        m.Request: _on_request,
    }
