"""The host agent: starts engines, watches them, tells the controller how they end.

What lives here: `Agent`. What must not: the work of engines.

Theory of operation
-------------------
The agent is single-threaded. It imports and builds everything that an engine needs, forks the
engines, and only then opens its own link. It sleeps in one poll until the controller says
something, a signal arrives (SIGCHLD: an engine has ended), its lease ends, or a log has to be
looked at. To another host the link is zmq's, with threads, and a process that forks must have
none: where an engine is to be replaced (`respawn`) such a link is closed first, and opened again
under the same peer id.

No engine outlives the agent: each has asked the kernel for SIGKILL at its parent's death, and a
clean end of the agent stops them first. Nor does the agent outlive its cluster: when the controller
stays away for longer than `away_s` the agent ends, and removes what a controller that was killed
has left on this host. Deaths that it could not report, or that a controller that has lost its
memory may have forgotten, are reported when there is one again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.connection import ConnectionInfo
from ipyfleet_protocol.ids import Channel, PeerId
from ipyfleet_protocol.messages import (
    AnyMessage,
    Closing,
    ControlReply,
    DumpStacks,
    EngineControl,
    EngineExited,
    ErrorInfo,
    Goodbye,
    KillRunning,
    Refused,
    SignalEngines,
    Welcome,
)

from .channel import Handler, ReliableChannel, wait_for_news
from .children import Death, Nursery
from .endpoint import Endpoint, make_endpoint
from .leftovers import remove_ownerless, remove_traces
from .logs import CHECK_S, LogKeeper
from .relief import LOOK_S, STUCK_LOOK_S, Relief
from .respawn import Respawn
from .stacks import ask_for_stacks

log = logging.getLogger("ipyfleet.agent")

STOP_GRACE_S = 2.0

REPORTS = 256
"""Deaths that are reported again to a controller that has lost its memory."""

LINGER_S = 0.2

HEARD_S = 1.0
"""How long the agent waits to be heard before it closes its link in order to fork."""


class AgentLink:
    """The agent's channel; zmq's threads, if it has any, exist only between `open` and `close`."""

    def __init__(self, endpoint: Endpoint, handle: Handler) -> None:
        self.endpoint = endpoint
        self.channel = ReliableChannel(endpoint, Channel.AGENT, endpoint.hello, handle)
        self._connector = endpoint.connector()
        self.is_open = False
        """Whether there is a connection, or will be."""

    @property
    def may_fork(self) -> bool:
        """Whether the process may fork as it is."""
        return not self._connector.has_threads

    def open(self) -> None:
        """Connect and say hello."""
        self.is_open = True
        self.channel.open(self._connector)

    def close(self) -> None:
        """Close the connection and end zmq's threads; what waits has a moment to leave."""
        if self.is_open:
            self.is_open = False
            self.channel.close(LINGER_S)
            self._connector.close()


class Agent:
    """See the module docstring."""

    def __init__(
        self,
        info: ConnectionInfo,
        peer: PeerId,
        nursery: Nursery,
        *,
        timeout_s: float,
        away_s: float,
        file: Path,
        respawn: Respawn,
        keeper: LogKeeper,
        start: Callable[[Agent, int], object],
        forks: bool,
        lease_fd: int | None = None,
    ) -> None:
        """Make an agent; `prepare`, then start engines, then `run`.

        Args:
            info: how to reach the controller.
            peer: the agent's peer id.
            nursery: its engines.
            timeout_s: how long to wait for the controller's welcome.
            away_s: how long the controller may be gone later on; 0 for "for ever".
            file: the connection file.
            respawn: says when an engine is replaced.
            keeper: keeps the engines' logs below a size.
            start: starts an engine in a place; called with this agent and the place.
            forks: `start` forks.
            lease_fd: read end of a pipe whose owner's death ends the agent.
        """
        self._link = AgentLink(make_endpoint(info, "agent", peer), self.handle)
        self._channel = self._link.channel
        self._info = info
        self._file = file
        self._away_s = away_s
        self._respawn = respawn
        self._keeper = keeper
        self._start = start
        self._forks = forks
        self._due: list[tuple[float, int]] = []
        self._next_check = time.monotonic() + CHECK_S
        self._relief = Relief()
        self._next_look = time.monotonic() + LOOK_S
        self._give_up = 0.0
        self._heard_by = 0.0
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._lease_fd = lease_fd
        self._joined = False
        self._failed = False
        self._exit_code: int | None = None
        self._is_abandoned = False
        self._is_ownerless = False
        self._reports: deque[EngineExited] = deque(maxlen=REPORTS)
        self._signal_read, self._signal_write = os.pipe()
        for fd in (self._signal_read, self._signal_write):
            os.set_blocking(fd, False)
        self._handlers: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def private_fds(self) -> list[int]:
        """The agent's pipes, which a forked engine has to close."""
        fds = [self._signal_read, self._signal_write]
        return fds if self._lease_fd is None else [*fds, self._lease_fd]

    def prepare(self) -> None:
        """Have signals noticed from now on: before the first engine is started."""
        signal.set_wakeup_fd(self._signal_write, warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            # A handler has to be there; what the poll sees is the byte in the pipe.
            self._handlers[signum] = signal.signal(signum, lambda signum, frame: None)

    def run(self) -> int:
        """Serve until the cluster, a signal or the lease ends it; returns the exit code."""
        try:
            self._link.open()
            self._serve()
        finally:
            for death in self._nursery.stop(STOP_GRACE_S):
                self._report(death)
            if self._link.is_open:
                if self._joined:
                    self._channel.send(Goodbye("the agent leaves"))
                self._link.close()
            if self._is_abandoned:
                remove_traces(self._info, self._file)
            elif self._is_ownerless:
                # A controller that lives has a lease, too, and removes its files itself.
                remove_ownerless(self._info, self._file)
            signal.set_wakeup_fd(-1)
            for signum, handler in self._handlers.items():
                signal.signal(signum, handler)
            for fd in (self._signal_read, self._signal_write):
                os.close(fd)
        return self._exit_code or 0

    def _serve(self) -> None:
        self._give_up = time.monotonic() + self._timeout_s
        self._reap()
        fds = [self._signal_read] if self._lease_fd is None else [self._signal_read, self._lease_fd]
        while self._exit_code is None:
            ready = wait_for_news([self._channel], fds, self._timeout_ms())
            if self._signal_read in ready:
                self._handle_signals()
            if self._lease_fd is not None and self._lease_fd in ready:
                self._check_lease()
            self._channel.receive()
            now = time.monotonic()
            self._see_to_connection(now)
            if now >= self._next_check:
                self._next_check = now + CHECK_S
                self._keeper.rotate([child.log for child in self._nursery.children.values()])
            if now >= self._next_look:
                children = self._nursery.children.values()
                self._relief.look((child.pid, child.mark) for child in children)
                self._next_look = now + (STUCK_LOOK_S if self._relief.is_stuck else LOOK_S)
            if self._exit_code is None and now >= self._replaces_at():
                self._replace(now)

    def _timeout_ms(self) -> int:
        times = [self._next_check, self._next_look, self._replaces_at()]
        if not self._joined:
            times.append(self._give_up)
        times += [at for at in (self._gives_up_at, self._channel.next_at) if at is not None]
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1)

    @property
    def _gives_up_at(self) -> float | None:
        since = self._channel.broken_since
        return since + self._away_s if since is not None and self._away_s else None

    def _see_to_connection(self, now: float) -> None:
        """See to what has broken; give up when it has been for too long."""
        self._channel.tend(now)
        if self._exit_code is not None:
            return
        gives_up_at = self._gives_up_at
        if not self._joined and now > self._give_up:
            self._fail(
                f"no answer from the controller at {self._link.endpoint.url} for "
                f"{self._timeout_s:.0f} s; is it running? Start one with `ipcontroller`, or "
                "all of a cluster with `ipcluster start`"
            )
        elif gives_up_at is not None and now > gives_up_at:
            self._fail(f"the controller has been gone for {self._away_s:g} s")
            self._is_abandoned = True

    def _replaces_at(self) -> float:
        """Return when the next engine is to be started; infinity for "not"."""
        if not self._due:
            return math.inf
        return max(self._heard_by, min(at for at, _ in self._due))

    def _replace(self, now: float) -> None:
        """Start the engines that are due."""
        due = [slot for at, slot in self._due if at <= now]
        self._due = [(at, slot) for at, slot in self._due if at > now]
        must_close = self._forks and not self._link.may_fork
        if must_close:
            self._link.close()
        for slot in due:
            self._start(self, slot)
            log.info("started an engine in place %d again", slot)
        if must_close:
            self._link.open()

    def handle(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> None:
        """Do what a message from the controller asks for."""
        match message:
            case Welcome():
                is_another = self._channel.answer(message.incarnation, message.received)
                self._joined = True
                self._heard_by = 0.0
                if is_another:
                    for exited in self._reports:
                        self._channel.send(exited)
            case SignalEngines():
                try:
                    self._nursery.signal(message.peers, message.signum)
                except OSError as error:
                    log.warning("signal %d cannot be sent: %s", message.signum, error)
            case KillRunning():
                self._nursery.kill_running(message.peer, message.ranges)
            case EngineControl(action=DumpStacks()):
                self._channel.send(self._dump_stacks(message))
            case Closing():
                log.info("the controller closes: %s", message.reason)
                self._exit_code = 0
            case Refused():
                if self._channel.is_attached:
                    log.error("the controller refused a message: %s", message.reason)
                else:
                    self._fail(f"the controller refused this agent: {message.reason}")

    def _dump_stacks(self, message: EngineControl) -> ControlReply:
        reply = ControlReply(message.client, message.request, message.engine)
        child = self._nursery.find(message.peer)
        try:
            if child is None or child.stacks_fd < 0:
                raise OSError("there is no such engine here, or no way to ask it")
            reply.content = ask_for_stacks(child.pid, child.stacks_fd).encode()
        except OSError as error:
            text = str(error)
            reply.error = ErrorInfo("EngineError", text, [text], message.engine, own=True)
        return reply

    def _handle_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._signal_read, 4096)
            if signal.SIGTERM in data or signal.SIGINT in data:
                log.info("stopping, on a signal")
                self._exit_code = 0
        self._reap()

    def _check_lease(self) -> None:
        assert self._lease_fd is not None
        if not os.read(self._lease_fd, 4096):
            log.info("stopping: the process that started this agent is gone")
            self._exit_code = 0
            self._is_ownerless = True

    def _reap(self) -> None:
        for death in self._nursery.reap():
            self._report(death)
        if not self._nursery.children and not self._due and self._exit_code is None:
            log.info("stopping: no engine is left")
            self._exit_code = 1 if self._failed else 0

    def _report(self, death: Death) -> None:
        level = logging.INFO if death.exit_code == 0 else logging.ERROR
        self._failed = self._failed or not (death.exit_code == 0 or death.was_forced)
        log.log(level, "engine process %d ended: %s", death.child.pid, death.notice)
        message = EngineExited(death.child.peer, death.exit_code, death.notice, death.running)
        self._reports.append(message)
        if self._link.is_open:
            self._channel.send(message)
        if self._exit_code is None:
            self._plan_replacement(death)

    def _plan_replacement(self, death: Death) -> None:
        delay_s = self._respawn.delay_s(
            death.child.slot,
            exit_code=death.exit_code,
            lived_s=time.monotonic() - death.child.born,
            was_told=death.was_told,
            was_forced=death.was_forced,
        )
        if delay_s is not None:
            if self._forks and not self._link.may_fork and self._channel.is_attached:
                # A ROUTER does not know the sender any more of what it reads after the next
                # connection of the same name; it would be sent again, but late. The answer to one
                # more hello says that it was read.
                self._channel.greet()
                self._heard_by = time.monotonic() + HEARD_S
            self._due.append((time.monotonic() + delay_s, death.child.slot))
        elif self._respawn.policy != "never" and death.exit_code != 0 and not death.was_told:
            log.error("place %d stays empty: its engines ended too soon", death.child.slot)

    def _fail(self, reason: str) -> None:
        log.critical("%s", reason)
        self._exit_code = 1


def log_stem(cluster_id: str, pid: int) -> str:
    """Return what the names of an agent's log files begin with."""
    return f"ipengine-{cluster_id}-{pid}" if cluster_id else f"ipengine-{pid}"


def make_log_dir(path: Path) -> Path:
    """Make the directory of log files, private to the user, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
