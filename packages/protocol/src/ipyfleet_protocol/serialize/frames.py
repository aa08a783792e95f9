"""Pickles and their buffers: how large data leaves the pickle and gets back in.

Theory of operation. Pickle 5 hands each `PickleBuffer` of what it pickles (numpy, pandas and
others make them) to a callback: the small ones stay inside, the large ones become frames of
their own. Three things need more than that, and get it by persistent ids:

- large ``bytes`` and ``bytearray`` make no `PickleBuffer`; a persistent id stands for them;
- a read-only buffer would make a read-only array at the receiver, and received arrays are to
  be writable; a persistent id stands for it, and the receiver puts a writable one there;
- the same large object in two places stays one object.

A persistent id is ``(kind, k)`` for the buffer ``buffers[-1 - k]``, or, where the buffer is
small, its content as a `bytearray`. Buffers in the order of pickle's callback come first,
those of persistent ids come reversed at the end, so neither has to know of the other.
"""

from __future__ import annotations

import io
import pickle
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pickle import PickleBuffer
from typing import Any, NamedTuple

from ..columns import Frame
from .failures import UnpackError

IN_BAND_MAX_BYTES = 16 * 1024
"""Buffers smaller than this stay inside the pickle."""

BIG_BYTES = 64 * 1024
"""``bytes`` and ``bytearray`` of this size leave the pickle; pickle keeps such out of its frames,
which is how `has_big_bytes` sees them."""

PROTOCOL = 5

_AS_BYTES, _AS_BYTEARRAY, _AS_BUFFER = range(3)

_PERSISTENT_ID_OPCODE = re.compile(re.escape(pickle.BINPERSID))

# Opcodes that the C pickler writes outside of a frame because their argument is big, with
# the size of the length that follows.
_UNFRAMED = {
    pickle.BINBYTES[0]: 4,
    pickle.BINBYTES8[0]: 8,
    pickle.BYTEARRAY8[0]: 8,
    pickle.BINUNICODE[0]: 4,
    pickle.BINUNICODE8[0]: 8,
}
_UNFRAMED_TEXT = frozenset((pickle.BINUNICODE[0], pickle.BINUNICODE8[0]))
_FRAME = pickle.FRAME[0]


class Packed(NamedTuple):
    """One pickled object: the pickle and its out-of-band buffers, each a frame of its own.

    The buffers are contiguous views of the sender's own memory: whoever queues them sends
    what is there when they are read.
    """

    pickle: bytes
    buffers: list[memoryview]


class BufferCollector:
    """Mixin for a Pickler class: takes large buffers and bytes out of the pickle."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, PROTOCOL, buffer_callback=self._take)  # type: ignore[call-arg]
        self._in_order: list[memoryview] = []
        self._by_id: list[memoryview] = []
        # id -> index in _by_id; the views there keep the objects, and so the ids, alive.
        self._index: dict[int, int] = {}

    @property
    def buffers(self) -> list[memoryview]:
        """What left the pickle, in the order that `unpack` expects."""
        return self._in_order + self._by_id[::-1]

    def persistent_id(self, obj: Any) -> Any:
        """Called by pickle for each object: whether a persistent id stands for it."""
        kind = type(obj)
        if kind is bytes:
            return self._leave(obj, _AS_BYTES) if len(obj) >= BIG_BYTES else None
        if kind is bytearray:
            return self._leave(obj, _AS_BYTEARRAY) if len(obj) >= BIG_BYTES else None
        if kind is PickleBuffer:
            view = obj.raw()
            if view.readonly:
                if view.nbytes < IN_BAND_MAX_BYTES:
                    return bytearray(view)
                return self._leave(obj, _AS_BUFFER)
        return None

    def _leave(self, obj: Any, kind: int) -> tuple[int, int]:
        index = self._index.get(id(obj))
        if index is None:
            index = self._index[id(obj)] = len(self._by_id)
            self._by_id.append(PickleBuffer(obj).raw())
        return kind, index

    def _take(self, buffer: PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < IN_BAND_MAX_BYTES:
            return True
        self._in_order.append(view)
        return False


class BufferPickler(BufferCollector, pickle.Pickler):
    """Plain pickle with large bytes and writable read-only buffers out of band."""


def dump_with(pickler_class: Callable[[io.BytesIO], Any], obj: Any) -> Packed:
    """Pickle ``obj`` with a class that has the `BufferCollector` mixin."""
    file = io.BytesIO()
    pickler = pickler_class(file)
    pickler.dump(obj)
    return Packed(file.getvalue(), pickler.buffers)


def has_big_bytes(data: bytes) -> bool:
    """Whether a pickle made by ``pickle.dumps`` holds ``bytes`` or a ``bytearray`` of `BIG_BYTES`.

    Walks the frames of the pickle (64 KiB each), which is quick. Frames of less than four
    bytes have no header, so the walk can get lost; it then says True, and all that costs is
    a second pickling.
    """
    at, end = 2, len(data)
    while at < end:
        opcode = data[at]
        if opcode == _FRAME:
            at += 9 + int.from_bytes(data[at + 1 : at + 9], "little")
        elif opcode in _UNFRAMED:
            width = _UNFRAMED[opcode]
            size = int.from_bytes(data[at + 1 : at + 1 + width], "little")
            if opcode not in _UNFRAMED_TEXT:
                return size >= BIG_BYTES or at + 1 + width + size > end
            at += 1 + width + size
        elif end - at <= 3:
            return False
        else:
            at += 1
    return at > end


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes | memoryview, buffers: Sequence[memoryview]) -> None:
        super().__init__(io.BytesIO(data), buffers=_writable(buffers))
        self._buffers = buffers
        self._loaded: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is bytearray:
            return pid
        kind, index = pid
        if index in self._loaded:
            return self._loaded[index]
        buffer = self._buffers[-1 - index]
        if kind == _AS_BYTES:
            loaded: Any = bytes(buffer)
        elif kind == _AS_BYTEARRAY:
            loaded = bytearray(buffer)
        else:
            (loaded,) = _writable((buffer,))
        self._loaded[index] = loaded
        return loaded


def _writable(buffers: Iterable[Any]) -> Iterator[memoryview]:
    """Yield the buffers; one that is read-only is copied, or its array would be read-only."""
    for buffer in buffers:
        view = memoryview(buffer)
        yield memoryview(bytearray(view)) if view.readonly else view


def unpack(pickle_frame: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
    """Rebuild what was packed. Runs code: only for frames of a peer that is trusted.

    Args:
        pickle_frame: `Packed.pickle`.
        buffers: `Packed.buffers` as received. Writable ones become the memory of the arrays
            without a copy, so nobody else may use them; read-only ones are copied.

    Raises:
        UnpackError: Whatever unpickling raised, chained as ``__cause__``.
    """
    try:
        # Where the byte of the opcode is absent, so is any persistent id.
        if _PERSISTENT_ID_OPCODE.search(pickle_frame) is None:
            if not buffers:
                return pickle.loads(pickle_frame)
            return pickle.loads(pickle_frame, buffers=_writable(buffers))
        return _Unpickler(pickle_frame, buffers).load()
    except Exception as error:
        raise _failure(error) from error


def _failure(error: Exception) -> UnpackError:
    return UnpackError(f"cannot unpickle: {type(error).__name__}: {error}")


def unpack_many(packed: Frame, ends: Sequence[int]) -> list[Any]:
    """Rebuild what was packed without buffers, one behind the other. Runs code, as `unpack`.

    Args:
        packed: the pickles.
        ends: 0, and where each of them ends.

    Raises:
        UnpackError: As `unpack`, of the first that cannot be unpickled.
    """
    view = memoryview(packed)
    loads = pickle.loads
    places = list(pairwise(ends))
    try:
        # The opcode's byte is looked for in all at once: 0.4 µs less for each value.
        suspects = [match.start() for match in _PERSISTENT_ID_OPCODE.finditer(view)]
        if not suspects:
            return [loads(view[start:end]) for start, end in places]
        values: list[Any] = []
        for at in suspects:
            # Those before the one that has the byte, and this one.
            stop = bisect_right(ends, at)
            if stop > len(values):
                values += [loads(view[start:end]) for start, end in places[len(values) : stop - 1]]
                values.append(unpack(view[slice(*places[stop - 1])]))
        values += [loads(view[start:end]) for start, end in places[len(values) :]]
    except UnpackError:
        raise
    except Exception as error:
        raise _failure(error) from error
    return values


def reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    """Reducer: a memoryview stays one, with its format and shape; a strided one is copied."""
    if not view.shape or 0 in view.shape or not _is_castable(view.format):
        return _reduce_exotic_memoryview(view)
    flat = view if view.c_contiguous else memoryview(view.tobytes())
    buffer = PickleBuffer(flat.cast("B") if flat.c_contiguous else flat)
    return restore_memoryview, (buffer, view.format, view.shape, view.readonly)


def restore_memoryview(
    buffer: Any, view_format: str, shape: tuple[int, ...], readonly: bool
) -> memoryview:
    """Rebuild a memoryview; pickles name this function."""
    view = memoryview(buffer)
    if view.nbytes == 0:
        view = memoryview(array(view_format))
    elif len(shape) == 1:
        view = view.cast("B").cast(view_format)  # type: ignore[call-overload]
    else:
        view = view.cast("B").cast(view_format, shape)  # type: ignore[call-overload]
    return view.toreadonly() if readonly else view


def _is_castable(view_format: str) -> bool:
    return view_format.removeprefix("@") in tuple("cbB?hHiIlLqQnNfdP")


def _reduce_exotic_memoryview(view: memoryview) -> tuple[Any, ...]:
    """What ``memoryview.cast`` cannot build: other byte orders, records, no or zero extent."""
    if view.shape == (0,) and view.format in tuple("bBhHiIlLqQfd"):
        return restore_memoryview, (b"", view.format, view.shape, view.readonly)
    try:
        import numpy
    except ImportError:
        raise TypeError(
            f"cannot pickle 'memoryview' object of format {view.format!r} and shape "
            f"{view.shape} without numpy"
        ) from None
    array_of_view = numpy.asarray(view)
    return restore_array_view, (array_of_view.copy(), view.readonly)


def restore_array_view(exporter: Any, readonly: bool) -> memoryview:
    """Rebuild a memoryview over an array; pickles name this function."""
    view = memoryview(exporter)
    return view.toreadonly() if readonly else view
