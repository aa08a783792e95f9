"""The payload of many tasks as a few frames, and back.

What lives here: `PayloadWriter`, which packs the pickles and buffers of tasks one after the other
into `messages.Columns` and frames; `Payloads`, which finds one task's part in them, or a run of
tasks' part, without copying. What must not: pickling, sockets, shared memory (a writer is handed
buffers that have been placed already).

A frame is anything with a length and the buffer protocol: bytes, memoryview, `zmq.Frame`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol, TypeAlias

from .errors import ProtocolError
from .messages import Columns


class SizedBuffer(Protocol):
    """What a frame must be able to do; bytes, memoryview and `zmq.Frame` can."""

    def __len__(self) -> int: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...


Frame: TypeAlias = bytes | bytearray | memoryview | SizedBuffer

_FLOAT64 = struct.Struct("<d")

pack_float64 = _FLOAT64.pack
"""Return a column of one float64."""

_BIG_ENDIAN = sys.byteorder == "big"


def uint32_column(values: Iterable[int]) -> bytes:
    """Return the values as a column of little-endian uint32."""
    column = array("I", values)
    if _BIG_ENDIAN:
        column.byteswap()
    return column.tobytes()


def float64_column(values: Sequence[float]) -> bytes:
    """Return the values as a column of little-endian float64."""
    if len(values) == 1:
        return pack_float64(values[0])
    column = array("d", values)
    if _BIG_ENDIAN:
        column.byteswap()
    return column.tobytes()


def read_uint32(column: bytes) -> Sequence[int]:
    """Return the numbers of a uint32 column; no copy where the machine is little-endian.

    Raises:
        ProtocolError: if the column is not a multiple of 4 bytes long.
    """
    if len(column) % 4:
        raise ProtocolError(f"a column of {len(column)} bytes is no multiple of 4")
    if _BIG_ENDIAN:
        values = array("I", column)
        values.byteswap()
        return values
    return memoryview(column).cast("I")


def read_float64(column: bytes) -> Sequence[float]:
    """Return the numbers of a float64 column; no copy where the machine is little-endian.

    Raises:
        ProtocolError: if the column is not a multiple of 8 bytes long.
    """
    if len(column) % 8:
        raise ProtocolError(f"a column of {len(column)} bytes is no multiple of 8")
    if _BIG_ENDIAN:
        values = array("d", column)
        values.byteswap()
        return values
    return memoryview(column).cast("d")


def pack_pickles(pickles: Sequence[bytes | memoryview]) -> tuple[Columns, list[Frame]]:
    """Return what `PayloadWriter` makes of payloads that have no large buffers."""
    packed = pickles[0] if len(pickles) == 1 else b"".join(pickles)
    return Columns(uint32_column(map(len, pickles))), [packed]


def sum_float64(column: bytes) -> float:
    """Return the sum of a float64 column, which is of the right length."""
    if len(column) == 8:  # a lone task's
        value: float = _FLOAT64.unpack(column)[0]
        return value
    return sum(read_float64(column))


class PayloadWriter:
    """Packs payloads, one task after the other.

    Example:
        >>> writer = PayloadWriter()
        >>> writer.append(b"abc")
        >>> writer.append(b"de", [(b"a large buffer", False)])
        >>> columns, frames = writer.finish()
        >>> frames
        [b'abcde', b'a large buffer']
    """

    __slots__ = ("_blobs", "_buffer_counts", "_buffers", "_pickles", "_sizes", "n_bytes")

    def __init__(self) -> None:
        self._pickles: list[bytes | memoryview] = []
        self._sizes = array("I")
        self._buffer_counts: array[int] | None = None
        self._buffers: list[Frame] = []
        self._blobs = bytearray()
        self.n_bytes = 0
        """Bytes held so far, of pickles and of buffers."""

    def __len__(self) -> int:
        return len(self._pickles)

    def append(
        self, pickle: bytes | memoryview, buffers: Sequence[tuple[Frame, bool]] = ()
    ) -> None:
        """Add the next task's payload.

        Args:
            pickle: the part that is packed together with the other tasks'.
            buffers: the frames of its large buffers; each with True if the frame is a `BlobHandle`.
        """
        self._pickles.append(pickle)
        size = len(pickle)
        self._sizes.append(size)
        self.n_bytes += size
        if buffers:
            if self._buffer_counts is None:
                self._buffer_counts = array("I", bytes(4 * (len(self._sizes) - 1)))
            self._buffer_counts.append(len(buffers))
            for frame, is_blob in buffers:
                self._buffers.append(frame)
                self._blobs.append(is_blob)
                self.n_bytes += len(frame)
        elif self._buffer_counts is not None:
            self._buffer_counts.append(0)

    def extend(self, pickles: Sequence[bytes | memoryview]) -> None:
        """Add the payloads of many tasks that have no large buffers; the fast path of a map."""
        self._pickles.extend(pickles)
        self._sizes.extend(map(len, pickles))
        self.n_bytes += sum(map(len, pickles))
        if self._buffer_counts is not None:
            self._buffer_counts.extend([0] * len(pickles))

    def finish(self) -> tuple[Columns, list[Frame]]:
        """Return the columns and the frames ``[packed, buffer, …]``; the writer is used up."""
        counts = self._buffer_counts
        columns = Columns(
            sizes=uint32_column(self._sizes) if _BIG_ENDIAN else self._sizes.tobytes(),
            buffer_counts=b"" if counts is None else uint32_column(counts),
            blobs=bytes(self._blobs) if counts is not None and any(self._blobs) else b"",
        )
        pickles = self._pickles
        packed: Frame = pickles[0] if len(pickles) == 1 else b"".join(pickles)
        return columns, [packed, *self._buffers]


class Payloads:
    """The payloads of a group or slice: finds one task's part, or that of a run of tasks.

    Attributes:
        columns: where what is.
        packed: the frame of the small pickles.
        ends: 0, and where the pickle of each task ends in it.
        buffers: the frames of the large buffers of all tasks.
    """

    __slots__ = ("_buffer_ends", "_packed_view", "buffers", "columns", "ends", "packed")

    def __init__(self, columns: Columns, frames: Sequence[Frame]) -> None:
        """Take columns and frames that `codec.split` has checked.

        Raises:
            ProtocolError: if there is no packed frame.
        """
        if not frames:
            raise ProtocolError("a slice without its packed frame")
        self.columns = columns
        self.packed = frames[0]
        self.buffers = frames[1:]
        self._packed_view = memoryview(self.packed)
        sizes = columns.sizes
        self.ends: Sequence[int] = (
            array("Q", accumulate(read_uint32(sizes), initial=0))
            if len(sizes) != 4
            else (0, int.from_bytes(sizes, "little"))
        )
        self._buffer_ends = (
            array("Q", accumulate(read_uint32(columns.buffer_counts), initial=0))
            if columns.buffer_counts
            else None
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def n_bytes(self) -> int:
        """Bytes of the packed frame and of the inline buffers."""
        return len(self.packed) + sum(map(len, self.buffers))

    def pickle(self, index: int) -> memoryview:
        """Return the packed part of one payload, not copied."""
        return self._packed_view[self.ends[index] : self.ends[index + 1]]

    def buffer_frames(self, index: int) -> Sequence[Frame]:
        """Return the buffer frames of one payload."""
        if self._buffer_ends is None:
            return ()
        return self.buffers[self._buffer_ends[index] : self._buffer_ends[index + 1]]

    def buffer_blobs(self, index: int) -> bytes:
        """Return one byte per buffer frame of a payload, 1 for a blob handle."""
        if self._buffer_ends is None:
            return b""
        first, end = self._buffer_ends[index], self._buffer_ends[index + 1]
        return self.columns.blobs[first:end] if self.columns.blobs else bytes(end - first)

    def part(self, start: int, stop: int) -> tuple[Columns, list[Frame]]:
        """Return columns and frames of payloads ``start … stop-1``; no payload is copied."""
        if start == 0 and stop == len(self):
            return self.columns, [self.packed, *self.buffers]
        columns = Columns(sizes=self.columns.sizes[4 * start : 4 * stop])
        frames: list[Frame] = [self._packed_view[self.ends[start] : self.ends[stop]]]
        if self._buffer_ends is not None:
            first, end = self._buffer_ends[start], self._buffer_ends[stop]
            if end > first:
                columns.buffer_counts = self.columns.buffer_counts[4 * start : 4 * stop]
                columns.blobs = self.columns.blobs[first:end]
                frames += self.buffers[first:end]
        return columns, frames


__all__ = [
    "Frame",
    "PayloadWriter",
    "Payloads",
    "float64_column",
    "pack_float64",
    "pack_pickles",
    "read_float64",
    "read_uint32",
    "sum_float64",
    "uint32_column",
]
