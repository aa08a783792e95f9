"""The scheduler: which task runs where, as a pure state machine.

What lives here: `SchedulerCore` with its one door, `handle`. What must not: sockets, clocks,
threads, randomness. Time is an argument (`now`, seconds of a clock that only grows).

Theory of operation
-------------------
Groups come in with `SubmitEvent` and are cut into runs. A run of balanced tasks waits in `waiting`
until `PlaceEvent` hands (parts of) it to engines; a run of direct tasks waits at its engine; a
group that depends on other tasks waits in `dependencies` first. `ResultsEvent` ends tasks, or makes
them wait again when they have attempts left or were turned down. `EngineLostEvent` is the one place
where an engine's death is dealt with. Nothing here costs time in proportion to the number of
waiting tasks.

Each event is handled by the method in `_HANDLERS`, which returns instructions; no handler calls
another. The work is done in rooms: `admitting`, `placing`, `settling`, `departing`, `stealing`,
`cancelling`, `expiring`, `dependencies`, `resuming`. What tasks that ended mean for others, and
when to look at the clock again, is asked after the event, and only if a handler has said that there
is news.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ipyfleet_protocol.ids import PeerId

from . import events as ev
from .admitting import Admission
from .cancelling import Canceller
from .departing import PATIENCE_S, Departures
from .dependencies import Dependencies
from .expiring import Expiry
from .group import State
from .instructions import Instruction
from .placing import Placer
from .resuming import Resumer
from .schemes import Scheme, load_scheme
from .settling import Settler
from .state import SchedulerState
from .stealing import Stealer

ORPHANED_S = PATIENCE_S
"""How long balanced tasks wait for a new engine after the last one was lost."""


class SchedulerCore:
    """Places tasks at engines and sees that each ends exactly once."""

    def __init__(self, *, hwm: int = 0, scheme: Scheme | None = None) -> None:
        """Start with no engines and no tasks.

        Args:
            hwm: tasks that an engine may hold at most, 0 for "about 10 ms of work".
            scheme: ranks engines; default `leastload`.
        """
        self.state = SchedulerState(hwm)
        self._dependencies = Dependencies(self.state)
        self._admission = Admission(self.state, self._dependencies)
        self._departures = Departures(self.state)
        self._settler = Settler(self.state)
        self._placer = Placer(self.state, scheme or load_scheme("leastload"))
        self._stealer = Stealer(self.state)
        self._canceller = Canceller(self.state, self._dependencies)
        self._resumer = Resumer(self.state, self._admission, self._canceller, self._dependencies)
        self._expiry = Expiry(self.state, self._dependencies)

    def handle(self, event: ev.SchedulerEvent, now: float) -> list[Instruction]:
        """Take in one event and return what is to be done.

        Raises:
            IllegalTransition: a bug; the message tells the story of the tasks concerned.
        """
        out = self._HANDLERS[type(event)](self, event, now)
        if self.state.has_news:
            out = [*out, *self._dependencies.resolve(now), *self.state.timeouts.wake()]
            self.state.has_news = False
        return out

    @property
    def wants_place(self) -> bool:
        """Whether a `PlaceEvent` could do anything now. Asking saves the second of the two that a
        lone task causes.
        """
        state, waiting = self.state, self.state.waiting
        return bool(
            state.direct
            or (waiting.n_tasks > waiting.n_dormant and state.open)
            or state.stealable
            or self._placer.sent
        )

    def tidy(self) -> None:
        """Do what nobody waits for."""
        self.state.ended.tidy()

    def story(self, client: PeerId, seq: int) -> list[str]:
        """Return what is remembered of one task's way, oldest first, then where it is now."""
        steps = self.state.story.tell(client, seq)
        index = self.state.groups.get(client)
        for group in index.overlapping(seq, seq + 1) if index else ():
            steps.append(f"now {State(group.states[seq - group.first]).name}")
        return steps

    # -- handlers -----------------------------------------------------------------------------

    def _handle_engine_joined(self, event: ev.EngineJoinedEvent, now: float) -> list[Instruction]:
        return self._departures.joined(event, now)

    def _handle_engine_leaving(self, event: ev.EngineLeavingEvent, now: float) -> list[Instruction]:
        return self._departures.leaving(event, now)

    def _handle_engine_away(self, event: ev.EngineAwayEvent, now: float) -> list[Instruction]:
        self._resumer.note_away(event.engine_id)
        return []

    def _handle_engine_back(self, event: ev.EngineBackEvent, now: float) -> list[Instruction]:
        self._resumer.note_back(event.engine_id, now)
        return []

    def _handle_engine_holds(self, event: ev.EngineHoldsEvent, now: float) -> list[Instruction]:
        return self._resumer.holds(event, now)

    def _handle_gather(self, event: ev.GatherEvent, now: float) -> list[Instruction]:
        return self._resumer.begin(now)

    def _handle_gathered(self, event: ev.GatheredEvent, now: float) -> list[Instruction]:
        return self._resumer.gathered(event.missing, now)

    def _handle_detached(self, event: ev.DetachedEvent, now: float) -> list[Instruction]:
        return self._resumer.detached(event, now)

    def _handle_resubmitted(self, event: ev.ResubmittedEvent, now: float) -> list[Instruction]:
        return self._resumer.complete(event.client, now)

    def _handle_engine_lost(self, event: ev.EngineLostEvent, now: float) -> list[Instruction]:
        out = self._resumer.note_lost(event.engine_id, now)
        return [*out, *self._departures.lost(event, now)]

    def _handle_client_left(self, event: ev.ClientLeftEvent, now: float) -> list[Instruction]:
        self.state.functions.drop_client(event.client)
        return self._resumer.note_client_left(event.client, now)

    def _handle_submit(self, event: ev.SubmitEvent, now: float) -> list[Instruction]:
        if self._resumer.is_idle and len(event.groups) == 1 and not event.groups[0].ended:
            admitted = self._admission.submit(event, now, self._placer)
            return [*self._placer.take_sent(), *admitted]
        return self._resumer.take(event, now)

    def _handle_cancel(self, event: ev.CancelEvent, now: float) -> list[Instruction]:
        return self._resumer.take(event, now)

    def _handle_results(self, event: ev.ResultsEvent, now: float) -> list[Instruction]:
        return self._settler.results(event, now)

    def _handle_recalled(self, event: ev.RecalledEvent, now: float) -> list[Instruction]:
        return self._settler.recalled(event, now)

    def _handle_ended_found(self, event: ev.EndedFoundEvent, now: float) -> list[Instruction]:
        self._dependencies.take_answer(event.number, event.found, now)
        return []

    def _handle_place(self, event: ev.PlaceEvent, now: float) -> list[Instruction]:
        if self._resumer.is_gathering:
            return []
        return [*self._placer.place(now), *self._stealer.recall(now)]

    def _handle_tick(self, event: ev.TickEvent, now: float) -> list[Instruction]:
        return [
            *self._canceller.insist(now),
            *self._departures.tick(now),
            *self._expiry.end_late(now),
        ]

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any, float], list[Instruction]]]] = {
        ev.EngineJoinedEvent: _handle_engine_joined,
        ev.EngineLeavingEvent: _handle_engine_leaving,
        ev.EngineAwayEvent: _handle_engine_away,
        ev.EngineBackEvent: _handle_engine_back,
        ev.EngineHoldsEvent: _handle_engine_holds,
        ev.GatherEvent: _handle_gather,
        ev.GatheredEvent: _handle_gathered,
        ev.DetachedEvent: _handle_detached,
        ev.ResubmittedEvent: _handle_resubmitted,
        ev.EngineLostEvent: _handle_engine_lost,
        ev.ClientLeftEvent: _handle_client_left,
        ev.SubmitEvent: _handle_submit,
        ev.CancelEvent: _handle_cancel,
        ev.ResultsEvent: _handle_results,
        ev.RecalledEvent: _handle_recalled,
        ev.EndedFoundEvent: _handle_ended_found,
        ev.PlaceEvent: _handle_place,
        ev.TickEvent: _handle_tick,
    }


__all__ = ["ORPHANED_S", "SchedulerCore"]
