"""Engines as a pool of processes, by the letter of `multiprocessing.pool`.

What lives here: `Pool` and its results. What must not: starting clusters (the umbrella package).

A worker of `multiprocessing` is a fork and has the globals of the script. Engines have a namespace
of their own, so a pool gives them the globals that a function of ``__main__`` refers to, once, when
it first sees the function: what they were then is what the engines see, as with a fork.
"""

from __future__ import annotations

import dis
import functools
import multiprocessing
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.executor_future import original_error
from ipyfleet_client.mapresult import AsyncMapResult
from ipyfleet_client.views.balanced import LoadBalancedView
from ipyfleet_protocol.errors import ClientClosed
from ipyfleet_protocol.messages import OK
from ipyfleet_protocol.serialize import PackError

if TYPE_CHECKING:
    from types import TracebackType

    from ipyfleet_client.client import Client
    from ipyfleet_client.imap import LazyMapIterator


class PoolTimeoutError(multiprocessing.TimeoutError, TimeoutError):
    """The result is not there in time; `multiprocessing`'s `TimeoutError` and Python's own."""


class PoolResult:
    """The result of `Pool.apply_async`, `Pool.map_async` and their like.

    Attributes:
        async_result: the `AsyncResult` behind it, with output, metadata and timing.
    """

    def __init__(
        self,
        async_result: AsyncResult,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self.async_result = async_result
        self._callback = callback
        self._error_callback = error_callback
        if callback is not None or error_callback is not None:
            async_result.add_done_callback(self._call_back)

    def get(self, timeout: float | None = None) -> Any:
        """Return the value, after waiting for it.

        Raises:
            multiprocessing.TimeoutError: it is not there within `timeout` seconds.
            Exception: what the function raised; of a map, for the first item that failed.
        """
        self.wait(timeout)
        if not self.ready():
            raise PoolTimeoutError(f"the result was not there within {timeout} s")
        error = self._error()
        if error is not None:
            raise error
        return self.async_result.get()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is there, or for `timeout` seconds."""
        self.async_result.wait(timeout if timeout is None else max(0.0, timeout))

    def ready(self) -> bool:
        """Whether the call has ended."""
        return self.async_result.ready()

    def successful(self) -> bool:
        """Whether the call ended without an exception.

        Raises:
            ValueError: it has not ended.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self.async_result.successful()

    def _error(self) -> BaseException | None:
        work = self.async_result._work
        for index in range(work.total if work.failures else 0):
            if work.status[index] != OK:
                return original_error(work.value(index))
        return None

    def _call_back(self, _: Any) -> None:
        error = self._error()
        if error is None:
            if self._callback is not None:
                self._callback(self.async_result.get())
        elif self._error_callback is not None:
            self._error_callback(error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.async_result!r}>"


class PoolIterator(Iterator[Any]):
    """The values of `Pool.imap` and `Pool.imap_unordered`."""

    def __init__(self, lazy: LazyMapIterator) -> None:
        self._lazy = lazy
        self._drained: deque[tuple[Any, BaseException | None]] = deque()
        # The first calls run from now on, not from the first `next` on.
        lazy._fill()

    def __iter__(self) -> PoolIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next value.

        Raises:
            StopIteration: there are no more.
            multiprocessing.TimeoutError: it is not there within `timeout` seconds.
            Exception: what the function raised for this item; the values after it can be had.
        """
        if self._drained:
            value, failure = self._drained.popleft()
            if failure is not None:
                raise failure
            return value
        if not self._lazy.wait_next(timeout if timeout is None else max(0.0, timeout)):
            raise PoolTimeoutError(f"the next value was not there within {timeout} s")
        try:
            return next(self._lazy)
        except StopIteration:
            raise
        except Exception as error:  # noqa: BLE001 - the input's own, or what a task raised
            raise original_error(error)  # noqa: B904 - it has its cause

    def drain(self) -> None:
        """Wait for all values and keep them until they are asked for."""
        drained = deque(self._drained)
        self._drained.clear()
        while True:
            try:
                drained.append((self.next(), None))
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - raised again by `next`
                drained.append((None, error))
        self._drained = drained

    def cancel(self) -> None:
        """Take nothing more from the input, take back what has not started."""
        self._lazy.cancel()


class Pool:
    """Engines of a cluster behind the methods of `multiprocessing.Pool`.

    Args:
        processes: how many of the engines to use at most; None for all that there are now.
        initializer: called on each of them with `initargs` before anything else runs.
        initargs: see `initializer`.
        maxtasksperchild: accepted for compatibility: engines live on.
        context: accepted for compatibility.
        view: the client whose engines are used, or one of its load-balanced views.

    Example:
        >>> with Pool(view=rc) as pool:  # doctest: +SKIP
        ...     pool.map(abs, [-1, -2])
        [1, 2]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        view: Client | LoadBalancedView,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        client: Client = view.client if isinstance(view, LoadBalancedView) else view
        engines = view.targets if isinstance(view, LoadBalancedView) else None
        client.session.link.engines.require_some()
        targets = list(client.ids if engines is None else engines)[:processes]
        self._view = client.load_balanced_view(targets)
        self._everybody = client.direct_view(targets, block=False)
        self._results: list[AsyncResult] = []
        self._iterators: list[PoolIterator] = []
        self._shared: set[str] = set()
        self._closed = False
        self._terminated = False
        if initializer is not None:
            self._share_globals(initializer)
            # What it assigns is the engines' own, whatever it is here.
            self._shared |= _global_names(initializer, _STORES)
            self._everybody.apply_sync(initializer, *initargs)

    # -- calls --------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return ``func(*args, **kwds)``, called on an engine."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> PoolResult:
        """Call ``func(*args, **kwds)`` on an engine and return its result at once.

        The callbacks are called in a thread of the client, with the value or with the exception;
        they should return soon.

        Raises:
            ValueError: the pool was closed.
        """
        self._check_running()
        self._share_globals(func)
        result = self._view.apply_async(func, *args, **(kwds or {}))
        return self._note(result, callback, error_callback)

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Return the list of ``func(item)``; see `map_async`."""
        values: list[Any] = self.map_async(func, iterable, chunksize).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> PoolResult:
        """Call ``func(item)`` for each item and return the result at once.

        Args:
            func: takes one argument.
            iterable: the items.
            chunksize: accepted for compatibility: tasks travel in batches anyway.
            callback: called with the list of values.
            error_callback: called with the exception of the first item that failed.

        Raises:
            ValueError: the pool was closed.
        """
        return self._map(func, [(item,) for item in iterable], callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """Return the list of ``func(*item)``; see `starmap_async`."""
        values: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> PoolResult:
        """As `map_async`, with items that are the arguments of one call each."""
        return self._map(func, [tuple(item) for item in iterable], callback, error_callback)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> PoolIterator:
        """Return an iterator of ``func(item)``; items are taken as values are.

        Raises:
            ValueError: the pool was closed.
        """
        return self._imap(func, iterable, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> PoolIterator:
        """As `imap`, with what is there first coming first."""
        return self._imap(func, iterable, ordered=False)

    def _map(
        self,
        func: Callable[..., Any],
        rows: list[tuple[Any, ...]],
        callback: Callable[[list[Any]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> PoolResult:
        self._check_running()
        self._share_globals(func)
        view = self._view
        function = view._pack_function(func)
        work = view._new_work(len(rows), "apply", function.function.name)
        result = AsyncMapResult(view.client, work)
        if rows:
            view._submit_items(work, view._spec(), function, rows)
        return self._note(result, callback, error_callback)

    def _imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], *, ordered: bool
    ) -> PoolIterator:
        self._check_running()
        self._share_globals(func)
        iterator = PoolIterator(self._view.imap(func, iterable, ordered=ordered))
        self._iterators.append(iterator)
        return iterator

    def _note(
        self,
        result: AsyncResult,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> PoolResult:
        if len(self._results) >= 64:
            self._results = [other for other in self._results if not other.ready()]
        self._results.append(result)
        return PoolResult(result, callback, error_callback)

    # -- globals ------------------------------------------------------------------------------

    def _share_globals(self, func: Any) -> None:
        """Give the engines the globals of ``__main__`` that a function needs."""
        for name, value in _main_globals(func).items():
            if name in self._shared:
                continue
            self._shared.add(name)
            try:
                # Sent before what needs it, and engines run in the order of sending.
                self._everybody.push({name: value}, block=False)
            except PackError:
                # The function may get by without it; if not, it says which name is missing.
                continue

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; those that were made go on."""
        self._closed = True

    def terminate(self) -> None:
        """Take no more calls, and take back what has not started."""
        self._closed = True
        if self._terminated:
            return
        self._terminated = True
        try:
            for iterator in self._iterators:
                iterator.cancel()
            for result in self._results:
                if not result.ready():
                    self._view._session.submit.cancel(result._work)
        except ClientClosed:
            # Then everything has ended.
            return

    def join(self) -> None:
        """Wait until all calls have ended.

        Raises:
            ValueError: the pool was not closed.
        """
        if not self._closed:
            raise ValueError("Pool is still running")
        for result in self._results:
            result.wait()
        if not self._terminated:
            for iterator in self._iterators:
                iterator.drain()

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def __repr__(self) -> str:
        state = "CLOSE" if self._closed else "RUN"
        return f"<{type(self).__name__} state={state} pool_size={len(self._view)}>"


_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_STORES = frozenset({"STORE_GLOBAL"})


def _functions_of(thing: Any) -> list[types.FunctionType]:
    """Return the functions of ``__main__`` that a callable or class consists of."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "__func__", thing)
    found: list[types.FunctionType] = []
    if isinstance(thing, types.FunctionType):
        found.append(thing)
    elif isinstance(thing, type):
        for value in vars(thing).values():
            value = getattr(value, "__func__", value)
            if isinstance(value, types.FunctionType):
                found.append(value)
    elif type(thing).__module__ == "__main__":
        found += _functions_of(type(thing))
    main = sys.modules["__main__"].__dict__
    return [function for function in found if function.__globals__ is main]


def _global_names(thing: Any, operations: frozenset[str]) -> set[str]:
    names: set[str] = set()
    codes = [function.__code__ for function in _functions_of(thing)]
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        names.update(i.argval for i in dis.get_instructions(code) if i.opname in operations)
    return names


def _main_globals(func: Any) -> dict[str, Any]:
    """Return the globals of ``__main__`` that a function refers to, also through others."""
    main = sys.modules["__main__"].__dict__
    found: dict[str, Any] = {}
    waiting = [func]
    while waiting:
        for name in _global_names(waiting.pop(), _LOADS):
            if name in main and name not in found and not isinstance(main[name], Pool):
                found[name] = main[name]
                waiting.append(main[name])
    return found
