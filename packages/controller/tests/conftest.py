"""What the tests of the scheduler share: a scheduler with engines that answer on demand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.core import SchedulerCore
from ipyfleet_controller.scheduler.instructions import (
    DeliverResults,
    Instruction,
    SendDrop,
    SendRecall,
    SendTasks,
)
from ipyfleet_controller.scheduler.validate import validate, validate_placed
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames, decode_part, encode_part, split
from ipyfleet_protocol.columns import PayloadWriter, Payloads, float64_column
from ipyfleet_protocol.ids import EngineId, PeerId

CLIENT = PeerId(b"client-" + b"0" * 9)
OTHER = PeerId(b"client-" + b"1" * 9)


def engine_peer(engine_id: int) -> PeerId:
    """Return the peer id that the tests give an engine."""
    return PeerId(b"engine-%09d" % engine_id)


def make_group(
    first: int, count: int, *, digest: bytes = b"f" * 16, body: bool = True, **options: Any
) -> tuple[m.Group, SliceFrames]:
    """Return a group whose payloads are its sequence numbers as text, and its frames."""
    writer = PayloadWriter()
    shared = options.get("shared", False)
    writer.extend([b"%d" % (first + i) for i in range(1 if shared else count)])
    columns, frames = writer.finish()
    function = None
    if options.get("method") != "execute":
        function = m.Function(digest, "f", True, "", int(body))
    group = m.Group(first, count, m.Options(**options), function, columns)
    return group, SliceFrames([b"body"] if function and body else [], frames)


class Bench:
    """A scheduler, its clock, and what it has sent: engines hold slices, clients hold results.

    Attributes:
        held: per engine, the tasks sent and not answered: ``(client, seq, attempt, ordinal)``.
        ended: per client, status and payload of each task that was delivered; twice is an error.
        messages: number of `SendTasks` so far.
    """

    CLIENT, OTHER = CLIENT, OTHER

    def __init__(self, **options: Any) -> None:
        self.core = SchedulerCore(**options)
        self.now = 100.0
        self.held: dict[int, list[tuple[PeerId, int, int, int]]] = {}
        self.ended: dict[tuple[PeerId, int], tuple[int, bytes]] = {}
        self.recalls: dict[int, tuple[int, int]] = {}
        self.drops: list[SendDrop] = []
        self.sizes: dict[int, list[int]] = {}
        self.wakes: list[float] = []
        self.places = True

    def feed(self, event: ev.SchedulerEvent) -> list[Instruction]:
        """Handle an event, check all invariants, carry out what is asked, and place."""
        out = self._feed(event)
        if self.places and not isinstance(event, ev.PlaceEvent):
            out += self.feed(ev.PlaceEvent())
        return out

    def _feed(self, event: ev.SchedulerEvent) -> list[Instruction]:
        out = self.core.handle(event, self.now)
        validate(self.core)
        if isinstance(event, ev.PlaceEvent):
            validate_placed(self.core)
        for instruction in out:
            self._perform(instruction)
        return out

    def _perform(self, what: Instruction) -> None:
        if isinstance(what, SendTasks):
            engine_id = int(what.peer[7:])
            split(m.RunTasks(what.slices), what.frames)
            for piece in what.slices:
                self.sizes.setdefault(engine_id, []).append(piece.count)
                for i in range(piece.count):
                    self.held[engine_id].append(
                        (PeerId(piece.client), piece.first + i, piece.attempt, piece.ordinal + i)
                    )
            ordinals = [task[3] for task in self.held[engine_id]]
            assert ordinals == sorted(set(ordinals)), "ordinals do not grow"
        elif isinstance(what, DeliverResults):
            parts = split(what.message, what.frames)
            for piece, part in zip(what.message.slices, parts, strict=True):
                payloads = Payloads(piece.columns, part.payload)
                for i in range(piece.count):
                    key = (PeerId(what.message.client), piece.first + i)
                    assert key not in self.ended, f"{key} ended twice"
                    self.ended[key] = (piece.status[i], bytes(payloads.pickle(i)))
        elif isinstance(what, SendRecall):
            self.recalls[int(what.peer[7:])] = (what.first, what.last)
        elif isinstance(what, SendDrop):
            self.drops.append(what)
        elif hasattr(what, "at"):
            self.wakes.append(what.at)

    # -- what may happen ----------------------------------------------------------------------

    def join(self, *engine_ids: int) -> None:
        """Let engines join."""
        for engine_id in engine_ids:
            self.held[engine_id] = []
            self.feed(ev.EngineJoinedEvent(EngineId(engine_id), engine_peer(engine_id)))

    def lose(self, engine_id: int, reason: str = "killed by SIGKILL", running: int = -1) -> None:
        """Let an engine die."""
        del self.held[engine_id]
        self.recalls.pop(engine_id, None)
        self.feed(ev.EngineLostEvent(EngineId(engine_id), reason, running))

    def submit(self, first: int, count: int, client: PeerId = CLIENT, **options: Any) -> None:
        """Let a client submit one group."""
        group, frames = make_group(first, count, **options)
        self.feed(ev.SubmitEvent(client, [group], [frames]))

    def results(
        self,
        engine_id: int,
        tasks: Sequence[tuple[PeerId, int, int, int]],
        statuses: Sequence[int] | None = None,
        task_s: float = 0.0,
    ) -> ev.ResultsEvent:
        """Return an engine's answer for tasks of one client with contiguous seqs and ordinals."""
        client, seq, attempt, ordinal = tasks[0]
        statuses = statuses or [m.OK] * len(tasks)
        writer = PayloadWriter()
        for (_, task_seq, _, _), status in zip(tasks, statuses, strict=True):
            error = m.ErrorInfo("ValueError", "no", [], engine_id)
            writer.append(b"r%d" % task_seq if status == m.OK else encode_part(error))
        columns, frames = writer.finish()
        never = [math.nan if status == m.ABORTED else 1.0 for status in statuses]
        piece = m.ResultSlice(
            seq,
            len(tasks),
            attempt,
            ordinal,
            bytes(statuses),
            float64_column(never),
            float64_column([value + task_s for value in never]),
            b"",
            columns,
        )
        return ev.ResultsEvent(EngineId(engine_id), m.Results(client, engine_id, [piece]), frames)

    def answer(
        self, engine_id: int, count: int = 1, status: int = m.OK, task_s: float = 0.0
    ) -> list[tuple[PeerId, int, int, int]]:
        """Let an engine end its oldest tasks, up to `count`; return them."""
        done = []
        while count and self.held.get(engine_id):
            held = self.held[engine_id]
            n = 1
            while n < min(count, len(held)) and _follows(held[n - 1], held[n]):
                n += 1
            tasks, self.held[engine_id] = held[:n], held[n:]
            self.feed(self.results(engine_id, tasks, [status] * n, task_s))
            done += tasks
            count -= n
        return done

    def give_back(self, engine_id: int, *, everything: bool = True) -> None:
        """Let an engine answer a recall: all that has not started, or nothing."""
        first, last = self.recalls.pop(engine_id)
        held = self.held[engine_id]
        back = [task for task in held[1:] if first <= task[3] <= last] if everything else []
        if back:
            first, last = back[0][3], back[-1][3]
            self.held[engine_id] = [task for task in held if task not in back]
        else:
            first, last = 0, -1
        self.feed(ev.RecalledEvent(EngineId(engine_id), first, last))

    def run_all(self, task_s: float = 0.0) -> None:
        """Let engines answer everything until nothing is held."""
        for _ in range(100_000):
            busy = [engine_id for engine_id, held in self.held.items() if held]
            if not busy:
                return
            for engine_id in busy:
                self.answer(engine_id, len(self.held[engine_id]), task_s=task_s)
        raise AssertionError("the tasks do not end")

    def error(self, seq: int, client: PeerId = CLIENT) -> m.ErrorInfo:
        """Return the error that ended a task."""
        return decode_part(self.ended[client, seq][1], m.ErrorInfo)

    def seqs(self, engine_id: int) -> list[int]:
        """Return the sequence numbers of what an engine holds."""
        return [task[1] for task in self.held[engine_id]]


def _follows(a: tuple[PeerId, int, int, int], b: tuple[PeerId, int, int, int]) -> bool:
    return (a[0], a[1] + 1, a[2], a[3] + 1) == b


@pytest.fixture
def make_bench() -> type[Bench]:
    """The class of `bench`, for tests that need several or one with options."""
    return Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A scheduler; validated once more at the end."""
    bench = Bench()
    yield bench
    validate(bench.core)
