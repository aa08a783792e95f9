"""What messages are made of: groups, slices, columns, errors, outputs, engines.

What lives here: the structs that are parts of messages, and the values of their fields.
`messages.py` has their names, too, and explains how they go together. What must not: the messages.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from .structs import Part

OK, FAILED, ABORTED, UNMET = 0, 1, 2, 3
"""Values in `ResultSlice.status`: a value; an error; cancelled (before it ran, or while it ran) or
never run because an `execute` before it in the same engine's queue failed; turned down by the
task's functional dependency on this engine, to be tried elsewhere (balanced tasks only, and never
seen by clients). The payload of the last three is an `ErrorInfo`."""

Placement: TypeAlias = Literal["direct", "balanced"]
CommKind: TypeAlias = Literal["comm_open", "comm_msg", "comm_close"]
Method: TypeAlias = Literal["apply", "map", "execute"]
Role: TypeAlias = Literal["client", "engine", "agent"]
OutputKind: TypeAlias = Literal[
    "stdout",
    "stderr",
    "display_data",
    "update_display_data",
    "execute_result",
    "execute_input",
    "error",
    "clear_output",
    "data",
    "comm_open",
    "comm_msg",
    "comm_close",
]


class Columns(Part):
    """Where the payload of each task of a group or slice is.

    Attributes:
        sizes: uint32, little-endian, one per payload: bytes of its pickle in the packed frame.
        buffer_counts: uint32 each: number of buffer frames of each payload; empty for "none at
            all".
        blobs: one byte per buffer frame, 1 where the frame is a `BlobHandle`; empty for "none".
    """

    sizes: bytes
    buffer_counts: bytes = b""
    blobs: bytes = b""


class BlobHandle(Part):
    """A buffer in shared memory.

    Attributes:
        name: of its first file in the cluster's blob directory.
        size: bytes, of all files.
        files: how many it is made of, one behind the other (`blobs`).
    """

    name: str
    size: int
    files: int = 1


class Function(Part):
    """A function on its way to engines.

    Attributes:
        digest: 16 bytes; names the function in the later messages that do not carry it.
        name: for error messages and reprs.
        reusable: an engine may unpickle it once and call it for many tasks. False where that could
            be told from a fresh copy for each task (mutable defaults or closure cells).
        self_name: the global name under which the function calls itself, or "". The engine plants
            the function there while it runs, unless the namespace has the name.
        frames: number of frames in this message that hold it (the pickle, then its buffers); 0
            where the receiver has it already.
    """

    digest: bytes
    name: str = ""
    reusable: bool = False
    self_name: str = ""
    frames: int = 0


class TaskRange(Part):
    """Tasks ``first … first+count-1`` of any client."""

    client: bytes
    first: int
    count: int


class Dependency(Part):
    """Tasks on whose end others wait.

    Attributes:
        tasks: which; each is in the list once.
        all: met when all of them have ended as wanted; else when one of them has.
        success, failure: which ends are wanted: a value; an error or an abort.
    """

    tasks: list[TaskRange]
    all: bool = True
    success: bool = True
    failure: bool = False


class Options(Part):
    """What a group's caller asked for; the same for all tasks of the group.

    Attributes:
        method: what an engine does with a task (module docstring).
        placement: `direct`: task i runs on engine ``targets[i]``; `balanced`: any engine, or any of
            ``targets`` if there are some.
        targets: engine ids. As many as tasks for `direct`; None for "any" with `balanced`.
        shared: the group has one payload, which is that of every task (same call on n engines).
        retries: how many further attempts a failed task has; `balanced` only.
        silent: an `execute` that publishes neither its input nor its result, keeps no history and
            lets the queue go on when it fails.
        label: the user's name for the work, kept in the database.
        host: the client's host id: an engine on this host may answer with blobs.
        after: the tasks wait until it is met; `balanced` only, like all that follows.
        follow: the tasks run where the tasks that it names ran.
        timeout_s: seconds that a task may wait for a place before it ends in `TaskTimeout`; 0 for
            "any".
        priority: of one client's waiting tasks those with the higher number go first.
        resources: what an engine must have (`Hello.resources`): at least so much of each.
        resubmits: the one task that this group's only task is again, for its record.
    """

    method: Method = "apply"
    placement: Placement = "balanced"
    targets: list[int] | None = None
    shared: bool = False
    retries: int = 0
    silent: bool = False
    label: str = ""
    host: str = ""
    after: Dependency | None = None
    follow: Dependency | None = None
    timeout_s: float = 0.0
    priority: int = 0
    resources: dict[str, float] = msgspec.field(default_factory=dict)
    resubmits: TaskRange | None = None


class EndedRange(Part):
    """Tasks ``first … first+count-1`` of a message's sender, which have all ended with `status`."""

    first: int
    count: int
    status: int


class Group(Part):
    """Tasks ``first … first+count-1`` of its sender; `function` is None for `execute`.

    The last three are for a client that submits anew what an earlier run of the controller had.

    Attributes:
        ended: one byte per task: 0 for those that have not ended, else 1 + its status. Empty for
            "none".
        failed_before: which tasks before this group, and after the one before it, have ended
            otherwise than `OK`. All others there have ended well.
        waited_ms: how long ago the tasks were submitted first, where `Options.timeout_s` is set.
    """

    first: int
    count: int
    options: Options
    function: Function | None
    columns: Columns
    ended: bytes = b""
    failed_before: list[EndedRange] = msgspec.field(default_factory=list)
    waited_ms: int = 0


class TaskSlice(Part):
    """Tasks of one client and one group, with one attempt number, on their way to an engine.

    Attributes:
        client: peer id of the client.
        first: seq of the first; the others follow without a gap.
        count: number of tasks.
        attempt: 0 for the first run of a task, 1 for the next, …
        ordinal: engine-local number of the first; the others follow.
        shared: as in `Options`: one payload for all tasks of the slice.
        balanced: the controller has other places for a task that ends as `UNMET`.
    """

    client: bytes
    first: int
    count: int
    attempt: int
    ordinal: int
    method: Method
    silent: bool
    shared: bool
    host: str
    function: Function | None
    columns: Columns
    balanced: bool = False


class ResultSlice(Part):
    """How tasks with contiguous seqs and contiguous ordinals ended on one engine.

    Attributes:
        first, count, attempt, ordinal: as in `TaskSlice`.
        status: one byte per task: `OK`, `FAILED`, `ABORTED`.
        started, completed: float64 little-endian per task: seconds since the epoch, the engine's
            clock. NaN for a task that never ran.
        outputs: uint32 each: number of output items that each task has published; empty for "none
            at all". Tells the client when it has all of a task's output.
        columns: where the payloads are.
    """

    first: int
    count: int
    attempt: int
    ordinal: int
    status: bytes
    started: bytes
    completed: bytes
    outputs: bytes
    columns: Columns


class ErrorInfo(Part):
    """An error as data: readable without unpickling anything.

    Attributes:
        ename, evalue: class name and text of the exception.
        traceback: lines as IPython renders them.
        engine_id, engine_uuid, method: where it happened; engine_id is -1 for "on no engine".
        cause: the pickled exception, or empty where it cannot be pickled. Only clients unpickle it.
        own: the system made it; `ename` is one of the error classes of `errors`.
    """

    ename: str
    evalue: str
    traceback: list[str]
    engine_id: int = -1
    engine_uuid: str = ""
    method: str = ""
    cause: bytes = b""
    own: bool = False


class ExecuteInfo(Part):
    """The result of a successful `execute`."""

    execution_count: int = 0


class OutputItem(Part):
    """One piece of a task's output.

    Attributes:
        seq: the task of the client that the message goes to.
        index: 0 for the first item of this task, and so on without a gap; also the order to show.
        kind: as Jupyter's message types; `stdout` and `stderr` instead of `stream`; `data` is what
            `publish_data` sends (a pickle in one buffer frame).
        content: the msgpack of the Jupyter message's content; for `stdout` and `stderr` the text in
            UTF-8.
        buffers: number of frames of this message that belong to the item.
        dropped_bytes: output of this task that was dropped before this item because a bound was
            hit.
        attempt: as in `TaskSlice`; each attempt counts its items from 0.
    """

    seq: int
    index: int
    kind: OutputKind
    content: bytes
    buffers: int = 0
    dropped_bytes: int = 0
    attempt: int = 0


class EngineInfo(Part):
    """What clients know of an engine; `resources` as in `Hello`."""

    engine_id: int
    peer: bytes
    host: str
    hostname: str
    pid: int
    resources: dict[str, float] = msgspec.field(default_factory=dict)


class EngineLost(Part):
    """An engine that is gone, and why, in plain words."""

    engine_id: int
    reason: str


class SeqRange(Part):
    """Tasks ``first … first+count-1`` of the client that the message speaks of."""

    first: int
    count: int


class PlacedRange(Part):
    """Tasks ``first … first+count-1`` of one client as they are at one engine.

    Attributes:
        first, count: as in `SeqRange`.
        ordinal, attempt: as in `TaskSlice`.
    """

    first: int
    count: int
    ordinal: int
    attempt: int = 0


class HeldTasks(Part):
    """Tasks ``first … first+count-1`` of `client` that an engine has and has not got rid of.

    They wait there, run, or have ended with results that the client has not acknowledged.

    Attributes:
        first, count, ordinal, attempt: as in `TaskSlice`.
    """

    client: bytes
    first: int
    count: int
    ordinal: int
    attempt: int = 0
