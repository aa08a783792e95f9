"""Random histories of the scheduler with broken connections and controllers that die.

The model of the outside: what is under way between the controller and others is in queues, which a
break delays and a death empties. Engines and clients remember what the wire's contract says.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler import instructions as ins
from ipyfleet_controller.scheduler.core import SchedulerCore
from ipyfleet_controller.scheduler.validate import validate, validate_placed
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import split
from ipyfleet_protocol.columns import Payloads, PayloadWriter, float64_column
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Dependency, TaskRange

CLIENTS = [PeerId(b"client-%09d" % number) for number in range(2)]
Task = tuple[PeerId, int, int, int]
"""Client, seq, attempt, ordinal."""


class Engine:
    """An engine, and what is on its way to it and from it."""

    def __init__(self, engine_id: int) -> None:
        self.engine_id = EngineId(engine_id)
        self.peer = PeerId(b"engine-%09d" % engine_id)
        self.inbox: list[Any] = []
        self.outbox: list[Any] = []
        self.queue: list[Task] = []
        self.kept: list[tuple[list[Task], ev.ResultsEvent]] = []
        self.next_ordinal = 0
        self.is_away = False

    def read(self) -> None:
        """Take in one message."""
        what = self.inbox.pop(0)
        if isinstance(what, ins.SendTasks):
            for piece in what.slices:
                client = PeerId(piece.client)
                self.queue += [
                    (client, piece.first + i, piece.attempt, piece.ordinal + i)
                    for i in range(piece.count)
                ]
                self.next_ordinal = piece.ordinal + piece.count
        elif isinstance(what, ins.SendRecall):
            back = [task for task in self.queue[1:] if what.first <= task[3] <= what.last]
            self.queue = [task for task in self.queue if task not in back]
            first, last = (back[0][3], back[-1][3]) if back else (0, -1)
            self.outbox.append(ev.RecalledEvent(self.engine_id, first, last))
        elif isinstance(what, ins.SendDrop):
            ordinals = {
                ordinal
                for piece in what.ranges
                for ordinal in range(piece.ordinal, piece.ordinal + piece.count)
            }
            dropped = [task for task in self.queue if task[3] in ordinals]
            self.queue = [task for task in self.queue if task[3] not in ordinals]
            for task in dropped:
                self.tell([task], m.ABORTED)

    def tell(self, tasks: list[Task], status: int) -> None:
        """Tell how tasks of one client with contiguous numbers ended."""
        client, seq, attempt, ordinal = tasks[0]
        writer = PayloadWriter()
        for task in tasks:
            writer.append(b"r%d" % task[1])
        columns, frames = writer.finish()
        times = float64_column([1.0] * len(tasks))
        count = len(tasks)
        piece = m.ResultSlice(
            seq, count, attempt, ordinal, bytes((status,)) * count, times, times, b"", columns
        )
        message = m.Results(client, self.engine_id, [piece], 1)
        event = ev.ResultsEvent(self.engine_id, message, frames)
        self.kept.append((tasks, event))
        self.outbox.append(event)

    def held(self) -> list[m.HeldTasks]:
        """Return what a Hello says."""
        tasks = [*(task for done, _ in self.kept for task in done), *self.queue]
        return [m.HeldTasks(client, seq, 1, ordinal, n) for client, seq, n, ordinal in tasks]


class Client:
    """A client, and what is on its way to it."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.inbox: list[Any] = []
        self.groups: list[tuple[m.Group, Any]] = []
        self.next_seq = 0
        self.ended: dict[int, bytes] = {}
        self.is_late = self.was_late = False

    def read(self) -> None:
        """Take in one message of results."""
        message, frames = self.inbox.pop(0)
        for piece, part in zip(message.slices, split(message, frames), strict=True):
            payloads = Payloads(piece.columns, part.payload)
            for i in range(piece.count):
                seq = piece.first + i
                assert piece.status[i] == m.OK, f"{seq}: {bytes(payloads.pickle(i))!r}"
                # Clients drop what they have: a controller that hears of a result before it hears
                # of the client forwards it, and the one that died may have done so too.
                assert seq not in self.ended or (self.was_late and self.ended[seq] == b"r%d" % seq)
                self.ended[seq] = bytes(payloads.pickle(i))


picks = st.integers(0, 10**6)


class Restarts(RuleBasedStateMachine):
    """A controller, two clients and some engines that are never lost."""

    def __init__(self, make_group: Any) -> None:
        super().__init__()
        self.make_group = make_group
        self.now = 100.0
        self.core = SchedulerCore()
        self.clients = {peer: Client(peer) for peer in CLIENTS}
        self.engines: dict[int, Engine] = {}
        self.ran: dict[tuple[PeerId, int], int] = {}
        for number in range(2):
            self._join(number)

    # -- the controller -----------------------------------------------------------------------

    def feed(self, event: ev.SchedulerEvent) -> list[Any]:
        """Have an event handled, and what follows from it put on its way."""
        out = self.core.handle(event, self.now)
        validate(self.core)
        if isinstance(event, ev.PlaceEvent):
            validate_placed(self.core)
        for what in out:
            if isinstance(what, (ins.SendTasks, ins.SendRecall, ins.SendDrop)):
                [engine] = [each for each in self.engines.values() if each.peer == what.peer]
                engine.inbox.append(what)
            elif isinstance(what, ins.DeliverResults):
                client = self.clients[PeerId(what.message.client)]
                client.inbox.append((what.message, what.frames))
            elif isinstance(what, ins.FindEnded):
                # The records know nothing: tasks that are not submitted again ended well.
                self.feed(ev.EndedFoundEvent(what.number, []))
            else:
                assert not isinstance(what, ins.Refuse), what
        return out

    def _place(self) -> None:
        self.feed(ev.PlaceEvent())

    def _join(self, number: int) -> None:
        self.engines[number] = Engine(number)
        self.feed(ev.EngineJoinedEvent(EngineId(number), self.engines[number].peer))

    def _engine(self, pick: int) -> Engine:
        return self.engines[pick % len(self.engines)]

    @rule()
    @precondition(lambda self: len(self.engines) < 4)
    def join(self) -> None:
        self._join(len(self.engines))
        self._place()

    @rule(
        who=st.sampled_from(CLIENTS),
        count=st.integers(1, 30),
        kind=st.sampled_from(["balanced", "balanced", "direct", "after"]),
        pick=picks,
    )
    def submit(self, who: PeerId, count: int, kind: str, pick: int) -> None:
        client = self.clients[who]
        if client.is_late:
            return
        options: dict[str, Any] = {}
        if kind == "direct":
            targets = [(pick + i) % len(self.engines) for i in range(count)]
            options = {"placement": "direct", "targets": targets}
        elif kind == "after":
            other = self.clients[CLIENTS[pick % 2]]
            if not other.next_seq or other.is_late:
                return
            first = max(other.next_seq - 1 - pick % 5, 0)
            tasks = [TaskRange(other.peer, first, other.next_seq - first)]
            options = {"after": Dependency(tasks)}
        group, frames = self.make_group(client.next_seq, count, **options)
        client.next_seq += count
        client.groups.append((group, frames))
        self.feed(ev.SubmitEvent(who, [group], [frames]))
        self._place()

    # -- what is under way --------------------------------------------------------------------

    @rule(pick=picks, count=st.integers(1, 20))
    def engine_reads(self, pick: int, count: int) -> None:
        engine = self._engine(pick)
        for _ in range(count):
            if engine.inbox and not engine.is_away:
                engine.read()

    @rule(pick=picks, count=st.integers(1, 20))
    def engine_runs(self, pick: int, count: int) -> None:
        engine = self._engine(pick)
        while count and engine.queue:
            tasks = [engine.queue.pop(0)]
            count -= 1
            while count and engine.queue and _follows(tasks[-1], engine.queue[0]):
                tasks.append(engine.queue.pop(0))
                count -= 1
            for client, seq, _, _ in tasks:
                self.ran[client, seq] = self.ran.get((client, seq), 0) + 1
                assert self.ran[client, seq] == 1, f"{seq} ran twice"
            engine.tell(tasks, m.OK)

    @rule(pick=picks, count=st.integers(1, 20))
    def controller_reads(self, pick: int, count: int) -> None:
        engine = self._engine(pick)
        for _ in range(count):
            if engine.outbox and not engine.is_away:
                self.feed(engine.outbox.pop(0))
        self._place()

    @rule(who=st.sampled_from(CLIENTS), count=st.integers(1, 5))
    def client_reads(self, who: PeerId, count: int) -> None:
        client = self.clients[who]
        for _ in range(count):
            if client.inbox and not client.is_late:
                client.read()

    @rule(pick=picks)
    def results_are_taken(self, pick: int) -> None:
        engine = self._engine(pick)
        # What is still on its way to the controller cannot have reached a client.
        under_way = [id(event) for event in engine.outbox]
        engine.kept = [
            (tasks, event)
            for tasks, event in engine.kept
            if id(event) in under_way
            or any(seq not in self.clients[c].ended for c, seq, *_ in tasks)
        ]

    # -- breaks -------------------------------------------------------------------------------

    @rule(pick=picks)
    def engine_breaks(self, pick: int) -> None:
        engine = self._engine(pick)
        if not engine.is_away:
            engine.is_away = True
            self.feed(ev.EngineAwayEvent(engine.engine_id))
            self._place()

    @rule(pick=picks)
    def engine_is_back(self, pick: int) -> None:
        engine = self._engine(pick)
        if engine.is_away:
            engine.is_away = False
            self.feed(ev.EngineBackEvent(engine.engine_id))
            self._place()

    @rule(
        order=st.permutations(["engines", *CLIENTS]),
        late=st.sampled_from([(), (), (0,), (1,), (0, 1)]),
    )
    def controller_dies(self, order: list[Any], late: tuple[int, ...]) -> None:
        """Another one takes its place; some clients are late."""
        self.now += 1.0
        self.core = SchedulerCore()
        for engine in self.engines.values():
            engine.inbox, engine.outbox, engine.is_away = [], [], False
        for client in self.clients.values():
            client.inbox = []
        self.feed(ev.GatherEvent())
        for engine in self.engines.values():
            self.feed(ev.EngineJoinedEvent(engine.engine_id, engine.peer))
            self.feed(ev.EngineAwayEvent(engine.engine_id))
        for who in order:
            if who == "engines":
                for engine in self.engines.values():
                    self._tell_held(engine)
            elif CLIENTS.index(who) in late:
                self.clients[who].is_late = self.clients[who].was_late = True
            else:
                self._submit_again(self.clients[who])
        self._place()
        self.feed(
            ev.GatheredEvent([client.peer for client in self.clients.values() if client.is_late])
        )
        for engine in self.engines.values():
            self.feed(ev.EngineBackEvent(engine.engine_id))
            engine.outbox += [event for _, event in engine.kept]
        self._place()

    def _tell_held(self, engine: Engine) -> None:
        self.feed(ev.EngineHoldsEvent(engine.engine_id, engine.held(), engine.next_ordinal))

    @rule(who=st.sampled_from(CLIENTS))
    def late_client_comes(self, who: PeerId) -> None:
        if self.clients[who].is_late:
            self._submit_again(self.clients[who])
            self._place()

    def _submit_again(self, client: Client) -> None:
        client.is_late = False
        for group, frames in client.groups:
            seqs = range(group.first, group.first + group.count)
            group.ended = bytes(seq in client.ended for seq in seqs)
            if 0 in group.ended:
                self.feed(ev.SubmitEvent(client.peer, [group], [frames]))
        self.feed(ev.ResubmittedEvent(client.peer))

    # -- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everything end."""
        for who in CLIENTS:
            self.late_client_comes(who)
        for number in self.engines:
            self.engine_is_back(number)
        for _ in range(500):
            if all(len(c.ended) == c.next_seq for c in self.clients.values()):
                break
            self.now += 0.001
            for number in self.engines:
                self.engine_reads(number, 100)
                self.engine_runs(number, 100)
                self.controller_reads(number, 100)
            for who in CLIENTS:
                self.client_reads(who, 100)
        for client in self.clients.values():
            assert client.ended == {seq: b"r%d" % seq for seq in range(client.next_seq)}
        assert not any(index.live() for index in self.core.state.groups.values())


def _follows(a: Task, b: Task) -> bool:
    return (a[0], a[1] + 1, a[2], a[3] + 1) == b


@pytest.mark.timeout(300)
def test_each_task_ends_once_and_runs_once_whatever_breaks(wire: Any) -> None:
    """Over random histories of breaks and deaths of the controller every task ends exactly once for
    its client, and none runs twice where no engine was lost.
    """
    run_state_machine_as_test(
        partial(Restarts, wire.make_group),
        # A shorter history of the same failure takes minutes to find; ask for it when one is there.
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
