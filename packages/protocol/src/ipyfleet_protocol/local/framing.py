"""How messages lie in a stream of bytes; no I/O.

A message is the number of its frames (4 bytes, little-endian), the size of each (8 bytes), and then
the frames one behind the other. A stream that says anything else cannot be read on from there: the
connection has to end.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Sequence

from ..columns import Frame
from ..errors import ProtocolError

FRAMES_MAX = 1 << 22
"""A message of more frames is none of ours."""

COPY_MAX_BYTES = 8192
"""Frames up to this size are copied out of a message that was received into memory of its own, so
that a header that is kept does not keep the payload."""

MAP_MIN_BYTES = 1 << 20
"""Room for a message of this size and more is mapped: what is not received takes no memory,
whatever was announced."""

_COUNT = struct.Struct("<I")


class _Layouts(dict[int, struct.Struct]):
    """Layouts of what goes before a message's frames, by their number; the usual ones are kept."""

    def __missing__(self, count: int) -> struct.Struct:
        return struct.Struct(f"<I{count}Q")


LAYOUTS = _Layouts((count, struct.Struct(f"<I{count}Q")) for count in range(17))


def frame_prefix(sizes: Sequence[int]) -> bytes:
    """Return what goes before a message's frames, given their sizes in bytes."""
    count = len(sizes)
    return LAYOUTS[count].pack(count, *sizes)


class Deframer:
    """Takes bytes in pieces of any size and gives out messages.

    Attributes:
        messages: those that are complete; for the owner to take out.
        room: where the next bytes should be received into; None for anywhere, and then `feed`.
    """

    __slots__ = ("_count", "_filled", "_rest", "_sizes", "_target", "messages", "room")

    def __init__(self) -> None:
        self.messages: deque[list[Frame]] = deque()
        self.room: memoryview | None = None
        self._rest = b""
        self._target: memoryview | None = None
        self._filled = 0
        # What the target is for: the sizes of `_count` frames, or frames of these `_sizes`.
        self._count = 0
        self._sizes: tuple[int, ...] = ()

    def feed(self, data: bytes) -> None:
        """Take bytes in while `room` is None.

        Raises:
            ProtocolError: this is no stream of messages.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = 0, len(data)
        while end - at >= 4:
            (count,) = _COUNT.unpack_from(data, at)
            body = at + 4 + 8 * count
            if body > end:
                self._expect_sizes(count, data, at + 4)
                return
            sizes = LAYOUTS[count].unpack_from(data, at)[1:]
            at = body
            if sum(sizes) > end - at:
                self._expect_frames(sizes, data, at)
                return
            frames: list[Frame] = []
            for size in sizes:
                frames.append(data[at : at + size])
                at += size
            self.messages.append(frames)
        self._rest = data[at:]

    def filled(self, n_bytes: int) -> None:
        """Note that so many bytes have been received into `room`.

        Raises:
            ProtocolError: this is no stream of messages.
        """
        target = self._target
        assert target is not None and self.room is not None
        self._filled += n_bytes
        if self._filled < len(target):
            self.room = target[self._filled :]
            return
        self._target = self.room = None
        if self._count:
            sizes = struct.unpack(f"<{self._count}Q", target)
            self._count = 0
            self._expect_frames(sizes, b"", 0)
        else:
            self._cut(target)

    def _expect_sizes(self, count: int, data: bytes, at: int) -> None:
        if count > FRAMES_MAX:
            raise ProtocolError(f"a message of {count} frames is announced")
        self._count = count
        self._make_room(8 * count, data, at)

    def _expect_frames(self, sizes: tuple[int, ...], data: bytes, at: int) -> None:
        self._sizes = sizes
        size = sum(sizes)
        if size:
            self._make_room(size, data, at)
        else:
            self._cut(memoryview(b""))

    def _make_room(self, size: int, data: bytes, at: int) -> None:
        try:
            made = _map_room(size) if size >= MAP_MIN_BYTES else bytearray(size)
        except (OSError, OverflowError, ValueError, MemoryError):
            raise ProtocolError(f"there is no room for a message of {size} bytes") from None
        self._target = target = memoryview(made)
        self._filled = len(data) - at
        target[: self._filled] = data[at:]
        self.room = target[self._filled :]

    def _cut(self, body: memoryview) -> None:
        frames: list[Frame] = []
        at = 0
        for size in self._sizes:
            piece = body[at : at + size]
            frames.append(bytes(piece) if size <= COPY_MAX_BYTES else piece)
            at += size
        self.messages.append(frames)
        self._sizes = ()


def _map_room(size: int) -> mmap.mmap:
    # Private: an array in it is not to change when a child of user code writes into its own.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
