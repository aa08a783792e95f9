"""Random histories of the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.instructions import SendDrop
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Dependency, SeqRange, TaskRange

CLIENT = PeerId(b"client-" + b"0" * 9)
OTHER = PeerId(b"client-" + b"1" * 9)

clients = st.sampled_from([CLIENT, OTHER])
picks = st.integers(0, 10**6)
digests = st.sampled_from([b"f" * 16, b"g" * 16])
engine_lists = st.none() | st.lists(st.integers(0, 8), min_size=1, max_size=3)
# Whose tasks, how far back they begin, how many.
task_ranges = st.tuples(clients, st.integers(0, 60), st.integers(1, 20))
dependencies = st.none() | st.tuples(
    st.lists(task_ranges, min_size=1, max_size=2),
    st.booleans(),
    st.sampled_from([(True, False), (True, False), (False, True), (True, True)]),
)


class Histories(RuleBasedStateMachine):
    """Engines and clients do what they like; `Bench.feed` checks all invariants after each
    event, the order of what is placed, and that each task's client allows the place.
    """

    def __init__(self, make_bench: Callable[[], Any]) -> None:
        super().__init__()
        self.bench = make_bench()
        self.next_engine = 0
        self.next_seq = {CLIENT: 0, OTHER: 0}
        self.gaps: set[tuple[bytes, int]] = set()

    def _some_engine(self, pick: int) -> int:
        ids = sorted(self.bench.held)
        return ids[pick % len(ids)]

    def _dependency(
        self, drawn: tuple[list[tuple[PeerId, int, int]], bool, tuple[bool, bool]] | None
    ) -> Dependency | None:
        """Return a dependency on tasks that were submitted, or nearly."""
        if drawn is None:
            return None
        tasks, is_all, (success, failure) = drawn
        ranges: dict[bytes, TaskRange] = {}
        for client, back, count in tasks:
            first = max(self.next_seq[client] - back, 0)
            ranges[client] = TaskRange(client, first, count)
        return Dependency(list(ranges.values()), is_all, success, failure)

    @rule(resources=st.sampled_from([{}, {}, {"gpu": 1.0}, {"gpu": 2.0, "mem": 16.0}]))
    def register(self, resources: dict[str, float]) -> None:
        if len(self.bench.held) < 5:
            self.bench.join(self.next_engine, **resources)
            self.next_engine += 1

    @rule(
        client=clients,
        count=st.integers(1, 40),
        retries=st.integers(0, 2),
        engines=engine_lists,
        gap=st.integers(0, 2),
        digest=digests,
        priority=st.sampled_from([0, 0, 0, 1, -1]),
    )
    def submit_balanced(self, client: PeerId, count: int, gap: int, engines: Any, **options: Any):  # type: ignore[no-untyped-def]
        first = self.next_seq[client] + gap
        self.next_seq[client] = first + count
        self.bench.submit(first, count, client, targets=engines, **options)
        self.gaps |= {(client, seq) for seq in range(first - gap, first)}

    @rule(
        client=clients,
        count=st.integers(1, 12),
        retries=st.integers(0, 1),
        engines=engine_lists,
        digest=digests,
        priority=st.sampled_from([0, 2]),
        resources=st.sampled_from([{}, {}, {"gpu": 1.0}, {"gpu": 2.0}, {"fpga": 1.0}]),
        timeout_s=st.sampled_from([0.0, 0.0, 0.002, 1.0, 30.0]),
        after=dependencies,
        follow=st.none() | dependencies,
    )
    def submit_with_conditions(
        self, client: PeerId, count: int, engines: Any, after: Any, follow: Any, **options: Any
    ) -> None:
        first = self.next_seq[client]
        conditions = {"after": self._dependency(after), "follow": self._dependency(follow)}
        self.next_seq[client] = first + count
        self.bench.submit(first, count, client, targets=engines, **conditions, **options)

    @rule(
        client=clients,
        engines=st.lists(st.integers(0, 8), min_size=1, max_size=8),
        shared=st.booleans(),
    )
    def submit_direct(self, client: PeerId, engines: list[int], shared: bool) -> None:
        first = self.next_seq[client]
        self.next_seq[client] = first + len(engines)
        self.bench.submit(
            first,
            len(engines),
            client,
            placement="direct",
            targets=engines,
            shared=shared,
            method="execute",
        )

    @precondition(lambda self: self.bench.held)
    @rule(
        pick=picks,
        count=st.integers(1, 30),
        status=st.sampled_from([m.OK, m.OK, m.FAILED, m.ABORTED, m.UNMET]),
        task_s=st.sampled_from([0.0, 1e-5, 0.003, 1.0]),
    )
    def finish(self, pick: int, count: int, status: int, task_s: float) -> None:
        engine = self._some_engine(pick)
        if engine not in self.bench.away:
            self.bench.answer(engine, count, status, task_s)

    @precondition(lambda self: any(len(held) > 2 for held in self.bench.held.values()))
    @rule(pick=picks)
    def finish_out_of_order(self, pick: int) -> None:
        engines = [engine for engine, held in sorted(self.bench.held.items()) if len(held) > 2]
        engine = engines[pick % len(engines)]
        task = self.bench.held[engine].pop(1 + pick % (len(self.bench.held[engine]) - 1))
        self.bench.feed(self.bench.results(engine, [task], [m.ABORTED]))

    @precondition(lambda self: self.bench.held)
    @rule(pick=picks, announced=st.booleans())
    def die(self, pick: int, announced: bool) -> None:
        engine = self._some_engine(pick)
        if announced:
            self.bench.feed(ev.EngineLeavingEvent(EngineId(engine)))
        self.bench.lose(engine)
        self.bench.away.discard(engine)

    @precondition(lambda self: self.bench.held)
    @rule(pick=picks)
    def go_away_or_come_back(self, pick: int) -> None:
        engine = self._some_engine(pick)
        if engine in self.bench.away:
            self.bench.away.discard(engine)
            self.bench.feed(ev.EngineBackEvent(EngineId(engine)))
        else:
            self.bench.away.add(engine)
            self.bench.feed(ev.EngineAwayEvent(EngineId(engine)))

    @precondition(lambda self: self.bench.recalls)
    @rule(pick=picks, everything=st.booleans())
    def answer_recall(self, pick: int, everything: bool) -> None:
        engines = sorted(self.bench.recalls)
        self.bench.give_back(engines[pick % len(engines)], everything=everything)

    @rule(client=clients, pick=picks, count=st.integers(1, 60))
    def cancel(self, client: PeerId, pick: int, count: int) -> None:
        first = pick % (self.next_seq[client] + 1)
        self.bench.feed(ev.CancelEvent(client, [SeqRange(first, count)]))
        for drop in self.bench.drops:
            self._drop(drop)
        self.bench.drops.clear()

    def _drop(self, drop: SendDrop) -> None:
        engine = int(drop.peer[7:])
        wanted = {
            seq for piece in drop.ranges for seq in range(piece.first, piece.first + piece.count)
        }
        for task in list(self.bench.held.get(engine, [])[1:]):
            if task[0] != drop.client or task[1] not in wanted:
                continue
            if task in self.bench.held[engine]:
                self.bench.held[engine].remove(task)
                self.bench.feed(self.bench.results(engine, [task], [m.ABORTED]))

    @rule(step=st.sampled_from([0.0001, 0.003, 0.02, 6.0]))
    def wait(self, step: float) -> None:
        self.bench.now += step
        self.bench.feed(ev.TickEvent())

    @invariant()
    def direct_and_balanced_are_in_order(self) -> None:
        for held in self.bench.held.values():
            last: dict[bytes, int] = {}
            for client, seq, _, _ in held:
                direct = self._is_direct(client, seq)
                if direct:
                    assert seq > last.get(client, -1), "direct tasks out of order"
                    last[client] = seq

    @invariant()
    def nothing_waits_beyond_its_timeout(self) -> None:
        """After a tick no run is left whose deadline has come."""
        state = self.bench.core.state
        if self.bench.ticked_at == self.bench.now:
            late = [run for run in state.unplaced_runs() if run.deadline <= self.bench.now]
            assert not late, f"should have ended: {late}"

    def _is_direct(self, client: bytes, seq: int) -> bool:
        index = self.bench.core.state.groups[client]
        return any(g.options.placement == "direct" for g in index.overlapping(seq, seq + 1))

    def teardown(self) -> None:
        """Every task ends exactly once, as soon as engines do their work."""
        for engine in list(self.bench.away):
            self.bench.feed(ev.EngineBackEvent(EngineId(engine)))
        self.bench.join(self.next_engine, gpu=8.0, mem=64.0, fpga=1.0)
        for _ in range(100):
            self.bench.run_all()
            self.bench.now += 10.0
            self.bench.feed(ev.TickEvent())
            while self.bench.recalls:
                self.bench.give_back(next(iter(self.bench.recalls)))
            if not any(self.bench.held.values()) and not self.bench.core.state.n_unplaced:
                break
        for client, end in self.next_seq.items():
            missing = {(client, seq) for seq in range(end)} - self.bench.ended.keys() - self.gaps
            assert not missing, f"never ended: {sorted(missing)[:5]}"


def test_every_task_of_a_random_history_ends_exactly_once(
    make_bench: Callable[[], Any],
) -> None:
    """Whatever engines and clients do, each task ends once, where its client allows it, in its
    turn, and no engine idles beside work that it may do.
    """
    run_state_machine_as_test(
        partial(Histories, make_bench),
        settings=settings(
            max_examples=100, stateful_step_count=50, deadline=None, report_multiple_bugs=False
        ),
    )
