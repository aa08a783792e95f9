"""What is asked of a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipyfleet_controller.database.answers import ENDED_MAX_TASKS, ended_tasks
from ipyfleet_controller.database.base import GroupEntry, Limits, ResultsEntry
from ipyfleet_controller.database.place import DatabasePlace, open_backend
from ipyfleet_controller.scheduler.group import State
from ipyfleet_controller.scheduler.instructions import EndedTask
from ipyfleet_protocol.columns import float64_column, uint32_column
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import ABORTED, FAILED, OK, Columns, TaskRange

ONE, TWO = PeerId(b"1" * 16), PeerId(b"2" * 16)


def _results(client: PeerId, first: int, status: list[int], engine: int) -> ResultsEntry:
    times = float64_column([1.0] * len(status))
    columns = Columns(uint32_column([1] * len(status)))
    return ResultsEntry(
        client, first, len(status), engine, f"uuid{engine}", bytes(status),
        times, times, 2.0, columns, [b"x" * len(status)],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["memory", "sqlite"])
def test_it_tells_how_tasks_ended_and_where(name: str, tmp_path: Path) -> None:
    """Neighbours that ended alike are one; tasks that are pending, unknown, or another client's are
    left out; an engine that is not there, or is another one with the same number, is nowhere.
    """
    database = open_backend(name, DatabasePlace(tmp_path, "", "", "", Limits()))
    database.open()
    try:
        entries: list[GroupEntry | ResultsEntry] = [
            GroupEntry(client, first, count, "", "apply", "balanced", "f", 1.0)
            for client, first, count in ((ONE, 0, 6), (TWO, 0, 3), (ONE, 6, 4))
        ]
        entries += [
            _results(ONE, 0, [OK, OK, OK], 4),
            _results(ONE, 3, [OK, FAILED], 5),
            _results(TWO, 0, [ABORTED] * 3, -1),
            _results(ONE, 6, [OK], 5),
        ]
        database.write(entries)
        there = {"uuid4": EngineId(4), "uuid5": EngineId(5)}
        asked = [TaskRange(ONE, 1, 100), TaskRange(TWO, 2, 1)]
        found = ended_tasks(database, asked, there)
        assert found == [
            EndedTask(ONE, 1, 3, State.OK, EngineId(4)),
            EndedTask(ONE, 3, 4, State.OK, EngineId(5)),
            EndedTask(ONE, 4, 5, State.FAILED, EngineId(5)),
            EndedTask(ONE, 6, 7, State.OK, EngineId(5)),
            EndedTask(TWO, 2, 3, State.ABORTED, EngineId(-1)),
        ]
        assert ended_tasks(database, [TaskRange(ONE, 0, ENDED_MAX_TASKS + 1)], there) == []
        [first, *_] = ended_tasks(database, asked, {"uuid5": EngineId(4)})
        assert first == EndedTask(ONE, 1, 3, State.OK, EngineId(-1))
    finally:
        database.close()
