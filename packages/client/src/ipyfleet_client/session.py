"""One client's connection to its controller, put together.

What lives here: `Session`: the handshake, the loop from message to effect, requests and their
answers, what follows when the controller is away, the end. What must not: views, results as users
see them.

A session knows nothing of the `Client` that uses it, so that a client can be dropped: its finalizer
then closes the session.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipyfleet_client.away import LOOK_AGAIN_S, Away
from ipyfleet_client.comms import CommRelay, RelayComm
from ipyfleet_client.connection import Connector, make_connector
from ipyfleet_client.interrupts import hold_interrupts
from ipyfleet_client.io import Wire
from ipyfleet_client.link import (
    Acknowledged,
    Answer,
    ClientLink,
    CloseSession,
    Effect,
    FinishWork,
    Joined,
    LoseEngines,
    RefuseSession,
    ShowOutput,
    Warn,
)
from ipyfleet_client.pending import Segment, Work
from ipyfleet_client.requests import Pending, Requests
from ipyfleet_client.submission import Submitter
from ipyfleet_protocol import __version__
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.blobs import BlobStore, map_blob, unlink_blob
from ipyfleet_protocol.codec import decode, encode, encode_part
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.connection import ConnectionInfo, check_alive, host_id, pick_url
from ipyfleet_protocol.errors import ClientClosed, KernelError, ProtocolError
from ipyfleet_protocol.ids import new_peer_id
from ipyfleet_protocol.reliable import SESSION_MESSAGES
from ipyfleet_protocol.versions import package_versions, python_version

if TYPE_CHECKING:
    from ipyfleet_protocol.tunnel import Tunnel

logger = logging.getLogger("ipyfleet.client")

_FORKED = (
    "this client belongs to the process that made it, and this is a fork of that; "
    "make a Client of its own here"
)
_CLOSED = "this client is closed; make a new Client"


class Session:
    """A client's connection: socket, link, submission, open requests.

    Attributes:
        info: the controller's connection file.
        peer: this client's id.
        link: what is known of the session.
        submit: sends calls.
        comms: widgets of engines, in this process's notebook.
    """

    def __init__(
        self,
        info: ConnectionInfo,
        reconnect_s: float | None = None,
        tunnel: Tunnel | None = None,
    ) -> None:
        self.info = info
        self._tunnel = tunnel
        self.away = Away(info, reconnect_s)
        self.peer = new_peer_id()
        self.host = host_id()
        self.link = ClientLink(bytes.fromhex(info.instance), self._adopt_blob)
        self.submit = Submitter(self.peer, self.host, self.link)
        self.comms = CommRelay(self._send_comm, self._forget_comm)
        self.malformed = 0
        self._blob_dir = Path(info.blob_dir) if info.blob_dir else None
        self._connector: Connector | None = None
        self._wire: Wire | None = None
        self._requests = Requests()
        self._next_request = 0
        self._refused = ""
        self._closing = False

    # -- the beginning ------------------------------------------------------------------------

    def connect(self, timeout_s: float) -> None:
        """Connect and say hello.

        Raises:
            ConnectionFileStale: the controller is gone.
            ConnectionFileUnreachable: it cannot be reached from this host.
            ConnectionRefusedError: it does not want this client, and says why.
            TimeoutError: it, or the ssh server on the way, does not answer.
            ConnectionError: there is no way through the ssh server.
        """
        check_alive(self.info)
        if self._tunnel is None:
            url = where = pick_url(self.info)
        else:
            self._tunnel.start(timeout_s)
            url, where = self._tunnel.url, f"the other end of {self._tunnel.server}"
        self._connector = make_connector(url, self.info, self.peer, self._tunnel)
        self.away.over_tcp = url.startswith("tcp://") or self._tunnel is not None
        self._wire = Wire(
            self._connector.connect,
            greet=self._make_hello,
            dispatch=self._dispatch,
            flush=self.submit.flush,
            lost=self._connection_lost,
        )
        self.submit.wire = self._wire
        _sessions.add(self)
        try:
            self._wire.start()
            self._watch_controller()
            self._join(where, timeout_s)
        except BaseException:
            self.close()
            raise

    def _make_hello(self, incarnation: bytes, received: int, greeting: int) -> bytes:
        import socket

        hello = m.Hello(
            version=m.PROTOCOL_VERSION,
            role="client",
            peer=self.peer,
            instance=bytes.fromhex(self.info.instance),
            host=self.host,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            python=python_version(),
            release=__version__,
            packages=package_versions(),
            incarnation=incarnation,
            received=received,
            greeting=greeting,
        )
        return encode(hello)

    def _join(self, where: str, timeout_s: float) -> None:
        self.wait_until(lambda: self.link.joined or self._refused, timeout_s)
        if self._refused:
            raise ConnectionRefusedError(f"the controller refused this client: {self._refused}")
        if not self.link.joined:
            check_alive(self.info)
            said = "" if self._tunnel is None else self._tunnel.last_words
            raise TimeoutError(
                f"the controller at {where} (process {self.info.pid} on {self.info.hostname}) did "
                f"not answer within {timeout_s:g} s; it may be busy or stopped: try a larger "
                f"timeout=, or look at its log{said and f'; ssh says: {said}'}"
            )

    def _watch_controller(self) -> None:
        """Notice the end of a controller on this host, whatever way it ends."""
        if self.info.host != self.host or not self.info.pid or not hasattr(os, "pidfd_open"):
            return
        try:
            fd = os.pidfd_open(self.info.pid)
        except OSError:
            return  # another pid namespace, or no such kernel; or it is gone, which Hello will tell
        try:
            # The number could have become another process's since it was checked last.
            check_alive(self.info)
        except BaseException:
            os.close(fd)
            raise
        if self._wire is None or not self._wire.watch(fd, self._controller_gone):
            os.close(fd)

    def _controller_gone(self) -> None:
        """The controller's process has ended: the one place that decides what follows."""
        if not self.closed:
            self.away.died = True
            self._connection_lost()

    def _connection_lost(self) -> None:
        """There is no connection; in the I/O thread, which makes another meanwhile."""
        if self.closed or not self.link.joined:
            return  # Whoever connects has a time limit of their own.
        now = time.monotonic()
        is_new = self.away.since is None
        left = self.away.leave(now)
        if left <= 0:
            self._end(self.away.reason(now))
            return
        if is_new:
            logger.warning("%s; waiting for it for %g s", self.away.reason(now), left)
        self.wire.timers.set("give up", min(left, LOOK_AGAIN_S), self._give_up)

    def _give_up(self) -> None:
        if self.reconnecting:
            # Ends the session, unless this is another absence than the timer was set for.
            self._connection_lost()

    def _welcomed(self, effect: Joined) -> None:
        """Take up the session: where it was, or with a controller that has lost its memory."""
        if self.wire.welcome(effect.incarnation, effect.received):
            if self.away.come_back():
                logger.warning("connected to the controller again")
            return
        # In the I/O thread, since it waits for threads that send; they need not wait for it.
        self.wire.call_soon(self._start_anew)

    def _start_anew(self) -> None:
        if self.closed:
            return
        self.link.forget_output(self.submit.next_seq)
        self.submit.start_anew(self._requests.ask_again)
        self._requests.fail_doubtful()
        if self.wire.is_open and self.away.come_back():
            logger.warning("the controller was started anew; what is open was submitted again")

    @property
    def reconnecting(self) -> bool:
        """Whether the connection is lost and waited for."""
        return not self.closed and self.away.since is not None

    # -- using it -----------------------------------------------------------------------------

    @property
    def wire(self) -> Wire:
        """The connection.

        Raises:
            ClientClosed: there is none (any more).
        """
        wire = self._wire
        if wire is None:
            raise ClientClosed(_CLOSED)
        if wire.closed_reason:
            raise ClientClosed(wire.closed_reason)
        return wire

    @property
    def closed(self) -> bool:
        """Whether the session is closed."""
        return self._wire is None or bool(self._wire.closed_reason)

    def wait_until(
        self,
        predicate: Callable[[], object],
        timeout_s: float | None = None,
        ask: Callable[[], object] | None = None,
    ) -> bool:
        """Wait, receiving meanwhile, until the predicate is true; return whether it is.

        Returns at once when the session is closed.

        Args:
            predicate, timeout_s: what for, and how long.
            ask: sends what makes the predicate true; see `Wire.wait_until`.

        Raises:
            ClientClosed: there is no time limit, and the session is closed.
            TypeError: the time limit is no number.
        """
        wire = self._wire
        is_open = wire is not None and not wire.closed_reason
        if (not is_open or timeout_s is not None) and predicate():
            return True
        if timeout_s is not None and not hasattr(timeout_s, "__float__"):
            raise TypeError(f"timeout is a number of seconds, not {type(timeout_s).__name__}")
        if wire is not None and is_open and wire.wait_until(predicate, timeout_s, ask):
            return True
        if timeout_s is None or timeout_s < 0:
            self.wire  # noqa: B018 - raises ClientClosed
        return False

    def look_again(self) -> None:
        """Have all who wait look at what they wait for: it was changed by no message."""
        if self._wire is not None and not self._wire.closed_reason:
            self._wire.look_again()

    async def until(self, predicate: Callable[[], object]) -> None:
        """Wait, in an event loop, until the predicate is true.

        Raises:
            ClientClosed: the session is closed, and the predicate is not true.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        self.submit.flush()
        wire = self.wire

        def tell() -> None:
            # Whoever waits may have been cancelled just now, and the loop closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.set)

        notice = wire.notify(predicate, tell)
        try:
            while not predicate() and not self.closed:
                await arrived.wait()
        finally:
            wire.forget(notice)
        if not predicate():
            self.wire  # noqa: B018 - raises ClientClosed

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call what a user gave us to call: in the I/O thread, or here when that has ended."""
        if self.closed or self._wire is None:
            function()
        else:
            self._wire.call_soon(function)

    def request(
        self,
        question: m.Question,
        take: Callable[[bytes, Sequence[Frame]], bool] | None = None,
    ) -> Pending:
        """Ask the hub; the future's result is ``(content, frames)``.

        Args:
            question: what is asked.
            take: for questions with several replies: see `Pending.take`. The result is the last.
        """
        pending = Pending(question)
        pending.take = take
        return self._ask(pending)

    def control(self, targets: Sequence[int], action: m.ControlAction) -> Pending:
        """Ask something of engines; the future's result is None, or the error(s) of the engines."""
        pending = Pending(action=action, engines=targets)
        # It may be handed to users.
        pending.defer = self.call_soon
        return self._ask(pending)

    def answer(self, pending: Pending, timeout_s: float | None = None) -> Any:
        """Wait for an answer and return it.

        Raises:
            TimeoutError: there was none in time.
            KernelError: what was asked failed.
        """
        if not self.wait_until(pending.done, timeout_s):
            self.wire  # noqa: B018 - raises ClientClosed if that is why
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        return pending.result()

    def _ask(self, pending: Pending) -> Pending:
        self.wire  # noqa: B018 - raises ClientClosed
        with self.link.lock:
            self._next_request = number = self._next_request + 1
        self.submit.send_message(
            encode(pending.message(number)), before=lambda: self._requests.open(number, pending)
        )
        return pending

    # -- messages -----------------------------------------------------------------------------

    def _dispatch(self, frames: Sequence[Frame]) -> None:
        wire = self._wire
        if wire is None or wire.closed_reason:
            return
        try:
            message = decode(frames[0])
            if type(message) not in SESSION_MESSAGES:
                if not wire.take(frames):
                    return
            elif type(message) is m.Welcome and not wire.continuity.is_awaited(message.greeting):
                logger.debug("the answer to an earlier greeting")
                return
            effects = self.link.handle(message, frames[1:], time.time())
        except ProtocolError as error:
            self.malformed += 1
            logger.debug("dropped a message: %s", error)
            return
        for effect in effects:
            if type(effect) is FinishWork:
                self._finish(effect.work)
            else:
                self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case ShowOutput():
                for sink in list(effect.work.sinks or ()):
                    sink(effect.task, effect.output)
            case RelayComm():
                self.comms.handle(effect)
            case LoseEngines():
                self.comms.lose(effect.engines)
            case Answer():
                self._requests.take(effect)
            case Acknowledged():
                self.wire.acknowledged(effect.received)
            case Joined():
                self._welcomed(effect)
                if self._blob_dir is None and effect.blob_dir:
                    self._blob_dir = Path(effect.blob_dir)
                if (
                    self._blob_dir is not None
                    and effect.host == self.host
                    and self.submit.blobs is None
                ):
                    self.submit.blobs = BlobStore(self._blob_dir, self.peer)
            case Warn():
                # In the receiving thread, where a Python warning that is an error would do harm.
                for text in effect.texts:
                    logger.warning("%s", text)
            case RefuseSession():
                self._refused = effect.reason
                if self.reconnecting:
                    self._end(f"the controller does not want this client back: {effect.reason}")
                elif effect.joined:
                    logger.warning("the controller refused a message: %s", effect.reason)
            case CloseSession():
                self._end(f"the controller has closed: {effect.reason or 'it was shut down'}")

    def _finish(self, work: Work) -> None:
        """A work is done: free what carried it, tell its owner."""
        if work.blobs and self.submit.blobs is not None:
            for handle in work.blobs:
                self.submit.blobs.release(handle)
            work.blobs.clear()
        owner, work.owner = work.owner, None
        if owner is not None:
            owner._work_done()

    def close_work(self, work: Work) -> None:
        """No more tasks will be added to a work; finish it if they have all ended already."""
        with hold_interrupts():
            with self.link.lock:
                work.closed = True
                done = work.done and work.owner is not None
                if done:
                    self.link.ledger.forget(work)
            if done:
                self._finish(work)

    def _send_comm(self, message: m.CommMessage, frames: Sequence[Frame]) -> None:
        if not self.closed:
            self.submit.send_message(encode(message), frames)

    def _forget_comm(self, comm_id: str) -> None:
        with self.link.lock:
            self.link.comms.close(comm_id)

    def _adopt_blob(self, handle: m.BlobHandle) -> memoryview:
        if self._blob_dir is None:
            raise ProtocolError("a result in shared memory, and this client knows of no such place")
        view = map_blob(self._blob_dir, handle)
        unlink_blob(self._blob_dir, handle)
        return view

    # -- the end ------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """The controller is gone: everything outstanding fails, every later call says so."""
        text = f"{reason}; the result of this task did not arrive"
        self.fail_outstanding(text)
        self.comms.lose(self.link.engines.known)
        if self._wire is not None:
            self._wire.refuse(f"{reason}; make a new Client when it runs again")
            # In the I/O thread: this one may be sending.
            self._wire.call_soon(partial(self._fail_unsent, text))

    def _fail_unsent(self, text: str) -> None:
        """End the calls that were buffered when the session ended."""
        self.submit.give_up()
        self.fail_outstanding(text)

    def fail_outstanding(self, reason: str, kind: type[KernelError] = KernelError) -> None:
        """End every outstanding task and request with an error of our own."""
        info = m.ErrorInfo(kind.__name__, reason, [], own=True)
        payload = encode_part(info)
        now = time.time()
        with self.link.lock:
            works = list(self.link.ledger.works())
        for work in works:
            for index in range(work.total):
                if work.status[index] == 255:
                    piece = _failed_piece(work.seq(index) or 0, len(payload))
                    work.add(index, 1, Segment(piece, [payload], -1, now), 0)
            work.closed = True
            for follower in work.feed_followers(0, work.total):
                self._finish(follower)
            self._finish(work)
        with self.link.lock:
            self.link.ledger.give_up()
        self._requests.fail(kind(reason))

    def close(self, linger_s: float = 0.5) -> None:
        """Say goodbye and free everything. Tasks under way go on. Idempotent."""
        if self._closing or self._wire is None:
            return
        self._closing = True
        wire = self._wire
        if not wire.closed_reason:
            try:
                self.comms.close()
                self.submit.flush()
            except ClientClosed:
                logger.debug("could not send what was left", exc_info=True)
        wire.close(_CLOSED, [encode(m.Goodbye())], linger_s)
        self.submit.give_up()
        outstanding = self.link.ledger.outstanding
        self.fail_outstanding(
            "the client was closed before the result arrived; the task itself goes on",
            ClientClosed,
        )
        if self.submit.blobs is not None and not outstanding:
            self.submit.blobs.close()
        if self._connector is not None:
            self._connector.close()
        if self._tunnel is not None:
            self._tunnel.close()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        if self._wire is not None:
            self._wire.abandon(_FORKED)
        self._closing = True


def _failed_piece(seq: int, size: int) -> m.ResultSlice:
    import struct

    nan = struct.pack("<d", float("nan"))
    columns = m.Columns(struct.pack("<I", size))
    return m.ResultSlice(seq, 1, 0, -1, bytes((m.FAILED,)), nan, nan, b"", columns)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
