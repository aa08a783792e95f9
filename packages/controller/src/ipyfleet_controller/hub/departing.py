"""Who goes, who is only away, and what becomes of both.

What lives here: `Departures`. What must not: who comes; that is `core`'s.

An engine's end has many messengers (its Goodbye, its agent's report, a connection that broke) and
one place, `_lose_engine`. Between the news and that, an engine is *leaving*: it gets no new
tasks, and its last results, which may still be on their way, are accepted.

A peer whose connection broke is *away*, which is no end: what is sent to it is kept, and it may
come back and go on where it was. What is known decides how long it has for that:

    said Goodbye, or its agent says that it exited   gone now
    its process on this host is no more              gone now (an engine's agent has a moment to
                                                     say how it ended)
    its process on this host is there, or it is on   gone when the limit is over
    another host

Only its main channel counts for that. An engine whose TASK channel broke is *deaf*: it gets no
tasks until its main thread, which may be in user code for hours, has connected it again.
"""

from __future__ import annotations

import heapq

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import Channel, PeerId

from ..scheduler import events as sev
from ..scheduler.endings import own_error
from . import events as ev
from .instructions import (
    CheckProcess,
    ForgetPeer,
    HubInstruction,
    Remember,
    Send,
    SweepBlobs,
    TellScheduler,
    WakeAt,
)
from .journal import PeerLeft
from .peers import Peer, Registry, channels_of
from .telling import reply_control, tell_clients

LAST_WORDS_S = 0.020
"""How long results of an engine that is known to be gone may still arrive."""

AGENT_WAIT_S = 0.150
"""How long an unreachable engine's agent has to say how the engine ended."""

MISSING_AGENT_WAIT_S = 1.0
"""The same where the agent has yet to come back, after the controller was started anew."""

AWAY_S = 15.0
"""How long a peer may be away before it is given up."""

CHECK_AFTER_S = (0.010, 0.030, 0.060, 0.150, 0.500)
"""When the process of a peer that is away is looked for, after it was at once; a dying one closes
its sockets a moment before it is gone. The last is repeated."""

SWEEP_AFTER_S = 30.0
"""How long a dead peer's shared memory is kept for those who have yet to map it."""

MAX_GIVEN_UP = 4096
"""Peers that were given up, remembered so that they are told when they come back."""

BROKE = "its connection broke without a word"


class Departures:
    """Takes peers off the list, sooner or later.

    Attributes:
        given_up: why each peer was, that did not go by itself.
        away_s: how long a peer may be away.
        is_gathering: engines that are missing are taken off later, when their tasks are known,
            which end for the reason for which the engine did.
    """

    def __init__(self, registry: Registry, away_s: float) -> None:
        """Take the list of peers."""
        self.given_up: dict[PeerId, str] = {}
        self.away_s = away_s
        self.is_gathering = False
        self._registry = registry
        self._sweeps: list[tuple[float, PeerId]] = []
        self._checks: list[tuple[float, PeerId, int]] = []

    # -- news ---------------------------------------------------------------------------------

    def note_broken(self, name: PeerId, channel: Channel, now: float) -> list[HubInstruction]:
        """Take in that a peer's channel has no connection."""
        peer = self._registry.peers.get(name)
        if peer is None or peer.leaving_at is not None:
            return []
        if channel is Channel.OUTPUT:
            return []  # the engine connects it again, or the others break too
        if not self.away_s:
            return self._give_up(peer, BROKE, now)
        if channel is Channel.TASK:
            return self._note_deaf(peer)
        return self.note_away(peer, now) if peer.away_until is None else []

    def _note_deaf(self, engine: Peer) -> list[HubInstruction]:
        if engine.is_deaf:
            return []
        engine.is_deaf = True
        return [TellScheduler(sev.EngineAwayEvent(engine.engine_id))]

    def note_away(self, peer: Peer, now: float, least_s: float = 0.0) -> list[HubInstruction]:
        """Note that a peer is away from now on; for `least_s` at least it is waited for."""
        peer.away_until = now + max(self.away_s, least_s)
        out: list[HubInstruction] = [
            WakeAt(peer.away_until),
            *self._check_again(peer.peer, -1, now),
            CheckProcess(peer.peer),
        ]
        if peer.role == "engine":
            out.append(TellScheduler(sev.EngineAwayEvent(peer.engine_id)))
        return out

    def note_back(self, peer: Peer, channel: Channel) -> list[HubInstruction]:
        """Take in that a peer has connected a channel again."""
        if channel is Channel.TASK:
            peer.is_deaf = False
        elif channel is channels_of(peer.role)[0]:
            peer.away_until = None
        if peer.role != "engine" or peer.is_deaf or peer.away_until is not None:
            return []
        return [TellScheduler(sev.EngineBackEvent(peer.engine_id))]

    def note_process(self, event: ev.ProcessGoneEvent, now: float) -> list[HubInstruction]:
        """Take in that a peer's process is no more."""
        peer = self._registry.peers.get(event.peer)
        if peer is None or peer.away_until is None or peer.leaving_at is not None:
            return []
        return self._give_up(peer, BROKE, now)

    def _give_up(self, peer: Peer, reason: str, now: float) -> list[HubInstruction]:
        if peer.role != "engine":
            return self.remove(peer, now)
        agent = self._registry.peers.get(peer.agent) if peer.agent is not None else None
        wait_s = AGENT_WAIT_S if agent is not None else LAST_WORDS_S
        if agent is not None and agent.is_missing:
            wait_s = MISSING_AGENT_WAIT_S
        return self.leave(peer, reason, now, wait_s)

    # -- the end ------------------------------------------------------------------------------

    def leave(self, engine: Peer, reason: str, now: float, wait_s: float) -> list[HubInstruction]:
        """Note that an engine goes; it is taken off after `wait_s` at the latest."""
        first = engine.leaving_at is None
        engine.reason = reason
        if engine.leaving_at is None or now + wait_s < engine.leaving_at:
            engine.leaving_at = now + wait_s
        out: list[HubInstruction] = [WakeAt(engine.leaving_at)]
        if first and not engine.is_missing:
            out.append(TellScheduler(sev.EngineLeavingEvent(engine.engine_id)))
        return out

    def remove(self, peer: Peer, now: float, given_up: str = "") -> list[HubInstruction]:
        """Take a client or an agent off the list."""
        self._registry.remove(peer.peer)
        if given_up:
            self._note_given_up(peer.peer, given_up)
        self._sweeps.append((now + SWEEP_AFTER_S, peer.peer))
        out: list[HubInstruction] = [
            ForgetPeer(peer.peer),
            Remember(PeerLeft(peer.peer, given_up)),
            WakeAt(now + SWEEP_AFTER_S),
        ]
        if peer.role == "client":
            out.append(TellScheduler(sev.ClientLeftEvent(peer.peer)))
        return out

    def _lose_engine(self, engine: Peer, now: float) -> list[HubInstruction]:
        self._registry.remove(engine.peer)
        self._note_given_up(engine.peer, engine.reason)
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
            Remember(PeerLeft(engine.peer, engine.reason)),
            WakeAt(now + SWEEP_AFTER_S),
            # Before the tasks' ends: who reads of one then finds the engine gone.
            *tell_clients(self._registry, m.EnginesChanged(lost=[lost])),
            TellScheduler(sev.EngineLostEvent(engine.engine_id, engine.reason, engine.running)),
        ]
        for (client, request), was_stop in engine.requests.items():
            answer = None if was_stop else error
            out += reply_control(self._registry, client, request, engine.engine_id, answer)
        return out

    def _note_given_up(self, peer: PeerId, reason: str) -> None:
        if len(self.given_up) >= MAX_GIVEN_UP:
            del self.given_up[next(iter(self.given_up))]
        self.given_up[peer] = reason

    def send_away(self, peer: PeerId, channel: Channel) -> list[HubInstruction]:
        """Tell a peer that was taken for dead, and is not, that it has no place here."""
        if channel in (Channel.TASK, Channel.OUTPUT):
            return []  # one word is enough
        what = "engine" if channel is Channel.CONTROL else channel.name.lower()
        reason = f"the {what} was given up: {self.given_up[peer]}"
        return [Send(peer, channel, m.Closing(reason))]

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> list[HubInstruction]:
        """Do what is due."""
        out: list[HubInstruction] = []
        for engine in [e for e in self._registry.engines.values() if e.leaving_at is not None]:
            if self.is_gathering and engine.is_missing:
                continue
            if engine.leaving_at is not None and engine.leaving_at <= now:
                out += self._lose_engine(engine, now)
        for peer in [p for p in self._registry.peers.values() if p.away_until is not None]:
            if peer.leaving_at is None and peer.away_until is not None and peer.away_until <= now:
                reason = f"it was away for {self.away_s:g} s"
                if peer.role == "engine":
                    peer.reason = reason
                    out += self._lose_engine(peer, now)
                else:
                    out += self.remove(peer, now, reason)
        while self._checks and self._checks[0][0] <= now:
            _, name, step = heapq.heappop(self._checks)
            away = self._registry.peers.get(name)
            if away is not None and away.away_until is not None and away.leaving_at is None:
                out += [CheckProcess(name), *self._check_again(name, step, now)]
        while self._sweeps and self._sweeps[0][0] <= now:
            out.append(SweepBlobs(self._sweeps.pop(0)[1]))
        return out

    def _check_again(self, name: PeerId, step: int, now: float) -> list[HubInstruction]:
        following = min(step + 1, len(CHECK_AFTER_S) - 1)
        at = now + CHECK_AFTER_S[following]
        heapq.heappush(self._checks, (at, name, following))
        return [WakeAt(at)]


__all__ = ["AGENT_WAIT_S", "AWAY_S", "LAST_WORDS_S", "SWEEP_AFTER_S", "Departures"]
