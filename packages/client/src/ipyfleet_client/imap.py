"""Maps that take their input as their output is consumed.

What lives here: `LazyMapIterator`. No thread of its own: work is submitted when the consumer asks
    for the next
value, a window ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ipyfleet_client.interrupts import hold_interrupts
from ipyfleet_client.pending import PENDING, Work
from ipyfleet_protocol.messages import OK
from ipyfleet_protocol.serialize import (
    ClassTable,
    PackedFunction,
    PackError,
    equip_function,
    pack_items,
)

if TYPE_CHECKING:
    from ipyfleet_client.views.balanced import LoadBalancedView

WINDOW_MAX_TASKS = 8192
WINDOW_MAX_BYTES = 64 * 1024 * 1024
SHORT_WAIT_S = 0.05
"""A window that comes back faster than this is too small."""


class LazyMapIterator(Iterator[Any]):
    """The values of a lazy map, in order or as they come."""

    def __init__(
        self,
        view: LoadBalancedView,
        function: PackedFunction,
        items: Iterator[tuple[Any, ...]],
        *,
        ordered: bool,
        max_outstanding: int | str | None,
        return_exceptions: bool,
    ) -> None:
        if isinstance(max_outstanding, str):
            if max_outstanding != "auto":
                raise ValueError(f"max_outstanding is an int or 'auto', not {max_outstanding!r}")
        elif max_outstanding is not None and not isinstance(max_outstanding, int):
            raise TypeError(
                f"max_outstanding is an int or 'auto', not {type(max_outstanding).__name__}"
            )
        elif max_outstanding is not None and max_outstanding < 0:
            raise ValueError(f"max_outstanding must not be negative: {max_outstanding}")
        self._view = view
        self._function = function
        self._items = items
        self._taken: list[tuple[Any, ...]] = []
        """Taken from the input and not submitted yet; a Ctrl-C while the input is slow keeps it."""
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._spec = view._spec()
        self._grows = max_outstanding == "auto"
        self._window: int | None
        if self._grows:
            self._window = max(2, 2 * len(view))
        else:
            assert not isinstance(max_outstanding, str)
            self._window = max_outstanding or None
        self._works: deque[tuple[Work, int]] = deque()
        """Works not consumed yet, with their size in bytes."""
        self._open = 0
        self._bytes = 0
        self._next = 0
        self._arrived = 0
        self._exhausted = False
        self._failure: BaseException | None = None
        self._cancelled = False
        self._filled_at = 0.0

    def __iter__(self) -> LazyMapIterator:
        return self

    def __next__(self) -> Any:
        self._fill()
        found = self._await_next() if self._works else None
        if found is None:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            raise StopIteration
        work, index = found
        value = work.value(index)
        failed = work.status[index] != OK
        self._consumed(work)
        if failed and not self._return_exceptions:
            raise value
        return value

    def wait_next(self, timeout: float | None = None) -> bool:
        """Wait until `next` returns or raises at once; return whether it does.

        Args:
            timeout: seconds; None or negative for no limit.
        """
        self._fill()
        if not self._works:
            return True
        return self._view._session.wait_until(self._has_news, timeout)

    def cancel(self) -> None:
        """End the map: take nothing more from the input, take back what has not started.

        From any thread: one that waits for the next value gets StopIteration.
        """
        self._exhausted = self._cancelled = True
        self._taken = []
        # In one step: another thread may look at them.
        works, self._works = self._works, deque()
        self._open = self._bytes = 0
        session = self._view._session
        session.look_again()
        running = [work for work, _ in works if not work.done]
        if running:
            session.submit.cancel_all(running)

    # -- input --------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Submit until the window is full; in lots, not for every value that was taken."""
        if self._exhausted and not self._taken:
            return
        window = self._window
        if window is not None and self._open > window // 2:
            return
        wanted = None if window is None else window - self._open
        while (self._taken or not self._exhausted) and (wanted is None or wanted > 0):
            if self._bytes >= WINDOW_MAX_BYTES and self._works:
                break
            lot = min(1024, 1024 if wanted is None else wanted)
            if not self._exhausted:
                self._take(lot)
            submitted = self._submit()
            if wanted is not None:
                wanted -= submitted
        self._filled_at = time.monotonic()
        if self._cancelled:
            # By another thread, meanwhile.
            self.cancel()

    def _take(self, count: int) -> None:
        rows = self._taken
        try:
            rows.extend(islice(self._items, max(0, count - len(rows))))
        except Exception as error:  # noqa: BLE001 - the user's, raised again later
            # The input's own error: told to the consumer after the values before it.
            self._failure = error
            self._exhausted = True
        if len(rows) < count:
            self._exhausted = True

    def _submit(self) -> int:
        rows = self._taken
        if not rows:
            return 0
        view = self._view
        classes = ClassTable()
        try:
            packed = pack_items(rows, classes)
        except PackError as error:
            # As an error of the input: going on would leave values out.
            self._taken, self._failure, self._exhausted = [], error, True
            return 0
        function = equip_function(self._function, classes)
        work = view._new_work(len(rows), "apply", self._function.function.name)
        n_bytes = sum(len(p[0]) + sum(memoryview(b).nbytes for b in p[1]) for p in packed)
        submit = view._session.submit
        with hold_interrupts():
            # All of it or nothing; a Ctrl-C before this has lost nothing of the input.
            self._taken = []
            submit.submit_each(work, self._spec, function, packed, history=view._history)
            self._works.append((work, n_bytes))
            self._open += len(rows)
            self._bytes += n_bytes
        return len(rows)

    # -- output -------------------------------------------------------------------------------

    def _await_next(self) -> tuple[Work, int] | None:
        """Wait for the next value; None if the map was ended meanwhile."""
        found = self._find()
        if found is None:
            session = self._view._session
            session.wait_until(self._has_news)
            found = self._find()
            if found is None:
                if self._cancelled:
                    return None
                session.wire  # noqa: B018 - raises ClientClosed
                raise RuntimeError("the wait for the next value has ended without one")
            if (
                self._grows
                and self._window is not None
                and time.monotonic() - self._filled_at < SHORT_WAIT_S
            ):
                self._window = min(2 * self._window, WINDOW_MAX_TASKS)
        return found

    def _has_news(self) -> bool:
        return self._cancelled or self._find() is not None

    def _find(self) -> tuple[Work, int] | None:
        """Return the next value to yield, if it is there; changes nothing."""
        works = self._works
        if self._ordered:
            try:
                work, _ = works[0]
                return (work, self._next) if work.status[self._next] != PENDING else None
            except IndexError:
                # There is none, or another thread takes the last of a work just now.
                return None
        for work, _ in list(works):
            consumed = self._consumed_of.get(id(work), 0)
            if consumed < work.arrived:
                return work, _nth_arrival(work, consumed)
        return None

    @property
    def _consumed_of(self) -> dict[int, int]:
        return self.__dict__.setdefault("_counts", {})  # type: ignore[no-any-return]

    def _consumed(self, work: Work) -> None:
        """Note that one value of a work was taken; forget the work with its last one."""
        self._open -= 1
        if self._ordered:
            consumed = self._next + 1
            if consumed < work.total:
                self._next = consumed
                return
        else:
            counts = self._consumed_of
            consumed = counts.get(id(work), 0) + 1
            if consumed < work.total:
                counts[id(work)] = consumed
                return
        with hold_interrupts():
            # A work that is all consumed and still there would be waited for.
            for place, (candidate, n_bytes) in enumerate(self._works):
                if candidate is work:
                    del self._works[place]
                    self._bytes -= n_bytes
                    break
            self._next = 0
            self._consumed_of.pop(id(work), None)


def _nth_arrival(work: Work, number: int) -> int:
    """Return the index of the task whose result was the n-th to arrive."""
    for first, count, _, _ in work.arrivals:
        if number < count:
            return first + number
        number -= count
    raise LookupError(number)
