"""The five ports of a Jupyter kernel, for an engine that frontends connect to.

What lives here: `KernelPorts`: the sockets, their thread, signing, and output on its way to the
frontends. What must not: user code, what requests mean (`frontends`), the link to the controller.

Theory of operation
-------------------
One thread owns the sockets shell, control, stdin and iopub; it checks what arrives and hands it
on, whatever the main thread does. Whoever sends (the main thread mostly, and threads of user
code) signs the message and leaves it in a queue that this thread empties. Text is gathered for
some 50 ms, so that a loop of prints is not a message each. None of the sockets ever blocks: a
frontend that does not read loses output. The heartbeat has a thread of its own that never needs
the GIL.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import zmq
from jupyter_client.session import Session

log = logging.getLogger("ipyfleet.engine")

HOST = "127.0.0.1"
TEXT_INTERVAL_MS = 50
TEXT_CHUNK_CHARS = 64 * 1024
QUEUE_MAX_BYTES = 8 * 1024 * 1024
LINGER_MS = 300
_QUEUE_WAIT_S = 1.0
_QUEUE_LOOK_S = 0.002
_CLOSE_GRACE_S = 2.0
_LOOK_S = 0.1
_IOPUB_QUEUE_MESSAGES = 10_000

PortName = Literal["shell", "control", "stdin", "iopub", "hb"]
PORT_NAMES: tuple[PortName, ...] = ("shell", "control", "stdin", "iopub", "hb")

Message = dict[str, Any]
"""A Jupyter message: header, parent_header, metadata, content, buffers."""


class Address(NamedTuple):
    """Whom an answer goes to.

    Attributes:
        port: "shell" or "control", where the request came in.
        idents: the routing prefix of the frontend.
        message: the request.
    """

    port: PortName
    idents: list[bytes]
    message: Message


class _Text:
    """Text of one stream of one request that waits to be sent."""

    __slots__ = ("name", "parent", "parts", "size")

    def __init__(self, parent: Message, name: str) -> None:
        self.parent = parent
        self.name = name
        self.parts: list[str] = []
        self.size = 0


class KernelPorts:
    """See the module docstring.

    Attributes:
        numbers: the port number of each socket, once `open` has been called.
        key: what messages are signed with.
    """

    def __init__(self, topic: str, on_request: Callable[[Address], None]) -> None:
        """Make ports that are closed.

        Args:
            topic: what the topics of iopub messages begin with.
            on_request: called in the ports' thread with each valid message that comes in on shell
                and control.
        """
        self.numbers: dict[PortName, int] = {}
        self.key = secrets.token_hex(32).encode()
        self._topic = topic
        self._on_request = on_request
        self._session = Session(key=self.key)
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets: dict[PortName, zmq.Socket[bytes]] = {}
        # Re-entrant, because a destructor that prints may run while the lock is held. And made in
        # C: KeyboardInterrupt could come between the taking and the entering of one made in Python,
        # as a Condition is, and then it would be held for ever.
        self._lock = threading.RLock()
        self._queue: deque[tuple[PortName, list[Any]]] = deque()
        self._queue_bytes = 0
        self._text: _Text | None = None
        self._answers: queue.SimpleQueue[tuple[list[bytes], str]] = queue.SimpleQueue()
        self._closing = False
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, name="ipyfleet-ports", daemon=True)
        self._heartbeat = threading.Thread(
            target=self._beat, name="ipyfleet-heartbeat", daemon=True
        )

    def open(self, wanted: dict[PortName, int]) -> None:
        """Bind the sockets and start the threads.

        Args:
            wanted: port numbers; 0, or left out, for any that is free.

        Raises:
            OSError: if a port cannot be had; nothing is left open then.
        """
        try:
            for name in PORT_NAMES:
                socket = self._context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
                self._sockets[name] = socket
                socket.setsockopt(zmq.LINGER, LINGER_MS)
                if name == "iopub":
                    socket.setsockopt(zmq.SNDHWM, _IOPUB_QUEUE_MESSAGES)
                else:
                    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
                socket.bind(f"tcp://{HOST}:{wanted.get(name) or '*'}")
                endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
                assert isinstance(endpoint, bytes)
                self.numbers[name] = int(endpoint.rpartition(b":")[2].rstrip(b"\0"))
        except zmq.ZMQError as error:
            for socket in self._sockets.values():
                socket.close(0)
            self._context.term()
            self._close_pipe()
            raise OSError(error.errno, f"a port cannot be had: {error}") from None
        self._heartbeat.start()
        self._thread.start()

    def close(self) -> None:
        """Tell the frontends that the kernel is gone, and close everything."""
        # With a request that is nobody's: consoles take an answer without one for their own doing.
        request = self._session.msg("shutdown_request", {"restart": False})
        self.publish(request, "shutdown_reply", {"status": "ok", "restart": False})
        self._closing = True
        self._wake()
        self._thread.join(_CLOSE_GRACE_S)
        if self._thread.is_alive():
            log.warning("the ports of the bound kernel do not close")
            return
        self._context.term()
        self._heartbeat.join(_CLOSE_GRACE_S)
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)

    # -- sending, from any thread -------------------------------------------------------------

    def write(self, parent: Message, name: str, text: str) -> None:
        """Send text to all frontends, soon.

        Args:
            parent: the request that it belongs to.
            name: "stdout" or "stderr".
            text: what to send.
        """
        with self._lock:
            pending = self._text
            if pending is None or pending.parent is not parent or pending.name != name:
                self._flush_text()
                pending = self._text = _Text(parent, name)
                self._wake()
            pending.parts.append(text)
            pending.size += len(text)
            if pending.size > TEXT_CHUNK_CHARS:
                self._flush_text()
        self._wait_room()

    def publish(
        self,
        parent: Message,
        kind: str,
        content: Message,
        metadata: Message | None = None,
        buffers: Sequence[Any] = (),
    ) -> None:
        """Send a message to all frontends.

        Args:
            parent: the request that it belongs to; empty for none.
            kind: its type.
            content, metadata, buffers: what it consists of.
        """
        with self._lock:
            self._flush_text()
            self._publish(parent, kind, content, metadata, buffers)
        self._wait_room()

    def reply(self, address: Address, content: Message, metadata: Message | None = None) -> None:
        """Answer a request."""
        kind = address.message["header"]["msg_type"].replace("_request", "_reply")
        with self._lock:
            self._flush_text()
            message = self._session.msg(kind, content, address.message, metadata=metadata)
            self._put(address.port, self._session.serialize(message, address.idents))

    def ask(self, address: Address, prompt: str, *, password: bool) -> str:
        """Ask a frontend's user for a line and wait for it; in the main thread.

        Raises:
            EOFError: if the user has ended the input.
        """
        while not self._answers.empty():
            # Of a question that was interrupted.
            self._answers.get_nowait()
        content = {"prompt": prompt, "password": password}
        with self._lock:
            self._flush_text()
            message = self._session.msg("input_request", content, address.message)
            self._put("stdin", self._session.serialize(message, address.idents))
        while True:
            # As long as the user thinks; SIGINT and SIGTERM end it. One that comes just before the
            # wait begins does not end that, and is dealt with between two.
            try:
                idents, value = self._answers.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if idents == address.idents:
                break
        if value == "\x04":
            raise EOFError
        return value

    def _publish(
        self,
        parent: Message,
        kind: str,
        content: Message,
        metadata: Message | None = None,
        buffers: Sequence[Any] = (),
    ) -> None:
        topic = f"{self._topic}.{kind}".encode()
        message = self._session.msg(kind, content, parent or None, metadata=metadata)
        frames = self._session.serialize(message, topic)
        self._put("iopub", [*frames, *(bytes(memoryview(buffer)) for buffer in buffers)])

    def _flush_text(self) -> None:
        pending = self._text
        if pending is not None:
            self._text = None
            text = "".join(pending.parts)
            self._publish(pending.parent, "stream", {"name": pending.name, "text": text})

    def _put(self, port: PortName, frames: list[Any]) -> None:
        if self._closing:
            return
        self._queue.append((port, frames))
        self._queue_bytes += sum(map(len, frames))
        self._wake()

    def _wait_room(self) -> None:
        """Let the ports' thread keep up with a thread that is faster; it never blocks itself."""
        if threading.get_ident() == self._thread.ident:
            return
        looks = int(_QUEUE_WAIT_S / _QUEUE_LOOK_S)
        while self._queue_bytes >= QUEUE_MAX_BYTES and looks and not self._closing:
            time.sleep(_QUEUE_LOOK_S)
            looks -= 1

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            # The pipe is full of wake-ups that have not been seen: one more would say nothing new.
            return

    # -- the ports' thread --------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        own: list[PortName] = ["shell", "control", "stdin", "iopub"]
        for name in own:
            poller.register(self._sockets[name], zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        text: _Text | None = None
        while not self._closing:
            poller.poll(None if self._text is None else TEXT_INTERVAL_MS)
            self._read_wakeups()
            for name in own:
                self._receive_all(name)
            with self._lock:
                if text is not None and text is self._text:
                    # It has been there the last time already.
                    self._flush_text()
                text = self._text
            self._send_all()
        self._send_all()
        for name in own:
            self._sockets[name].close()

    def _read_wakeups(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return

    def _send_all(self) -> None:
        while self._queue:
            with self._lock:
                port, frames = self._queue.popleft()
                self._queue_bytes -= sum(map(len, frames))
            try:
                self._sockets[port].send_multipart(frames, zmq.DONTWAIT)
            except zmq.ZMQError as error:
                log.debug("a message to a frontend was lost: %s", error)

    def _receive_all(self, name: PortName) -> None:
        socket = self._sockets[name]
        while True:
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._receive(name, frames)

    def _receive(self, name: PortName, frames: list[bytes]) -> None:
        if name == "iopub":
            if frames[0][:1] == b"\x01":
                self._welcome(frames[0][1:])
            return
        try:
            idents, parts = self._session.feed_identities(frames)
            message = self._session.deserialize(parts)
        except Exception:
            # Anybody on this host may connect and send anything.
            log.debug("a frontend's message on %s was dropped", name, exc_info=True)
            return
        if name == "stdin":
            self._answers.put((idents, str(message["content"].get("value", ""))))
        else:
            self._take_request(Address(name, idents, message))

    def _take_request(self, address: Address) -> None:
        try:
            self._on_request(address)
        except Exception:
            # One request must not cost all frontends the kernel.
            log.exception("a frontend's request failed")

    def _welcome(self, subscription: bytes) -> None:
        """Tell a frontend that it is subscribed (Jupyter enhancement proposal 65)."""
        content = {"subscription": subscription.decode("utf-8", "replace")}
        with self._lock:
            message = self._session.msg("iopub_welcome", content)
            self._put("iopub", self._session.serialize(message, subscription or None))

    def _beat(self) -> None:
        socket = self._sockets["hb"]
        try:
            zmq.proxy(socket, socket)
        except zmq.ContextTerminated:
            socket.close()
