"""Waiting for what arrives: leaders and followers.

What lives here: `WireWaits`, the part of the wire by which threads wait; the theory is in `io.py`.
What must not: the connection.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ipyfleet_client.interrupts import hold_interrupts

if TYPE_CHECKING:
    from ipyfleet_client.poller import Poller

FOLLOWER_CHECK_S = 1.0
"""A follower looks after itself this often, should a wake-up have been missed."""


class _Waiter(msgspec.Struct, eq=False):
    """A thread that waits for something.

    Attributes:
        predicate: what it waits for.
        is_done: it has seen that to be true.
        lock: locked, once it follows; who releases it wakes the thread.
    """

    predicate: Callable[[], object]
    is_done: bool = False
    lock: Any = None

    def wake(self) -> None:
        if self.lock is not None and self.lock.locked():
            try:
                self.lock.release()
            except RuntimeError:
                # Somebody else has just woken it.
                return


class Notice(NamedTuple):
    """What to call, once, when a predicate has become true."""

    predicate: Callable[[], object]
    callback: Callable[[], object]


class WireWaits:
    """Threads that wait, and functions that are to be called when something is there.

    Attributes:
        closed_reason: why the wire cannot be used any more; empty while it can.
    """

    closed_reason: str
    _poller: Poller
    _stopping: bool
    _soon: deque[Callable[[], object]]
    _flush: Callable[[bool], bool]

    if TYPE_CHECKING:

        def _drain(self, wait: bool = True, *, leading: bool = False) -> bool:
            """As `Wire._drain`."""

    def __init__(self) -> None:
        self._leading = threading.Lock()
        self._waiters: list[_Waiter] = []
        self._notices: list[Notice] = []
        self._leader: _Waiter | None = None
        self._leader_thread = 0

    def _wake_all(self) -> None:
        """Wake all who wait, whatever for."""
        for waiter in list(self._waiters):
            waiter.wake()
        for notice in list(self._notices):
            self.forget(notice)
            notice.callback()
        if self._leader is not None:
            self._poller.wake_leader()

    def _wake_ready(self) -> None:
        me = threading.get_ident()
        for waiter in list(self._waiters):
            if waiter.predicate():
                if waiter is not self._leader:
                    waiter.wake()
                elif me != self._leader_thread:
                    self._poller.wake_leader()
        for notice in list(self._notices):
            if notice.predicate():
                self.forget(notice)
                notice.callback()

    def look_again(self) -> None:
        """Something that threads wait for may have come true without a message; any thread."""
        self._wake_ready()

    def notify(self, predicate: Callable[[], object], callback: Callable[[], object]) -> Notice:
        """Have `callback` called once, from any thread, as soon as the predicate is true."""
        notice = Notice(predicate, callback)
        self._notices.append(notice)
        if predicate() or self.closed_reason:
            self.forget(notice)
            callback()
        return notice

    def forget(self, notice: Notice) -> None:
        """Take back a `notify`. Idempotent."""
        with contextlib.suppress(ValueError):
            self._notices.remove(notice)

    def wait_until(
        self,
        predicate: Callable[[], object],
        timeout_s: float | None = None,
        ask: Callable[[], object] | None = None,
    ) -> bool:
        """Wait until the predicate is true, receiving meanwhile; return whether it is.

        Any number of threads may wait. Ctrl-C ends the wait at once.

        Args:
            predicate: cheap; called often, by several threads.
            timeout_s: None or negative for no limit.
            ask: sends what makes the predicate true. This thread leads by then if it can: an answer
                that is there before this thread goes on wakes nobody else. On a busy machine that
                is every other answer.

        Raises:
            KeyboardInterrupt: and the wire is as usable as before.
        """
        if ask is None:
            self._flush(True)
        deadline = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
        waiter = _Waiter(predicate)
        try:
            self._waiters.append(waiter)
            while not (waiter.is_done or self.closed_reason):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    with hold_interrupts():
                        self._drain(wait=False)
                    break
                if not (self._poller.can_lead and self._lead(waiter, deadline, ask)):
                    if ask is not None:
                        ask()
                    self._follow(waiter, left)
                ask = None
        finally:
            # Unless Ctrl-C came first.
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if self._waiters:
                self._promote()
        return waiter.is_done or bool(predicate())

    def _lead(
        self, waiter: _Waiter, deadline: float | None, ask: Callable[[], object] | None
    ) -> bool:
        """Receive in this thread until the waiter has what it wants; False if another one does."""
        with hold_interrupts(self._poller.wake_leader) as interrupt:
            if not self._leading.acquire(blocking=False):
                return False
            try:
                self._leader_thread = threading.get_ident()
                self._leader = waiter
                self._poller.take()
                if ask is not None:
                    ask()
                # The I/O thread may have received it just before.
                while not waiter.predicate():
                    left = None if deadline is None else deadline - time.monotonic()
                    if self.closed_reason or interrupt.noted or (left is not None and left <= 0):
                        return True
                    self._poller.lead(left)
                    self._drain(leading=True)
                waiter.is_done = True
                return True
            finally:
                self._leader = None
                self._leader_thread = 0
                if not self._stopping:
                    self._poller.give_back()
                self._leading.release()
                if self._soon:
                    self._poller.wake()

    def receive_if_leading(self, limit_s: float) -> bool:
        """Wait so long for something to receive, if this thread leads: nobody else does then.

        Returns:
            Whether it leads.
        """
        leads = self._leader_thread == threading.get_ident()
        if leads:
            self._poller.lead(limit_s)
            self._drain(leading=True)
        return leads

    def _follow(self, waiter: _Waiter, left_s: float | None) -> None:
        """Sleep until somebody wakes this thread, or for a while."""
        if waiter.lock is None:
            waiter.lock = threading.Lock()
            waiter.lock.acquire()
            # The leader may have left before it could wake this thread.
            if self._poller.can_lead and not self._leading.locked():
                return
        if not waiter.predicate():
            waiter.lock.acquire(
                timeout=FOLLOWER_CHECK_S if left_s is None else min(left_s, FOLLOWER_CHECK_S)
            )
        waiter.is_done = bool(waiter.predicate())

    def _promote(self) -> None:
        """Let another waiting thread become the leader."""
        for waiter in self._waiters[:1]:
            if not self._leading.locked():
                waiter.wake()
