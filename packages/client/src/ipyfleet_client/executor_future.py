"""The future of an executor's call.

What lives here: `ExecutorFuture` and what turns a `RemoteError` into what the function raised. What
must not: when a call is sent (`executor.py`, whose docstring has the theory).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.pending import Segment
from ipyfleet_client.resulttasks import CANCEL_WAIT_S
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import float64_column, uint32_column
from ipyfleet_protocol.errors import RemoteError

if TYPE_CHECKING:
    from ipyfleet_client.executor import ViewExecutor
    from ipyfleet_client.views.base import PreparedCall

_COLOUR = re.compile("\x1b\\[[0-9;]*m")


class ExecutorFuture(AsyncResult):
    """A call of an executor: a `concurrent.futures.Future` that is also an `AsyncResult`.

    `result` and `exception` speak of the exception that the function raised, whose ``__cause__``
    is the `RemoteError` with the engine's traceback; `get` raises the `RemoteError`, whose
    ``__cause__`` is the exception, as that of any `AsyncResult`. Where the exception cannot be
    pickled, there is only the `RemoteError`.
    """

    def __init__(self, executor: ViewExecutor, call: PreparedCall) -> None:
        self._executor = executor
        self._call = call
        self._cost_s = 0.0
        self._sent = False
        self._cancel_refused = False
        self._cancel_won = False
        self._original: BaseException | None = None
        super().__init__(executor.view.client, call.work, single=call.single)

    def running(self) -> bool:
        """Whether the call was handed to the engines and has not ended.

        Once this was true, `cancel` does not try to call it back.
        """
        with self._executor._verdict:
            if not self._sent or self.done() or (self._cancel_asked and not self._cancel_refused):
                return False
            self._cancel_refused = True
            return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the value of the call, after waiting for it.

        Raises:
            TimeoutError: it is not there within `timeout` seconds.
            concurrent.futures.CancelledError: the call was cancelled.
            Exception: what the function raised; see the class.
        """
        error = self.exception(timeout)
        if error is None:
            return self.get()
        try:
            raise error
        finally:
            # The traceback refers to this frame: without this it would live as long as the error.
            del error, self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the function raised, or None, after waiting for the end of the call.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds.
            concurrent.futures.CancelledError: the call was cancelled.
        """
        error = super().exception(timeout if timeout is None else max(0.0, timeout))
        if self._single and isinstance(error, RemoteError):
            if self._original is None:
                self._original = original_error(self._work.value(0))
            return self._original
        return error

    def cancel(self, force: bool = False, grace: float = 1.0) -> bool:
        """Cancel the call unless it runs or has ended; return whether it is cancelled.

        As every future of an executor: a call that runs goes on, except with `force`.
        """
        if force:
            return super().cancel(force, grace)
        executor = self._executor
        if executor._withdraw(self):
            self._end_cancelled()
            return True
        if self.done() or self._cancel_refused:
            return self.cancelled()
        if not self._take_back(CANCEL_WAIT_S):
            with executor._verdict:
                self._cancel_refused = not self._cancel_won
            if self._cancel_refused:
                return False
            self._wait_until(self.ready, None)
        return True

    def abort(self, force: bool = False, grace: float = 1.0) -> None:
        """End the call: its result is `TaskAborted`. See `AsyncResult.abort`.

        Raises:
            RuntimeError: it has ended.
        """
        if self._executor._withdraw(self):
            self._cancel_asked = False
            self._end_cancelled()
            return
        self._cancel_asked = self._cancel_refused = False
        super().abort(force, grace)

    def _end_cancelled(self) -> None:
        """End the call, which was never sent."""
        self._end(m.ErrorInfo("TaskAborted", "cancelled before it was sent", [], own=True))

    def _end(self, error: m.ErrorInfo, status: int = m.ABORTED) -> None:
        work = self._work
        payload = encode_part(error)
        nan = float64_column([float("nan")])
        columns = m.Columns(uint32_column([len(payload)]))
        piece = m.ResultSlice(0, 1, 0, -1, bytes((status,)), nan, nan, b"", columns)
        segment = Segment(piece, [payload], -1, time.time())
        for index in range(work.total):
            work.add(index, 1, segment, 0)
        work.owner = None
        self._work_done()
        # Other threads may be waiting for it, and no message tells them.
        self._session.look_again()

    def _work_done(self) -> None:
        work, executor = self._work, self._executor
        with executor._verdict:
            aborted = work.status.count(m.ABORTED) == work.total
            again = aborted and self._cancel_asked and self._cancel_refused
            self._cancel_won = aborted and self._cancel_asked and not again
        if again:
            self._cancel_asked = self._cancel_refused = False
            executor._note_return(self)
            return
        super()._work_done()
        if self._sent:
            executor._note_end(self)

    def _wait_until(self, predicate: Callable[[], object], timeout: float | None) -> bool:
        executor = self._executor
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        while True:
            executor._feed()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            reached = super()._wait_until(lambda: predicate() or executor._ended, left)
            if predicate() or not reached:
                return bool(predicate())


def original_error(error: Any) -> BaseException:
    """Return the exception behind a `RemoteError`, with the latter as its ``__cause__``.

    Args:
        error: is changed; returned as it is if it has no original or is no `RemoteError`.
    """
    original: BaseException | None = getattr(error, "__cause__", None)
    if not isinstance(error, RemoteError) or original is None:
        assert isinstance(error, BaseException)
        return error
    error.__cause__ = None
    if error.traceback:
        # What Python prints of a cause is its text; IPython asks the error itself.
        lines = [_COLOUR.sub("", line) for line in error.traceback]
        error.add_note("\n".join(["", "On the engine:", *lines]))
    original.__cause__ = error
    return original
