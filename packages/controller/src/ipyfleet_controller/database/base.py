"""What a database of task records can do, and what it is given.

What lives here: the interface `TaskDatabase`, the entries written to it, and the fields of a
record. What must not: storage.

A **record** is a dictionary with the keys of `FIELDS`. Times are seconds since the epoch, None
for "not yet"; so ``{"completed": None}`` finds pending tasks and ``{"completed": {"$ne": None}}``
ended ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import Columns, Method, Placement

Record: TypeAlias = dict[str, Any]

FIELDS = {
    "msg_id": "the task's public id",
    "client_uuid": "hex id of the client that submitted it",
    "seq": "its number at that client",
    "label": "the user's name for the work",
    "method": "apply, map or execute",
    "queue": "mux for a direct task, task for a balanced one",
    "name": "the function's name",
    "submitted": "when it was submitted, the controller's clock",
    "started": "when it started, the engine's clock",
    "completed": "when it ended, the engine's clock; the controller's where it never ran",
    "received": "when its result was recorded",
    "status": "None while it is pending, then ok, error or aborted",
    "engine_id": "the engine that ran it, or None",
    "engine_uuid": "that engine's hex id, or None",
    "error": "None, or a dictionary with ename, evalue, traceback",
}
"""The keys of a record and what they mean."""

STATUS_NAMES = ("ok", "error", "aborted")
"""The names of `messages.OK`, `FAILED` and `ABORTED`."""


class GroupEntry(msgspec.Struct):
    """A group that was submitted."""

    client: bytes
    first: int
    count: int
    label: str
    method: Method
    placement: Placement
    name: str
    submitted: float


class ResultsEntry(msgspec.Struct):
    """How some tasks of one client ended; the columns are those of `messages.ResultSlice`."""

    client: bytes
    first: int
    count: int
    engine_id: int
    engine_uuid: str
    status: bytes
    started: bytes
    completed: bytes
    received: float
    columns: Columns
    frames: Sequence[Frame]


class StoredResult(msgspec.Struct):
    """The payload of an ended task: pickle frame, then buffers, of which some may be blob
    handles.
    """

    frames: list[Frame]
    blobs: bytes


class TaskDatabase(Protocol):
    """A store of task records. Called by the desk, in batches, never between two messages.

    Records of tasks that have not ended are never dropped, whatever the bounds.
    """

    def write(self, entries: Iterable[GroupEntry | ResultsEntry]) -> None:
        """Take in entries, in the order in which things happened. Results of unknown tasks are
        ignored.
        """
        ...

    def get(self, msg_id: str) -> Record | None:
        """Return the record of a task, or None if it is not known."""
        ...

    def result(self, msg_id: str) -> StoredResult | None:
        """Return the payload of an ended task, or None."""
        ...

    def find(self, query: dict[str, Any], keys: Sequence[str] | None = None) -> list[Record]:
        """Return the records that match, in the order of submission.

        Args:
            query: see `query`.
            keys: fields to return, `msg_id` in any case; None for all.

        Raises:
            QueryError: if the query is not one.
        """
        ...

    def history(self) -> list[str]:
        """Return all msg_ids in the order of submission."""
        ...

    def purge(
        self, msg_ids: Sequence[str] | None = None, engine_ids: Sequence[int] | None = None
    ) -> int:
        """Drop records of ended tasks: the named ones, those of engines, or all; return how many.

        Raises:
            KeyError: if a named task is not known. Nothing is dropped.
            PendingError: if a named task has not ended. Nothing is dropped.
        """
        ...

    def statistics(self) -> dict[str, int]:
        """Return numbers: ``records``, ``bytes``, ``culled``."""
        ...

    def close(self) -> None:
        """Release what is open."""
        ...


class PendingError(IndexError):
    """A record cannot be dropped: its task has not ended."""
