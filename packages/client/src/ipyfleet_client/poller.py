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
from collections.abc import Callable
from typing import Protocol


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
    """Return the best poller of this platform for a socket's file descriptor."""
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
            self._epoll.register(fd, select.EPOLLIN)
            self._epoll.register(self._wake_fd, select.EPOLLIN)
            self._leader_poll = select.poll()
            self._leader_poll.register(fd, select.POLLIN)
            self._leader_poll.register(self._leader_fd, select.POLLIN)
            # Reentrant: the handler of a signal may want to wake while this thread does.
            self._closing = threading.RLock()
            self._watched: dict[int, Callable[[], None]] = {}
            self._closed = False

        def wait(self, timeout_s: float | None) -> bool:
            """I/O thread: wait for the socket or `wake`; return whether the socket is readable."""
            readable = False
            for fd, _ in self._epoll.poll(timeout_s):
                if fd == self._fd:
                    readable = True
                elif fd == self._wake_fd:
                    _drain(self._wake_fd)
                else:
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

    def _drain(fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)


class PlainPoller:
    """Waits with whatever `selectors` finds; the I/O thread is the only one that receives."""

    can_lead = False

    def __init__(self, fd: int) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(fd, selectors.EVENT_READ)
        self._selector.register(self._ours, selectors.EVENT_READ)

    def wait(self, timeout_s: float | None) -> bool:
        """I/O thread: wait for the socket or `wake`; return whether the socket is readable."""
        readable = False
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._ours:
                with contextlib.suppress(BlockingIOError):
                    self._ours.recv(4096)
            else:
                readable = True
        return readable

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
