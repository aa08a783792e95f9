"""What a receiver checks in a decoded message, beyond the types of its fields.

What lives here: `CHECKS`, with one function for each message that has something to check. What must
not: decoding, frames (`codec.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .columns import read_uint32
from .errors import ProtocolError
from .ids import PEER_ID_BYTES
from .messages import (
    ABORTED,
    FAILED,
    OK,
    Ack,
    Attach,
    Attached,
    Cancel,
    Columns,
    CommMessage,
    Control,
    ControlReply,
    Dependency,
    DropTasks,
    EngineControl,
    EngineExited,
    EngineInfo,
    EnginesChanged,
    Function,
    Hello,
    KillRunning,
    Message,
    Output,
    PlacedRange,
    Recall,
    Recalled,
    Reply,
    Request,
    Results,
    ResultsTaken,
    RunTasks,
    SendSignal,
    SeqRange,
    SignalEngines,
    Submit,
    Welcome,
)

MAX_SEQ = 1 << 62
"""Sequence numbers, ordinals and request numbers stay below."""

_ENDED_MARKS = bytes((0, 1 + OK, 1 + FAILED, 1 + ABORTED))

INCARNATION_BYTES = 8
"""Length of the name of one run of a controller."""

MAX_SMALL = 1 << 31
"""Engine ids, process ids, attempts, retries, tasks that share one payload stay below."""


def _require(condition: bool, complaint: str, *values: object) -> None:
    if not condition:
        _complain(complaint, *values)


def _complain(complaint: str, *values: object) -> NoReturn:
    # Put together only now: most of what arrives is right, and formatting cost 3 µs a message.
    raise ProtocolError(complaint.format(*values))


# The checks of what each task's way consists of (`Submit`, `RunTasks`, `Results`) test in place
# instead of calling `_require`, and call others only if there is something to be looked at or to
# complain of: 27 of the 230 Python calls of a lone task in the controller.


def _check_peer(peer: bytes, what: str = "peer id") -> None:
    _require(len(peer) == PEER_ID_BYTES, "a {} of {} bytes", what, len(peer))


def _check_peers(peers: Sequence[bytes]) -> None:
    for peer in peers:
        _check_peer(peer)


def _check_range(first: int, count: int) -> None:
    if first < 0 or count < 1 or first + count > MAX_SEQ:
        _complain("tasks {} + {}", first, count)


def _check_small(number: int, what: str, least: int = 0) -> None:
    if not least <= number < MAX_SMALL:
        _complain("{} {}", what, number)


def _check_targets(targets: Sequence[int] | None) -> None:
    if targets and (min(targets) < 0 or max(targets) >= MAX_SMALL):
        _complain("a target out of range")


def _check_request(request: int) -> None:
    _require(0 <= request < MAX_SEQ, "request number {}", request)


def _check_signal(signum: int) -> None:
    _require(0 <= signum <= 64, "signal number {}", signum)


def _check_columns(columns: Columns, count: int) -> None:
    if len(columns.sizes) != 4 * count:
        _complain("{} bytes of sizes for {}", len(columns.sizes), count)
    if columns.buffer_counts:
        _require(len(columns.buffer_counts) == 4 * count, "buffer counts of the wrong length")
    if columns.blobs:
        _require(
            len(columns.blobs) == sum(read_uint32(columns.buffer_counts)),
            "blob flags of the wrong length",
        )
        _require(not columns.blobs.strip(b"\0\1"), "a blob flag that is neither 0 nor 1")


def _check_function(function: Function | None) -> None:
    if function is not None:
        if len(function.digest) != 16:
            _complain("a digest that is not 16 bytes")
        if not 0 <= function.frames < 1 << 20:
            _complain("a function of {} frames", function.frames)


def _check_dependency(dependency: Dependency) -> None:
    _require(bool(dependency.tasks), "a dependency on no task")
    _require(dependency.success or dependency.failure, "a dependency that nothing meets")
    for tasks in dependency.tasks:
        _check_peer(tasks.client)
        _check_range(tasks.first, tasks.count)


def _check_resources(resources: Mapping[str, float]) -> None:
    for name, amount in resources.items():
        _require(bool(name) and 0 <= amount < MAX_SMALL, "resource {}={}", name, amount)


def _check_incarnation(incarnation: bytes, received: int) -> None:
    _require(len(incarnation) in (0, INCARNATION_BYTES), "an incarnation of the wrong length")
    _require(0 <= received < MAX_SEQ, "{} messages received", received)


def _check_submit(message: Submit) -> None:
    for group in message.groups:
        options, function, columns = group.options, group.function, group.columns
        if not 0 <= group.first < group.first + group.count <= MAX_SEQ:
            _check_range(group.first, group.count)
        if function is not None and (len(function.digest) != 16 or function.frames):
            _check_function(function)
        if (function is None) != (options.method == "execute"):
            _complain("a group with method {} and function {}", options.method, function)
        targets = options.targets
        if options.placement == "direct":
            if targets is None or len(targets) != group.count:
                _complain("a direct group needs one target per task")
        elif options.shared:
            _complain("shared but not direct")
        if targets is not None:
            if not targets:
                _complain("an empty list of targets")  # no engine could ever run them
            _check_targets(targets)
        if not 0 <= options.retries < MAX_SMALL:
            _complain("retries {}", options.retries)
        if options.after is not None:
            _check_dependency(options.after)
        if options.follow is not None:
            _check_dependency(options.follow)
        if not 0 <= options.timeout_s < MAX_SMALL:
            _complain("a timeout of {} s", options.timeout_s)
        if not -MAX_SMALL < options.priority < MAX_SMALL:
            _complain("priority {}", options.priority)
        if options.resources:
            _check_resources(options.resources)
        if options.resubmits is not None:
            _check_peer(options.resubmits.client)
            _check_range(options.resubmits.first, options.resubmits.count)
            _require(options.resubmits.count == group.count == 1, "not one task again")
        if group.ended:
            _require(len(group.ended) == group.count, "ended of the wrong length")
            _require(not group.ended.strip(_ENDED_MARKS), "neither ended nor not")
        for piece in group.failed_before:
            _check_range(piece.first, piece.count)
            _require(piece.first + piece.count <= group.first, "ended before, and later")
            _require(piece.status in (FAILED, ABORTED), "failed with status {}", piece.status)
        if not 0 <= group.waited_ms < MAX_SEQ:
            _complain("{} ms of waiting", group.waited_ms)
        count = 1 if options.shared else group.count
        if columns.buffer_counts or columns.blobs or len(columns.sizes) != 4 * count:
            _check_columns(columns, count)


def _check_run(message: RunTasks) -> None:
    for piece in message.slices:
        if len(piece.client) != PEER_ID_BYTES:
            _check_peer(piece.client)
        if not 0 <= piece.first < piece.first + piece.count <= MAX_SEQ:
            _check_range(piece.first, piece.count)
        if not 0 <= piece.ordinal < MAX_SEQ:
            _complain("ordinal {}", piece.ordinal)
        if not 0 <= piece.attempt < MAX_SMALL:
            _complain("attempt {}", piece.attempt)
        # Nothing else bounds it: one payload serves any number of tasks.
        if piece.shared and piece.count >= MAX_SMALL:
            _complain("{} tasks, one payload", piece.count)
        function, columns = piece.function, piece.columns
        if function is not None and (len(function.digest) != 16 or function.frames):
            _check_function(function)
        if (function is None) != (piece.method == "execute"):
            _complain("method and function")
        count = 1 if piece.shared else piece.count
        if columns.buffer_counts or columns.blobs or len(columns.sizes) != 4 * count:
            _check_columns(columns, count)


def _check_results(message: Results) -> None:
    if len(message.client) != PEER_ID_BYTES:
        _check_peer(message.client)
    if not -1 <= message.engine < MAX_SMALL:
        _complain("engine {}", message.engine)
    for piece in message.slices:
        first, count = piece.first, piece.count
        if first < 0 or count < 1 or first + count > MAX_SEQ:
            _check_range(first, count)
        if not -1 <= piece.ordinal < MAX_SEQ:
            _complain("ordinal {}", piece.ordinal)
        if not 0 <= piece.attempt < MAX_SMALL:
            _complain("attempt {}", piece.attempt)
        if len(piece.status) != count:
            _complain("status of the wrong length")
        if piece.status.strip(b"\0\1\2\3"):
            _complain("an unknown status")
        if len(piece.started) != 8 * count or len(piece.completed) != 8 * count:
            _complain("started or completed of the wrong length")
        if piece.outputs and len(piece.outputs) != 4 * count:
            _complain("outputs of the wrong length")
        columns = piece.columns
        if len(columns.sizes) != 4 * count or columns.buffer_counts or columns.blobs:
            _check_columns(columns, count)
    if not 0 <= message.number < MAX_SEQ:
        _complain("number {}", message.number)


def _check_hello(message: Hello) -> None:
    _check_peer(message.peer)
    _require(len(message.agent) in (0, PEER_ID_BYTES), "an agent's id of the wrong length")
    _check_small(message.wanted_id, "wanted engine id", -1)
    _check_small(message.pid, "process id")
    _check_resources(message.resources)
    _check_incarnation(message.incarnation, message.received)
    for tasks in message.held:
        _check_peer(tasks.client)
        _check_range(tasks.first, tasks.count)
        _require(0 <= tasks.ordinal < MAX_SEQ, "ordinal {}", tasks.ordinal)
        _check_small(tasks.attempt, "attempt")
    _require(0 <= message.next_ordinal < MAX_SEQ, "ordinal {}", message.next_ordinal)


def _check_welcome(message: Welcome) -> None:
    _check_engines(message.engines)
    _check_incarnation(message.incarnation, message.received)


def _check_taken(message: ResultsTaken) -> None:
    _check_peer(message.client)
    _require(0 <= message.number < MAX_SEQ, "number {}", message.number)


def _check_comm(message: CommMessage) -> None:
    _require(len(message.client) in (0, PEER_ID_BYTES), "a client's id of the wrong length")
    _check_small(message.engine, "engine")


def _check_output(message: Output) -> None:
    _check_peer(message.client)
    _check_small(message.engine, "engine")
    for item in message.items:
        _require(0 <= item.seq < MAX_SEQ, "task {}", item.seq)
        _require(0 <= item.index < MAX_SEQ, "item {}", item.index)
        _require(0 <= item.dropped_bytes < MAX_SEQ, "{} bytes dropped", item.dropped_bytes)
        _require(0 <= item.buffers < 1 << 20, "an item of {} buffers", item.buffers)


def _check_ranges(ranges: Sequence[SeqRange]) -> None:
    for piece in ranges:
        _check_range(piece.first, piece.count)


def _check_cancel(message: Cancel) -> None:
    _check_ranges(message.ranges)
    _require(0 <= message.grace_s < MAX_SMALL, "a grace of {} s", message.grace_s)


def _check_placed(ranges: Sequence[PlacedRange]) -> None:
    for piece in ranges:
        _check_range(piece.first, piece.count)
        # An engine answers with so many tasks' errors.
        _require(piece.count < MAX_SMALL, "{} tasks at one engine", piece.count)
        _require(0 <= piece.ordinal < MAX_SEQ, "ordinal {}", piece.ordinal)
        _check_small(piece.attempt, "attempt")


def _check_drop(message: DropTasks) -> None:
    _check_peer(message.client)
    _check_placed(message.ranges)


def _check_kill(message: KillRunning) -> None:
    _check_peer(message.peer)
    _check_placed(message.ranges)


def _check_engines(engines: Sequence[EngineInfo]) -> None:
    for engine in engines:
        _check_peer(engine.peer)
        _check_small(engine.engine_id, "engine")


def _check_recall(message: Recall | Recalled) -> None:
    ordinals = (message.first, message.last)
    _require(min(ordinals) >= -1 and max(ordinals) < MAX_SEQ, "ordinals {}", ordinals)


def _check_exited(message: EngineExited) -> None:
    _check_peer(message.peer)
    _check_small(message.status, "exit status", -MAX_SMALL)
    _require(-1 <= message.running < MAX_SEQ, "ordinal {}", message.running)


def _check_signal_engines(message: SignalEngines) -> None:
    _check_signal(message.signum)
    for peer in message.peers:
        _check_peer(peer)


def _check_control(message: Control | EngineControl) -> None:
    _check_request(message.request)
    if isinstance(message.action, SendSignal):
        _check_signal(message.action.signum)
    if isinstance(message, EngineControl):
        _check_peer(message.client)
        _require(len(message.peer) in (0, PEER_ID_BYTES), "an engine's id of the wrong length")
        _check_small(message.engine, "engine", -1)
    else:
        _check_targets(message.targets)


def _check_control_reply(message: ControlReply) -> None:
    _check_peer(message.client)
    _check_request(message.request)
    _check_small(message.engine, "engine", -1)


CHECKS: dict[type[Message], Callable[[Any], None]] = {
    Hello: _check_hello,
    Submit: _check_submit,
    RunTasks: _check_run,
    Results: _check_results,
    Output: _check_output,
    Recall: _check_recall,
    Recalled: _check_recall,
    Cancel: _check_cancel,
    DropTasks: _check_drop,
    KillRunning: _check_kill,
    Attach: lambda message: _check_incarnation(message.incarnation, message.received),
    Attached: lambda message: _check_incarnation(message.incarnation, message.received),
    Ack: lambda message: _check_incarnation(b"", message.received),
    Welcome: _check_welcome,
    ResultsTaken: _check_taken,
    CommMessage: _check_comm,
    EnginesChanged: lambda message: _check_engines(message.joined),
    EngineExited: _check_exited,
    SignalEngines: _check_signal_engines,
    Control: _check_control,
    EngineControl: _check_control,
    ControlReply: _check_control_reply,
    Request: lambda message: _check_request(message.request),
    Reply: lambda message: _check_request(message.request),
}
"""By kind of message: checks what its type alone cannot say, and raises `ProtocolError` if a field
is out of range, or two contradict one another. What is not here has nothing to check."""
