"""Messages to frames and back, with every check that a receiver needs.

What lives here: `encode`, `decode` and `split`. What must not: pickling (nothing here, and so
nothing in the controller, ever unpickles), sockets, knowledge of who may send what (`table.py`).

Whatever the input, these functions return a checked message or raise `ProtocolError`; they allocate
no more than a small multiple of the input's size. After `decode` and `split` a receiver may rely
on: columns as long as they should be and of plausible content, a packed frame as long as its sizes
say, as many frames as the header announces, peer ids of 16 bytes, counts and sequence numbers in
range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from .columns import Frame, read_uint32
from .errors import ProtocolError
from .ids import PEER_ID_BYTES
from .messages import (
    AnyMessage,
    Cancel,
    Columns,
    Control,
    ControlReply,
    DropTasks,
    EngineControl,
    EngineExited,
    EngineInfo,
    EnginesChanged,
    Function,
    Group,
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
    ResultSlice,
    RunTasks,
    SendSignal,
    SeqRange,
    SignalEngines,
    Submit,
    TaskSlice,
    Welcome,
)

MAX_SEQ = 1 << 62
"""Sequence numbers, ordinals and request numbers stay below."""

MAX_SMALL = 1 << 31
"""Engine ids, process ids, attempts, retries, tasks that share one payload stay below."""

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)

encode_part = _encoder.encode
"""Return the msgpack of a struct that travels inside a payload, such as an `ErrorInfo`."""


class SliceFrames(NamedTuple):
    """The frames of one group or slice of a message."""

    function: Sequence[Frame]
    payload: Sequence[Frame]


def encode(message: Message) -> bytes:
    """Return the header frame of a message."""
    return _encoder.encode(message)


def decode(header: Frame) -> AnyMessage:
    """Return the message in a header frame.

    Raises:
        ProtocolError: if it is not one, or has fields that contradict one another.
    """
    try:
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this protocol: {_short(error)}") from None
    check = _CHECKS.get(type(message))
    if check is not None:
        check(message)
    return message


def decode_part(data: Frame, kind: type[T]) -> T:
    """Return the struct in a payload that `encode_part` made.

    Raises:
        ProtocolError: if it is not one of that kind.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a {kind.__name__}: {_short(error)}") from None


def _short(error: Exception) -> str:
    # It may quote what was sent, of any length; this text goes into logs and answers.
    text = str(error)
    return text if len(text) <= 300 else f"{text[:200]} … {text[-100:]}"


def split(message: Submit | RunTasks | Results, frames: Sequence[Frame]) -> list[SliceFrames]:
    """Return the frames of each group or slice of a decoded message.

    Raises:
        ProtocolError: if there are too few or too many, or a packed frame has not the size that its
            columns announce.
    """
    slices: Sequence[Group | TaskSlice | ResultSlice]
    slices = message.groups if isinstance(message, Submit) else message.slices
    out = []
    position = 0
    for piece in slices:
        function = None if isinstance(piece, ResultSlice) else piece.function
        start = position + (function.frames if function else 0)
        end = start + 1 + sum(read_uint32(piece.columns.buffer_counts))
        if end > len(frames):
            raise ProtocolError(f"a message announces {end} frames or more and has {len(frames)}")
        announced = sum(read_uint32(piece.columns.sizes))
        if len(frames[start]) != announced:
            raise ProtocolError(
                f"a packed frame has {len(frames[start])} bytes where {announced} are announced"
            )
        out.append(SliceFrames(frames[position:start], frames[start:end]))
        position = end
    if position != len(frames):
        raise ProtocolError(f"a message announces {position} frames and has {len(frames)}")
    return out


def split_output(message: Output, frames: Sequence[Frame]) -> list[Sequence[Frame]]:
    """Return the buffer frames of each item of an `Output`.

    Raises:
        ProtocolError: if there are too few or too many frames.
    """
    if sum(item.buffers for item in message.items) != len(frames):
        raise ProtocolError(
            f"an output has {len(frames)} frames, not as many as its items announce"
        )
    out = []
    position = 0
    for item in message.items:
        out.append(frames[position : position + item.buffers])
        position += item.buffers
    return out


# -- checks that types alone cannot make ------------------------------------------------------


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ProtocolError(complaint)


def _check_peer(peer: bytes, what: str = "peer id") -> None:
    _require(len(peer) == PEER_ID_BYTES, f"a {what} of {len(peer)} bytes")


def _check_peers(peers: Sequence[bytes]) -> None:
    for peer in peers:
        _check_peer(peer)


def _check_range(first: int, count: int) -> None:
    _require(first >= 0 and count >= 1 and first + count <= MAX_SEQ, f"tasks {first} + {count}")


def _check_small(number: int, what: str, least: int = 0) -> None:
    _require(least <= number < MAX_SMALL, f"{what} {number}")


def _check_targets(targets: Sequence[int] | None) -> None:
    if targets:
        _require(min(targets) >= 0 and max(targets) < MAX_SMALL, "a target out of range")


def _check_request(request: int) -> None:
    _require(0 <= request < MAX_SEQ, f"request number {request}")


def _check_signal(signum: int) -> None:
    _require(0 <= signum <= 64, f"signal number {signum}")


def _check_columns(columns: Columns, count: int) -> None:
    _require(len(columns.sizes) == 4 * count, f"{len(columns.sizes)} bytes of sizes for {count}")
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
        _require(len(function.digest) == 16, "a digest that is not 16 bytes")
        _require(0 <= function.frames < 1 << 20, f"a function of {function.frames} frames")


def _check_submit(message: Submit) -> None:
    for group in message.groups:
        options = group.options
        _check_range(group.first, group.count)
        _check_function(group.function)
        _require(
            (group.function is None) == (options.method == "execute"),
            f"a group with method {options.method} and {'a' if group.function else 'no'} function",
        )
        if options.placement == "direct":
            _require(
                options.targets is not None and len(options.targets) == group.count,
                "a direct group needs one target per task",
            )
        _check_targets(options.targets)
        # No engine could ever run them.
        _require(options.targets != [], "an empty list of targets")
        _check_small(options.retries, "retries")
        _require(not options.shared or options.placement == "direct", "shared but not direct")
        _check_columns(group.columns, 1 if options.shared else group.count)


def _check_run(message: RunTasks) -> None:
    for piece in message.slices:
        _check_peer(piece.client)
        _check_range(piece.first, piece.count)
        _require(0 <= piece.ordinal < MAX_SEQ, f"ordinal {piece.ordinal}")
        _check_small(piece.attempt, "attempt")
        # Nothing else bounds it: one payload serves any number of tasks.
        _require(not piece.shared or piece.count < MAX_SMALL, f"{piece.count} tasks, one payload")
        _check_function(piece.function)
        _require((piece.function is None) == (piece.method == "execute"), "method and function")
        _check_columns(piece.columns, 1 if piece.shared else piece.count)


def _check_results(message: Results) -> None:
    _check_peer(message.client)
    _check_small(message.engine, "engine", -1)
    for piece in message.slices:
        count = piece.count
        _check_range(piece.first, count)
        _require(-1 <= piece.ordinal < MAX_SEQ, f"ordinal {piece.ordinal}")
        _check_small(piece.attempt, "attempt")
        _require(len(piece.status) == count, "status of the wrong length")
        _require(not piece.status.strip(b"\0\1\2"), "an unknown status")
        _require(len(piece.started) == 8 * count, "started of the wrong length")
        _require(len(piece.completed) == 8 * count, "completed of the wrong length")
        _require(len(piece.outputs) in (0, 4 * count), "outputs of the wrong length")
        _check_columns(piece.columns, count)


def _check_hello(message: Hello) -> None:
    _check_peer(message.peer)
    _require(len(message.agent) in (0, PEER_ID_BYTES), "an agent's id of the wrong length")
    _check_small(message.wanted_id, "wanted engine id", -1)
    _check_small(message.pid, "process id")


def _check_output(message: Output) -> None:
    _check_peer(message.client)
    _check_small(message.engine, "engine")
    for item in message.items:
        _require(0 <= item.seq < MAX_SEQ, f"task {item.seq}")
        _require(0 <= item.index < MAX_SEQ, f"item {item.index}")
        _require(0 <= item.dropped_bytes < MAX_SEQ, f"{item.dropped_bytes} bytes dropped")
        _require(0 <= item.buffers < 1 << 20, f"an item of {item.buffers} buffers")


def _check_ranges(ranges: Sequence[SeqRange]) -> None:
    for piece in ranges:
        _check_range(piece.first, piece.count)


def _check_cancel(message: Cancel) -> None:
    _check_ranges(message.ranges)
    _require(0 <= message.grace_s < MAX_SMALL, f"a grace of {message.grace_s} s")


def _check_placed(ranges: Sequence[PlacedRange]) -> None:
    for piece in ranges:
        _check_range(piece.first, piece.count)
        # An engine answers with so many tasks' errors.
        _require(piece.count < MAX_SMALL, f"{piece.count} tasks at one engine")
        _require(0 <= piece.ordinal < MAX_SEQ, f"ordinal {piece.ordinal}")
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
    _require(min(ordinals) >= -1 and max(ordinals) < MAX_SEQ, f"ordinals {ordinals}")


def _check_exited(message: EngineExited) -> None:
    _check_peer(message.peer)
    _check_small(message.status, "exit status", -MAX_SMALL)
    _require(-1 <= message.running < MAX_SEQ, f"ordinal {message.running}")


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


_CHECKS: dict[type[Message], Callable[[Any], None]] = {
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
    Welcome: lambda message: _check_engines(message.engines),
    EnginesChanged: lambda message: _check_engines(message.joined),
    EngineExited: _check_exited,
    SignalEngines: _check_signal_engines,
    Control: _check_control,
    EngineControl: _check_control,
    ControlReply: _check_control_reply,
    Request: lambda message: _check_request(message.request),
    Reply: lambda message: _check_request(message.request),
}
