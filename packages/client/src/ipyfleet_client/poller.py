"""How a thread waits for the socket or for a wake-up.

What lives here: `EpollPoller` for Linux, with which a user thread can take the socket over from
    the I/O
thread while that sleeps, and `PlainPoller` for everywhere else, with which the I/O thread alone
waits.
What must not: the socket itself; only its file descriptor is known here.
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
from collections.abc import Callable
from typing import Protocol

from ipyfleet_client.timerfd import clear_timer, make_timer, set_timer


class Poller(Protocol):
    """What the wire needs of a poller."""

    can_lead: bool
    """Whether a user thread may take the socket over."""

    def wait(self, timeout_s: float | None) -> bool:
        """I/O thread: wait for the socket or `wake`; return whether the socket is readable."""

    def wake(self) -> None:
        """Make `wait` return now, or the next call of it at once."""

    def watch(self, fd: int, callback: Callable[[], None]) -> bool:
        """Have `wait` call a function, once, when another descriptor can be read; it is closed
        then, or with the poller. False where that is not to be had: it is the caller's still.
        """

    def replace(self, fd: int) -> None:
        """There is another socket, or with -1 none for now; the old one's descriptor is still open.

        I/O thread only. A leader goes on with the new one.
        """

    def attend(self, fd: int, callback: Callable[[], None]) -> None:
        """Have `wait` call a function whenever a descriptor can be read. I/O thread only."""

    def ignore(self, fd: int) -> None:
        """End `attend`; the descriptor is still open. I/O thread only."""

    def alarm(self, delay_s: float) -> None:
        """Have `wait` call `on_alarm`, once, after some time; from any thread, waking none."""

    on_alarm: Callable[[], None]

    def take(self) -> None:
        """The calling thread waits for the socket from now on, with `lead`."""

    def lead(self, timeout_s: float | None) -> None:
        """Leader: wait for the socket or `wake_leader`."""

    def wake_leader(self) -> None:
        """Make `lead` return now, or the next call of it at once."""

    def give_back(self) -> None:
        """The I/O thread waits for the socket again."""

    def close(self) -> None:
        """Free the file descriptors."""


def make_poller(fd: int) -> Poller:
    """Return the best poller of this platform for a socket's file descriptor; -1 for none yet."""
    if sys.platform == "linux" and hasattr(os, "eventfd"):
        return EpollPoller(fd)
    return PlainPoller(fd)


if sys.platform == "linux":

    class EpollPoller:
        """Waits with epoll, whose set can be changed while a thread sleeps on it."""

        can_lead = True

        def __init__(self, fd: int) -> None:
            self._fd = fd
            flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
            self._wake_fd = os.eventfd(0, flags)
            self._leader_fd = os.eventfd(0, flags)
            self._epoll = select.epoll()
            if fd >= 0:
                self._epoll.register(fd, select.EPOLLIN)
            self._epoll.register(self._wake_fd, select.EPOLLIN)
            self._timer_fd = -1
            self.on_alarm: Callable[[], None] = _do_nothing
            self._leader_poll = self._make_leader_poll()
            self._taken = False
            self._attended: dict[int, Callable[[], None]] = {}
            # Reentrant: the handler of a signal may want to wake while this thread does.
            self._closing = threading.RLock()
            self._watched: dict[int, Callable[[], None]] = {}
            self._closed = False

        def _make_leader_poll(self) -> select.poll:
            poll = select.poll()
            if self._fd >= 0:
                poll.register(self._fd, select.POLLIN)
            poll.register(self._leader_fd, select.POLLIN)
            return poll

        def wait(self, timeout_s: float | None) -> bool:
            """I/O thread: wait for the socket or `wake`; return whether the socket is readable."""
            readable = False
            for fd, _ in self._epoll.poll(timeout_s):
                if fd == self._fd:
                    readable = True
                elif fd == self._wake_fd:
                    _drain(self._wake_fd)
                elif fd == self._timer_fd:
                    clear_timer(fd)
                    self.on_alarm()
                elif fd in self._attended:
                    self._attended[fd]()
                elif fd in self._watched:
                    callback = self._watched.pop(fd)
                    self._epoll.unregister(fd)
                    os.close(fd)
                    callback()
            return readable

        def watch(self, fd: int, callback: Callable[[], None]) -> bool:
            """Have `wait` call a function, once, when another descriptor can be read."""
            self._watched[fd] = callback
            self._epoll.register(fd, select.EPOLLIN)
            return True

        def replace(self, fd: int) -> None:
            """There is another socket, or with -1 none for now."""
            with self._closing:
                if self._closed:
                    return
                if self._fd >= 0:
                    self._epoll.unregister(self._fd)
                self._fd = fd
                if fd >= 0:
                    self._epoll.register(fd, 0 if self._taken else select.EPOLLIN)
                # One that is waited on just now stays as it is; the leader is woken to take this.
                self._leader_poll = self._make_leader_poll()
                if self._taken:
                    os.eventfd_write(self._leader_fd, 1)

        def attend(self, fd: int, callback: Callable[[], None]) -> None:
            """Have `wait` call a function whenever a descriptor can be read."""
            self._attended[fd] = callback
            self._epoll.register(fd, select.EPOLLIN)

        def ignore(self, fd: int) -> None:
            """End `attend`."""
            if self._attended.pop(fd, None) is not None:
                self._epoll.unregister(fd)

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
            """The calling thread waits for the socket from now on."""
            with self._closing:
                self._taken = True
                if self._fd >= 0:
                    self._epoll.modify(self._fd, 0)

        def lead(self, timeout_s: float | None) -> None:
            """Leader: wait for the socket or `wake_leader`."""
            timeout_ms = None if timeout_s is None else timeout_s * 1000
            for fd, _ in self._leader_poll.poll(timeout_ms):
                if fd == self._leader_fd:
                    _drain(self._leader_fd)

        def wake_leader(self) -> None:
            """Make `lead` return."""
            self._write(self._leader_fd)

        def give_back(self) -> None:
            """The I/O thread waits for the socket again."""
            with self._closing:
                self._taken = False
                if self._fd >= 0:
                    self._epoll.modify(self._fd, select.EPOLLIN)

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

    def __init__(self, fd: int) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._selector = selectors.DefaultSelector()
        if fd >= 0:
            self._selector.register(fd, selectors.EVENT_READ)
        self._selector.register(self._ours, selectors.EVENT_READ)
        self._fd = fd
        self._alarm_at: float | None = None
        self.on_alarm: Callable[[], None] = _do_nothing

    def wait(self, timeout_s: float | None) -> bool:
        """I/O thread: wait for the socket or `wake`; return whether the socket is readable."""
        readable = False
        if self._alarm_at is not None:
            left = max(0.0, self._alarm_at - time.monotonic())
            timeout_s = left if timeout_s is None else min(left, timeout_s)
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._ours:
                with contextlib.suppress(BlockingIOError):
                    self._ours.recv(4096)
            elif key.data is not None:
                key.data()
            else:
                readable = True
        if self._alarm_at is not None and time.monotonic() >= self._alarm_at:
            self._alarm_at = None
            self.on_alarm()
        return readable

    def replace(self, fd: int) -> None:
        """There is another socket, or with -1 none for now."""
        if self._fd >= 0:
            self._selector.unregister(self._fd)
        self._fd = fd
        if fd >= 0:
            self._selector.register(fd, selectors.EVENT_READ)

    def attend(self, fd: int, callback: Callable[[], None]) -> None:
        """Have `wait` call a function whenever a descriptor can be read."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def ignore(self, fd: int) -> None:
        """End `attend`."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

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
