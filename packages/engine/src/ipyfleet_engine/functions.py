"""The functions that an engine knows, by digest.

What lives here: `FunctionCache`. What must not: tasks, sockets.

The controller sends a function's body with the first tasks that need it at an engine and names it
by digest later. A body of more than `BODY_MAX_BYTES` is not kept and comes with every message. A
function that the sender found reusable is rebuilt once; any other is rebuilt for each task, so
that what one call leaves in its defaults or closure is not seen by the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import Function
from ipyfleet_protocol.serialize import unpack_function

BODY_MAX_BYTES = 1024 * 1024
"""Larger bodies are not kept."""

ENTRIES_MAX = 4096
"""Functions kept; the least recently named ones go first."""


class KnownFunction:
    """A function whose body is here.

    Attributes:
        self_name: as in `messages.Function`.
        target: the function if it is reusable and has been rebuilt, else None.
    """

    __slots__ = ("_frames", "_reusable", "self_name", "target")

    def __init__(self, header: Function, frames: Sequence[bytes]) -> None:
        self._frames = frames
        self._reusable = header.reusable
        self.self_name = header.self_name
        self.target: Callable[..., Any] | None = None

    def get(self) -> Callable[..., Any]:
        """Return the function, ready to be called by one task.

        Raises:
            Exception: whatever unpickling it raises.
        """
        target = self.target
        if target is None:
            target = unpack_function(
                [memoryview(bytearray(f)) if i else f for i, f in enumerate(self._frames)]
            )
            if self._reusable:
                self.target = target
        return target


class FunctionCache:
    """Functions by digest; see the module docstring."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._known: OrderedDict[bytes, KnownFunction] = OrderedDict()

    def learn(self, header: Function, frames: Sequence[Frame]) -> KnownFunction | None:
        """Return the function of a slice, which may bring its body; None if it is not known."""
        known = self._known.get(header.digest)
        if known is not None:
            self._known.move_to_end(header.digest)
            return known
        if not frames:
            return None
        body = [bytes(memoryview(frame)) for frame in frames]
        known = KnownFunction(header, body)
        if sum(map(len, body)) <= BODY_MAX_BYTES:
            self._known[header.digest] = known
            if len(self._known) > self._entries_max:
                self._known.popitem(last=False)
        return known


class planted:
    """Have a function found under its own name while it runs, unless the name is taken.

    A partial has no name: it is that of its function. A generator with `contextmanager` would take
    three times as long, and every task of a function that was defined in a notebook comes by here.
    """

    __slots__ = ("_function", "_name", "_namespace")

    def __init__(self, namespace: dict[str, Any], name: str, function: Callable[..., Any]) -> None:
        self._namespace = namespace
        self._name = "" if name in namespace else name
        self._function = function

    def __enter__(self) -> None:
        if self._name:
            while isinstance(self._function, partial):
                self._function = self._function.func
            self._namespace[self._name] = self._function

    def __exit__(self, *exc_info: object) -> None:
        if self._name and self._namespace.get(self._name) is self._function:
            del self._namespace[self._name]
