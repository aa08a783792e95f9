"""An engine as a part of a Dask cluster: a scheduler or a worker beside the tasks.

What lives here: what `Client.become_dask` calls on engines, by name; the client package does not
import this one. What must not: the engine's own link and queue, which go on as before.

Scheduler and worker each run in an event loop in a thread of their own, so the engine stays usable;
Dask's tasks and the engine's share the interpreter.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ipyfleet_protocol.namespace import current_namespace

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0

WORKER_NAMES = ("dask_worker", "distributed_worker")
"""The worker's names in the engine's namespace."""


class ServerThread:
    """A server of `distributed` in a thread with an event loop.

    Attributes:
        server: the server, once `start` has returned.
    """

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self.server: Any = None
        self._make = make
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether the server runs; it may have ended by itself."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the server and wait until it serves.

        Raises:
            TimeoutError: it does not, in `START_TIMEOUT_S`.
            Exception: what it raised.
        """
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise TimeoutError(f"{self._thread.name} does not run after {START_TIMEOUT_S:.0f} s")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Close the server and end its thread. Idempotent."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised again by `start`
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = stop = asyncio.Event()
        async with self._make() as self.server:
            self._ready.set()
            stopping = asyncio.ensure_future(stop.wait())
            finished = asyncio.ensure_future(self.server.finished())
            await asyncio.wait({stopping, finished}, return_when=asyncio.FIRST_COMPLETED)
            for waiting in (stopping, finished):
                waiting.cancel()


_servers: dict[str, ServerThread] = {}
"""What runs in this engine: "scheduler", "worker"."""


def start_scheduler(arguments: dict[str, Any]) -> str:
    """Start a scheduler, unless one runs here; return its address.

    Args:
        arguments: of `distributed.Scheduler`.
    """
    from distributed import Scheduler

    running = _servers.get("scheduler")
    if running is None or not running.is_running:
        running = _start("scheduler", lambda: Scheduler(**arguments))
    address: str = running.server.address
    return address


def start_worker(address: str, nanny: bool, arguments: dict[str, Any]) -> str:
    """Start a worker, unless one runs here; return its address.

    Args:
        address: of the scheduler.
        nanny: run it in a process of its own that is restarted when it dies.
        arguments: of `distributed.Worker` or `distributed.Nanny`.
    """
    import distributed

    running = _servers.get("worker")
    if running is None or not running.is_running:
        kind = distributed.Nanny if nanny else distributed.Worker
        running = _start("worker", lambda: kind(address, **arguments))
        for name in WORKER_NAMES:
            current_namespace()[name] = running.server
    found: str = running.server.address
    return found


def stop(what: str) -> None:
    """Stop the "worker" or the "scheduler" of this engine, if there is one."""
    running = _servers.pop(what, None)
    if running is None:
        return
    running.stop()
    if what == "worker":
        for name in WORKER_NAMES:
            current_namespace().pop(name, None)


def _start(what: str, make: Callable[[], Any]) -> ServerThread:
    running = ServerThread(make, f"dask-{what}")
    running.start()
    _servers[what] = running
    return running
