"""What the subcommands that run until they are stopped share: ``start`` and ``engines``."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from traitlets import Bool, Int, TraitError

from ..errors import ClusterRunning, LauncherError
from ..launchers.local import LocalControllerLauncher, LocalEngineLauncher
from .base import ALREADY_RUNNING, BASE_ALIASES, BASE_FLAGS, ClusterCommand
from .daemon import report_ready, spawn_daemon
from .supervise import Stopped, Supervisor

_ALIASES: dict[str, Any] = {
    **BASE_ALIASES,
    "n": "Cluster.n",
    "engines": "Cluster.engine_launcher_class",
    "engine-timeout": "Cluster.engine_timeout",
}


_FLAGS: dict[str, Any] = {
    **BASE_FLAGS,
    "daemonize": (
        {"ForegroundCommand": {"daemonize": True}},
        "Go on in the background once the engines are ready.",
    ),
}


_CLASSES: list[Any] = [LocalControllerLauncher, LocalEngineLauncher]


class ForegroundCommand(ClusterCommand):
    """Base of the subcommands that start something and look after it."""

    aliases = _ALIASES
    flags = _FLAGS
    classes = _CLASSES
    subcommand: ClassVar[str]
    daemonize = Bool(False, help="Go on in the background.").tag(config=True)
    ready_fd = Int(-1, help="Internal: where a background process reports.").tag(config=True)

    def initialize(self, argv: list[str] | None = None) -> None:
        """Called by traitlets: read the command line and the profile's config."""
        self._argv = list(argv or [])
        super().initialize(argv)

    def start(self) -> None:
        """Called by traitlets: run until stopped, or start the background process."""
        if self.daemonize and self.ready_fd < 0:
            name = "-".join(part for part in ("ipcluster", self.cluster_id) if part)
            code, message = spawn_daemon(self.subcommand, self._argv, self.directory, name)
            self._tell(code, message)
            self.exit(code)
        self.exit(asyncio.run(self._run()))

    def _tell(self, code: int, message: str) -> None:
        if code:
            self.complain(message)
        elif message:
            self.say(message)

    def _report(self, code: int, message: str) -> None:
        """Say that it is ready, or why it is not, to the user, wherever they are."""
        if self.ready_fd >= 0:
            report_ready(self.ready_fd, code, message)
            self.ready_fd = -1
        else:
            self._tell(code, message)

    async def _run(self) -> int:
        with Supervisor() as supervisor:
            try:
                return await self.run(supervisor)
            except Stopped:
                self._report(1, "stopped before the engines were ready")
                return 1
            except ClusterRunning as error:
                self._report(ALREADY_RUNNING, str(error))
                return ALREADY_RUNNING
            except (LauncherError, TraitError, ValueError, OSError) as error:
                # TimeoutError and the errors of connection files are OSErrors.
                self._report(1, str(error))
                return 1

    async def run(self, supervisor: Supervisor) -> int:
        """Start, report, look after what was started, stop it; return the exit code."""
        raise NotImplementedError
