"""The hub: who joins, who leaves, and what clients ask; a pure state machine.

What lives here: `HubCore` with its one door, `handle`. What must not: sockets, clocks, threads.
Time is an argument (`now`, seconds of a clock that only grows).

An engine's end has many messengers (its Goodbye, its agent's report, a socket without a peer) and
one place, `_lose_engine`. Between the news and that, an engine is *leaving*: it gets no new
tasks, and its last results, which may still be on their way, are accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import NO_PEER, Channel, EngineId, PeerId

from ..scheduler import events as sev
from ..scheduler.endings import own_error
from . import events as ev
from .instructions import (
    AnswerQuestion,
    Exit,
    ForgetPeer,
    ForwardToClient,
    ForwardToEngine,
    HubInstruction,
    Send,
    SweepBlobs,
    TellScheduler,
    WakeAt,
)
from .joining import Cluster, news_for, objection, warnings_for
from .peers import ROLE_OF_CHANNEL, Peer, Registry, channels_of

LAST_WORDS_S = 0.020
"""How long results of an engine that is known to be gone may still arrive."""

AGENT_WAIT_S = 0.150
"""How long an unreachable engine's agent has to say how the engine ended."""

SWEEP_AFTER_S = 30.0
"""How long a dead peer's shared memory is kept for those who have yet to map it."""

MAX_START_BYTES = 64 << 20
"""Bytes of functions that joining engines are to call, all together."""

MAX_STRANGERS = 4096
"""Peers that were told to say Hello first, remembered so that each is told once."""


class HubCore:
    """Keeps the list of peers and answers them."""

    def __init__(self, cluster: Cluster) -> None:
        """Start with nobody registered.

        Args:
            cluster: what newcomers are checked against and told.
        """
        self.registry = Registry()
        self._cluster = cluster
        self._strangers: dict[tuple[PeerId, Channel], None] = {}
        self._given_up: dict[PeerId, str] = {}
        self._start_calls: dict[str, m.StartCall] = {}
        self._sweeps: list[tuple[float, PeerId]] = []

    def handle(self, event: ev.HubEvent, now: float) -> list[HubInstruction]:
        """Take in one event and return what is to be done."""
        if isinstance(event, ev.MessageEvent):
            return self._handle_message(event, now)
        if isinstance(event, ev.UnreachableEvent):
            return self._handle_unreachable(event, now)
        if isinstance(event, ev.TickEvent):
            return self._handle_tick(now)
        return self._handle_close(event)

    def role_of(self, peer: PeerId, channel: Channel) -> m.Role | None:
        """Return a peer's role if it has joined and has this channel."""
        entry = self.registry.peers.get(peer)
        if entry is None or ROLE_OF_CHANNEL[channel] != entry.role:
            return None
        return entry.role

    def refuse(self, peer: PeerId, channel: Channel, reason: str) -> list[HubInstruction]:
        """Return the refusal of a peer that has not joined; nothing if it was told before."""
        if peer in self._given_up:
            return self._send_away(peer, channel)
        if (peer, channel) in self._strangers:
            return []
        if len(self._strangers) >= MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[peer, channel] = None
        return [Send(peer, channel, m.Refused(reason))]

    def _send_away(self, peer: PeerId, channel: Channel) -> list[HubInstruction]:
        """Tell an engine that was taken for dead, and is not, that it has no place here."""
        if channel is not Channel.CONTROL:
            return []  # one word is enough
        return [Send(peer, channel, m.Closing(f"the engine was given up: {self._given_up[peer]}"))]

    # -- joining and leaving ------------------------------------------------------------------

    def _handle_message(self, event: ev.MessageEvent, now: float) -> list[HubInstruction]:
        handler = self._HANDLERS.get(type(event.message))
        if handler is None:
            return []
        return handler(self, event, event.message, now)

    def _on_hello(self, event: ev.MessageEvent, hello: m.Hello, now: float) -> list[HubInstruction]:
        complaint = objection(
            self._cluster, hello, event.peer, event.channel, event.key_role
        ) or self._clash(hello)
        if complaint is not None:
            return [Send(event.peer, event.channel, m.Refused(complaint))]
        self._strangers.pop((event.peer, event.channel), None)
        if event.peer in self._given_up:
            return self._send_away(event.peer, event.channel)
        known = self.registry.peers.get(event.peer)
        if known is not None:
            again = m.Welcome(
                self._cluster.instance,
                known.engine_id,
                [],
                self._cluster.host,
                self._cluster.blob_dir,
            )
            return [Send(event.peer, event.channel, again)]
        if hello.role != "engine":
            return self._welcome(hello)
        entry = self.registry.half_open(event.peer)
        entry.hello = hello
        return self._welcome(hello) if entry.is_attached else []

    def _clash(self, hello: m.Hello) -> str | None:
        known = self.registry.peers.get(PeerId(hello.peer))
        if known is None:
            return None
        same = (known.role, known.pid, known.host) == (hello.role, hello.pid, hello.host)
        if same and hello.role != "client":
            return None  # its connection broke for a moment
        return (
            f"a peer with the id {hello.peer.hex()[:8]}… has joined already: {known.role} with pid "
            f"{known.pid} on {known.hostname}; this is a {hello.role} with pid {hello.pid} "
            f"on {hello.hostname}"
        )

    def _on_attach(
        self, event: ev.MessageEvent, message: m.Attach, now: float
    ) -> list[HubInstruction]:
        if event.channel is not Channel.TASK or event.peer in self.registry.peers:
            return []
        if message.instance != self._cluster.instance or message.version != self._cluster.version:
            return []  # the Hello over CONTROL is told why
        entry = self.registry.half_open(event.peer)
        entry.is_attached = True
        return self._welcome(entry.hello) if entry.hello is not None else []

    def _welcome(self, hello: m.Hello) -> list[HubInstruction]:
        peer = self.registry.add(hello)
        welcome = m.Welcome(
            self._cluster.instance,
            engine_id=peer.engine_id,
            engines=self._engines() if peer.role == "client" else [],
            host=self._cluster.host,
            blob_dir=self._cluster.blob_dir,
            start_calls=list(self._start_calls.values()) if peer.role == "engine" else [],
            warnings=self._warnings(hello, peer),
        )
        out: list[HubInstruction] = [Send(peer.peer, channels_of(peer.role)[0], welcome)]
        if peer.role == "engine":
            out.append(TellScheduler(sev.EngineJoinedEvent(peer.engine_id, peer.peer)))
            out += [
                Send(
                    client.peer,
                    Channel.CLIENT,
                    m.EnginesChanged(joined=[peer.info()], warnings=news_for(client, peer)),
                )
                for client in self.registry.of_role("client")
            ]
        return out

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
            return self._leave(peer, message.reason or "it left the cluster", now, LAST_WORDS_S)
        return self._remove(peer, now)

    def _on_engine_exited(
        self, event: ev.MessageEvent, message: m.EngineExited, now: float
    ) -> list[HubInstruction]:
        engine = self.registry.peers.get(PeerId(message.peer))
        if engine is None or engine.agent != event.peer:
            return []
        engine.running = message.running
        return self._leave(engine, message.reason, now, LAST_WORDS_S)

    def _handle_unreachable(self, event: ev.UnreachableEvent, now: float) -> list[HubInstruction]:
        peer = self.registry.peers.get(event.peer)
        if peer is None:
            return []
        if peer.role != "engine":
            return self._remove(peer, now)
        if peer.leaving_at is not None:
            return []
        has_agent = peer.agent in self.registry.peers
        wait_s = AGENT_WAIT_S if has_agent else LAST_WORDS_S
        return self._leave(peer, "its connection broke without a word", now, wait_s)

    def _leave(self, engine: Peer, reason: str, now: float, wait_s: float) -> list[HubInstruction]:
        """Note that an engine goes; it is taken off after `wait_s` at the latest."""
        first = engine.leaving_at is None
        engine.reason = reason
        if engine.leaving_at is None or now + wait_s < engine.leaving_at:
            engine.leaving_at = now + wait_s
        out: list[HubInstruction] = [WakeAt(engine.leaving_at)]
        if first:
            out.append(TellScheduler(sev.EngineLeavingEvent(engine.engine_id)))
        return out

    def _remove(self, peer: Peer, now: float) -> list[HubInstruction]:
        """Take a client or an agent off the list."""
        self.registry.remove(peer.peer)
        self._sweeps.append((now + SWEEP_AFTER_S, peer.peer))
        out: list[HubInstruction] = [ForgetPeer(peer.peer), WakeAt(now + SWEEP_AFTER_S)]
        if peer.role == "client":
            out.append(TellScheduler(sev.ClientLeftEvent(peer.peer)))
        return out

    def _lose_engine(self, engine: Peer, now: float) -> list[HubInstruction]:
        self.registry.remove(engine.peer)
        if len(self._given_up) >= MAX_STRANGERS:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[engine.peer] = engine.reason
        self._sweeps.append((now + SWEEP_AFTER_S, engine.peer))
        lost = m.EngineLost(engine.engine_id, engine.reason)
        error = own_error(
            "EngineError",
            f"engine {engine.engine_id}: {engine.reason}",
            engine_id=engine.engine_id,
            uuid=engine.peer.hex(),
        )
        out: list[HubInstruction] = [
            ForgetPeer(engine.peer),
            WakeAt(now + SWEEP_AFTER_S),
            TellScheduler(sev.EngineLostEvent(engine.engine_id, engine.reason, engine.running)),
        ]
        for (client, request), was_stop in engine.requests.items():
            answer = None if was_stop else error
            out += self._reply_control(client, request, engine.engine_id, answer)
        return out + self._tell_clients(m.EnginesChanged(lost=[lost]))

    # -- time, end ----------------------------------------------------------------------------

    def _handle_tick(self, now: float) -> list[HubInstruction]:
        out: list[HubInstruction] = []
        leaving = [e for e in self.registry.engines.values() if e.leaving_at is not None]
        for engine in leaving:
            if engine.leaving_at is not None and engine.leaving_at <= now:
                out += self._lose_engine(engine, now)
        while self._sweeps and self._sweeps[0][0] <= now:
            out.append(SweepBlobs(self._sweeps.pop(0)[1]))
        return out

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
                out += self._reply_control(event.peer, message.request, target, error)
            elif isinstance(message.action, m.SendSignal) and engine.agent in self.registry.peers:
                signal = m.SignalEngines([engine.peer], message.action.signum)
                out.append(Send(engine.agent, Channel.AGENT, signal))
                out += self._reply_control(event.peer, message.request, target, None)
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
            return self._reply_control(client, request, engine.engine_id, error)
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
        message.client = event.peer
        return [ForwardToEngine(engine.peer, message)]

    def _on_request(
        self, event: ev.MessageEvent, message: m.Request, now: float
    ) -> list[HubInstruction]:
        question = message.question
        if isinstance(question, m.OnEngineStart):
            return self._on_engine_start(event.peer, message.request, question.call)
        if not isinstance(question, m.ShutdownCluster):
            return [AnswerQuestion(event.peer, message.request, question)]
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
        return [Send(client, Channel.CLIENT, m.Reply(request, content, error))]

    def _reply_control(
        self, client: PeerId, request: int, engine: int, error: m.ErrorInfo | None
    ) -> list[HubInstruction]:
        if client not in self.registry.peers:
            return []
        reply = m.ControlReply(client, request, engine, error)
        return [Send(client, Channel.CLIENT, reply)]

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

    def _tell_clients(self, message: m.EnginesChanged) -> list[HubInstruction]:
        return [
            Send(client.peer, Channel.CLIENT, message) for client in self.registry.of_role("client")
        ]

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
