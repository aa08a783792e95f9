"""How a thread waits for the connection or for a wake-up.

What lives here: `EpollPoller` for Linux, with which a user thread can take the connection over from
the I/O thread while that sleeps, and `PlainPoller` for everywhere else, with which the I/O thread
alone waits. What must not: the connection itself; only its descriptors are known here.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ipyfleet_client.timerfd import clear_timer, make_timer, set_timer


class Poller(Protocol):
    """What the wire needs of a poller."""

    can_lead: bool
    """Whether a user thread may take the connection over."""

    def wait(self, timeout_s: float | None) -> bool:
        """I/O thread: wait for the connection or `wake`; return whether the connection has news."""

    def wake(self) -> None:
        """Make `wait` return now, or the next call of it at once."""

    def watch(self, fd: int, callback: Callable[[], None]) -> bool:
        """Have `wait` call a function, once, when another descriptor can be read; it is closed
        then, or with the poller. False where that is not to be had: it is the caller's still.
        """

    def replace(self, fds: Sequence[int], write_fd: int = -1) -> None:
        """There is another connection, or none; the old one's descriptors are still open.

        From any thread if there may be leaders, else by the I/O thread only. A leader goes on with
        the new one.

        Args:
            fds: its descriptors, news of which is that they can be read.
            write_fd: the one that `want_room` is about.
        """

    def want_room(self, wanted: bool) -> None:
        """Take it for news, too, that the connection can be written; for the I/O thread only."""

    def alarm(self, delay_s: float) -> None:
        """Have `wait` call `on_alarm`, once, after some time; from any thread, waking none."""

    on_alarm: Callable[[], None]

    def take(self) -> None:
        """The calling thread waits for what is to be read from now on, with `lead`."""

    def lead(self, timeout_s: float | None) -> None:
        """Leader: wait for the connection or `wake_leader`."""

    def wake_leader(self) -> None:
        """Make `lead` return now, or the next call of it at once."""

    def give_back(self) -> None:
        """The I/O thread waits for the connection again."""

    def close(self) -> None:
        """Free the file descriptors."""


def make_poller() -> Poller:
    """Return the best poller of this platform, for no connection yet."""
    if sys.platform == "linux" and hasattr(os, "eventfd"):
        return EpollPoller()
    return PlainPoller()


if sys.platform == "linux":
    _IN = select.EPOLLIN

    class EpollPoller:
        """Waits with epoll, whose set can be changed while a thread sleeps on it."""

        can_lead = True

        def __init__(self) -> None:
            self._fds: tuple[int, ...] = ()
            self._write_fd = -1
            self._wants_room = False
            flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
            self._wake_fd = os.eventfd(0, flags)
            self._leader_fd = os.eventfd(0, flags)
            self._epoll = select.epoll()
            self._epoll.register(self._wake_fd, select.EPOLLIN)
            self._timer_fd = -1
            self.on_alarm: Callable[[], None] = _do_nothing
            self._leader_poll = self._make_leader_poll()
            self._taken = False
            # Reentrant: the handler of a signal may want to wake while this thread does.
            self._closing = threading.RLock()
            self._watched: dict[int, Callable[[], None]] = {}
            self._closed = False

        def _make_leader_poll(self) -> select.poll:
            poll = select.poll()
            for fd in self._fds:
                poll.register(fd, select.POLLIN)
            poll.register(self._leader_fd, select.POLLIN)
            return poll

        def wait(self, timeout_s: float | None) -> bool:
            """I/O thread: wait for the connection or `wake`; return whether that has news."""
            has_news = False
            for fd, _ in self._epoll.poll(timeout_s):
                if fd in self._fds:
                    has_news = True
                elif fd == self._wake_fd:
                    _drain(self._wake_fd)
                elif fd == self._timer_fd:
                    clear_timer(fd)
                    self.on_alarm()
                elif fd in self._watched:
                    callback = self._watched.pop(fd)
                    self._epoll.unregister(fd)
                    os.close(fd)
                    callback()
            return has_news

        def watch(self, fd: int, callback: Callable[[], None]) -> bool:
            """Have `wait` call a function, once, when another descriptor can be read."""
            self._watched[fd] = callback
            self._epoll.register(fd, select.EPOLLIN)
            return True

        def replace(self, fds: Sequence[int], write_fd: int = -1) -> None:
            """There is another connection, or none."""
            with self._closing:
                if self._closed:
                    return
                for fd in self._fds:
                    self._epoll.unregister(fd)
                self._fds = tuple(fds)
                self._write_fd = write_fd
                self._wants_room = False
                for fd in self._fds:
                    self._epoll.register(fd, self._mask(fd))
                # One that is waited on just now stays as it is; the leader is woken to take this.
                self._leader_poll = self._make_leader_poll()
                if self._taken:
                    os.eventfd_write(self._leader_fd, 1)

        def want_room(self, wanted: bool) -> None:
            """Take it for news, too, that the connection can be written."""
            with self._closing:
                if wanted != self._wants_room and self._write_fd >= 0 and not self._closed:
                    self._wants_room = wanted
                    self._epoll.modify(self._write_fd, self._mask(self._write_fd))

        def _mask(self, fd: int) -> int:
            """Return what the I/O thread waits for. Of a connection's end it hears whatever that
            is.
            """
            wanted = 0 if self._taken else _IN
            return wanted | select.EPOLLOUT if self._wants_room and fd == self._write_fd else wanted

        def alarm(self, delay_s: float) -> None:
            """Have `wait` call `on_alarm` after some time."""
            with self._closing:
                if self._closed:
                    return
                if self._timer_fd < 0:
                    self._timer_fd = make_timer()
                    self._epoll.register(self._timer_fd, select.EPOLLIN)
                set_timer(self._timer_fd, delay_s)

        def wake(self) -> None:
            """Make `wait` return."""
            self._write(self._wake_fd)

        def _write(self, fd: int) -> None:
            # A closed descriptor's number may be somebody else's by now.
            with self._closing:
                if not self._closed:
                    os.eventfd_write(fd, 1)

        def take(self) -> None:
            """The calling thread waits for what is to be read from now on."""
            with self._closing:
                self._taken = True
                if self._closed:
                    return
                for fd in self._fds:
                    self._epoll.modify(fd, self._mask(fd) if self._wants_room else 0)

        def lead(self, timeout_s: float | None) -> None:
            """Leader: wait for the connection or `wake_leader`."""
            timeout_ms = None if timeout_s is None else timeout_s * 1000
            for fd, _ in self._leader_poll.poll(timeout_ms):
                if fd == self._leader_fd:
                    _drain(self._leader_fd)

        def wake_leader(self) -> None:
            """Make `lead` return."""
            self._write(self._leader_fd)

        def give_back(self) -> None:
            """The I/O thread waits for the connection again."""
            with self._closing:
                self._taken = False
                for fd in self._fds:
                    self._epoll.modify(fd, self._mask(fd) if self._wants_room else _IN)

        def close(self) -> None:
            """Free the file descriptors."""
            with self._closing:
                if not self._closed:
                    self._closed = True
                    self._epoll.close()
                    for fd in self._watched:
                        os.close(fd)
                    self._watched.clear()
                    os.close(self._wake_fd)
                    os.close(self._leader_fd)
                    if self._timer_fd >= 0:
                        os.close(self._timer_fd)

    def _drain(fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)


def _do_nothing() -> None:
    return


class PlainPoller:
    """Waits with whatever `selectors` finds; the I/O thread is the only one that receives."""

    can_lead = False

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ours, selectors.EVENT_READ)
        self._fds: tuple[int, ...] = ()
        self._write_fd = -1
        self._alarm_at: float | None = None
        self.on_alarm: Callable[[], None] = _do_nothing

    def wait(self, timeout_s: float | None) -> bool:
        """I/O thread: wait for the connection or `wake`; return whether that has news."""
        has_news = False
        if self._alarm_at is not None:
            left = max(0.0, self._alarm_at - time.monotonic())
            timeout_s = left if timeout_s is None else min(left, timeout_s)
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._ours:
                with contextlib.suppress(BlockingIOError):
                    self._ours.recv(4096)
            else:
                has_news = True
        if self._alarm_at is not None and time.monotonic() >= self._alarm_at:
            self._alarm_at = None
            self.on_alarm()
        return has_news

    def replace(self, fds: Sequence[int], write_fd: int = -1) -> None:
        """There is another connection, or none."""
        for fd in self._fds:
            self._selector.unregister(fd)
        self._fds = tuple(fds)
        self._write_fd = write_fd
        for fd in self._fds:
            self._selector.register(fd, selectors.EVENT_READ)

    def want_room(self, wanted: bool) -> None:
        """Take it for news, too, that the connection can be written."""
        if self._write_fd >= 0:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(self._write_fd, events)

    def alarm(self, delay_s: float) -> None:
        """Have `wait` call `on_alarm` after some time. Wakes the I/O thread, for want of better."""
        self._alarm_at = time.monotonic() + delay_s
        self.wake()

    def wake(self) -> None:
        """Make `wait` return."""
        with contextlib.suppress(BlockingIOError):
            # A full pipe wakes, too.
            self._theirs.send(b"\0")

    def watch(self, fd: int, callback: Callable[[], None]) -> bool:
        """Not to be had."""
        return False

    def take(self) -> None:
        """Never called."""
        raise NotImplementedError

    def lead(self, timeout_s: float | None) -> None:
        """Never called."""
        raise NotImplementedError

    def wake_leader(self) -> None:
        """Never called."""
        raise NotImplementedError

    def give_back(self) -> None:
        """Never called."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the file descriptors."""
        self._selector.close()
        self._ours.close()
        self._theirs.close()
