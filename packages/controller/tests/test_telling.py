"""What people are told of tasks that have ended."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from ipyfleet_controller.database.base import GroupEntry, ResultsEntry
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.database.nothing import NoDatabase
from ipyfleet_controller.telling import MAX_TASKS, Explanation
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import PayloadWriter
from ipyfleet_protocol.ids import format_msg_id

WALL = 5000.0


def _recorded(bench: Any, loss: str = "") -> MemoryDatabase:
    """Two tasks, of which the first failed after 2 s of work, ten seconds ago."""
    database = MemoryDatabase()
    entry = GroupEntry(bench.CLIENT, 0, 2, "", "apply", "balanced", "f", WALL - 60)
    writer = PayloadWriter()
    writer.append(encode_part(m.ErrorInfo("ValueError", "no good", [])))
    columns, frames = writer.finish()
    times = (struct.pack("<d", WALL - 12), struct.pack("<d", WALL - 10))
    result = ResultsEntry(
        bench.CLIENT, 0, 1, 3, "ee", bytes([m.FAILED]), *times, WALL - 10, columns,
        [] if loss else frames, loss,
    )  # fmt: skip
    database.write([entry, result])
    return database


def _told(bench: Any, database: Any, *seqs: int) -> list[Any]:
    ids = [format_msg_id(bench.CLIENT, seq) for seq in seqs]
    explanation = Explanation(bench.core.state, ids, bench.now)
    assert not explanation.is_complete
    sentences, frames = explanation.complete(database, WALL)
    assert frames == []
    return [sentences[msg_id] for msg_id in ids]


def test_an_ended_task_is_told_from_its_record(bench: Any) -> None:
    """Where, how, for how long, and the error; an unknown task is None."""
    ended, unknown = _told(bench, _recorded(bench), 0, 7)
    assert ended == [
        "60.0 s ago: submitted, says its record",
        "10.0 s ago: it ended on engine 3, with an error, after 2.0 s of work: ValueError: no good",
    ]
    assert unknown is None


def test_a_lost_result_and_a_lost_task_are_told(bench: Any) -> None:
    """A result that was not kept, and a task that only the records remember."""
    ended, pending = _told(bench, _recorded(bench, loss="too large"), 0, 1)
    assert ended[-1] == "its result is not here (too large)"
    assert "an earlier run" in pending[-1]


def test_without_records_the_story_is_all(bench: Any) -> None:
    """With --nodb a task that has just ended is still told of."""
    bench.join(0)
    bench.submit(0, 1)
    bench.run_all()
    told, never = _told(bench, NoDatabase(), 0, 5)
    assert told[-1] == "it has ended, and no records are kept"
    assert "placed at engine 0" in told[1]
    assert never is None


def test_too_many_tasks_at_once_are_refused(bench: Any) -> None:
    """One question cannot make the loop look at all that waits a million times."""
    with pytest.raises(IndexError, match="too many"):
        Explanation(bench.core.state, ["x"] * (MAX_TASKS + 1), 0.0)
