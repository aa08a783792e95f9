"""What a database of task records can do, and what it is given.

What lives here: the interface `TaskDatabase`, the entries written to it, the fields of a record
and the bounds of what is kept. What must not: storage.

A **record** is a dictionary with the keys of `FIELDS`. Times are seconds since the epoch, None
for "not yet"; so ``{"completed": None}`` finds pending tasks and ``{"completed": {"$ne": None}}``
ended ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import Columns, Method, Placement

from .output import OutputEntry, OutputRecord

if TYPE_CHECKING:
    from .detached import DetachedGroup

Record: TypeAlias = dict[str, Any]

FIELDS: dict[str, tuple[type, str]] = {
    "msg_id": (str, "the task's public id"),
    "client_uuid": (str, "hex id of the client that submitted it"),
    "seq": (int, "its number at that client"),
    "label": (str, "the user's name for the work"),
    "method": (str, "apply, map or execute"),
    "queue": (str, "mux for a direct task, task for a balanced one"),
    "name": (str, "the function's name"),
    "after": (list, "None, or the msg_ids of the tasks that it waited for"),
    "follow": (list, "None, or the msg_ids of the tasks where it was to run"),
    "timeout": (float, "seconds that it might wait for a place, or None for any time"),
    "retries": (int, "how many more attempts it had"),
    "priority": (int, "its priority"),
    "resources": (dict, "None, or what an engine had to have"),
    "submitted": (float, "when it was submitted, the controller's clock"),
    "execute_input": (str, "the code of an execute, else None"),
    "started": (float, "when it started, the engine's clock"),
    "completed": (float, "when it ended, the engine's clock; the controller's if it never ran"),
    "received": (float, "when its result reached the controller"),
    "status": (str, "None while it is pending, then ok, error or aborted"),
    "engine_id": (int, "the engine that ran it, or None"),
    "engine_uuid": (str, "that engine's hex id, or None"),
    "stdout": (str, "what it has written to stdout, as far as it was kept"),
    "stderr": (str, "the same for stderr"),
    "execute_result": (dict, "None, or the content of an execute's displayed value"),
    "error": (dict, "None, or a dictionary with ename, evalue, traceback"),
    "resubmitted": (str, "None, or the msg_id under which it was submitted again, last"),
    "result": (
        str,
        "None while it is pending, then kept, or why the result was not: one of LOSSES",
    ),
}
"""The keys of a record: the type of their values and what they mean."""

STATUS_NAMES = ("ok", "error", "aborted")
"""The names of `messages.OK`, `FAILED` and `ABORTED`."""

INLINE, BLOB, TOO_LARGE, GONE = 0, 1, 2, 3
"""What a byte of `Columns.blobs` says here: 0 and 1 as on the wire; the frame is empty because the
buffer was too large to keep; because its blob was gone before it could be read."""

LOSSES = ("too large", "gone", "missed")
"""Why a record has no result: larger than `Limits.result_bytes`; in shared memory that was freed
before it could be read; or the database was slower than the results."""


class Limits(msgspec.Struct, frozen=True):
    """How much is kept. Only groups all of whose tasks have ended are ever dropped, the oldest
    first.

    Attributes:
        max_records: number of tasks; None for any.
        max_bytes: bytes of results and columns.
        max_age_s: seconds since the last result of a group.
        result_bytes: a larger pickle or buffer is not kept, and its record says so.
    """

    max_records: int | None = None
    max_bytes: int = 1 << 30
    max_age_s: float = 7 * 86400.0
    result_bytes: int = 64 << 20


class GroupEntry(msgspec.Struct):
    """A group that was submitted; `conditions` are those of `conditions.pack_conditions`."""

    client: bytes
    first: int
    count: int
    label: str
    method: Method
    placement: Placement
    name: str
    submitted: float
    conditions: bytes = b""


class ResultsEntry(msgspec.Struct):
    """How some tasks of one client ended; the columns are those of `messages.ResultSlice`, but
    that no frame is a blob handle and `Columns.blobs` may say more (`TOO_LARGE`, `GONE`).

    Where `loss` is one of `LOSSES`, there are no frames and `columns` are without meaning.
    """

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
    loss: str = ""


Entry: TypeAlias = GroupEntry | ResultsEntry | OutputEntry


class StoredResult(msgspec.Struct):
    """The payload of an ended task: pickle frame, then buffers; all of them inline."""

    frames: list[Frame]


class TaskDatabase(Protocol):
    """A store of task records. All calls come from one thread, the keeper's; the first of them
    may open files or connections.

    Records of tasks that have not ended are never dropped, whatever the bounds. Every method but
    `close` may raise `DatabaseUnavailable`; nothing has been done then, and the call can be
    repeated.
    """

    def open(self) -> None:
        """Open what has to be opened, so that the first entries need not wait for it."""
        ...

    def write(self, entries: Sequence[Entry]) -> None:
        """Take in entries, in the order in which things happened; all of them or none. Results and
        output of unknown tasks, and what is known already, are ignored.

        Raises:
            BadEntry: if one of them cannot be stored.
        """
        ...

    def get(self, msg_id: str) -> Record | None:
        """Return the record of a task, or None if it is not known."""
        ...

    def result(self, msg_id: str) -> StoredResult | None:
        """Return the payload of an ended task, or None; the record's `result` says why."""
        ...

    def outputs(self, msg_id: str) -> list[OutputRecord]:
        """Return the output of a task, in the order in which it was made; [] if unknown."""
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

    def cull(self, now: float) -> int:
        """Drop what exceeds the limits at a time (seconds since the epoch); return how many
        records.
        """
        ...

    def keep_detached(self, groups: Sequence[DetachedGroup]) -> None:
        """Store groups with their payloads, until all of their tasks have ended; what is stored of
        a group already is replaced.

        Raises:
            NotKept: if what is stored ends with the controller.
            BadEntry: if one of them cannot be stored; nothing is, then.
        """
        ...

    def detached(self) -> list[DetachedGroup]:
        """Return the groups that were stored, with `ended` as the records have it, without those
        all of whose tasks have ended; none where nothing outlives the controller.
        """
        ...

    def make_room(self) -> int:
        """Drop some of the oldest ended groups, because the database is full; return how many
        records.
        """
        ...

    def statistics(self) -> dict[str, int]:
        """Return numbers: ``records``, ``bytes``, ``culled``. Needs nothing to be open."""
        ...

    def close(self) -> None:
        """Release what is open."""
        ...


class DatabaseUnavailable(Exception):
    """The database cannot be used now: locked, full, read-only, unreachable. The text says why.

    Attributes:
        is_full: it would work if there were room.
        at_once: what stood in the way is gone, so there is no need to wait before trying again.
        is_connected: the connection is as good as before; somebody else is in the way.
    """

    def __init__(
        self,
        reason: str,
        *,
        is_full: bool = False,
        at_once: bool = False,
        is_connected: bool = False,
    ) -> None:
        super().__init__(reason)
        self.is_connected = is_connected
        self.is_full = is_full
        self.at_once = at_once


class NotKept(Exception):
    """What is stored here ends with the controller, so it cannot outlive it. The text says so."""


class BadEntry(Exception):
    """An entry cannot be stored by this database, now or ever."""


class NoData(KeyError):
    """Nothing is recorded, because nobody wanted it (`--nodb`)."""


class PendingError(IndexError):
    """A record cannot be dropped: its task has not ended."""


def unknown_task(msg_id: str) -> str:
    """Return why a task cannot be purged that is in no record, and what to do."""
    return (
        f"there is no record of {msg_id}, so nothing was purged: it was purged already, is too old "
        "or was never submitted; rc.hub_history() lists those that there are"
    )


def pending_task(msg_id: str) -> str:
    """Return why a task that has not ended cannot be purged, and what to do."""
    return (
        f"the task {msg_id} has not ended, so nothing was purged: wait for it, or abort it, first; "
        'purging "all" leaves alone what has not ended'
    )


def loss_of(flags: Iterable[int]) -> str:
    """Return why a result with these buffers is not whole, or "" if it is."""
    for flag in flags:
        if flag >= TOO_LARGE:
            return LOSSES[flag - TOO_LARGE]
    return ""
