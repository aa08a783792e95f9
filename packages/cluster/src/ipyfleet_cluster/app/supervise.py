"""Looking after processes in the foreground until somebody wants them to stop.

What lives here: `Supervisor`, which turns signals and the ends of processes into a decision. What
must not: starting and stopping anything.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

from ..launchers.base import Launcher

T = TypeVar("T")


class Stopped(Exception):
    """A signal to stop came before the work was done; the work has been cancelled."""


class Supervisor:
    """Waits, inside a context and an event loop, for a signal to stop or for the end of a process.

    Only the first signal to stop counts: stopping is under way then and must not be cut short.

    Attributes:
        stop_signal: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.stop_signal: signal.Signals | None = None
        self._stop = asyncio.Event()
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> Supervisor:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup ignores SIGHUP, a shell's background job SIGINT; that is the user's wish.
            if signal.getsignal(signum) != signal.SIG_IGN:
                loop.add_signal_handler(signum, self._handle_stop, signum)
                self._handled.append(signum)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for signum in self._handled:
            loop.remove_signal_handler(signum)

    def _handle_stop(self, signum: signal.Signals) -> None:
        if self.stop_signal is None:
            self.stop_signal = signum
        self._stop.set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something that is to be cut short by a signal to stop; return its result.

        Raises:
            Stopped: a signal came first; the work was cancelled and has cleaned up.
        """
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped
        finally:
            await _cancel([task, stop])

    async def wait(self, work: Coroutine[Any, Any, T]) -> T | None:
        """As `run`, but None when a signal to stop comes first."""
        try:
            return await self.run(work)
        except Stopped:
            return None

    async def wait_end(self, launchers: Iterable[Launcher]) -> Launcher | None:
        """Wait for the first process to end, and return it; None when a signal to stop came."""
        tasks = {asyncio.ensure_future(launcher.wait_stopped()): launcher for launcher in launchers}
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({*tasks, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return None
            return next(launcher for task, launcher in tasks.items() if task.done())
        finally:
            await _cancel([*tasks, stop])


async def _cancel(tasks: list[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
