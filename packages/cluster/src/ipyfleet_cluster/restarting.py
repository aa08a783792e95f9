"""Looking after a controller: one that ends unasked is started again.

What lives here: `RestartPolicy`, when, and `ControllerGuard`, the thread that waits for the end.
What must not: how a controller is started (`cluster`).

A thread, since the process that owns a cluster may do anything at all meanwhile: compute, sleep,
run an event loop or none.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
import weakref
from collections import deque
from typing import Any, Protocol

from .errors import LauncherError
from .launchers.base import Launcher

RESTARTS_MAX = 5
RESTARTS_WINDOW_S = 60.0
"""A controller that has to be started again more often than this in so many seconds is given up."""

FIRST_DELAY_S = 0.1
"""Before the first restart; doubled for each further one."""


class RestartPolicy:
    """Says when a controller is started again, and when no more."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def next_delay(self, now: float) -> float | None:
        """The controller has ended; return the seconds until its restart, None for "no more"."""
        while self._times and now - self._times[0] >= RESTARTS_WINDOW_S:
            self._times.popleft()
        if len(self._times) >= RESTARTS_MAX:
            return None
        self._times.append(now)
        return float(FIRST_DELAY_S * 2 ** (len(self._times) - 1))


class Restartable(Protocol):
    """The cluster, as its guard sees it. All are called in the guard's thread.

    Attributes:
        controller: the launcher of the controller that runs, or ran last.
    """

    controller: Any

    def is_end_unasked(self, launcher: Launcher) -> bool:
        """Whether a controller that has ended should not have."""

    def note_restart(self, launcher: Launcher, delay_s: float) -> None:
        """A controller has ended and will be started again in some seconds."""

    async def start_controller_again(self) -> Launcher:
        """Start the controller again and return its launcher.

        Raises:
            LauncherError: it cannot be started.
        """

    async def give_up_controller(self, launcher: Launcher) -> None:
        """The controller has ended too often: stop the rest."""


class ControllerGuard:
    """Waits for a controller's end and has it started again, in a thread of its own.

    Attributes:
        ended: done, with the launcher, when a controller has ended for good though the guard was
            not stopped.
    """

    def __init__(self, cluster: Restartable, launcher: Launcher) -> None:
        """Guard the controller of a launcher, which runs; the cluster is not kept alive."""
        self.ended: concurrent.futures.Future[Launcher] = concurrent.futures.Future()
        self._cluster = weakref.ref(cluster)
        self._await_end = launcher.make_end_waiter()
        self._policy = RestartPolicy()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._finished: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon: the interpreter waits for others before it stops what is to be stopped at exit.
        self._thread = threading.Thread(
            target=self._run, name="ipyfleet-controller-guard", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """Let the controller end unnoticed; returns when no restart is under way. Idempotent.

        Waits without a thread: at the interpreter's exit none can be had.
        """
        self._ready.wait(10)
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # It has ended by itself.
                self._loop.call_soon_threadsafe(self._task.cancel)
        if threading.current_thread() is not self._thread:
            await asyncio.wait([asyncio.wrap_future(self._finished)], timeout=10)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        finally:
            self._finished.set_result(None)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._guard())
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _guard(self) -> None:
        while True:
            await self._await_end()
            cluster = self._cluster()
            if cluster is None:
                return
            launcher = cluster.controller
            if launcher is None or not await self._restart(cluster, launcher):
                return
            # It must be possible to let go of it while this thread waits.
            del cluster, launcher

    async def _restart(self, cluster: Restartable, launcher: Launcher) -> bool:
        if not cluster.is_end_unasked(launcher):
            self.ended.set_result(launcher)
            return False
        delay_s = self._policy.next_delay(time.monotonic())
        if delay_s is None:
            return await self._give_up(cluster, launcher)
        cluster.note_restart(launcher, delay_s)
        await asyncio.sleep(delay_s)
        try:
            again = await cluster.start_controller_again()
        except LauncherError:
            return await self._give_up(cluster, launcher)
        self._await_end = again.make_end_waiter()
        return True

    async def _give_up(self, cluster: Restartable, launcher: Launcher) -> bool:
        # First of all, so that nobody takes what is stopped now for the cause.
        self.ended.set_result(launcher)
        await cluster.give_up_controller(launcher)
        return False
