"""What a client can ask the hub.

What lives here: the parts that a `messages.Request` can carry, each with what its `Reply` says.
`messages.py` has their names, too. What must not: answers.
"""

from __future__ import annotations

from typing import TypeAlias

from .structs import Part


class StartCall(Part):
    """A function that engines call when they join: its name and the frames of its pickle."""

    name: str
    frames: list[bytes]


class QueueStatus(Part, tag="queue_status"):
    """Per engine: numbers of queued and completed tasks, or their msg_ids if `verbose`."""

    targets: list[int] | None = None
    verbose: bool = False


class FetchResults(Part, tag="fetch_results"):
    """The records of tasks, with their results unless `status_only`.

    The reply's content maps each msg_id to its record or null for an unknown one; the frames of a
    completed task's result come in the order of `msg_ids`.
    """

    msg_ids: list[str]
    status_only: bool = False


class AwaitResults(Part, tag="await_results"):
    """As `FetchResults`, at once, and again, with the tasks that have ended since, until all have.

    So there are several replies to one request; it is over when each task's record has a status.
    """

    msg_ids: list[str]


class FetchRequests(Part, tag="fetch_requests"):
    """Tasks as they were submitted, as far as the controller still has them.

    The reply's content maps each msg_id to null or to a dictionary with ``options`` (`Options`),
    ``function`` (`Function` or null), ``target`` (engine id or null), ``frames``: how many frames
    of the reply are the function's (0 where an earlier msg_id brought them) and ``payload``: how
    many are the arguments'.
    """

    msg_ids: list[str]


class TaskHistory(Part, tag="history"):
    """All msg_ids in the database, in the order of submission."""


class FindRecords(Part, tag="db_query"):
    """Records that match a query in the database's query language; `query` is msgpack."""

    query: bytes
    keys: list[str] | None = None


class PurgeRecords(Part, tag="purge"):
    """Drop completed records: those of `msg_ids`, of the tasks of `engine_ids`, or all."""

    msg_ids: list[str] | None = None
    engine_ids: list[int] | None = None


class ShutdownCluster(Part, tag="shutdown"):
    """Stop engines (all if `targets` is None); with `hub`, the controller too."""

    targets: list[int] | None = None
    hub: bool = False


class OnEngineStart(Part, tag="on_engine_start"):
    """Have each engine that joins from now on call a function, without arguments, first of all.

    One with the name of another takes its place; with no frames the other is only forgotten.
    """

    call: StartCall


class DetachClient(Part, tag="detach"):
    """Record everything that this client has submitted, so that it outlives the controller.

    The reply comes when that is safely in the database; its content is the number of tasks that
    have not ended.
    """


class ExplainTasks(Part, tag="explain"):
    """Tell in plain words where tasks are and why; the content maps each msg_id to sentences."""

    msg_ids: list[str]


class Metrics(Part, tag="metrics"):
    """A snapshot of the controller's counters; the content is a dictionary."""


Question: TypeAlias = (
    QueueStatus
    | FetchResults
    | AwaitResults
    | FetchRequests
    | TaskHistory
    | FindRecords
    | PurgeRecords
    | ShutdownCluster
    | OnEngineStart
    | DetachClient
    | ExplainTasks
    | Metrics
)
