"""Packing of data: plain pickle where that does, the pickler by value where it does not.

Theory of operation. ``pickle.dumps`` is tried first: it is ten times as fast as any pickler
with hooks in Python. Its result stands unless

- it raised: then the fallback pickler tries, and what that raises becomes a `PackError`;
- it names ``__main__``, whose functions and classes the receiver does not have: fallback;
- it met buffers that are large or read-only, or large bytes: pickled again so that they leave
  the pickle. Callers that pass large bytes in plain sight are not made to pay twice.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pickle import PickleBuffer
from typing import Any

from .classes import ClassTable
from .failures import PackError, UnpackError, describe_failure
from .frames import (
    BIG_BYTES,
    IN_BAND_MAX_BYTES,
    PROTOCOL,
    BufferPickler,
    Packed,
    dump_with,
    has_big_bytes,
    unpack,
)

# Their pickles have no buffers and name nothing: whatever is looked for in others' is not there.
_ATOMS = frozenset((int, float, str, bool, complex, type(None)))
_BYTES = frozenset((bytes, bytearray))
_LOOK_INTO_MAX_ITEMS = 16

# Of "__main__" and "__mp_main__".
_MAIN = b"_main__"

# Less than the pickle of anything that names __main__.
_ATOM_MAX_BYTES = 16

_dumps = pickle.dumps

# The result of what is called for its effects; pickling it in a cold cache takes 35 µs.
_NoneType = type(None)
_NONE = _dumps(None, PROTOCOL)
_NONE_IN_LIST = _dumps([None], PROTOCOL)
_new_tuple = tuple.__new__


class _HasBuffers(Exception):
    """Raised inside of pickle to leave it: these data need a pickler with hooks."""


def _refuse_buffers(buffer: PickleBuffer) -> bool:
    view = buffer.raw()
    if view.readonly or view.nbytes >= IN_BAND_MAX_BYTES:
        raise _HasBuffers
    return True


def pack(obj: Any, *, what: str = "value") -> Packed:
    """Pickle one object.

    Args:
        obj: Anything that pickle takes, with functions and classes of ``__main__``.
        what: What to call ``obj`` in the text of an error.

    Raises:
        PackError: It cannot be pickled; the text says which part of it, and what to do.
    """
    try:
        kind = type(obj)
        if kind is list and len(obj) == 1:
            kind = type(obj[0])  # the result of a map's task
        if kind in _ATOMS:
            if kind is _NoneType:
                return _new_tuple(Packed, (_NONE if obj is None else _NONE_IN_LIST, []))
            return _new_tuple(Packed, (_dumps(obj, PROTOCOL), []))
        return _pack(obj)
    except Exception as error:
        raise describe_failure(obj, what, error, _pack) from error


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
    """Pickle the arguments of one call; `unpack_call` gives them back.

    Raises:
        PackError: As `pack`; the text names the argument.
    """
    try:
        for arg in args:
            if type(arg) not in _ATOMS and _shows_big_bytes(arg):
                return _pack_with_hooks((args, kwargs))
        if kwargs and _shows_big_bytes(kwargs):
            return _pack_with_hooks((args, kwargs))
        return _pack_plainly((args, kwargs))
    except Exception as error:
        raise _call_failure(args, kwargs, error) from error


def pack_items(items: Iterable[tuple[Any, ...]], classes: ClassTable | None = None) -> list[Packed]:
    """Pickle the positional arguments of many calls, each as ``pack_call(item, {})`` does.

    Args:
        items: The arguments of each call.
        classes: Takes the classes that would travel by value with each item, to go with the
            function (`equip_function`) once. Where another pickler is chosen it stays empty.

    Raises:
        PackError: As `pack`; the text names the item and the argument.
        Exception: Whatever the iterable raises.
    """
    packed: list[Packed] = []
    append = packed.append
    no_kwargs: dict[str, Any] = {}
    for item in items:
        try:
            for arg in item:
                if type(arg) not in _ATOMS:
                    append(_pack_item((item, no_kwargs), classes))
                    break
            else:
                append(_new_tuple(Packed, (_dumps((item, no_kwargs), PROTOCOL), [])))
        except Exception as error:
            raise _call_failure(item, {}, error, f"items[{len(packed)}] ") from error
    return packed


def _pack_item(call: tuple[tuple[Any, ...], dict[str, Any]], classes: ClassTable | None) -> Packed:
    for arg in call[0]:
        if type(arg) not in _ATOMS and _shows_big_bytes(arg):
            return _pack_with_hooks(call)
    return _pack_plainly(call, classes)


def unpack_call(
    pickle_frame: bytes | memoryview, buffers: Any = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rebuild ``(args, kwargs)`` of `pack_call` or `pack_items`.

    Raises:
        UnpackError: As `unpack`, also for a pickle of something else.
    """
    call = unpack(pickle_frame, buffers)
    try:
        args, kwargs = call
        if type(args) is tuple and type(kwargs) is dict:
            return args, kwargs
    except (TypeError, ValueError):
        pass  # not a pair: refused below like any other thing that is no call
    raise UnpackError(f"not the arguments of a call: {type(call).__name__}")


def use_pickle() -> None:
    """Go back to the default: functions see the namespace of where they run."""
    _use(None)


def use_cloudpickle() -> None:
    """Send functions by cloudpickle's own rules: they bring the globals that they refer to."""
    from .by_value import dump_capturing

    _use(dump_capturing)


def use_dill() -> None:
    """Send what plain pickle cannot with dill.

    Raises:
        ImportError: dill is not installed; nothing was changed.
    """
    try:
        from .with_dill import dump_with_dill
    except ImportError as error:
        raise ImportError(
            "use_dill() needs dill here and on the engines: pip install dill"
        ) from error
    _use(dump_with_dill)


_fallback: Callable[[Any], Packed] | None = None
generation = 0
"""Counts the switches of the pickler: what was packed under another one may differ."""


def _use(fallback: Callable[[Any], Packed] | None) -> None:
    global _fallback, generation
    _fallback = fallback
    generation += 1


def dump_fallback(obj: Any, classes: ClassTable | None = None) -> Packed:
    """Pickle with the pickler that is chosen for what plain pickle cannot."""
    if _fallback is not None:
        return _fallback(obj)
    from .by_value import dump_by_value

    return dump_by_value(obj, classes)


def _pack(obj: Any) -> Packed:
    return _pack_with_hooks(obj) if _shows_big_bytes(obj) else _pack_plainly(obj)


def _pack_plainly(obj: Any, classes: ClassTable | None = None) -> Packed:
    try:
        data = _dumps(obj, PROTOCOL, buffer_callback=_refuse_buffers)
    except _HasBuffers:
        return _pack_with_hooks(obj)
    except RecursionError:
        raise  # no other pickler goes deeper
    except Exception:  # noqa: BLE001 - pickling runs any class's code; the fallback may do
        return dump_fallback(obj, classes)
    if len(data) > _ATOM_MAX_BYTES:
        if _MAIN in data:
            return dump_fallback(obj, classes)
        if len(data) >= BIG_BYTES and has_big_bytes(data):
            return _pack_with_hooks(obj)
    # Without Packed's own __new__, which takes as long as the pickling of an int.
    return _new_tuple(Packed, (data, []))


def _pack_with_hooks(obj: Any) -> Packed:
    try:
        packed = dump_with(BufferPickler, obj)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - as above
        return dump_fallback(obj)
    return dump_fallback(obj) if _MAIN in packed.pickle else packed


def _shows_big_bytes(obj: Any, depth: int = 3) -> bool:
    kind = type(obj)
    if kind in _BYTES:
        return len(obj) >= BIG_BYTES
    if not depth or (kind is not tuple and kind is not dict and kind is not list):
        return False
    if len(obj) > _LOOK_INTO_MAX_ITEMS:
        return False
    for part in obj.values() if kind is dict else obj:
        if type(part) not in _ATOMS and _shows_big_bytes(part, depth - 1):
            return True
    return False


def _call_failure(
    args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception, prefix: str = ""
) -> PackError:
    parts = [(f"{prefix}args[{index}]", value) for index, value in enumerate(args)]
    parts += [(f"{prefix}kwargs[{name!r}]", value) for name, value in kwargs.items()]
    for path, value in parts:
        try:
            _pack(value)
        except Exception as failure:  # noqa: BLE001 - it is what is searched for
            return describe_failure(value, path, failure, _pack)
    return describe_failure((args, kwargs), f"{prefix}arguments", error, _pack)
