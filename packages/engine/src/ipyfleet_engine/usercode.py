"""The border between the engine's code and the user's.

What lives here: the functions from which user code is called: unpickling arguments, the call,
pickling the result. SIGINT is raised below them and nowhere else (`interrupts`), so whoever calls
them catches every exception. What must not: bookkeeping of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any

from ipyfleet_protocol.serialize import Packed, pack, unpack_call, unpack_function

from .functions import KnownFunction
from .interrupts import interruptible
from .kernel import FleetKernel


class Awaiting:
    """The result of a call that has to be awaited."""

    __slots__ = ("coroutine", "function")

    def __init__(self, coroutine: Any, function: Callable[..., Any]) -> None:
        self.coroutine = coroutine
        self.function = function


@interruptible
def call(
    known: KnownFunction,
    function: Callable[..., Any] | None,
    pickle: memoryview,
    buffers: Sequence[memoryview],
    method: str,
) -> Packed | Awaiting:
    """Call the function of an `apply` or `map` task and pack what it returns.

    Args:
        known: the function.
        function: the same, rebuilt, or None where that is still to be done.
        pickle, buffers: the arguments, as `serialize.pack_call` made them.
        method: "apply" or "map".
    """
    if function is None:
        function = known.get()
    args, kwargs = unpack_call(pickle, buffers)
    if method == "map":
        results = list(map(function, *args))
        if CoroutineType in set(map(type, results)):  # a third of what any() of a generator takes
            return Awaiting(_await_each(results), function)
        return pack(results)
    result = function(*args, **kwargs)
    if type(result) is CoroutineType:
        return Awaiting(result, function)
    return pack(result)


async def _await_each(results: list[Any]) -> list[Any]:
    return [await r if type(r) is CoroutineType else r for r in results]


@interruptible
async def finish_awaiting(coroutine: Any) -> Packed:
    """Await what a task has returned and pack the result."""
    return pack(await coroutine)


@interruptible
async def run_code(kernel: FleetKernel, code: str, silent: bool) -> dict[str, Any]:
    """Execute the code of a task as a cell; see `FleetKernel.run_code`."""
    return await kernel.run_code(code, silent=silent)


@interruptible
async def call_at_start(frames: Sequence[bytes]) -> None:
    """Call (and await) a function that was registered with ``on_engine_start``."""
    result: Any = unpack_function([memoryview(frame) for frame in frames])()
    if type(result) is CoroutineType:
        await result
