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
from ipyfleet_protocol.messages import SeqRange

CLIENT = PeerId(b"client-" + b"0" * 9)
OTHER = PeerId(b"client-" + b"1" * 9)

clients = st.sampled_from([CLIENT, OTHER])
picks = st.integers(0, 10**6)


class Histories(RuleBasedStateMachine):
    """Engines and clients do what they like; `Bench.feed` checks all invariants after each
    event.
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

    @rule()
    def register(self) -> None:
        if len(self.bench.held) < 5:
            self.bench.join(self.next_engine)
            self.next_engine += 1

    @rule(
        client=clients,
        count=st.integers(1, 40),
        retries=st.integers(0, 2),
        engines=st.none() | st.lists(st.integers(0, 8), min_size=1, max_size=3),
        gap=st.integers(0, 2),
        digest=st.sampled_from([b"f" * 16, b"g" * 16]),
    )
    def submit_balanced(
        self,
        client: bytes,
        count: int,
        retries: int,
        engines: list[int] | None,
        gap: int,
        digest: bytes,
    ) -> None:
        first = self.next_seq[client] + gap
        self.next_seq[client] = first + count
        self.bench.submit(first, count, client, retries=retries, targets=engines, digest=digest)
        self.gaps |= {(client, seq) for seq in range(first - gap, first)}

    @rule(
        client=clients,
        engines=st.lists(st.integers(0, 8), min_size=1, max_size=8),
        shared=st.booleans(),
    )
    def submit_direct(self, client: bytes, engines: list[int], shared: bool) -> None:
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
        status=st.sampled_from([m.OK, m.OK, m.FAILED, m.ABORTED]),
        task_s=st.sampled_from([0.0, 1e-5, 0.003, 1.0]),
    )
    def finish(self, pick: int, count: int, status: int, task_s: float) -> None:
        engine = self._some_engine(pick)
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

    @precondition(lambda self: self.bench.recalls)
    @rule(pick=picks, everything=st.booleans())
    def answer_recall(self, pick: int, everything: bool) -> None:
        engines = sorted(self.bench.recalls)
        self.bench.give_back(engines[pick % len(engines)], everything=everything)

    @rule(client=clients, pick=picks, count=st.integers(1, 60))
    def cancel(self, client: bytes, pick: int, count: int) -> None:
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

    def _is_direct(self, client: bytes, seq: int) -> bool:
        index = self.bench.core.state.groups[client]
        return any(g.options.placement == "direct" for g in index.overlapping(seq, seq + 1))

    def teardown(self) -> None:
        """Every task ends exactly once, as soon as engines do their work."""
        if not self.bench.held:
            self.bench.join(self.next_engine)
        for _ in range(100):
            self.bench.run_all()
            self.bench.now += 10.0
            self.bench.feed(ev.TickEvent())
            while self.bench.recalls:
                self.bench.give_back(next(iter(self.bench.recalls)))
            if not any(self.bench.held.values()) and not self.bench.core.state.waiting.n_tasks:
                break
        for client, end in self.next_seq.items():
            missing = {(client, seq) for seq in range(end)} - self.bench.ended.keys() - self.gaps
            assert not missing, f"never ended: {sorted(missing)[:5]}"


def test_every_task_of_a_random_history_ends_exactly_once(
    make_bench: Callable[[], Any],
) -> None:
    """Whatever engines and clients do, each task ends once and no engine idles beside waiting
    work.
    """
    run_state_machine_as_test(
        partial(Histories, make_bench),
        settings=settings(
            max_examples=100, stateful_step_count=50, deadline=None, report_multiple_bugs=False
        ),
    )
