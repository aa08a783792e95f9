"""The launcher for this host: child processes with a lease.

Each child runs in a session of its own, so that a Ctrl-C in the terminal reaches only the owner,
which then decides. What a child writes to stdout and stderr goes to a log file in the profile's log
directory; a log that stays empty is removed when the child stops.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from traitlets import List, Unicode

from ipyfleet_protocol import paths

from ..errors import LauncherError, NotRunning
from ..lease import Lease
from ..processes import ProcessRef, wait_exit
from .base import ControllerLauncher, EngineLauncher, Launcher, LauncherState

_TAIL_BYTES = 16 * 1024

_outliving: list[subprocess.Popen[bytes]] = []
"""Children that may outlive this process. Kept, so that one that does not is waited for."""


@atexit.register
def _let_go() -> None:
    for child in _outliving:
        if child.poll() is None:
            # That it still runs is what was asked for, not something to warn of.
            child.returncode = 0


class LocalProcess(Launcher):
    """A child process of this one, or one that another process started on this host."""

    log_name = "process"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: ProcessRef | None = None
        self._lease: Lease | None = None
        self._log_file: Path | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def log_file(self) -> Path | None:
        """Where the process's stdout and stderr go, or None before the start."""
        return self._log_file

    @property
    def state(self) -> LauncherState:
        """Whether the process has been started and whether it still runs."""
        if self._process is None:
            return LauncherState.BEFORE
        if self._popen is not None:
            ended = self._popen.poll() is not None
        else:
            ended = not self._process.is_alive()
        return LauncherState.AFTER if ended else LauncherState.RUNNING

    @property
    def exit_status(self) -> int | None:
        """Exit code, or minus the signal's number; None while it runs, or for another's child."""
        return None if self._popen is None else self._popen.poll()

    def command(self) -> list[str]:
        """Return the command line, without the lease."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start the process and return at once.

        Raises:
            LauncherError: the command cannot be run, or this launcher was started before.
        """
        if self._process is not None:
            raise LauncherError(f"{self.what} was started before; make a new launcher")
        log_dir = paths.log_dir(Path(self.profile_dir))
        log_dir.mkdir(parents=True, exist_ok=True)
        stem = "-".join(part for part in (self.log_name, self.cluster_id) if part)
        log_fd, log_path = tempfile.mkstemp(prefix=f"{stem}-starting-", suffix=".log", dir=log_dir)
        try:
            if self.detached:
                self._popen = self._spawn(self.command(), log_fd, ())
                _outliving.append(self._popen)
            else:
                with Lease() as lease:
                    command = [*self.command(), f"--lease-fd={lease.read_fd}"]
                    self._popen = self._spawn(command, log_fd, (lease.read_fd,))
                    self._lease = lease
        except BaseException:
            os.unlink(log_path)
            raise
        finally:
            os.close(log_fd)
        self._log_file = Path(log_path).rename(log_dir / f"{stem}-{self._popen.pid}.log")
        try:
            self._process = ProcessRef.of(self._popen.pid)
        except ProcessLookupError:
            # It ended already: a zombie until it is polled, so no other process has its pid.
            self._process = ProcessRef(self._popen.pid, -1.0)

    def _spawn(
        self, command: list[str], log_fd: int, pass_fds: tuple[int, ...]
    ) -> subprocess.Popen[bytes]:
        self.log.debug("starting %s: %s", self.what, command)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=pass_fds,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        except OSError as error:
            raise LauncherError(f"cannot start {self.what} with {command}: {error}") from error

    async def stop(self) -> None:
        """Ask the process to stop (SIGTERM, end of the lease), kill it when it does not; wait."""
        if self._process is None:
            return
        if self.is_running:
            self._process.signal(signal.SIGTERM)
            if not await self.wait_stopped(self.stop_seconds_until_kill):
                self.log.warning(
                    "%s (pid %d) did not stop within %g s and is killed",
                    self.what,
                    self._process.pid,
                    self.stop_seconds_until_kill,
                )
                self._process.signal(signal.SIGKILL)
                await self.wait_stopped(self.stop_seconds_until_kill)
        self._end()

    def _end(self) -> None:
        """Let go of what a stopped process leaves behind here."""
        if self._lease is not None:
            self._lease.release()
        for path in self._log_files():
            # Somebody else may clean up at the same time.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size == 0:
                    path.unlink()

    async def wait_stopped(self, timeout_s: float | None = None) -> bool:
        """Wait until the process is gone; return whether it went in time."""
        if self._process is None or not self.is_running:
            return True
        gone = await wait_exit(self._process, timeout_s)
        if gone and self._popen is not None:
            self._popen.wait()  # Returns at once: it is a zombie.
        return gone

    def make_end_waiter(self) -> Callable[[], Awaitable[object]]:
        """Return a coroutine function that waits for the process's end; see `Launcher`."""
        process = self._process
        if process is None:
            raise ValueError(f"{self.what} has not been started")
        return lambda: wait_exit(process, None)

    def signal(self, signum: int) -> None:
        """Send a signal to the process."""
        if self._process is not None:
            self._process.signal(signum)

    def get_output(self) -> str:
        """Return the last lines of the process's logs."""
        texts = {path: self._tail(path) for path in self._log_files()}
        return "\n".join(
            text if path == self._log_file else f"{path.name}:\n{text}"
            for path, text in texts.items()
            if text
        )

    def _log_files(self) -> list[Path]:
        return [] if self._log_file is None else [self._log_file]

    def _tail(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-self.output_limit :])

    def to_dict(self) -> dict[str, Any]:
        """Return the process's identity and its log file."""
        if self._process is None:
            raise ValueError(f"{self.what} has not been started")
        return {**self._process.to_dict(), "log_file": str(self._log_file or "")}

    @classmethod
    def from_dict(cls, state: dict[str, Any], **kwargs: Any) -> Self:
        """Return a launcher of a process on this host that another process started.

        Raises:
            NotRunning: that process is gone.
            ValueError: `state` has another form than `to_dict` gives it.
        """
        process = ProcessRef.from_dict(state)
        if not process.is_alive():
            raise NotRunning(f"{cls.what} (pid {process.pid}) is not running any more")
        launcher = cls(**kwargs)
        launcher._process = process
        launcher._log_file = Path(state["log_file"]) if state.get("log_file") else None
        return launcher

    def _place_args(self) -> list[str]:
        """The arguments that say which cluster of which profile."""
        args = [f"--profile-dir={self.profile_dir}"]
        if self.cluster_id:
            args.append(f"--cluster-id={self.cluster_id}")
        return args


class LocalControllerLauncher(LocalProcess, ControllerLauncher):
    """Starts ``ipcontroller`` on this host."""

    what = "the controller"
    log_name = "ipcontroller"
    # -P: a random.py in the working directory is the user's module, not the controller's.
    controller_cmd = List(
        Unicode(),
        default_value=[sys.executable, "-P", "-m", "ipyfleet_controller"],
        help="The command that starts a controller.",
    ).tag(config=True)

    def command(self) -> list[str]:
        """Return the command line, without the lease."""
        return [*self.controller_cmd, *self._place_args(), *self.controller_args]


class LocalEngineLauncher(LocalProcess, EngineLauncher):
    """Starts ``ipengine -n N`` on this host: an agent, which forks the engines."""

    what = "the engines' agent"
    log_name = "ipengine"
    engine_cmd = List(
        Unicode(),
        default_value=[sys.executable, "-m", "ipyfleet_engine"],
        help="The command that starts engines.",
    ).tag(config=True)

    def command(self) -> list[str]:
        """Return the command line, without the lease."""
        timeout = f"--timeout={self.engine_timeout:g}"
        return [
            *self.engine_cmd,
            "-n",
            str(self.n),
            *self._place_args(),
            timeout,
            *self.engine_args,
        ]

    def signal(self, signum: int) -> None:
        """Send a signal to each engine: the children of the agent."""
        if self._process is not None:
            for engine in self._process.children():
                engine.signal(signum)

    def _log_files(self) -> list[Path]:
        """The agent's log, then those of its engines."""
        logs = paths.log_dir(Path(self.profile_dir)).glob(f"ipengine-*{self.pid}-*.log")
        return [*super()._log_files(), *sorted(logs)]

    def to_dict(self) -> dict[str, Any]:
        """Return the agent's identity, its log file and the number of engines."""
        return {**super().to_dict(), "n": self.n}

    @classmethod
    def from_dict(cls, state: dict[str, Any], **kwargs: Any) -> Self:
        """Return a launcher of engines whose agent runs on this host; see `LocalProcess`."""
        return super().from_dict(state, **{"n": int(state.get("n", 1)), **kwargs})
