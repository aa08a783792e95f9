"""The client's connection: who sends, who receives, who waits.

What lives here: `Wire`, the connection of a client with its I/O thread. What must not: how threads
wait (`wirewaits.py`), the meaning of messages (`link.py`), what is sent (`submission.py`), how
bytes travel (`connection.py`).

Theory of operation
-------------------
The connection is used under one lock by whoever needs it, so that a round trip costs no wake-up of
a thread in this process:

* **Sending.** A thread that submits sends by itself. What the system does not take at once has
  been sent all the same: a user thread waits until it has taken all, unless Ctrl-C comes or the
  connection ends; else the I/O thread goes on with it as there is room. Nothing else is sent
  before, so what waits is one message of a user's thread and a few short ones.
* **Receiving.** Normally the I/O thread sleeps in epoll on the connection's descriptor. A user
  thread that waits for something becomes the **leader**: it takes the descriptor out of the I/O
  thread's epoll set, waits on it itself, receives and dispatches, and gives it back when it has
  what it wants. A call that waits for its value leads before it sends: else an answer that comes
  soon would wake the I/O thread, too. Further waiting threads are **followers**, woken when what
  they want is there or when the leader leaves.
* **Order.** Messages are dispatched in the order received: receiving and dispatching are one step
  under `_receiving`. Dispatch runs no code of users: callbacks are handed to the I/O thread
  (`call_soon`).
* **Breaks.** Whoever reads sees the end of a connection and throws it away; the I/O thread makes
  the next. Meanwhile nothing is lost: see `continuity.py`. A thread that leads then waits for the
  new connection.
* **Acknowledging.** Who receives enough says so. What is less is acknowledged a second later by the
  I/O thread; setting that alarm wakes nobody.

Where there is no epoll every waiting thread is a follower.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ipyfleet_client.connection import Connection
from ipyfleet_client.continuity import Continuity, Phase
from ipyfleet_client.interrupts import hold_interrupts
from ipyfleet_client.poller import make_poller
from ipyfleet_client.timers import Timers
from ipyfleet_client.wirewaits import WireWaits
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ClientClosed
from ipyfleet_protocol.messages import Ack

logger = logging.getLogger("ipyfleet.client")

FLUSH_DELAY_S = 0.001
"""How long calls are collected before they are sent, at most."""

FLUSH_RETRY_S = 0.01
"""The I/O thread tries so much later again to send what is buffered if another thread sends."""

SENDER_CHECK_S = 0.05
"""A thread that waits for room looks this often for Ctrl-C and for the end of the connection."""

RETRY_MIN_S, RETRY_MAX_S = 0.02, 0.1
"""A connection that could not be made is tried again after so long, at first and at most."""

_READ_OR_WRITE = getattr(select, "POLLIN", 0) | getattr(select, "POLLOUT", 0)

_NOT_THERE_YET = (ConnectionError, FileNotFoundError, BlockingIOError, TimeoutError)

Connect: TypeAlias = Callable[[], Connection]


class Wire(WireWaits):
    """A connection, made again when it breaks, and its I/O thread.

    Args:
        connect: makes a connection.
        greet: returns the Hello for a connection, given its `incarnation`, `received` and
            `greeting`.
        dispatch: called with the frames of each message, one message at a time.
        flush: called before every wait to send what was buffered, and by the I/O thread, with
            False for "do not wait for other threads": returns whether that was done.
        lost: called by the I/O thread when a connection has ended or could not be made.
        name: of the I/O thread.

    Attributes:
        continuity: what is kept across connections; for others than the wire to look at.
        timers: what the I/O thread is to do later; for that thread only.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        greet: Callable[[bytes, int, int], bytes],
        dispatch: Callable[[Sequence[Frame]], None],
        flush: Callable[[bool], bool],
        lost: Callable[[], None],
        name: str = "ipyfleet-client",
    ) -> None:
        super().__init__()
        self._connect = connect
        self._greet = greet
        self._dispatch = dispatch
        self._flush = flush
        self._lost = lost
        self._connection: Connection | None = None
        self.continuity = Continuity()
        self.timers = Timers()
        self._retry_s = 0.0
        self._alarm_set = False
        self._using = threading.Lock()
        self._receiving = threading.Lock()
        self._n_sending = 0
        self._room_wanted = False
        self._soon: deque[Callable[[], object]] = deque()
        self._flush_wanted = False
        self._stopping = False
        self.closed_reason = ""
        """Why the wire cannot be used any more; empty while it can."""
        self._poller = make_poller()
        self._poller.on_alarm = self._on_alarm
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Make the first connection and start the I/O thread.

        Raises:
            OSError: there will never be one.
        """
        self._open_connection()
        self._thread.start()

    # -- connections --------------------------------------------------------------------------

    def _open_connection(self) -> None:
        if self.closed_reason:
            return
        try:
            connection = self._connect()
        except OSError as error:
            if not self._thread.is_alive() and not isinstance(error, _NOT_THERE_YET):
                raise  # The first one, in the thread of whoever asked for it.
            logger.debug("could not connect", exc_info=True)
            self._retry_later()
            return
        with self._receiving, self._using:
            self._connection = connection
            self._poller.replace(connection.fds, connection.write_fd)
            connection.send([self._greet(*self.continuity.greet())])
        self._drain()

    def _lose_connection(self) -> None:
        """It is over and has been read to its end; both locks are held."""
        if not self._poller.can_lead and not self.in_io_thread:
            self.call_soon(self._drain)  # which comes here
            return
        connection, self._connection = self._connection, None
        assert connection is not None
        self._poller.replace(())
        self._room_wanted = False
        connection.close()
        if self.continuity.phase is not Phase.GREETING:
            self._retry_s = 0.0
        self.continuity.lose()
        self.call_soon(self._after_loss)

    def _after_loss(self) -> None:
        self._lost()
        self._retry_later()

    def _retry_later(self) -> None:
        self.timers.set("connect", self._retry_s, self._open_connection)
        self._retry_s = min(max(2 * self._retry_s, RETRY_MIN_S), RETRY_MAX_S)

    def welcome(self, incarnation: bytes, received: int) -> bool:
        """The controller has said Welcome; from `dispatch`. For the rest see `Continuity.welcome`.

        What it lacks is sent.
        """
        with self._using:
            goes_on = self.continuity.welcome(incarnation, received)
            if goes_on:
                self._push()
        return goes_on

    def restart(
        self, submissions: Sequence[Sequence[Frame]], others: Sequence[Sequence[Frame]]
    ) -> None:
        """Send these first of all to a controller that knows nothing; in the I/O thread.

        For the arguments see `Continuity.restart`.
        """
        with self._using:
            if self.continuity.phase is not Phase.WELCOMED:
                return  # It is gone again; the next Welcome brings us here.
            self.continuity.restart(submissions, others)
        self._drain()

    # -- sending ------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame], interrupt: hold_interrupts) -> bool:
        """Send one message; from any thread. A user's thread waits until it has left.

        Args:
            frames: the message.
            interrupt: interrupts are held by the caller.

        Returns:
            Whether it was sent: False only if Ctrl-C came while one before had not left yet.

        Raises:
            ClientClosed: the wire is closed.
        """
        while not self._send_nowait(frames):
            if interrupt.noted:
                return False
            self._wait_room()
        connection = self._connection
        if connection is not None and connection.unsent_bytes:
            self._see_off(connection, interrupt)
        return True

    def _send_nowait(self, frames: Sequence[Frame]) -> bool:
        """Send a message, or keep it for the next connection; False if others must leave first."""
        with self._using:
            if self.closed_reason:
                raise ClientClosed(self.closed_reason)
            continuity = self.continuity
            connection = self._connection
            if connection is None or continuity.phase is not Phase.OPEN:
                continuity.note_unsent(frames)
                return True
            if (connection.unsent_bytes or continuity.backlog) and not self._push():
                return False
            connection.send(frames)
            if continuity.keeps:
                continuity.sent.note(frames)
        return True

    def _push(self) -> bool:
        """Go on with what goes before anything else; return whether all has left.

        The lock is held.
        """
        connection, backlog = self._connection, self.continuity.backlog
        if connection is None or not connection.flush():
            return False
        while backlog and self.continuity.phase is Phase.OPEN:
            if not connection.send(backlog.popleft()):
                return False
        return not backlog

    def _see_off(self, connection: Connection, interrupt: hold_interrupts) -> None:
        """Wait until what was sent has left; the I/O thread, and after Ctrl-C it, does so later."""
        with self._using:
            self._n_sending += 1
        try:
            while (
                self._connection is connection
                and connection.unsent_bytes
                and not (interrupt.noted or self.closed_reason or self.in_io_thread)
            ):
                self._wait_room()
        finally:
            with self._using:
                self._n_sending -= 1
            if connection.unsent_bytes:
                self.call_soon(self._drain)

    def _wait_room(self) -> None:
        """Wait a moment until more can be sent, and send it; receive, if nobody else does."""
        connection = self._connection
        # Nobody else does.
        receives = self.in_io_thread or self._leader_thread == threading.get_ident()
        if connection is None or connection.write_fd < 0:
            time.sleep(FLUSH_DELAY_S)
        else:
            poll = select.poll()
            poll.register(connection.write_fd, _READ_OR_WRITE if receives else select.POLLOUT)
            poll.poll(SENDER_CHECK_S * 1000)
        if receives:
            self._drain()
        else:
            with self._using:
                self._push()

    # -- receiving ----------------------------------------------------------------------------

    def _drain(self, wait: bool = True, *, leading: bool = False) -> bool:
        """Receive and dispatch all there is; False if another thread is at it.

        Args:
            wait: for the other thread.
            leading: this is the leader, which is told by the descriptor if there is more.
        """
        if not self._receiving.acquire(blocking=wait):
            return False
        try:
            while (connection := self._connection) is not None:
                with self._using:
                    received = connection.receive_all()
                    if not received and connection.is_over:
                        self._lose_connection()
                        break
                for frames in received:
                    self._dispatch(frames)
                if (
                    not self._alarm_set
                    or connection.unsent_bytes
                    or self._room_wanted
                    or self.continuity.backlog
                ):
                    self._settle()
                if (leading or not received) and not connection.is_over:
                    break
        finally:
            self._receiving.release()
        # The leader looks after itself.
        if not leading or self._notices or len(self._waiters) > 1:
            self._wake_ready()
        return True

    def _settle(self) -> None:
        """See to what else a connection may want; called by who receives."""
        with self._using:
            if not self._alarm_set:
                self._acknowledge()
            room_wanted = not self._push() and not self._n_sending
            if room_wanted != self._room_wanted:
                if self.in_io_thread:
                    self._room_wanted = room_wanted
                    self._poller.want_room(room_wanted)
                elif room_wanted:
                    self.call_soon(self._drain)

    def take(self, frames: Sequence[Frame]) -> bool:
        """Count a message; from `dispatch`. Whether it is of this session; else it is dropped."""
        continuity = self.continuity
        if continuity.phase is not Phase.OPEN and not continuity.takes:
            return False
        if continuity.keeps and continuity.received.note(sum(map(len, frames)), time.monotonic()):
            with self._using:
                self._acknowledge()
        return True

    def acknowledged(self, received: int) -> None:
        """The controller has so many of our messages; from `dispatch`."""
        with self._using:
            self.continuity.sent.acknowledge(received)

    def _acknowledge(self) -> None:
        """Tell what has been received, if it is time, or see that it will be."""
        continuity, connection = self.continuity, self._connection
        due_at = continuity.received.next_ack_at
        if due_at is None or connection is None or continuity.phase is not Phase.OPEN:
            return
        now = time.monotonic()
        if not connection.unsent_bytes and not continuity.backlog:
            received = continuity.received.ack_due(now)
            if received is not None:
                connection.send([encode(Ack(received))])
                return
        if not self._alarm_set:
            self._alarm_set = True
            self._poller.alarm(max(due_at - now, FLUSH_DELAY_S))

    def _on_alarm(self) -> None:
        self._alarm_set = False
        self._drain()

    # -- the I/O thread -----------------------------------------------------------------------

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the I/O thread call a function; what users gave us to call is called there."""
        self._soon.append(function)
        self._poller.wake()

    def flush_soon(self) -> None:
        """Have the I/O thread flush in about a millisecond, unless a wait does it before.

        Raises:
            ClientClosed: the wire is closed.
        """
        if self.closed_reason:
            raise ClientClosed(self.closed_reason)
        if not self._flush_wanted:
            self._flush_wanted = True
            self._poller.wake()

    @property
    def is_open(self) -> bool:
        """Whether messages go out."""
        return self.continuity.phase is Phase.OPEN

    @property
    def in_io_thread(self) -> bool:
        """Whether the caller is the I/O thread."""
        return threading.get_ident() == self._thread.ident

    def _run(self) -> None:
        while not self._stopping:
            try:
                if self._poller.wait(self.timers.left()):
                    self._drain()
            except Exception:
                # A bug of ours; the thread must go on for the other results.
                logger.exception("the I/O thread failed")
            self._run_soon()
            if self._flush_wanted and "flush" not in self.timers:
                self.timers.set("flush", FLUSH_DELAY_S, self._flush_now)
            for function in self.timers.pop_due():
                try:
                    function()
                except Exception:
                    logger.exception("what was due in the I/O thread failed")

    def _flush_now(self) -> None:
        self._flush_wanted = False
        try:
            done = self._flush(False)
        except ClientClosed:
            return
        if not done:
            # Who sends just now may have begun before the last call was buffered, and may do so
            # for long.
            self._flush_wanted = True
            self.timers.set("flush", FLUSH_RETRY_S, self._flush_now)

    def _run_soon(self) -> None:
        while self._soon:
            function = self._soon.popleft()
            try:
                function()
            except Exception:
                logger.exception("a callback failed")

    def watch(self, fd: int, callback: Callable[[], None]) -> bool:
        """Have the I/O thread call a function when another descriptor can be read.

        What has arrived until then is received before. Where this cannot be had, False.
        """

        def call() -> None:
            self._drain()
            callback()

        return self._poller.watch(fd, call)

    # -- the end ------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise `ClientClosed` if the wire is closed."""
        if self.closed_reason:
            raise ClientClosed(self.closed_reason)

    def refuse(self, reason: str) -> None:
        """Mark the wire closed and wake all who wait; from any thread. Idempotent."""
        if not self.closed_reason:
            self.closed_reason = reason
            self._wake_all()

    def close(self, reason: str, last: Sequence[Frame] = (), linger_s: float = 0.5) -> None:
        """Send a last message, stop the I/O thread, close the socket. Idempotent.

        Args:
            reason: what later calls say.
            last: a message to send before, if any.
            linger_s: how long to wait at most for what is still to be sent.
        """
        if self._stopping:
            return
        if last and not self.closed_reason:
            try:
                self._send_nowait(last)
            except ClientClosed:
                # It is a courtesy.
                logger.debug("could not say goodbye", exc_info=True)
        self.refuse(reason)
        self._stopping = True
        self._poller.wake()
        if not self.in_io_thread and self._thread.is_alive():
            self._thread.join(timeout=5)
        # The leader, if there is one, has been woken and leaves.
        with self._leading, self._receiving, self._using:
            if self._connection is not None:
                self._connection.close(linger_s)
                self._connection = None
            self._poller.close()

    def abandon(self, reason: str) -> None:
        """In a forked child: the socket, the locks and the thread are the parent's; touch none."""
        self.closed_reason = reason
        self._stopping = True
