"""`Cluster`: a controller and engines, started, found, connected to and stopped from Python.

What lives here: the public class and the order in which things happen. How a process is started is
the launchers' business, the form of the cluster file `cluster_file`'s, the blocking twins of the
coroutines `async_first`'s.

Theory of operation
-------------------
Controller and engines are started at the same moment: the engines' agent imports what engines need
while the controller binds and writes its connection files, for which the agent waits. Meanwhile
this process imports the client. Every child holds a lease (`lease`), so nothing outlives this
process unless `shutdown_atexit` is off.

A controller that ends unasked is started again (`restarting`) at the same addresses and with the
same keys, unless nobody would be there to do it: where `shutdown_atexit` is off.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from .async_first import AsyncFirst, run_blocking
from .cluster_file import claim_cluster_file, read_cluster_file
from .errors import ClusterRunning, LauncherError
from .guarded import GuardedCluster
from .launchers.base import ControllerLauncher, EngineLauncher
from .leftovers import remove_all_leftovers, remove_leftovers
from .processes import wait_exit, wait_until

if TYPE_CHECKING:
    from ipyfleet_client import Client


_SUPERVISOR_TIMEOUT_S = 15.0


class Cluster(AsyncFirst, GuardedCluster):
    """A controller and any number of engine sets.

    Example::

        with ipf.Cluster(n=4) as rc:
            print(rc[:].apply_sync(os.getpid))

    Every coroutine method has a blocking twin: ``start_cluster_sync()`` and so on.

    Args:
        n: how many engines `start_engines` starts when it is not told; by default one per CPU.
            With 0 `start_cluster` starts a controller only.
        profile, profile_dir, ipython_dir: the IPython profile that the cluster belongs to.
        cluster_id: the cluster's name in its profile; by default a fresh one. "" is the default
            cluster, that which ``ipcluster start`` starts and ``Client()`` finds.
        engines, controller: launcher classes, as ``engine_launcher_class`` and
            ``controller_launcher_class``.
        controller_ip: the address at which other hosts may connect; by default none may.
        controller_args, engine_args: more command-line arguments for ``ipcontroller`` and
            ``ipengine``.
        engine_timeout: seconds until engines that are not there yet are given up.
        restart_controller: start a controller that died again. Engines and clients wait for it for
            `recover_time` seconds and go on where they were.
        shutdown_atexit: stop everything when this process ends, whatever way it ends. Off: the
            cluster lives on, and `from_file` finds it; nobody starts its controller again, which
            takes a process that stays: ``ipcluster start --daemonize``.
        log_level: what this object and the processes log.
        load_profile: read the profile's ``ipcluster_config.py`` and ``.json``.

    Attributes:
        controller: the controller's launcher, or None.
        engines: the engine sets' launchers, by id.
    """

    def __init__(self, n: int | None = None, **kwargs: Any) -> None:
        super().__init__(n, **kwargs)
        self._client: Client | None = None
        self._owner_pid = os.getpid()
        self._set_counter = 0
        self._file_before: tuple[int, int] | None = None
        self._own_sets: set[str] = set()
        self._atexit: Callable[[], None] | None = None

    # -- starting --------------------------------------------------------------------------------

    async def start_controller(self, **kwargs: Any) -> None:
        """Start the controller and wait until it is ready.

        Args:
            kwargs: traits of the launcher.

        Raises:
            ClusterRunning: this cluster has a controller already, of this object's or of another's.
            LauncherError: it could not be started; the end of its log is in the message.
        """
        await self._launch_controller(**kwargs)
        await self._wait_controller()

    async def start_engines(
        self, n: int | None = None, engine_set_id: str | None = None, **kwargs: Any
    ) -> str:
        """Start engines and return at once, before they have registered.

        Args:
            n: how many; by default `self.n`, or one per CPU.
            engine_set_id: a name for these engines; by default a number.
            kwargs: traits of the launcher.

        Returns:
            The engine set's id, for `stop_engines` and the like.

        Raises:
            LauncherError: they could not be started.
            ValueError: there is an engine set with this id.
        """
        if engine_set_id is None:
            engine_set_id = self._next_set_id()
        elif engine_set_id in self.engines:
            raise ValueError(f"there is an engine set {engine_set_id!r} already")
        launcher = cast(
            "EngineLauncher",
            self._make_launcher("engine", self.engine_launcher_class, kwargs),
        )
        launcher.n = launcher.engine_count or n or self.n or os.cpu_count() or 1
        launcher.engine_args = [*launcher.engine_args, *self._log_args(), *self.engine_args]
        launcher.engine_timeout = self.engine_timeout
        self.log.info("Starting %d engines with %s", launcher.n, type(launcher).__name__)
        await launcher.start()
        self.engines = {**self.engines, engine_set_id: launcher}
        self._own_sets.add(engine_set_id)
        self._register_atexit()
        self.update_cluster_file()
        return engine_set_id

    async def start_cluster(self, n: int | None = None) -> Self:
        """Start the controller and one set of engines; return self when the controller is ready.

        Engines may still be starting: `Client.wait_for_engines` waits for them. When anything
        fails, or when this is cancelled, nothing is left running.

        Raises:
            ClusterRunning: it is running already.
            LauncherError: a process could not be started, or ended at once.
        """
        await self._launch_cluster(n)
        try:
            await self._wait_controller()
        except BaseException:
            await self.stop_cluster()
            raise
        return self

    async def start_and_connect(self, n: int | None = None, activate: bool = False) -> Client:
        """Start everything, wait for the engines and return a client.

        Args:
            n: how many engines; by default `self.n`, or one per CPU.
            activate: make ``%px`` work on these engines.

        Raises:
            ClusterRunning: it is running already.
            LauncherError: a process could not be started, or ended while it was waited for.
            TimeoutError: not all engines registered within `engine_timeout` seconds.
        """
        await self._launch_cluster(n)
        try:
            rc = await self.connect_client()
            try:
                await self.wait_for_engines(rc)
                if activate:
                    rc.activate()
            except BaseException:
                await asyncio.to_thread(rc.close)
                raise
        except BaseException:
            await self.stop_cluster()
            raise
        return rc

    async def _launch_cluster(self, n: int | None) -> None:
        await self._launch_controller()
        try:
            if (self.n if n is None else n) != 0:
                await self.start_engines(n)
        except BaseException:
            await self.stop_cluster()
            raise
        # What killed clusters left is cleaned up now, while the processes start.
        remove_all_leftovers(Path(self.profile_dir))

    async def _launch_controller(self, **kwargs: Any) -> None:
        if self.controller is not None:
            raise ClusterRunning(f"the controller of {self!r} is already started")
        launcher = cast(
            "ControllerLauncher",
            self._make_launcher("controller", self.controller_launcher_class, kwargs),
        )
        if self.cluster_file:
            claim_cluster_file(Path(self.cluster_file), self.to_dict())
        try:
            remove_leftovers(Path(self.profile_dir), self.cluster_id)
            # What is still there is another release's, say; it is not the new controller's.
            self._file_before = _stamp(self.client_connection_file)
            launcher.controller_args = [*launcher.controller_args, *self._controller_args()]
            self.log.info("Starting a controller with %s", type(launcher).__name__)
            await launcher.start()
        except BaseException:
            self.remove_cluster_file()
            raise
        self._controller_kwargs = kwargs
        self._stopping_controller = False
        self.restarts = 0
        self.controller = launcher
        self._register_atexit()
        self.update_cluster_file()

    def _next_set_id(self) -> str:
        while True:
            self._set_counter += 1
            if str(self._set_counter) not in self.engines:
                return str(self._set_counter)

    # -- waiting and connecting ------------------------------------------------------------------

    async def _wait_controller(self) -> None:
        """Wait until the controller is ready: until its connection files are there."""
        path = self.client_connection_file

        def is_ready() -> bool:
            return _stamp(path) not in (None, self._file_before)

        if self.controller is None and not is_ready():
            raise LauncherError(
                f"{self!r} is not running, and there is no {path}: start_cluster() starts it, "
                "start_and_connect() connects to it, too"
            )
        await wait_until(
            lambda: is_ready() or not self._is_controller_running(), self.controller_timeout
        )
        if is_ready():
            self._guard_controller()
            return
        if self.controller is not None and not self.controller.is_running:
            raise LauncherError(f"the cluster did not start: {self.controller.describe_end()}")
        raise LauncherError(
            f"the controller was not ready after {self.controller_timeout:g} s: there is no {path}"
        )

    def _is_controller_running(self) -> bool:
        return self.controller is None or self.controller.is_running

    async def connect_client(self, **kwargs: Any) -> Client:
        """Connect a client to this cluster; its `cluster` attribute is this object.

        Args:
            kwargs: arguments of `Client`.

        Raises:
            LauncherError: the controller ended instead of becoming ready, or none was started.
            TimeoutError: it does not answer.
        """
        # Takes as long as the controller needs to be ready, so it is done before waiting for that.
        from ipyfleet_client import Client

        await self._wait_controller()
        kwargs.setdefault("cluster", self)
        path = str(self.client_connection_file)
        return await asyncio.to_thread(lambda: Client(path, **kwargs))

    async def wait_for_engines(self, rc: Client, n: int | None = None) -> None:
        """Wait until the engines of all engine sets have registered.

        Args:
            rc: a client of this cluster.
            n: how many to wait for; by default all that have been started.

        Raises:
            LauncherError: a process of the cluster ended meanwhile; the end of its log is in the
                message.
            TimeoutError: they did not register within `engine_timeout` seconds.
        """
        wanted = sum(launcher.n for launcher in self.engines.values()) if n is None else n
        await wait_until(
            lambda: len(rc.ids) >= wanted or self.find_ended() is not None, self.engine_timeout
        )
        if len(rc.ids) >= wanted:
            return
        ended = self.find_ended()
        if ended is not None:
            raise LauncherError(f"the cluster did not start: {ended.describe_end()}")
        logs = "\n".join(launcher.get_output() for launcher in self.engines.values()).strip()
        raise TimeoutError(
            f"{len(rc.ids)} of {wanted} engines registered within {self.engine_timeout:g} s; "
            + (f"the end of the engines' logs:\n{logs}" if logs else "their logs are empty")
        )

    # -- stopping --------------------------------------------------------------------------------

    async def stop_engines(self, engine_set_id: str | None = None) -> None:
        """Stop one engine set, or all of them. Returns when the processes are gone.

        Raises:
            KeyError: there is no such engine set.
        """
        ids = list(self.engines) if engine_set_id is None else [engine_set_id]
        stopping = [self._engine_launcher(set_id) for set_id in ids]
        await asyncio.gather(*(launcher.stop() for launcher in stopping))
        self.engines = {k: v for k, v in self.engines.items() if k not in ids}
        self.update_cluster_file()

    async def stop_controller(self) -> None:
        """Stop the controller, if it runs, and remove what it leaves when it was killed."""
        await self._end_guard()
        if self.controller is None:
            return
        await self.controller.stop()
        self.controller = None
        remove_leftovers(Path(self.profile_dir), self.cluster_id)
        self.update_cluster_file()

    async def stop_cluster(self) -> None:
        """Stop everything and remove the cluster file. May be called again.

        A cluster that an ``ipcluster`` process looks after is stopped by that process.
        """
        supervisor = self.supervisor
        if supervisor is not None and supervisor.signal(signal.SIGTERM):
            await wait_exit(supervisor, _SUPERVISOR_TIMEOUT_S)
        self._look_again()
        # First of all: the guard may be stopping engines itself just now.
        await self._end_guard()
        try:
            # Its peers go when it does. The other way round it would deal with the death of each
            # engine, and end one by one, for clients and in the records, all tasks that wait there.
            await self.stop_controller()
        finally:
            await self.stop_engines()
            self._unregister_atexit()

    def _look_again(self) -> None:
        """See which processes another process's cluster has now: its controller may be new."""
        if self._foreign_owner is None or not self.cluster_file:
            return
        try:
            self._adopt(read_cluster_file(Path(self.cluster_file)))
        except (FileNotFoundError, ValueError, KeyError):
            # It has been stopped; what is left of it is known.
            return

    async def restart_engines(self, engine_set_id: str | None = None) -> None:
        """Stop an engine set, or all, and start as many again. The new engines have new ids.

        Raises:
            KeyError: there is no such engine set.
        """
        ids = list(self.engines) if engine_set_id is None else [engine_set_id]
        for set_id in ids:
            n = self._engine_launcher(set_id).n
            await self.stop_engines(set_id)
            await self.start_engines(n, set_id)

    async def signal_engines(self, signum: int, engine_set_id: str | None = None) -> None:
        """Send a signal to each engine of one set, or of all.

        Raises:
            KeyError: there is no such engine set.
        """
        ids = list(self.engines) if engine_set_id is None else [engine_set_id]
        for set_id in ids:
            self._engine_launcher(set_id).signal(signum)

    def _engine_launcher(self, engine_set_id: str) -> EngineLauncher:
        try:
            return cast("EngineLauncher", self.engines[engine_set_id])
        except KeyError:
            raise KeyError(
                f"no engine set {engine_set_id!r}; there are: {sorted(self.engines)}"
            ) from None

    def _register_atexit(self) -> None:
        if self._atexit is None and self.shutdown_atexit:
            self._atexit = _stopper(weakref.ref(self))
            atexit.register(self._atexit)

    def _unregister_atexit(self) -> None:
        if self._atexit is not None:
            atexit.unregister(self._atexit)
            self._atexit = None

    def stop_at_exit(self) -> None:
        """Stop what this process started; called at its exit and when this object goes away.

        A forked copy of this process does not own the cluster and leaves it alone.
        """
        if self.shutdown_atexit and self._owner_pid == os.getpid() and self.is_running:
            run_blocking(self._stop_own())

    async def _stop_own(self) -> None:
        """Stop everything; of a cluster that another process started only what this one added."""
        if self._foreign_owner is None:
            await self.stop_cluster()
            return
        for set_id in self._own_sets & self.engines.keys():
            await self.stop_engines(set_id)

    def __del__(self) -> None:
        """Stop what runs. At the interpreter's own end `atexit` has done so already."""
        if not sys.is_finalizing() and getattr(self, "_atexit", None) is not None:
            self._unregister_atexit()
            self.stop_at_exit()

    # -- context managers ------------------------------------------------------------------------

    def __enter__(self) -> Client:
        """Start everything and return a client to which all engines have registered."""
        self._client = run_blocking(self.start_and_connect())
        return self._client

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the client and stop everything."""
        run_blocking(self.__aexit__(kind, error, traceback))

    async def __aenter__(self) -> Client:
        """Start everything and return a client to which all engines have registered."""
        self._client = await self.start_and_connect()
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the client and stop everything."""
        try:
            if self._client is not None:
                self._client.close()
                self._client = None
        finally:
            await self.stop_cluster()


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from the one that was there before it; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _stopper(cluster: weakref.ref[Cluster]) -> Callable[[], None]:
    def stop() -> None:
        found = cluster()
        if found is not None:
            try:
                found.stop_at_exit()
            except Exception:
                # The leases end with this process, so nothing is left running even so.
                logging.getLogger(__name__).exception("stopping %r at exit failed", found)

    return stop
