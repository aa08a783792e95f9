"""A cluster's controller while it is looked after: started again when it dies.

What lives here: how the controller is started the first time and again, and whether it is to be.
When that is, and the thread that waits, are in `restarting`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from .cluster_file import read_cluster_file
from .description import ClusterDescription
from .launchers.base import ControllerLauncher, Launcher
from .launchers.registry import Kind, find_launcher_class
from .leftovers import remove_leftovers
from .restarting import ControllerGuard


class GuardedCluster(ClusterDescription):
    """A cluster whose controller is started again; `Cluster` is the class that users see."""

    def __init__(self, n: int | None = None, **kwargs: Any) -> None:
        super().__init__(n, **kwargs)
        self._guard: ControllerGuard | None = None
        self._controller_kwargs: dict[str, Any] = {}
        self._stopping_controller = False

    def _controller_args(self) -> list[str]:
        args = self._log_args()
        if self.controller_ip:
            args.append(f"--ip={self.controller_ip}")
        if self.controller_location:
            args.append(f"--location={self.controller_location}")
        if self._can_restart:
            args.append(f"--recover={self.recover_time:g}")
        return [*args, *self.controller_args]

    def _log_args(self) -> list[str]:
        return [] if self.log_level is None else [f"--log-level={self.log_level}"]

    def _make_launcher(
        self, kind: Kind, name: str | type[Launcher], kwargs: dict[str, Any]
    ) -> Launcher:
        return find_launcher_class(kind, name)(
            parent=self,
            cluster_id=self.cluster_id,
            profile_dir=self.profile_dir,
            detached=not self.shutdown_atexit,
            **kwargs,
        )

    @property
    def _can_restart(self) -> bool:
        # Where this process may end before the cluster nobody would be there to do it.
        return self.restart_controller and (self.shutdown_atexit or self.supervised)

    def _guard_controller(self) -> None:
        """The controller is ready: from now on it is started again when it ends unasked."""
        own = self._foreign_owner is None and self.controller is not None
        if own and self._can_restart and self._guard is None:
            assert self.controller is not None
            self._guard = ControllerGuard(self, self.controller)
            self.is_guarded = True
            self.update_cluster_file()

    def is_end_unasked(self, launcher: Launcher) -> bool:
        """Called by the guard: whether a controller that has ended should not have.

        One that was asked to end, by a client or by a signal, exits with code 0. Another process
        that stops this cluster says so in the cluster file.
        """
        if self._stopping_controller or launcher.exit_status == 0:
            return False
        if not self.cluster_file:
            return True
        try:
            return bool(read_cluster_file(Path(self.cluster_file)).get("guarded"))
        except (FileNotFoundError, ValueError):
            return False

    def note_restart(self, launcher: Launcher, delay_s: float) -> None:
        """Called by the guard: the controller has ended and will be started again."""
        self.log.warning(
            "Starting the controller again in %g s; engines and clients wait for it: %s",
            delay_s,
            launcher.describe_end(),
        )

    async def start_controller_again(self) -> ControllerLauncher:
        """Called by the guard: start the controller again, where it was."""
        before = self.controller
        launcher = cast(
            "ControllerLauncher",
            self._make_launcher(
                "controller", self.controller_launcher_class, self._controller_kwargs
            ),
        )
        args = [*launcher.controller_args, *self._controller_args(), "--resume"]
        launcher.controller_args = args
        await launcher.start()
        self.controller = launcher
        self.restarts += 1
        self.update_cluster_file()
        if before is not None:
            # It is gone; this lets go of what it held here.
            await before.stop()
        return launcher

    async def give_up_controller(self, launcher: Launcher) -> None:
        """Called by the guard: the controller has ended too often; stop what is left."""
        self.log.error(
            "%s\nIt has ended too often to be started once more; stopping the cluster.",
            launcher.describe_end(),
        )
        self.is_guarded = False
        await self.stop_engines()
        # Clients that wait for it see so that it does not come back.
        remove_leftovers(Path(self.profile_dir), self.cluster_id)

    async def _end_guard(self) -> None:
        """The controller is about to be stopped: whatever way it ends, it stays so."""
        self._stopping_controller = True
        guard, self._guard = self._guard, None
        if guard is not None:
            await guard.stop()
        self.is_guarded = False
        owner = self._foreign_owner
        if self.controller is not None and owner is not None and owner["guarded"]:
            # Says so to its owner.
            owner["guarded"] = False
            self.update_cluster_file()

    # -- ends ------------------------------------------------------------------------------------

    def find_ended(self) -> Launcher | None:
        """Return a launcher whose process has ended though nobody stopped it, or None.

        A controller that is being started again has not.
        """
        controller = None if self.is_guarded else self.controller
        launchers = [controller, *self.engines.values()]
        return next((ln for ln in launchers if ln is not None and not ln.is_running), None)

    async def wait_ended(self) -> Launcher:
        """Wait until a process of this cluster has ended for good; return its launcher."""
        waits: dict[asyncio.Future[Any], Launcher] = {
            asyncio.ensure_future(launcher.wait_stopped()): launcher
            for launcher in self.engines.values()
        }
        guarded: asyncio.Future[Launcher] | None = None
        if self._guard is not None:
            guarded = asyncio.wrap_future(self._guard.ended)
        elif self.controller is not None:
            waits[asyncio.ensure_future(self.controller.wait_stopped())] = self.controller
        everything = {*waits, guarded} if guarded is not None else {*waits}
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            if guarded is not None and guarded.done():
                return guarded.result()
            return next(launcher for wait, launcher in waits.items() if wait.done())
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def stop_engines(self, engine_set_id: str | None = None) -> None:
        """Stop one engine set, or all of them."""
        raise NotImplementedError
