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
from typing import TypeVar

import msgspec

from .checks import CHECKS
from .columns import Frame, read_uint32
from .errors import ProtocolError
from .messages import (
    AnyMessage,
    Group,
    Message,
    Output,
    Results,
    ResultSlice,
    RunTasks,
    Submit,
    TaskSlice,
)

T = TypeVar("T")


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)

encode: Callable[[Message], bytes] = _encoder.encode
"""Return the header frame of a message."""

encode_part = _encoder.encode
"""Return the msgpack of a struct that travels inside a payload, such as an `ErrorInfo`."""


class SliceFrames(msgspec.Struct, gc=False):
    """The frames of one group or slice of a message."""

    function: Sequence[Frame]
    payload: Sequence[Frame]


def decode(header: Frame) -> AnyMessage:
    """Return the message in a header frame.

    Raises:
        ProtocolError: if it is not one, or has fields that contradict one another.
    """
    try:
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this protocol: {_short(error)}") from None
    check = CHECKS.get(type(message))
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
        columns = piece.columns
        start = position + (function.frames if function else 0)
        end = start + 1
        if columns.buffer_counts:
            end += sum(read_uint32(columns.buffer_counts))
        if end > len(frames):
            raise ProtocolError(f"a message announces {end} frames or more and has {len(frames)}")
        sizes = columns.sizes
        announced = int.from_bytes(sizes, "little") if len(sizes) == 4 else sum(read_uint32(sizes))
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
