"""The client's socket: who sends, who receives, who waits.

What lives here: `Wire`, the one DEALER of a client with its I/O thread. What must not: the meaning
    of
messages (`link.py`), what is sent (`submission.py`).

Theory of operation
-------------------
The socket is used under one lock by whoever needs it, so that a round trip costs no wake-up of
a thread in this process:

* **Sending.** A thread that submits sends by itself.
* **Receiving.** Normally the I/O thread sleeps in epoll on the socket's file descriptor. A user
  thread that waits for something becomes the **leader**: it takes the descriptor out of the I/O
  thread's epoll set, waits on it itself, receives and dispatches, and gives it back when it has
  what it wants. Further waiting threads are **followers**, woken when what they want is there or
  when the leader leaves.
* **The edge.** zmq's descriptor tells of news once. Whoever uses the socket in any way may take the
  news away, so a sender looks afterwards whether there is something to read and reads it.
* **Order.** Messages are dispatched in the order received: receiving and dispatching are one step
  under `_receiving`. Dispatch runs no code of users: callbacks are handed to the I/O thread
  (`call_soon`).

Where there is no epoll every waiting thread is a follower.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import zmq

from ipyfleet_client.interrupts import hold_interrupts
from ipyfleet_client.poller import make_poller
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ClientClosed

logger = logging.getLogger("ipyfleet.client")

FLUSH_DELAY_S = 0.001
"""How long calls are collected before they are sent, at most."""

FOLLOWER_CHECK_S = 1.0
"""A follower looks after itself this often, should a wake-up have been missed."""

_SEND_MORE = int(zmq.SNDMORE)
_DONT_WAIT = int(zmq.NOBLOCK)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_ZERO_COPY_MIN_BYTES = 64 * 1024


class _Waiter:
    """A thread that waits for something."""

    __slots__ = ("lock", "predicate")

    def __init__(self, predicate: Callable[[], object]) -> None:
        self.predicate = predicate
        self.lock = threading.Lock()
        self.lock.acquire()

    def wake(self) -> None:
        if self.lock.locked():
            try:
                self.lock.release()
            except RuntimeError:
                # Somebody else has just woken it.
                return


class Notice(NamedTuple):
    """What to call, once, when a predicate has become true."""

    predicate: Callable[[], object]
    callback: Callable[[], object]


class Wire:
    """A connected DEALER and its I/O thread.

    Args:
        socket: connected, of type DEALER; owned from now on.
        dispatch: called with the frames of each message, one message at a time.
        flush: called by the I/O thread, and before every wait, to send what was buffered.
        name: of the I/O thread.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        *,
        dispatch: Callable[[Sequence[Frame]], None],
        flush: Callable[[], None],
        name: str = "ipyfleet-client",
    ) -> None:
        self._socket = socket
        self._dispatch = dispatch
        self._flush = flush
        self._using = threading.Lock()
        self._receiving = threading.Lock()
        self._leading = threading.Lock()
        self._waiters: list[_Waiter] = []
        self._notices: list[Notice] = []
        self._leader: _Waiter | None = None
        self._soon: deque[Callable[[], None]] = deque()
        self._flush_wanted = False
        self._stopping = False
        self.closed_reason = ""
        """Why the wire cannot be used any more; empty while it can."""
        self._poller = make_poller(socket.FD)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the I/O thread."""
        self._thread.start()

    # -- sending ------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send one message; from any thread. Waits while the socket's queue is full.

        Returns:
            Whether it was sent: False only if Ctrl-C came while the queue was full.

        Raises:
            ClientClosed: the wire is closed.
        """
        with hold_interrupts() as interrupt:
            while not self._send_nowait(frames):
                if interrupt.noted:
                    return False
                # The queue is full: the controller reads more slowly than we submit.
                self._drain()
                time.sleep(FLUSH_DELAY_S)
        return True

    def _send_nowait(self, frames: Sequence[Frame]) -> bool:
        with self._using:
            self.check_open()
            socket = self._socket
            last = len(frames) - 1
            try:
                for position, frame in enumerate(frames):
                    flags = _DONT_WAIT if position == last else _DONT_WAIT | _SEND_MORE
                    # Only what cannot change may be read by zmq later.
                    copy = type(frame) is not bytes or len(frame) < _ZERO_COPY_MIN_BYTES
                    socket.send(frame, flags, copy=copy)
            except zmq.Again:
                return False
            readable = int(socket.getsockopt(_EVENTS)) & _POLLIN
        if readable and not self._drain(wait=False):
            # Somebody else receives just now and may have looked already.
            self._nudge()
        return True

    def _nudge(self) -> None:
        if self._leader is not None:
            self._poller.wake_leader()
        else:
            self._poller.wake()

    # -- receiving ----------------------------------------------------------------------------

    def _drain(self, wait: bool = True) -> bool:
        """Receive and dispatch all there is; False if another thread is at it."""
        if not self._receiving.acquire(blocking=wait):
            return False
        try:
            while True:
                with self._using:
                    if self.closed_reason and self._socket.closed:
                        return True
                    try:
                        received = self._socket.recv_multipart(_DONT_WAIT, copy=False)
                    except zmq.Again:
                        break
                # Small ones as bytes: a zmq frame that is freed in the main thread looks for
                # signals there, where an exception cannot be raised: a Ctrl-C would be lost.
                frames: list[Any] = [
                    f.bytes if len(f) < _ZERO_COPY_MIN_BYTES else f for f in received
                ]
                del received
                self._dispatch(frames)
        finally:
            self._receiving.release()
        self._wake_ready()
        return True

    def _wake_ready(self) -> None:
        me = threading.get_ident()
        for waiter in list(self._waiters):
            if waiter.predicate():
                if waiter is self._leader:
                    if me != self._leader_thread:
                        self._poller.wake_leader()
                else:
                    waiter.wake()

        for notice in list(self._notices):
            if notice.predicate():
                self.forget(notice)
                notice.callback()

    _leader_thread = 0

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

    # -- waiting ------------------------------------------------------------------------------

    def wait_until(self, predicate: Callable[[], object], timeout_s: float | None = None) -> bool:
        """Wait until the predicate is true, receiving meanwhile; return whether it is.

        Any number of threads may wait. Ctrl-C ends the wait at once.

        Args:
            predicate: cheap; called often, by several threads.
            timeout_s: None or negative for no limit.

        Raises:
            KeyboardInterrupt: and the wire is as usable as before.
        """
        if predicate():
            return True
        self._flush()
        deadline = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
        waiter = _Waiter(predicate)
        self._waiters.append(waiter)
        try:
            while not predicate() and not self.closed_reason:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    with hold_interrupts():
                        self._drain(wait=False)
                    break
                if not (self._poller.can_lead and self._lead(waiter, deadline)):
                    # Also wakes now and then without a reason, which costs next to nothing.
                    waiter.lock.acquire(
                        timeout=FOLLOWER_CHECK_S if left is None else min(left, FOLLOWER_CHECK_S)
                    )
        finally:
            self._waiters.remove(waiter)
            self._promote()
        return bool(predicate())

    def _lead(self, waiter: _Waiter, deadline: float | None) -> bool:
        """Receive in this thread until the waiter has what it wants; False if another one does."""
        with hold_interrupts(self._poller.wake_leader) as interrupt:
            if not self._leading.acquire(blocking=False):
                return False
            try:
                self._leader_thread = threading.get_ident()
                self._leader = waiter
                self._poller.take()
                while True:
                    self._drain()
                    if waiter.predicate() or self.closed_reason or interrupt.noted:
                        return True
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return True
                    self._poller.lead(left)
            finally:
                self._leader = None
                self._leader_thread = 0
                if not self._stopping:
                    self._poller.give_back()
                self._leading.release()
                if self._soon:
                    self._poller.wake()

    def _promote(self) -> None:
        """Let another waiting thread become the leader."""
        if self._waiters and not self._leading.locked():
            self._waiters[0].wake()

    # -- the I/O thread -----------------------------------------------------------------------

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the I/O thread call a function; what users gave us to call is called there."""
        self._soon.append(function)
        self._poller.wake()

    def flush_soon(self) -> None:
        """Have the I/O thread flush in about a millisecond, unless a wait does it before."""
        if not self._flush_wanted:
            self._flush_wanted = True
            self._poller.wake()

    @property
    def in_io_thread(self) -> bool:
        """Whether the caller is the I/O thread."""
        return threading.get_ident() == self._thread.ident

    def _run(self) -> None:
        flush_at: float | None = None
        while not self._stopping:
            if flush_at is None:
                timeout = None
            else:
                timeout = max(0.0, flush_at - time.monotonic())
            try:
                if self._poller.wait(timeout):
                    self._drain()
            except Exception:
                # A bug of ours; the thread must go on for the other results.
                logger.exception("the I/O thread failed")
            self._run_soon()
            if flush_at is not None and time.monotonic() >= flush_at:
                flush_at = None
                self._flush_wanted = False
                try:
                    self._flush()
                except ClientClosed:
                    return
                except Exception:
                    logger.exception("could not send what was submitted")
            elif self._flush_wanted and flush_at is None:
                flush_at = time.monotonic() + FLUSH_DELAY_S

    def _run_soon(self) -> None:
        while self._soon:
            function = self._soon.popleft()
            try:
                function()
            except Exception:
                logger.exception("a callback failed")

    def watch(self, fd: int, callback: Callable[[], None]) -> bool:
        """Have the I/O thread call a function when another descriptor can be read.

        What has arrived until then is received before. Where this cannot be had, False.
        """

        def call() -> None:
            self._drain()
            callback()

        return self._poller.watch(fd, call)

    # -- the end ------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise `ClientClosed` if the wire is closed."""
        if self.closed_reason:
            raise ClientClosed(self.closed_reason)

    def refuse(self, reason: str) -> None:
        """Mark the wire closed and wake all who wait; from any thread. Idempotent."""
        if not self.closed_reason:
            self.closed_reason = reason
            for waiter in list(self._waiters):
                waiter.wake()
            for notice in list(self._notices):
                self.forget(notice)
                notice.callback()
            if self._leader is not None:
                self._poller.wake_leader()

    def close(self, reason: str, last: Sequence[Frame] = (), linger_s: float = 0.5) -> None:
        """Send a last message, stop the I/O thread, close the socket. Idempotent.

        Args:
            reason: what later calls say.
            last: a message to send before, if any.
            linger_s: how long to wait at most for what is still to be sent.
        """
        if self._stopping:
            return
        if last and not self.closed_reason:
            try:
                self._send_nowait(last)
            except (ClientClosed, zmq.ZMQError):
                # It is a courtesy.
                logger.debug("could not say goodbye", exc_info=True)
        self.refuse(reason)
        self._stopping = True
        self._poller.wake()
        if not self.in_io_thread and self._thread.is_alive():
            self._thread.join(timeout=5)
        # The leader, if there is one, has been woken and leaves.
        with self._leading, self._receiving, self._using:
            self._socket.close(linger=int(linger_s * 1000))
            self._poller.close()

    def abandon(self, reason: str) -> None:
        """In a forked child: the socket, the locks and the thread are the parent's; touch none."""
        self.closed_reason = reason
        self._stopping = True
