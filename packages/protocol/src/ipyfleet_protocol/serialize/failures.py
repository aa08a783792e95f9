"""What is raised when something cannot be packed or unpacked, and how its place is found."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

# How much is tried to find the culprit: the search pickles the parts of what failed again.
_MAX_PARTS = 10_000
_MAX_DEPTH = 50

_HINTS = (
    (("lock", "RLock", "Condition", "Semaphore", "Event", "Thread"), "create it on the engine"),
    (("TextIOWrapper", "BufferedReader", "BufferedWriter"), "send its path and open it there"),
    (("generator", "async_generator", "coroutine"), "send a list of its values"),
    (("socket", "Socket", "Connection", "SSLContext"), "send its address and connect there"),
)
_DEFAULT_HINT = "send plain data and build it on the engine, or name it there with Reference"


class PackError(TypeError):
    """Something cannot be pickled; the text says what, where it sits, and what to do."""


class UnpackError(Exception):
    """Frames cannot be unpickled here. ``__cause__`` is what unpickling raised.

    Show the cause to users: a Reference to a missing name has a NameError there, a function
    of a module that this process cannot import a ModuleNotFoundError.
    """


def describe_failure(
    obj: Any, path: str, error: BaseException, dump: Callable[[Any], Any]
) -> PackError:
    """Build the PackError for ``obj``, which ``dump`` failed to pickle with ``error``.

    Args:
        obj: What failed.
        path: What to call it in the text, for example ``args[0]``.
        error: What was raised.
        dump: Pickles a part of ``obj``; used to find the part that is at fault.
    """
    if _is_recursion(error):
        return PackError(
            f"{path or 'value'}: cannot pickle {type(obj).__name__}: it is nested too deeply; "
            "send it flat (as a list or an array), or raise sys.setrecursionlimit here and "
            "on the engines"
        )
    culprit, where, reason = _Search(dump).find(obj, path, error) or (obj, path, error)
    kind = type(culprit).__qualname__
    text = str(reason) or type(reason).__name__
    if kind not in text:
        text = f"cannot pickle '{kind}' object ({text})"
    return PackError(f"{where or 'value'}: {text}; {_hint(culprit)}")


class _Search:
    """Looks for the innermost part that cannot be pickled, depth first."""

    def __init__(self, dump: Callable[[Any], Any]) -> None:
        self._dump = dump
        self._failed: set[int] = set()
        self._budget = _MAX_PARTS

    def find(
        self, obj: Any, path: str, error: BaseException, depth: int = 0
    ) -> tuple[Any, str, BaseException] | None:
        """The culprit in ``obj``, which fails; None where all that fails was looked at before."""
        self._failed.add(id(obj))
        leads_back = False
        for step, part in _parts(obj):
            if id(part) in self._failed:
                leads_back = True
                continue
            self._budget -= 1
            if self._budget < 0 or depth == _MAX_DEPTH:
                break
            try:
                self._dump(part)
            except RecursionError:
                break
            except Exception as failure:  # noqa: BLE001 - it is what is searched for
                found = self.find(part, path + step, failure, depth + 1)
                if found is not None:
                    return found
                leads_back = True
        return None if leads_back else (obj, path, error)


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of ``obj`` that are pickled with it, each with its step in the path."""
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield f"[{key!r:.60}]", value
        for key in obj:
            yield f" key {key!r:.60}", key
    elif isinstance(obj, list | tuple):
        for index, value in enumerate(obj):
            yield f"[{index}]", value
    elif isinstance(obj, set | frozenset):
        for value in obj:
            yield " element", value
    elif isinstance(obj, functools.partial):
        yield ".func", obj.func
        yield ".args", obj.args
        yield ".keywords", obj.keywords
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
    elif isinstance(obj, types.FunctionType):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=False):
            try:
                yield f" closure variable {name!r}", cell.cell_contents
            except ValueError:  # not bound yet
                continue
        yield ".__defaults__", obj.__defaults__
        yield ".__kwdefaults__", obj.__kwdefaults__
    elif not isinstance(obj, type | types.ModuleType) and not _reduces_itself(type(obj)):
        # Only what pickles by its attributes: another __reduce__ may send none of them.
        for name, value in getattr(obj, "__dict__", {}).items():
            yield f".{name}", value


def _reduces_itself(cls: type) -> bool:
    for name in ("__reduce_ex__", "__reduce__", "__getstate__"):
        definer = next(base for base in cls.__mro__ if name in base.__dict__)
        if definer is not object:
            return True
    return False


def _is_recursion(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, RecursionError):
            return True
        error = error.__cause__
    return False


def _hint(culprit: Any) -> str:
    names = {cls.__name__ for cls in type(culprit).__mro__}
    for kinds, hint in _HINTS:
        if not names.isdisjoint(kinds):
            return hint
    return _DEFAULT_HINT
