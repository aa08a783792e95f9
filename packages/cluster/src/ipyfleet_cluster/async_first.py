"""Coroutine methods first, each with a blocking twin: ``await c.stop()`` and ``c.stop_sync()``.

The coroutines keep nothing that is bound to an event loop from one call to the next, so each
blocking
call runs in a loop of its own: in this thread, or, where a loop is already running here (a
notebook), in a helper thread while this one waits. Ctrl-C cancels the coroutine, which cleans up,
and is then raised here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_SUFFIX = "_sync"


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, whether or not a loop runs in this thread.

    Raises:
        KeyboardInterrupt: Ctrl-C, once the coroutine has been cancelled and has cleaned up.
    """
    # Asked without an exception, which would be shown above those of the coroutine.
    if asyncio._get_running_loop() is None:
        return asyncio.run(coroutine)
    return _run_in_thread(coroutine)


def _run_in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    started: concurrent.futures.Future[Callable[[], object]] = concurrent.futures.Future()

    async def run() -> None:
        task = asyncio.ensure_future(coroutine)
        loop = asyncio.get_running_loop()
        started.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            outcome.set_result(await task)
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            outcome.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="ipyfleet-cluster-sync")
    thread.start()
    try:
        return outcome.result()
    except KeyboardInterrupt:
        if not outcome.done():
            started.result()()
        raise
    finally:
        thread.join()


class AsyncFirst:
    """Mixin: attribute ``<name>_sync`` is the blocking twin of the coroutine method ``<name>``."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Called by Python for attributes that are not there.

        Raises:
            AttributeError: there is no coroutine method of which this could be the twin.
        """
        if name.endswith(_SUFFIX):
            method = getattr(type(self), name[: -len(_SUFFIX)], None)
            if inspect.iscoroutinefunction(method):
                return _twin(method.__get__(self))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> Iterable[str]:
        """List the attributes, twins included."""
        names = set(super().__dir__())
        twins = {
            name + _SUFFIX
            for name in names
            if not name.startswith("_")
            and inspect.iscoroutinefunction(inspect.getattr_static(self, name, None))
        }
        return sorted(names | twins)


def _twin(method: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    @functools.wraps(method)
    def blocking(*args: Any, **kwargs: Any) -> T:
        return run_blocking(method(*args, **kwargs))

    blocking.__name__ = f"{method.__name__}{_SUFFIX}"
    # wraps() says "I am that coroutine function", which is what the twin is not.
    del blocking.__wrapped__
    blocking.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return blocking
