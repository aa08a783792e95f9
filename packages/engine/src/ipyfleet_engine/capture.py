"""What C code, subprocesses and forked processes write to file descriptors 1 and 2.

What lives here: `FdCapture`, which puts pipes in the place of both descriptors and hands what comes
through them to the `OutputCollector`. What must not: attribution, which is the collector's.

Theory of operation
-------------------
A thread of its own sleeps until a pipe has something, so such output is live. It reads whatever
comes as fast as it comes; what is too much is the collector's to drop, so a subprocess that prints
without end is never blocked for long.

Order with what Python prints: `settle_before_text` empties the pipes before a Python-level write,
so what a subprocess has written before a `print` comes before it. `settle` does the same at a
task's end, so what was written by then is the task's. It costs every task half a microsecond, one
system call; the order of its two questions makes a lock needless (see there).

C code that prints while it holds the GIL stops the thread, too. Until the pipe (1 MiB where Linux
grants that) is full nothing happens; then only another process can help: the agent does
(`relief`).

The engine's own log lines and the stacks of crashes go to the descriptor that was 2 before.
"""

from __future__ import annotations

import codecs
import faulthandler
import fcntl
import logging
import os
import select
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from .cstdio import CStdout
from .mark import RunningMark
from .output import OutputCollector

PIPE_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024
ORDER_WAIT_S = 0.1
_SETTLE_READS = 2 * PIPE_BYTES // READ_BYTES


class _CapturedFd:
    """One descriptor, and the pipe in its place."""

    def __init__(self, fd: int, kind: Any) -> None:
        self.fd = fd
        self.kind = kind
        self.original = os.dup(fd)
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                # The user's share of large pipes is used up: 64 KiB it is.
                logging.getLogger("ipyfleet.engine").debug("a small pipe for fd %d", fd)
        # `write_end` stays open besides `fd`, so that the pipe never ends, whatever is closed.
        os.dup2(self.write_end, fd)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def restore(self) -> None:
        os.dup2(self.original, self.fd)

    def close(self) -> None:
        for fd in (self.original, self.read_end, self.write_end):
            os.close(fd)


class _Readable:
    """Tells whether one of some descriptors can be read; for one thread at a time.

    Attributes:
        ask: called with 0 and 1; returns what can be read. With epoll it is epoll's own method,
            since every task asks.
    """

    ask: Callable[[int, int], list[Any]]

    def __init__(self, fds: Iterable[int]) -> None:
        if hasattr(select, "epoll"):
            epoll = select.epoll()
            for fd in fds:
                epoll.register(fd, select.EPOLLIN)
            self.ask, self.close = epoll.poll, epoll.close
        else:
            selector = selectors.DefaultSelector()
            for fd in fds:
                selector.register(fd, selectors.EVENT_READ)
            self.ask, self.close = lambda timeout, n: selector.select(timeout), selector.close


class FdCapture:
    """See the module docstring.

    Attributes:
        log: a text stream to where descriptor 2 went before: the engine's log.
    """

    log: TextIO

    def __init__(self, collector: OutputCollector, mark: RunningMark) -> None:
        self._mark = mark.cell
        self._relief_seen = 0
        self._relieved_bytes = 0
        self._collector = collector
        self._fds: list[_CapturedFd] = []
        self._pid = 0
        self._reading = False
        # Re-entrant, because a destructor that prints may run while the lock is held.
        self._lock = threading.RLock()
        self._c_stdout: CStdout
        self._c_ends: memoryview
        self._is_waiting: Callable[[int, int], list[Any]]
        self._at_end: _Readable
        self._before_text: _Readable
        self._wake_read = self._wake_write = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Capture from now on; what is written before the first task goes to the log."""
        for stream in (sys.__stdout__, sys.__stderr__):
            assert stream is not None
            stream.flush()
        self._fds = [_CapturedFd(1, "stdout"), _CapturedFd(2, "stderr")]
        self._pid = os.getpid()
        self.log = open(  # noqa: SIM115 - `stop` closes it
            os.dup(self._fds[1].original), "w", buffering=1, errors="backslashreplace"
        )
        _move_log_handlers(self.log)
        if faulthandler.is_enabled():
            faulthandler.enable(self.log)
        ends = [captured.read_end for captured in self._fds]
        self._at_end, self._before_text = _Readable(ends), _Readable(ends)
        self._is_waiting = self._at_end.ask
        self._c_stdout = CStdout()
        self._c_ends = self._c_stdout.ends
        self._wake_read, self._wake_write = os.pipe()
        self._collector.settle = self.settle
        self._collector.settle_before_text = self.settle_before_text
        self._thread = threading.Thread(target=self._run, name="ipyfleet-capture", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give the descriptors back and end the thread."""
        if self._thread is None:
            return
        self._collector.settle = self._collector.settle_before_text = _nothing
        self._c_stdout.flush()
        for captured in self._fds:
            captured.restore()
        os.write(self._wake_write, b"\0")
        self._thread.join(1.0)
        self._read_all()
        _move_log_handlers(sys.__stderr__)
        if faulthandler.is_enabled():
            faulthandler.enable(2)
        self.log.close()
        if not self._thread.is_alive():
            for captured in self._fds:
                captured.close()
            self._at_end.close()
            self._before_text.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
        self._thread = None

    def settle(self) -> None:
        """Take in all that has been written; the main thread calls it at the end of a task.

        Without the lock: data leaves a pipe only after `_reading` was set. So if the pipes are
        empty, and then nobody is reading, everything has been handed over.
        """
        ends = self._c_ends
        if ends[0] != ends[1]:
            self._c_stdout.flush()
        if self._is_waiting(0, 1) or self._reading:
            self._read_all()
        if self._mark[3] != self._relief_seen:
            self._note_relief()

    def settle_before_text(self) -> None:
        """Take in all that has been written before some text; from any thread.

        Not at any price: a destructor that prints may run while its thread holds the collector's
        lock, for which the thread with our lock waits.
        """
        if self._lock.acquire(timeout=ORDER_WAIT_S):
            try:
                if self._before_text.ask(0, 1):
                    self._read_all()
            finally:
                self._lock.release()

    def _run(self) -> None:
        with selectors.DefaultSelector() as sleeping:
            for fd in (self._wake_read, *(captured.read_end for captured in self._fds)):
                sleeping.register(fd, selectors.EVENT_READ)
            while True:
                for key, _ in sleeping.select():
                    if key.fd == self._wake_read:
                        return
                self._read_all()

    def _read_all(self) -> None:
        """Hand over what is there now; an endless writer does not make this endless."""
        with self._lock:
            self._reading = True
            try:
                for captured in self._fds:
                    for _ in range(_SETTLE_READS):
                        if not self._read(captured):
                            break
            finally:
                self._reading = False

    def _note_relief(self) -> None:
        """Tell the collector what the agent has read in our place, when it has finished."""
        give_up = time.monotonic() + ORDER_WAIT_S
        while self._mark[3] % 2 and time.monotonic() < give_up:
            time.sleep(0.0005)
        with self._lock:
            self._relief_seen = self._mark[3]
            relieved = self._mark[4]
            self._collector.note_dropped(relieved - self._relieved_bytes)
            self._relieved_bytes = relieved

    def _read(self, captured: _CapturedFd) -> bool:
        try:
            data = os.read(captured.read_end, READ_BYTES)
        except BlockingIOError:
            return False
        self._mark[2] += 1
        if self._mark[3] != self._relief_seen:
            self._note_relief()
        text = captured.decoder.decode(data)
        if not self._collector.write(captured.kind, text):
            self.log.write(text)
        return len(data) == READ_BYTES


def _nothing() -> None:
    """Take the place of `settle` where nothing is captured."""


def _move_log_handlers(stream: TextIO | None) -> None:
    """Have the engine's log handlers that write to the process's stderr write to `stream`."""
    for handler in logging.getLogger("ipyfleet").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(
            handler, logging.FileHandler
        ):
            handler.setStream(stream)
