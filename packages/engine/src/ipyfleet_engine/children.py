"""Engine processes as their agent sees them: forked or spawned, watched, reaped.

What lives here: `Child`, `Nursery`. What must not: sockets; threads, since it forks.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ipyfleet_protocol.ids import PeerId, new_peer_id
from ipyfleet_protocol.messages import PlacedRange

from .mark import IDLE, RunningMark, make_mark_file
from .process import (
    close_input,
    death_notice,
    describe_exit,
    die_with_parent,
    redirect_output,
    reseed,
)
from .stacks import make_stacks_file, write_on_signal

log = logging.getLogger("ipyfleet.agent")


class Child(NamedTuple):
    """An engine's process.

    Attributes:
        pid: of the process.
        peer: the engine's peer id.
        number: 0 for the agent's first engine, and so on.
        log: its log file.
        mark: which task it runs; None where that cannot be shared.
        stacks_fd: the file that it writes its stacks to when asked by signal; -1 for none.
        slot: whose place it has: the number of the first engine there.
        born: when it was started, by the monotonic clock.
        popen: the handle if it was spawned, None if it was forked.
    """

    pid: int
    peer: PeerId
    number: int
    log: Path
    mark: RunningMark | None
    stacks_fd: int
    slot: int
    born: float
    popen: subprocess.Popen[bytes] | None = None


class Death(NamedTuple):
    """The end of an engine's process.

    Attributes:
        child: which one.
        exit_code: its exit code, or minus the signal's number.
        notice: words for it.
        running: the ordinal of the task that it ran, or -1.
        was_told: it had been told to stop.
        was_forced: the agent killed it for a task that was cancelled by force.
    """

    child: Child
    exit_code: int
    notice: str
    running: int
    was_told: bool = False
    was_forced: bool = False


class Nursery:
    """The engines of one agent.

    Attributes:
        children: those that live, by pid.
    """

    def __init__(self, log_dir: Path, log_stem: str) -> None:
        """Make an empty one; engine n logs to ``<log_dir>/<log_stem>-<n>.log``."""
        self.children: dict[int, Child] = {}
        self._log_dir = log_dir
        self._log_stem = log_stem
        self._next_number = 0
        self._forced: set[int] = set()

    def fork(
        self,
        run: Callable[[PeerId, RunningMark], int],
        close_fds: Iterable[int],
        slot: int | None = None,
    ) -> Child:
        """Fork an engine.

        Args:
            run: called in the child with its peer id and mark; returns the exit code.
            close_fds: what the child is to close.
            slot: whose place it takes; None for a new one.

        Returns:
            The child, in the parent only: the child's process ends here.
        """
        number, peer, path = self._next()
        parent = os.getpid()
        mark = RunningMark()
        stacks_fd = make_stacks_file()
        siblings = [child.stacks_fd for child in self.children.values() if child.stacks_fd >= 0]
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            fds = [*close_fds, *siblings]
            _be_child(parent, path, fds, stacks_fd, lambda: run(peer, mark))
        return self._add(pid, peer, number, path, mark, stacks_fd, slot)

    def spawn(
        self,
        command: Sequence[str],
        environ: Callable[[PeerId, int, int], Mapping[str, str]],
        slot: int | None = None,
    ) -> Child:
        """Start an engine as a program of its own.

        Args:
            command: the program.
            environ: its environment, given its peer id and the file descriptors of its mark and
                of its stacks.
            slot: whose place it takes; None for a new one.
        """
        number, peer, path = self._next()
        mark_fd, stacks_fd = make_mark_file(), make_stacks_file()
        log_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            mark = RunningMark(mark_fd) if mark_fd >= 0 else None
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env=dict(environ(peer, mark_fd, stacks_fd)),
                pass_fds=[fd for fd in (mark_fd, stacks_fd) if fd >= 0],
            )
        finally:
            os.close(log_fd)
            if mark_fd >= 0:
                os.close(mark_fd)
        return self._add(popen.pid, peer, number, path, mark, stacks_fd, slot, popen)

    def _add(
        self,
        pid: int,
        peer: PeerId,
        number: int,
        path: Path,
        mark: RunningMark | None,
        stacks_fd: int,
        slot: int | None,
        popen: subprocess.Popen[bytes] | None = None,
    ) -> Child:
        place = number if slot is None else slot
        child = Child(pid, peer, number, path, mark, stacks_fd, place, time.monotonic(), popen)
        self.children[pid] = child
        return child

    def reap(self) -> list[Death]:
        """Return the engines that have ended since the last call."""
        deaths = []
        for child in list(self.children.values()):
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            del self.children[pid]
            exit_code = os.waitstatus_to_exitcode(status)
            if child.popen is not None:
                child.popen.returncode = exit_code
            was_forced = pid in self._forced and exit_code == -signal.SIGKILL
            self._forced.discard(pid)
            if was_forced:
                notice = "killed, because the task that it ran was cancelled by force"
            elif exit_code == 0:
                notice = describe_exit(0)
            else:
                notice = death_notice(exit_code, usage.ru_maxrss, child.log)
            running, was_told = IDLE, False
            if child.mark is not None:
                running, was_told = child.mark.cell[0], bool(child.mark.cell[1])
                _remove_leftover(child.mark.noted_file())
                child.mark.close()
            if child.stacks_fd >= 0:
                os.close(child.stacks_fd)
            deaths.append(Death(child, exit_code, notice, max(IDLE, running), was_told, was_forced))
        return deaths

    def signal(self, peers: Iterable[bytes], signum: int) -> None:
        """Send a signal to engines; those that are gone are left out."""
        wanted = set(peers)
        for child in self.children.values():
            if child.peer in wanted:
                # Not reaped yet, so the pid cannot be another process's.
                os.kill(child.pid, signum)

    def kill_running(self, peer: bytes, ranges: Iterable[PlacedRange]) -> None:
        """Kill an engine if it runs one of these tasks."""
        child = self.find(peer)
        if child is None:
            return
        if child.mark is not None:
            running = child.mark.cell[0]
            if not any(r.ordinal <= running < r.ordinal + r.count for r in ranges):
                return
        self._forced.add(child.pid)
        os.kill(child.pid, signal.SIGKILL)

    def find(self, peer: bytes) -> Child | None:
        """Return the child with a peer id; None if there is none (any more)."""
        return next((child for child in self.children.values() if child.peer == peer), None)

    def stop(self, grace_s: float) -> list[Death]:
        """End all engines: SIGTERM, and SIGKILL after `grace_s`. Returns when none is left."""
        self.signal([child.peer for child in self.children.values()], signal.SIGTERM)
        deaths = []
        deadline = time.monotonic() + grace_s
        killed = False
        while self.children:
            deaths += self.reap()
            if not self.children:
                break
            if not killed and time.monotonic() > deadline:
                self.signal([child.peer for child in self.children.values()], signal.SIGKILL)
                killed = True
            # The handlers of SIGCHLD may be gone by now; a short sleep needs none.
            time.sleep(0.005)
        return deaths

    def _next(self) -> tuple[int, PeerId, Path]:
        number = self._next_number
        self._next_number += 1
        return number, new_peer_id(), self._log_dir / f"{self._log_stem}-{number}.log"


def _remove_leftover(path: Path | None) -> None:
    """Remove the file that an engine has noted; mostly it has done so itself."""
    if path is not None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the connection file of an engine cannot be removed: %s", error)


def _be_child(
    parent: int, path: Path, close_fds: Iterable[int], stacks_fd: int, run: Callable[[], int]
) -> None:
    """Become an engine, in a process just forked. Does not return."""
    exit_code = 70
    try:
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        # Until the engine's own handler is there: Ctrl-C in a terminal reaches every process in it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with_parent(parent)
        for fd in close_fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        close_input()
        redirect_output(path)
        faulthandler.enable(2)
        write_on_signal(stacks_fd)
        reseed()
        exit_code = run()
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        log.critical("the engine failed", exc_info=True)
    finally:
        # As multiprocessing does: user code may have registered what has to run at the end, but
        # the stack below belongs to the agent.
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(exit_code)
