"""The launcher interface.

A launcher starts one thing (a controller, or a set of engines), watches it and stops it. `Cluster`
creates launchers, calls `start` once, `stop` any number of times, and keeps what `to_dict` returns
in the cluster file, from which `from_dict` makes a launcher of the same thing in another process. A
new way to start processes is a subclass of `ControllerLauncher` or `EngineLauncher` in a file of
its own, announced in the entry-point group `ipyfleet.controller_launchers` or
`ipyfleet.engine_launchers`.
"""

from __future__ import annotations

import asyncio
import enum
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Self

from traitlets import Bool, Dict, Float, Int, List, Unicode
from traitlets.config import LoggingConfigurable

END_POLL_S = 0.2
"""How often launchers that cannot be told look whether a process has ended."""


class LauncherState(enum.Enum):
    """Where a launcher is in its life; it never goes back."""

    BEFORE = "before"
    RUNNING = "running"
    AFTER = "after"


class Launcher(LoggingConfigurable):
    """Starts, watches and stops one part of a cluster. Subclass one of the two below."""

    cluster_id = Unicode("", help="The id of the cluster that the process belongs to.")
    profile_dir = Unicode("", help="Absolute path of the IPython profile directory.")
    environment = Dict(help="Environment variables to add to those of this process.").tag(
        config=True
    )
    detached = Bool(
        False, help="Let the process live on when this one ends: it is started without a lease."
    )
    stop_seconds_until_kill = Float(
        5.0, help="How long to wait after asking the process to stop before killing it."
    ).tag(config=True)
    output_limit = Int(30, help="How many lines of a log an error message quotes.").tag(config=True)

    @property
    def state(self) -> LauncherState:
        """Whether the process has been started and whether it still runs."""
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        """Whether the process runs now."""
        return self.state is LauncherState.RUNNING

    @property
    def exit_status(self) -> int | None:
        """Exit code, or minus the signal's number; None while it runs, or where it cannot be
        known.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Start the process and return at once, before it is ready. Called once.

        Raises:
            LauncherError: the process could not be started.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop the process, if need be by force; return when it is gone. May be called again."""
        raise NotImplementedError

    async def wait_stopped(self, timeout_s: float | None = None) -> bool:
        """Wait until the process is gone; return whether it went in time."""
        raise NotImplementedError

    def make_end_waiter(self) -> Callable[[], Awaitable[object]]:
        """Return a coroutine function that waits for the end of a process that runs.

        It does not keep this launcher alive, whose parent is the cluster: who waits shall not keep
        anybody from dropping that.
        """
        reference = weakref.ref(self)

        async def wait() -> None:
            while (launcher := reference()) is not None and launcher.is_running:
                del launcher
                await asyncio.sleep(END_POLL_S)

        return wait

    def signal(self, signum: int) -> None:
        """Send a signal to what was started (for engines: to each engine)."""
        raise NotImplementedError

    def get_output(self) -> str:
        """Return the last lines that the process wrote to its log, for error messages."""
        return ""

    def describe_end(self) -> str:
        """Say in words that the process is gone, and how it ended, with the end of its log."""
        status = self.exit_status
        if status is None:
            how = "is gone"
        elif status < 0:
            how = f"was killed by signal {-status}"
        else:
            how = f"exited with code {status}"
        output = self.get_output().strip()
        tail = f"; the end of its log:\n{output}" if output else " and left nothing in its log"
        return f"{self.what} {how}{tail}"

    what = "the process"
    """What is launched, for messages."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs, as JSON-able values. Called once the process is
        started.
        """
        raise NotImplementedError

    @classmethod
    def from_dict(cls, state: dict[str, Any], **kwargs: Any) -> Self:
        """Return a launcher of a process that another one started.

        Raises:
            NotRunning: that process is gone.
            ValueError: `state` has another form than `to_dict` gives it.
        """
        raise NotImplementedError


class ControllerLauncher(Launcher):
    """Starts a controller, which writes its connection files into the profile when it is ready."""

    what = "the controller"
    controller_args = List(Unicode(), help="More command-line arguments for ipcontroller.").tag(
        config=True
    )


class EngineLauncher(Launcher):
    """Starts a set of engines."""

    what = "the engines' agent"
    n = Int(1, help="How many engines to start.").tag(config=True)
    engine_args = List(Unicode(), help="More command-line arguments for ipengine.").tag(config=True)
    engine_timeout = Float(60, help="Seconds that engines wait for the controller.")

    @property
    def engine_count(self) -> int | None:
        """The number of engines where the launcher's own configuration decides it; else None."""
        return None
