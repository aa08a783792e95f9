"""What people are told of tasks: from the scheduler where they have not ended, else from records.

What lives here: `Teller`, which answers `ExplainTasks`, and the words about records. What must not:
the words about tasks that have not ended (`scheduler.explaining`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import parse_msg_id

from .database.base import NoData, Record, TaskDatabase
from .scheduler.explaining import duration, explain, past
from .scheduler.state import SchedulerState

MAX_TASKS = 256
"""Tasks that one question may name: each costs a look at all that wait."""


class Explanation:
    """The answer to one question: first what the scheduler knows, then what the records say.

    Attributes:
        sentences: by msg_id; None for a task that nobody knows.
    """

    def __init__(self, state: SchedulerState, msg_ids: Sequence[str], now: float) -> None:
        """Ask the scheduler.

        Raises:
            IndexError: for too many tasks.
        """
        if len(msg_ids) > MAX_TASKS:
            raise IndexError(f"{len(msg_ids)} tasks are too many to explain; {MAX_TASKS} is all")
        self.sentences: dict[str, list[str] | None] = {}
        self._ended: dict[str, list[str]] = {}
        for msg_id in msg_ids:
            self.sentences[msg_id] = None
            try:
                client, seq = parse_msg_id(msg_id)
            except ValueError:
                continue
            told = explain(state, client, seq, now)
            if told is None:
                self._ended[msg_id] = past(state, client, seq, now)
            else:
                self.sentences[msg_id] = told

    @property
    def is_complete(self) -> bool:
        """Whether the records need not be asked."""
        return not self._ended

    def complete(self, database: TaskDatabase, now: float) -> tuple[Any, list[Frame]]:
        """Add what the records say; called by the database's thread. `now` is the epoch's."""
        for msg_id, steps in self._ended.items():
            try:
                record = database.get(msg_id)
            except NoData:
                end = ["it has ended, and no records are kept"] if steps else None
                self.sentences[msg_id] = end and [*steps, *end]
                continue
            if record is not None:
                self.sentences[msg_id] = [*steps, *_of_record(record, now)]
        return self.sentences, []


def _of_record(record: Record, now: float) -> list[str]:
    out = [f"{duration(now - record['submitted'])} ago: submitted, says its record"]
    if record["status"] is None:
        out.append(
            "it is recorded as not ended, and this controller does not have it: it was submitted "
            "to an earlier run; rc.resubmit() runs it again"
        )
        return out
    where = "on no engine" if record["engine_id"] is None else f"on engine {record['engine_id']}"
    how = {"ok": "with a value", "error": "with an error", "aborted": "aborted"}[record["status"]]
    took = ""
    if record["started"] is not None:
        took = f", after {duration(record['completed'] - record['started'])} of work"
    error = record["error"]
    why = f": {error['ename']}: {error['evalue']}" if error else ""
    ago = duration(now - record["received"])
    out.append(f"{ago} ago: it ended {where}, {how}{took}{why}")
    if record["result"] not in ("kept", None):
        out.append(f"its result is not here ({record['result']})")
    return out


__all__ = ["MAX_TASKS", "Explanation"]
