"""What an event costs the pure scheduler, with few tasks queued and with a million.

No sockets and no other process: events are made beforehand and handed to `SchedulerCore.handle`,
and the time of this thread's CPU is taken around that alone. A steady state: engines hold what the
scheduler gives them, and for all that ends as much is submitted, so the queue keeps its length.

    single    tasks of 1 s, one to an engine: each event is about one task
    batches   tasks of 0.1 ms, about a hundred to an engine
    after     the same, and each group waits for a task that has ended

An event is a `SubmitEvent`, a `ResultsEvent` or a `PlaceEvent`; a turn of the controller has one or
two of each kind. Memory is what Python has allocated per queued task (tracemalloc, a run of its
own).

    python benchmarks/scheduler_events.py
    python benchmarks/scheduler_events.py --queued 10,1000 --events 2000 --kinds single
"""

from __future__ import annotations

import argparse
import gc
import time
import tracemalloc

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.core import SchedulerCore
from ipyfleet_controller.scheduler.instructions import SendTasks
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import float64_column, uint32_column
from ipyfleet_protocol.ids import EngineId, PeerId

N_ENGINES = 8

GROUP_MAX = 4096
"""Tasks of one group, as clients cut long maps."""

PAYLOAD = b"p" * 40

KINDS = {"single": (1.0, False), "batches": (1e-4, False), "after": (1e-4, True)}
"""Seconds that a task takes, and whether its group depends on another task."""


class Bench:
    """A scheduler with engines and one client."""

    def __init__(self, task_s: float, *, depends: bool = False) -> None:
        self.core = SchedulerCore()
        self.client = PeerId(b"c" * 16)
        self.task_s = task_s
        self.depends = depends
        self.now = 0.0
        self.seq = 0
        self.spent_s = 0.0
        self.n_events = 0
        self.n_tasks = 0
        self.sent: dict[int, list[m.TaskSlice]] = {number: [] for number in range(N_ENGINES)}
        for number in range(N_ENGINES):
            self.core.handle(ev.EngineJoinedEvent(EngineId(number), _peer(number)), 0.0)

    def submit(self, count: int) -> None:
        """Queue tasks, in groups as a client makes them."""
        while count:
            size = min(count, GROUP_MAX)
            options = m.Options(host="h")
            if self.depends and self.seq:
                options.after = m.Dependency([m.TaskRange(self.client, 0, 1)])
            group = m.Group(
                self.seq,
                size,
                options,
                m.Function(b"f" * 16, "f", True, "", 1),
                m.Columns(uint32_column([len(PAYLOAD)]) * size),
            )
            self.seq += size
            count -= size
            frames = SliceFrames([b"body"], [PAYLOAD * size])
            self.feed(ev.SubmitEvent(self.client, [group], [frames]))

    def feed(self, event: ev.SchedulerEvent) -> None:
        """Handle an event and note what it cost and what was sent."""
        begin = time.thread_time()
        out = self.core.handle(event, self.now)
        self.spent_s += time.thread_time() - begin
        self.n_events += 1
        for what in out:
            if isinstance(what, SendTasks):
                self.sent[int(what.peer)] += what.slices

    def turn(self, engine: int) -> None:
        """Let an engine answer all that it has, submit as much, and place."""
        slices, self.sent[engine] = self.sent[engine], []
        if not slices:
            return
        self.now += 0.001
        pieces = []
        n_done = 0
        for piece in slices:
            n_done += piece.count
            started = float64_column([self.now]) * piece.count
            completed = float64_column([self.now + self.task_s]) * piece.count
            columns = m.Columns(uint32_column([4]) * piece.count)
            pieces.append(
                m.ResultSlice(
                    piece.first, piece.count, piece.attempt, piece.ordinal, bytes(piece.count),
                    started, completed, b"", columns,
                )
            )  # fmt: skip
        frames = [b"none" * piece.count for piece in pieces]
        results = m.Results(self.client, engine, pieces)
        self.n_tasks += n_done
        self.feed(ev.ResultsEvent(EngineId(engine), results, frames))
        self.submit(n_done)
        self.feed(ev.PlaceEvent())

    def run(self, n_events: int) -> None:
        """Let engines answer in turn until so many events were handled; count from zero."""
        self.spent_s, self.n_events, self.n_tasks = 0.0, 0, 0
        while self.n_events < n_events:
            for engine in range(N_ENGINES):
                self.turn(engine)


def measure(kind: str, queued: int, n_events: int) -> tuple[float, float]:
    """Return events and tasks per second of CPU."""
    task_s, depends = KINDS[kind]
    bench = Bench(task_s, depends=depends)
    bench.submit(1)
    bench.feed(ev.PlaceEvent())
    bench.run(200)  # the scheduler learns how long tasks take
    bench.submit(queued)
    bench.feed(ev.PlaceEvent())
    bench.run(n_events // 10)
    gc.collect()  # what an earlier one has left: up to 20 ms
    bench.run(n_events)
    return bench.n_events / bench.spent_s, bench.n_tasks / bench.spent_s


def bytes_per_task(queued: int) -> float:
    """Return the memory that a queued task costs beyond its payload."""
    bench = Bench(1.0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        bench.submit(queued)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return (after - before) / queued - len(PAYLOAD)


def _peer(number: int) -> PeerId:
    return PeerId(b"%016d" % number)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="events per second of the pure scheduler")
    parser.add_argument("--queued", type=_numbers, default=[10, 1_000, 1_000_000])
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    arguments = parser.parse_args()
    print(f"{'kind':8} {'queued':>9} {'events/s':>10} {'µs/event':>9} {'tasks/s':>11}")
    for kind in arguments.kinds:
        for queued in arguments.queued:
            events, tasks = measure(kind, queued, arguments.events)
            print(f"{kind:8} {queued:9,} {events:10,.0f} {1e6 / events:9.1f} {tasks:11,.0f}")
    most = max(arguments.queued)
    print(f"{bytes_per_task(most):.1f} bytes per queued task beyond its payload ({most:,} queued)")


if __name__ == "__main__":
    main()
