"""Views as executors, by the letter of `concurrent.futures`.

What lives here: `ViewExecutor`. What must not: its futures (`executor_future.py`), how calls are
placed (`views`), `multiprocessing`'s way of saying the same (`pool.py`).

Theory of operation
-------------------
A `Future` must tell whether a call can still be cancelled, at once and for good. So the executor
keeps calls in a queue of its own, where cancelling is a matter of removing, and sends only about
`SHARE_S` seconds of work per engine ahead: one call per engine of a function that it has not seen,
more of one whose calls are known to be short. What was sent counts as running. A cancel still asks
for a sent call back, since it may wait behind another, unless somebody was told that it runs; when
the answer comes too late, after `cancel` has returned False, the call is sent again.

Calls that end make room for others. The thread that receives a result only takes a note
(`_note_end`); the queue is fed by the I/O thread, or by a thread that waits for a future of this
executor, or by the next `submit`. `_lock` may be held while sending, which may receive; so nothing
that runs on receipt takes it.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.executor_future import ExecutorFuture, original_error
from ipyfleet_client.interrupts import hold_interrupts
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import ClientClosed, RemoteError, TaskAborted

if TYPE_CHECKING:
    from ipyfleet_client.mapresult import AsyncMapResult
    from ipyfleet_client.session import Session
    from ipyfleet_client.views.base import PreparedCall, View

SHARE_S = 0.05
"""Seconds of work that are sent ahead for each engine."""

COST_MIN_S = 20e-6
"""What the shortest call counts."""

_live: weakref.WeakSet[ViewExecutor] = weakref.WeakSet()


class ViewExecutor(Executor):
    """Runs calls through a view; made by ``view.executor`` or ``rc.executor()``.

    Each call runs on the engine that is free first; through a `DirectView` it runs on each of the
    targets and its result is the list of theirs, as that of ``view.apply_async``. Shutting the
    executor down does not stop engines.

    Attributes:
        view: where the calls go; its flags at the time of `submit` hold for the call.

    Example:
        >>> with rc.executor() as executor:  # doctest: +SKIP
        ...     future = executor.submit(pow, 2, 10)
        >>> future.result()  # doctest: +SKIP
        1024
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._lock = threading.RLock()
        self._verdict = threading.Lock()
        self._closed = False
        self._cancelling = False
        self._queue: deque[ExecutorFuture] = deque()
        self._ended: deque[ExecutorFuture] = deque()
        self._unfinished: set[ExecutorFuture] = set()
        self._maps: list[AsyncMapResult] = []
        self._in_flight = 0
        self._in_flight_s = 0.0
        self._durations: dict[bytes, float] = {}
        self._feed_noted = False
        _remember(self)

    @property
    def _session(self) -> Session:
        return self.view.client.session

    @property
    def _max_workers(self) -> int:
        """How many calls can run at a time."""
        return len(self.view)

    # -- concurrent.futures.Executor ----------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ExecutorFuture:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        Raises:
            RuntimeError: the executor was shut down.
            PackError: function or arguments cannot be pickled.
            NoEnginesRegistered: there is no engine.
        """
        self._check_open()
        return self.submit_prepared(self.view._prepare(fn, args, kwargs))

    def submit_prepared(self, call: PreparedCall) -> ExecutorFuture:
        """Schedule a call that is packed already; for those who build on executors.

        Raises:
            RuntimeError: the executor was shut down.
        """
        self._session.wire  # noqa: B018 - raises ClientClosed
        future = ExecutorFuture(self, call)
        with self._lock:
            self._check_open()
            self._unfinished.add(future)
            self._queue.append(future)
        self._feed()
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Map `fn` over iterables as the builtin does, in parallel.

        All calls are submitted at once; their results are yielded in order. What has not started
        when the iterator is closed or raises is taken back.

        Args:
            fn: called with one item of each iterable.
            *iterables: the shortest ends the map.
            timeout: seconds from this call until a result has to be there.
            chunksize: how many items make a task. Tasks travel in batches anyway.
            buffersize: take items only as results are consumed, so many ahead; of a view of several
                targets ignored.

        Raises:
            RuntimeError: the executor was shut down.
            ValueError: `chunksize` or `buffersize` is less than 1.
            TimeoutError: from the iterator: a result is not there in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        self._check_open()
        if not iterables:
            return iter(())
        imap = getattr(self.view, "imap", None)
        if buffersize is not None and imap is not None:
            lazy = imap(fn, *iterables, max_outstanding=buffersize)
            lazy._fill()
            return self._iterate_lazily(lazy, deadline)
        options = {"chunksize": chunksize} if imap is not None else {}
        result = self.view.map_async(fn, *iterables, **options)
        with self._lock:
            self._maps = [other for other in self._maps if not other.ready()]
            self._maps.append(result)
        return self._iterate(result, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. The engines go on.

        Args:
            wait: return only when all calls have ended.
            cancel_futures: cancel what has not started.
        """
        with self._lock:
            self._closed = True
            waiting = list(self._queue)
            self._cancelling = self._cancelling or cancel_futures
        if cancel_futures:
            for future in waiting:
                future.cancel()
            for result in self._maps:
                _abort(result)
        if wait:
            self._wait_for_all()

    @property
    def closed(self) -> bool:
        """Whether the executor was shut down."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _wait_for_all(self) -> None:
        waiting: list[AsyncResult] = [*self._unfinished, *self._maps]
        for result in waiting:
            try:
                result.wait()
            except ClientClosed:
                # Nothing comes any more; what was queued ends with the next look at it.
                self._feed()

    def _iterate(self, result: AsyncMapResult, deadline: float | None) -> Iterator[Any]:
        try:
            for index in range(result._work.total):
                if not result._item_ready(index):
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    if not result._wait_until(partial(result._item_ready, index), left):
                        raise TimeoutError("the next result of the map was not there in time")
                value = self._raise_or_return(partial(result._item, index))
                if result._ends is None:
                    yield value
                else:
                    yield from value
        finally:
            # This may run wherever the garbage collector does, so not here.
            if not result.ready():
                self._session.call_soon(partial(_abort, result))

    def _iterate_lazily(self, lazy: Any, deadline: float | None) -> Iterator[Any]:
        try:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not lazy.wait_next(left):
                    raise TimeoutError("the next result of the map was not there in time")
                try:
                    value = self._raise_or_return(partial(next, lazy))
                except StopIteration:
                    return
                yield value
        finally:
            self._session.call_soon(lazy.cancel)

    def _raise_or_return(self, value: Callable[[], Any]) -> Any:
        """Return a value, or raise its error as a future of `concurrent.futures` would."""
        try:
            return value()
        except RemoteError as error:
            raise original_error(error)  # noqa: B904 - it has its cause
        except TaskAborted:
            if self._cancelling:
                raise CancelledError from None
            raise

    # -- the queue ----------------------------------------------------------------------------

    def _withdraw(self, future: ExecutorFuture) -> bool:
        """Take a future out of the queue; return whether it was there."""
        with hold_interrupts(), self._lock:
            if future._sent or future.done():
                return False
            try:
                self._queue.remove(future)
            except ValueError:
                return False
            self._unfinished.discard(future)
            future._cancel_asked = True
            return True

    def _note_end(self, future: ExecutorFuture) -> None:
        """A call has ended; called by the thread that received its result."""
        self._ended.append(future)
        if not self._feed_noted:
            self._feed_noted = True
            self._session.call_soon(self._feed)

    def _note_return(self, future: ExecutorFuture) -> None:
        """A call came back that is to run after all; as `_note_end`."""
        view, call = self.view, future._call
        work = view._new_work(
            call.work.total, call.work.method, call.work.name, targets=call.targets
        )
        work.owner = future
        future._call = msgspec.structs.replace(call, work=work)
        future._work = work
        self._note_end(future)

    def _feed(self) -> None:
        """Send what there is room for."""
        # Before the look: what is noted after it calls for another.
        self._feed_noted = False
        if not self._ended and not self._queue:
            return
        with hold_interrupts(), self._lock:
            self._take_ended()
            room = max(1, self._workers()) * SHARE_S * 1.0001
            while self._queue:
                future = self._queue[0]
                cost = self._durations.get(future._call.function.function.digest, SHARE_S)
                future._cost_s = min(SHARE_S, max(COST_MIN_S, cost))
                if self._in_flight and self._in_flight_s + future._cost_s > room:
                    return
                self._queue.popleft()
                self._send(future)

    def _workers(self) -> int:
        """Return how many calls run at a time; one that goes to several engines takes them all."""
        return len(self.view) if self._queue and self._queue[0]._single else 1

    def _send(self, future: ExecutorFuture) -> None:
        future._sent = True
        self._in_flight += 1
        self._in_flight_s += future._cost_s
        try:
            self.view._send(future._call)
        except ClientClosed as error:
            # Whoever waits for this future learns it there.
            info = m.ErrorInfo("KernelError", str(error), [], own=True)
            future._end(info, m.FAILED)

    def _take_ended(self) -> None:
        while self._ended:
            future = self._ended.popleft()
            self._in_flight -= 1
            self._in_flight_s = self._in_flight_s - future._cost_s if self._in_flight else 0.0
            if future.done():
                self._unfinished.discard(future)
                self._learn(future)
            else:
                future._sent = False
                self._queue.appendleft(future)

    def _learn(self, future: ExecutorFuture) -> None:
        place = future._work.locate(0)
        if place is None:
            return
        started, completed = place[0].times(place[1])
        if started is None or completed is None:
            return
        digest = future._call.function.function.digest
        took_s = completed - started
        before = self._durations.get(digest, took_s)
        # A long one counts at once, short ones bit by bit.
        self._durations[digest] = max(took_s, 0.7 * before + 0.3 * took_s)
        if len(self._durations) > 1024:
            self._durations.clear()

    def __repr__(self) -> str:
        state = ", shut down" if self._closed else ""
        return f"<{type(self).__name__} of {self.view!r}{state}>"


def _abort(result: AsyncResult) -> None:
    if not result.ready():
        result._session.submit.cancel(result._work)


def _remember(executor: ViewExecutor) -> None:
    global _registered
    _live.add(executor)
    if not _registered:
        _registered = True
        # Registered after the client's own, so it runs before that closes the client.
        atexit.register(_finish_at_exit)


_registered = False


def _finish_at_exit() -> None:
    """Wait for what was submitted: a program ends when its futures have."""
    for executor in list(_live):
        if not executor._session.closed:
            executor._wait_for_all()


__all__ = ["ExecutorFuture", "ViewExecutor"]
