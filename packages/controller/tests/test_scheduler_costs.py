"""What the pure scheduler does for a task, counted in calls of Python functions: never in time."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.core import SchedulerCore
from ipyfleet_controller.scheduler.instructions import SendTasks
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import float64_column, uint32_column
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_testing.calls import PythonCalls

CLIENT = PeerId(b"c" * 16)
N_ENGINES = 64


class World:
    """A scheduler with engines, one client, and tasks that come one after the other."""

    def __init__(self) -> None:
        self.core = SchedulerCore()
        self.seq = 0
        self.n_calls = 0
        for number in range(N_ENGINES):
            joined = ev.EngineJoinedEvent(EngineId(number), PeerId(bytes((number,)) * 16))
            self.core.handle(joined, 0.0)

    def trip(self, placement: Any) -> None:
        """Submit a task, which is placed, and end it."""
        now = float(self.seq)
        targets = [0] if placement == "direct" else None
        options = m.Options(host="h", placement=placement, targets=targets)
        function = m.Function(b"f" * 16, "f", True, "", int(not self.seq))
        group = m.Group(self.seq, 1, options, function, m.Columns(uint32_column([5])))
        body = () if self.seq else (b"body",)
        out = self.handle(ev.SubmitEvent(CLIENT, [group], [SliceFrames(body, [b"hello"])]), now)
        [sent] = [what for what in out if isinstance(what, SendTasks)]
        [piece] = sent.slices
        result = m.ResultSlice(
            self.seq,
            1,
            0,
            piece.ordinal,
            bytes(1),
            float64_column([now]),
            float64_column([now]),
            b"",
            m.Columns(uint32_column([4])),
        )
        engine = EngineId(sent.peer[0])
        message = m.Results(CLIENT, engine, [result])
        self.handle(ev.ResultsEvent(engine, message, [b"none"]), now)
        assert not self.core.wants_place
        self.seq += 1

    def handle(self, event: Any, now: float) -> Any:
        """Handle an event and count the calls of Python functions."""
        with PythonCalls() as calls:
            out = self.core.handle(event, now)
        self.n_calls += len(calls)
        return out


@pytest.mark.parametrize(("placement", "bound"), [("direct", 45), ("balanced", 46)])
def test_a_lone_task_takes_few_calls(placement: str, bound: int) -> None:
    """From its submission to its end, however many engines there are; and then nothing is to be
    placed.
    """
    world = World()
    for _ in range(20):
        world.trip(placement)
    world.n_calls = 0
    for _ in range(100):
        world.trip(placement)
    assert world.n_calls <= bound * 100


@pytest.mark.parametrize("targets", [None, [2], [0, 1, 2, 3]])
def test_a_lone_task_does_not_wait(targets: list[int] | None) -> None:
    """Where an engine has nothing to do and nothing waits it is sent when it is submitted."""
    world = World()
    options = m.Options(host="h", targets=targets, placement="direct" if targets else "balanced")
    function = m.Function(b"f" * 16, "f", True, "", 1)
    count = len(targets or [0])
    group = m.Group(0, count, options, function, m.Columns(uint32_column([5] * count)))
    event = ev.SubmitEvent(CLIENT, [group], [SliceFrames((b"body",), [b"hello" * count])])
    sent = [what for what in world.handle(event, 0.0) if isinstance(what, SendTasks)]
    assert [what.slices[0].count for what in sent] == [1] * count
    assert targets is None or [what.peer[0] for what in sent] == targets
    assert world.core.state.waiting.n_tasks == 0
    assert not world.core.wants_place
