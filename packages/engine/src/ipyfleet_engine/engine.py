"""One engine: the process from its fork (or start) to its end.

What lives here: `EngineSettings` and `run_engine`, which puts kernel, runner, channel and link
together. What must not: command lines, forking.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ipyfleet_protocol.blobs import BlobStore
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.connection import ConnectionInfo
from ipyfleet_protocol.ids import PeerId
from ipyfleet_protocol.messages import (
    AnyMessage,
    Attach,
    Attached,
    Closing,
    Refused,
    RunTasks,
    Welcome,
)
from ipyfleet_protocol.namespace import set_namespace

from .binding import Binding
from .cache_dir import give_own_cache_dir
from .capture import FdCapture
from .channel import TaskChannel
from .comms import CommDesk
from .connections import Connector
from .endpoint import make_endpoint
from .interrupts import InterruptHandler, in_user_code
from .link import EngineLink, State
from .mark import RunningMark
from .ownership import install_thread_hooks
from .process import wake_on_time
from .runner import TaskRunner
from .startup import run_startup_code
from .streams import install_streams
from .usercode import call_at_start

if TYPE_CHECKING:
    from .kernel import FleetKernel

log = logging.getLogger("ipyfleet.engine")

_SWITCH_INTERVAL_S = 0.001


class EngineSettings(NamedTuple):
    """What an engine is told.

    Attributes:
        info: the content of its connection file.
        peer: who it is.
        agent: the agent's peer id, or empty.
        timeout_s: how long to wait for the controller.
        wanted_id: the engine id it would like, or -1.
        mark: where the agent sees which task runs.
        profile_path: the directory of its profile.
        startup_script: a file to run in the namespace first, or "".
        startup_command: code to run in the namespace first, or "".
        away_s: how long the controller may be gone before the engine exits; 0 for "for ever".
        names: what is in the namespace from the beginning.
        resources: what it has that tasks may need, such as ``{"gpu": 1}``.
    """

    info: ConnectionInfo
    peer: PeerId
    mark: RunningMark
    agent: bytes = b""
    timeout_s: float = 60.0
    wanted_id: int = -1
    profile_path: Path = Path()
    startup_script: str = ""
    startup_command: str = ""
    away_s: float = 0.0
    names: Mapping[str, Any] = MappingProxyType({})
    resources: Mapping[str, float] = MappingProxyType({})


class Engine:
    """See the module docstring."""

    def __init__(self, settings: EngineSettings, kernel: FleetKernel) -> None:
        self._settings = settings
        self._kernel = kernel
        give_own_cache_dir(lambda: int(getattr(kernel, "int_id", -1)))
        self._endpoint = make_endpoint(
            settings.info,
            "engine",
            settings.peer,
            agent=settings.agent,
            wanted_id=settings.wanted_id,
            resources=settings.resources,
        )
        self._capture = FdCapture(kernel.collector, settings.mark)
        self._binding = Binding(kernel, settings.mark)
        self._blobs = BlobStore(Path(settings.info.blob_dir), settings.peer)
        self._masks: dict[int, set[Any]] = {}
        self._loop: asyncio.AbstractEventLoop
        self._runner: TaskRunner
        self._channel: TaskChannel
        self._link: EngineLink

    def run(self) -> int:
        """Join the cluster and run tasks until the engine is to leave; return the exit code."""
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        connector = self._endpoint.connector()
        try:
            self._prepare_process()
            self._run_startup_code()
            self._loop.run_until_complete(self._join(connector))
            self._run_loop()
        finally:
            self._close(connector)
        return self._link.exit_code

    def _prepare_process(self) -> None:
        wake_on_time()
        set_namespace(self._kernel.namespace)
        self._kernel.namespace.update(self._settings.names)
        install_thread_hooks()
        self._capture.start()
        install_streams(self._kernel.collector, self._capture.log)
        self._binding.install(self._capture.log)
        os.register_at_fork(
            before=self._hold_signals,
            after_in_parent=self._release_signals,
            after_in_child=self._let_go,
        )
        if "" not in sys.path:
            # As in every IPython kernel: modules are found in the current directory.
            sys.path.insert(0, "")
        # Results that are due must not wait 5 ms for a thread that computes.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)

    async def _join(self, connector: Connector) -> None:
        kernel, loop = self._kernel, self._loop
        kernel.start_engine(self._settings.peer.hex())
        interrupts = InterruptHandler(loop, self._settings.mark.cell)
        interrupts.install()
        signal.signal(signal.SIGTERM, self._handle_sigterm)
        self._runner = TaskRunner(
            kernel,
            loop=loop,
            interrupts=interrupts,
            blobs=self._blobs,
            host=self._endpoint.host,
            mark=self._settings.mark,
        )
        self._link = EngineLink(
            self._endpoint,
            self._runner,
            kernel.collector,
            interrupts=interrupts,
            timeout_s=self._settings.timeout_s,
            away_s=self._settings.away_s,
            on_joined=self._begin,
            on_break=self._renew_task_channel,
            on_leaving=self._stop_from_link,
            on_stop=self._note_stop,
            clear=self._clear_namespace,
            on_comm=CommDesk(kernel, self._runner.visit).receive,
        )
        kernel.collector.on_first = self._link.arm_output
        self._runner.on_waiting_results = self._link.arm_results
        self._channel = TaskChannel(
            self._endpoint,
            self._greet,
            self._handle,
            loop=loop,
            on_received=self._runner.pump,
            is_stopping=lambda: self._runner.stopping,
        )
        self._runner.attach(self._channel)
        self._binding.attach_runner(self._runner.visit)
        self._channel.open(connector)
        self._link.start(connector)

    def _run_startup_code(self) -> None:
        settings = self._settings
        run_startup_code(
            self._kernel.shell,
            settings.profile_path,
            self._kernel.config,
            script=settings.startup_script,
            command=settings.startup_command,
        )

    def _run_loop(self) -> None:
        while not self._runner.stopping:
            try:
                self._loop.run_forever()
            except KeyboardInterrupt:
                # From a background asyncio task of user code: asyncio lets it through.
                log.warning("KeyboardInterrupt in background code", exc_info=True)
            except SystemExit:
                log.warning("SystemExit in background code; the engine goes on", exc_info=True)

    def _handle(self, message: AnyMessage, frames: Sequence[Frame]) -> None:
        match message:
            case RunTasks():
                self._runner.handle(message, frames)
            case Attached():
                self._runner.resume()
            case Closing():
                self._link.leave(0)
            case Refused():
                log.error("the controller refused a message: %s", message.reason)

    def _greet(self, incarnation: bytes, received: int) -> Attach:
        self._runner.note_new_channel()
        return self._endpoint.attach(incarnation, received)

    def _renew_task_channel(self) -> None:
        """Have the main thread open TASK anew; in the second thread."""
        self._loop.call_soon_threadsafe(self._reopen_task_channel)

    def _reopen_task_channel(self) -> None:
        if not self._runner.stopping:
            self._channel.reopen()

    def _handle_sigterm(self, signum: int, frame: FrameType | None) -> None:
        # The second thread has read the signal from its pipe already, or will, and says goodbye.
        self._stop()
        if in_user_code(frame):
            raise SystemExit(128 + signum)

    def _hold_signals(self) -> None:
        """Let no signal reach a forked process before it has stopped being an engine.

        A pool that ends at once sends SIGTERM to a worker in its first microseconds; the handler
        that it still has would tell the engine.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        self._masks[threading.get_ident()] = mask

    def _release_signals(self) -> None:
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _let_go(self) -> None:
        """Stop being an engine, in a process that user code has forked (multiprocessing, say).

        Its signals would be written into the engine's pipe, its output go nowhere.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._kernel.collector.detach()
        self._binding.forget()
        self._release_signals()

    def _stop(self) -> None:
        self._runner.stopping = True
        self._loop.stop()

    def _stop_from_link(self) -> None:
        # The link may have to end the process without the main thread.
        self._binding.remove_file()
        self._runner.stopping = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        # Should the main thread be in user code: the handler above raises SystemExit there.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _note_stop(self) -> None:
        """Have the agent see that this end is no failure to be made good."""
        self._settings.mark.cell[1] = 1

    def _begin(self, welcome: Welcome) -> None:
        """Let tasks run, after what every engine is to call first; in the second thread."""
        calls = welcome.start_calls
        self._channel.adopt(welcome.incarnation)

        async def call_all() -> None:
            for call in calls:
                try:
                    await call_at_start(call.frames)
                except BaseException:
                    log.error("on_engine_start: %s failed", call.name, exc_info=True)

        self._runner.open(call_all if calls else None)

    def _clear_namespace(self) -> None:
        shell: Any = self._kernel.shell
        shell.reset(new_session=False)
        self._kernel.namespace.update(self._settings.names)

    def _close(self, connector: Connector) -> None:
        self._binding.close()
        if hasattr(self, "_link"):
            self._runner.flush()
            if self._link.state is not State.LEAVING:
                self._link.leave(0)
            self._link.join()
            self._channel.close()
        connector.close()
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        self._capture.stop()
        self._loop.close()


def run_engine(settings: EngineSettings, kernel: FleetKernel) -> int:
    """Be an engine until the cluster or a signal ends it; in the main thread.

    Returns:
        The process's exit code.
    """
    assert threading.current_thread() is threading.main_thread()
    return Engine(settings, kernel).run()
