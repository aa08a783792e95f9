"""The result of a call, now or later.

What lives here: `AsyncResult`. What must not: sockets; how results are stored (`pending.py`).

An `AsyncResult` is a `concurrent.futures.Future`, but makes a Future's condition variable only
when somebody uses it, and unpickles values only when somebody asks for them. Its own waits go
through the session, in which the waiting thread may receive by itself.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
)
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ipyfleet_client.hints import add_hint
from ipyfleet_client.metadata import METADATA_KEYS, metadata_of
from ipyfleet_client.outputs import ExecuteReply
from ipyfleet_client.parts import ResultParts
from ipyfleet_client.pending import PENDING, PayloadDropped, Work
from ipyfleet_client.resultoutput import ResultOutput
from ipyfleet_client.resulttasks import FUTURE_CANCELLED, FUTURE_PENDING, ResultTasks
from ipyfleet_client.timing import ResultTiming
from ipyfleet_protocol.errors import ClientClosed, collect_exceptions
from ipyfleet_protocol.messages import ABORTED, OK

if TYPE_CHECKING:
    from ipyfleet_client.client import Client
    from ipyfleet_client.session import Session

_FUTURE_FINISHED = "FINISHED"

_making_condition = threading.Lock()


class _LazyCondition:
    """Makes a Future's condition, and what is used only under it, on first use."""

    def __get__(self, result: AsyncResult, owner: type | None = None) -> threading.Condition:
        with _making_condition:
            state = result.__dict__
            if "_condition" not in state:
                state["_waiters"] = []
                state["_done_callbacks"] = []
                state["_condition"] = threading.Condition()
            condition: threading.Condition = state["_condition"]
            return condition


class AsyncResult(ResultTiming, ResultOutput, ResultParts, ResultTasks, Future[Any]):
    """The result of a call on one or more engines.

    With several targets its value is the list of theirs, in their order; with a single one, an int,
    it is that one's.

    Attributes that are keys of `Metadata` (``ar.stdout``, ``ar.engine_id``, …) give that item of
    each task, before and after completion.
    """

    _state: str = FUTURE_PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _condition: threading.Condition = _LazyCondition()  # type: ignore[assignment]
    _cancel_asked = False
    _values: list[Any] | None = None
    _return_exceptions = False

    def __init__(self, client: Client, work: Work, *, single: bool) -> None:
        # Future.__init__ would make the condition variable, at a third of the cost of a call.
        self._client = client
        self._session: Session = client.session
        self._work = work
        self._single = single
        work.owner = self
        if work.arrived == work.total and work.closed:
            self._state = _FUTURE_FINISHED
            work.owner = None

    # -- told by the session ------------------------------------------------------------------

    def _work_done(self) -> None:
        """All tasks have ended; called once, by the thread that received the last result."""
        work = self._work
        state = _FUTURE_FINISHED
        if self._cancel_asked and work.total and work.status.count(ABORTED) == work.total:
            state = FUTURE_CANCELLED
        with _making_condition:
            condition = self.__dict__.get("_condition")
            if condition is None:
                self._state = state
                return
        with condition:
            self._state = state
            for waiter in self._waiters:
                if state == FUTURE_CANCELLED:
                    waiter.add_cancelled(self)
                elif work.failures:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            condition.notify_all()
        if self._done_callbacks:
            self._session.call_soon(self._invoke_callbacks)

    # -- waiting ------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether all tasks have ended."""
        return self._state != FUTURE_PENDING

    def done(self) -> bool:
        """Whether all tasks have ended."""
        return self._state != FUTURE_PENDING

    def running(self) -> bool:
        """Whether the call is under way; what is queued counts as running."""
        return self._state == FUTURE_PENDING and not self._cancel_asked

    def successful(self) -> bool:
        """Whether all tasks have ended without an error.

        Raises:
            RuntimeError: not all have ended.
        """
        if not self.ready():
            raise RuntimeError("not all results are here yet; ar.wait() waits for them")
        return not self._work.failures

    def wait(self, timeout: float | None = -1, return_when: str | None = None) -> Any:
        """Wait until all tasks have ended.

        Args:
            timeout: seconds; None or negative for no limit.
            return_when: None, or one of the constants of `concurrent.futures`.

        Returns:
            Whether they have. With `return_when` two sets ``(done, pending)`` of results, one for
            each task; they are those that `split` gives.

        Raises:
            ValueError: `return_when` is none of the constants.
        """
        work = self._work
        if timeout is not None and not isinstance(timeout, int | float):
            raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}")
        if return_when is None or return_when == ALL_COMPLETED:
            done = self._wait_until(self.ready, timeout)
        elif return_when == FIRST_EXCEPTION:
            done = self._wait_until(lambda: self.ready() or work.failures, timeout)
        elif return_when == FIRST_COMPLETED:
            done = self._wait_until(lambda: self.ready() or work.arrived, timeout)
        else:
            raise ValueError(
                f"return_when must be one of {ALL_COMPLETED!r}, {FIRST_COMPLETED!r}, "
                f"{FIRST_EXCEPTION!r} (as in concurrent.futures), not {return_when!r}"
            )
        if return_when is None:
            return done
        parts = self.split()
        done_parts = {part for part in parts if part.ready()}
        return done_parts, set(parts) - done_parts

    def _wait_until(self, predicate: Callable[[], object], timeout: float | None) -> bool:
        if self._streamer is not None:
            return self._streamer.wait(predicate, timeout)
        return self._session.wait_until(predicate, timeout)

    def wait_interactive(
        self,
        interval: float = 0.1,
        timeout: float | None = -1,
        widget: bool | None = None,
        return_when: str | None = None,
    ) -> Any:
        """Wait and show a progress bar that counts items.

        Args:
            interval: seconds between two updates.
            timeout: seconds; None or negative for no limit.
            widget: a notebook widget instead of text; None for where there can be one.
            return_when: as in `wait`.
        """
        from ipyfleet_client.progressbar import wait_with_bar

        wait_with_bar(self, interval, timeout, widget)
        return self.wait(0, return_when)

    # -- values -------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        return_exceptions: bool | None = None,
        return_when: str | None = None,
    ) -> Any:
        """Wait for the value and return it.

        Args:
            timeout: seconds; None or negative for no limit.
            return_exceptions: put errors among the values instead of raising them.
            return_when: FIRST_EXCEPTION raises as soon as one task has failed.

        Raises:
            TimeoutError: the value is not there in time.
            RemoteError: the task failed.
            CompositeError: of a call on several targets, at least one failed.
            ClientClosed: the client was closed before the value was there.
            KernelError: it ended otherwise, for example `EngineError`.
            concurrent.futures.CancelledError: `cancel` was in time.
        """
        if return_when == FIRST_COMPLETED:
            warnings.warn("get() ignores return_when=FIRST_COMPLETED", UserWarning, stacklevel=2)
        elif return_when == FIRST_EXCEPTION:
            self._wait_until(lambda: self.ready() or self._work.failures, timeout)
            if self._work.failures and not self.ready():
                self._raise_failures(self._arrived_errors())
        elif return_when not in (None, ALL_COMPLETED):
            raise ValueError(
                f"return_when must be None, {ALL_COMPLETED!r} or {FIRST_EXCEPTION!r}, not "
                f"{return_when!r}"
            )
        wait_until = self._wait_until if self._streamer is not None else self._session.wait_until
        if self._state == FUTURE_PENDING and not wait_until(self.ready, timeout):
            raise TimeoutError(
                f"the result was not there within {timeout} s: {self._work.arrived} of "
                f"{self._work.total} tasks have ended; get() or wait() again to go on waiting"
            )
        if self._state == FUTURE_CANCELLED:
            raise CancelledError
        values = self._load()
        if return_exceptions is None:
            return_exceptions = self._return_exceptions
        if self._work.failures and not return_exceptions:
            self._raise_failures([v for k, v in enumerate(values) if self._work.status[k] != OK])
        return self._shape(values)

    def result(self, timeout: float | None = None) -> Any:
        """As `get`."""
        return self.get(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return the error that `get` would raise, or None.

        Raises:
            TimeoutError: the tasks have not ended in time.
            concurrent.futures.CancelledError: `cancel` was in time.
        """
        if not self._wait_until(self.ready, timeout):
            raise TimeoutError(f"the result was not there within {timeout} s")
        if self._state == FUTURE_CANCELLED:
            raise CancelledError
        if not self._work.failures:
            return None
        try:
            self._raise_failures(self._arrived_errors())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return error.with_traceback(None)
        return None

    @property
    def r(self) -> Any:
        """The value; waits for it."""
        return self.get()

    def get_dict(self, timeout: float | None = -1) -> dict[int | None, Any]:
        """Return the values by engine id.

        Raises:
            ValueError: an engine ran more than one of the tasks.
        """
        values = self.get(timeout)
        if self._single:
            values = [values]
        engines = [self._work.engine(index) for index in range(self._work.total)]
        if len(set(engines)) < len(engines):
            twice = next(engine for engine in engines if engines.count(engine) > 1)
            raise ValueError(
                f"engine {twice} ran {engines.count(twice)} of these tasks: there is no value by "
                "engine; get() gives the list of all"
            )
        if len(values) != len(engines):
            values = [part.get(timeout) for part in self.split()]
        return dict(zip(engines, values, strict=True))

    @property
    def result_dict(self) -> dict[int | None, Any]:
        """The values by engine id; waits for them."""
        return self.get_dict()

    def _load(self) -> list[Any]:
        """Return the values of all tasks, errors as exception objects; unpickled once."""
        values = self._values
        if values is None:
            work = self._work
            if work.method == "execute":
                self.wait_for_output(2.0)
                values = [self._value(index) for index in range(work.total)]
            else:
                try:
                    values = work.values()
                except PayloadDropped:
                    values = [self._value(index) for index in range(work.total)]
            self._values = values
            work.drop_payload()
        return values

    def _value(self, index: int) -> Any:
        """Return one task's value or error; the task has ended."""
        if self._values is not None:
            return self._values[index]
        try:
            value = self._work.value(index)
        except PayloadDropped:
            # Whoever dropped it has the values: another thread, or what this is a part of.
            if self._values is not None:
                return self._values[index]
            if not self._origins:
                raise
            origin, place = self._origins[index]
            value = origin._value(place)
        if self._work.method == "execute" and self._work.status[index] == OK:
            metadata = metadata_of(self._session, self._work, index)
            return ExecuteReply(value.execution_count, metadata)
        return value

    def _shape(self, values: list[Any]) -> Any:
        """Make of the tasks' values what `get` returns."""
        return values[0] if self._single else list(values)

    def _arrived_errors(self) -> list[Any]:
        status = self._work.status
        return [self._value(k) for k, s in enumerate(status) if s not in (OK, PENDING)]

    def _raise_failures(self, errors: list[Any]) -> None:
        add_hint(errors)
        if self._single:
            raise errors[0]
        for error in errors:
            if isinstance(error, ClientClosed):
                raise error  # it is not about the tasks, which go on
        collect_exceptions(errors, self._work.name)

    # -- one after the other ------------------------------------------------------------------

    def __len__(self) -> int:
        return self._work.total

    @property
    def _n_items(self) -> int:
        """What `progress` counts up to; known without waiting."""
        return self._work.total

    def _item(self, index: int) -> Any:
        """Return the value of one task that has ended, or raise its error."""
        value = self._value(index)
        if self._work.status[index] != OK and not self._return_exceptions:
            add_hint([value])
            raise value
        return value

    def _item_ready(self, index: int) -> bool:
        return self._work.status[index] != PENDING

    def __iter__(self) -> Iterator[Any]:
        if self._single:
            raise TypeError("this result has a single value; get() returns it")
        return self._iterate()

    def _iterate(self) -> Iterator[Any]:
        for index in range(self._work.total):
            if not self._item_ready(index):
                self._wait_until(partial(self._item_ready, index), None)
            yield self._item(index)

    async def __aiter__(self) -> AsyncIterator[Any]:
        if self._single:
            raise TypeError("this result has a single value; await it")
        for index in range(self._work.total):
            if not self._item_ready(index):
                await self._session.until(partial(self._item_ready, index))
            yield self._item(index)

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            if key not in METADATA_KEYS:
                raise KeyError(f"there is no {key!r}; there are {', '.join(sorted(METADATA_KEYS))}")
            return self._metadata_item(key)
        if isinstance(key, slice):
            return [self[k] for k in range(*key.indices(len(self)))]
        if not hasattr(key, "__index__"):
            raise TypeError(f"results are chosen by int, slice or str, not {type(key).__name__}")
        count = len(self)
        index = key + count if key < 0 else key
        if not 0 <= index < count:
            raise IndexError(f"no result {key}: there are {count}")
        return self._get_one(index)

    def _get_one(self, index: int) -> Any:
        if not self._item_ready(index):
            raise TimeoutError(f"result {index} is not here yet; ar.wait() waits for all")
        return self._item(index)

    @classmethod
    def _of_work(cls, client: Client, work: Work, sources: tuple[AsyncResult, ...]) -> Self:
        return cls(client, work, single=False)

    def __repr__(self) -> str:
        state = ":finished" if self.ready() else ""
        if not state and not self._single and self.progress:
            state = f": {self.progress} of {self._n_items}"
        return f"<{type(self).__name__}: {self._work.name}{state}>"

    def _repr_html_(self) -> str:
        """How notebooks show it: progress while it runs, times when it has ended."""
        from ipyfleet_client.reprs import result_html

        return result_html(self)
