"""What scripts import from ``ipyparallel.serialize``: objects to frames and back.

What lives here: those names, over `ipyfleet_protocol.serialize`. What must not: anything that the
system itself uses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from ipyfleet_protocol.namespace import Reference
from ipyfleet_protocol.serialize import (
    PrePickled,
    pack,
    unpack,
    use_cloudpickle,
    use_dill,
    use_pickle,
)

__all__ = [
    "PrePickled",
    "Reference",
    "can",
    "deserialize_object",
    "pack_apply_message",
    "serialize_object",
    "uncan",
    "unpack_apply_message",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]

Frame = bytes | memoryview

_COUNT = struct.Struct("<I")


def serialize_object(obj: Any, *thresholds: int, **more_thresholds: int) -> list[Frame]:
    """Return an object as frames: its pickle, then its large buffers. Thresholds are ignored.

    Raises:
        PackError: it cannot be pickled.
    """
    data, buffers = pack(obj)
    return [_COUNT.pack(len(buffers)) + data, *buffers]


def deserialize_object(frames: Sequence[Frame], g: Any = None) -> tuple[Any, list[Frame]]:
    """Return the object that frames begin with, and the frames after it.

    Args:
        frames: of one object or more.
        g: accepted for compatibility: functions see the namespace of this process.
    """
    head = memoryview(frames[0])
    (count,) = _COUNT.unpack_from(head)
    buffers = [memoryview(frame) for frame in frames[1 : count + 1]]
    return unpack(head[_COUNT.size :], buffers), list(frames[count + 1 :])


def pack_apply_message(
    f: Callable[..., Any] | Reference,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *thresholds: int,
    **more_thresholds: int,
) -> list[Frame]:
    """Return a call as frames: those of the function, then those of the arguments."""
    return serialize_object(f) + serialize_object((tuple(args), dict(kwargs)))


def unpack_apply_message(
    frames: Sequence[Frame], g: Any = None, copy: bool = True
) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """Return the function, arguments and keyword arguments of `pack_apply_message`."""
    f, rest = deserialize_object(frames, g)
    (args, kwargs), _ = deserialize_object(rest, g)
    return f, list(args), kwargs


def can(obj: Any) -> PrePickled:
    """Return an object in the form in which it is sent; `uncan` gives a copy back."""
    return PrePickled(obj)


def uncan(obj: Any, g: Any = None) -> Any:
    """Return what `can` was given; anything else as it is. `g` is accepted for compatibility."""
    return obj.load() if isinstance(obj, PrePickled) else obj
