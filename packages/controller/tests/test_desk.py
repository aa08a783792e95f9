"""What questions are answered with, or not."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Sequence

import pytest

from ipyfleet_controller import desk as desks
from ipyfleet_controller.database.keeper import RecordKeeper
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.desk import Desk
from ipyfleet_controller.hub.peers import Registry
from ipyfleet_controller.scheduler.state import SchedulerState
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.columns import Frame


@pytest.fixture
def keeper() -> Iterator[RecordKeeper]:
    """The database's thread."""
    keeper = RecordKeeper(MemoryDatabase)
    keeper.start()
    yield keeper
    keeper.close(10)


def test_an_answer_that_fits_into_no_message_is_refused(
    keeper: RecordKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked is told to ask for less."""
    desk = Desk(keeper, Registry(), SchedulerState())
    replies: list[m.Reply] = []

    def send(reply: m.Reply, frames: Sequence[Frame]) -> None:
        replies.append(reply)

    def ask() -> m.Reply:
        desk.answer(7, m.TaskHistory(), send)
        deadline = time.monotonic() + 10
        while not replies:
            assert select.select([keeper.fd], [], [], max(0, deadline - time.monotonic()))[0]
            keeper.deliver()
        return replies.pop()

    assert ask().error is None
    monkeypatch.setattr(desks, "ANSWER_MAX_BYTES", 0)
    reply = ask()
    assert reply.request == 7
    assert reply.error is not None
    assert (reply.error.ename, reply.error.evalue) == (
        "ValueError",
        "an answer of 1 bytes is too long; ask for less",
    )
