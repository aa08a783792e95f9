"""Objects that are pickled once and sent many times."""

from __future__ import annotations

from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

from .frames import unpack
from .functions import PackedFunction, pack_function
from .packing import pack


class PrePickled:
    """An object as it is now, pickled once, for many calls.

    May stand anywhere in arguments, or in the place of the function. What arrives is the object;
    what becomes of the original after this was made is not seen there.

    Args:
        obj: Anything that can be sent.

    Raises:
        PackError: It cannot be pickled.

    Example:
        >>> table = PrePickled({n: n * n for n in range(1000)})
        >>> table.load()[12]
        144
    """

    __slots__ = ("_function", "_name", "_packed")

    def __init__(self, obj: Any) -> None:
        self._name = getattr(obj, "__name__", type(obj).__name__)
        self._function: PackedFunction | None = None
        self._packed: list[bytes]
        if isinstance(obj, PrePickled):
            self._packed, self._function = obj._packed, obj._function
        elif callable(obj):
            self._function = pack_function(obj)
            self._packed = [bytes(self._function.frames[0]), *map(_kept, self._function.frames[1:])]
        else:
            data, buffers = pack(obj)
            # Views of the original's memory, which may change.
            self._packed = [data, *map(_kept, buffers)]

    @property
    def function(self) -> PackedFunction:
        """The object as the function of a group.

        Raises:
            TypeError: It cannot be called.
        """
        if self._function is None:
            raise TypeError(f"a PrePickled {self._name} object is not callable")
        return self._function

    def load(self) -> Any:
        """Return a new copy of the object."""
        return load_prepickled(*self._packed)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if protocol < 5:
            return load_prepickled, tuple(self._packed)
        return load_prepickled, (self._packed[0], *map(PickleBuffer, self._packed[1:]))

    def __repr__(self) -> str:
        return f"<PrePickled {self._name}: {sum(map(len, self._packed))} bytes>"


def load_prepickled(data: bytes, *buffers: Any) -> Any:
    """Rebuild what a `PrePickled` stands for; pickles name this function."""
    return unpack(data, [memoryview(bytearray(b) if type(b) is bytes else b) for b in buffers])


def _kept(buffer: Any) -> bytes:
    return bytes(memoryview(buffer))
