"""A controller to test the client against, and clients of it.

`FakeController` speaks the protocol over a real socket and really runs the tasks, one after the
other in a thread of its own, each "engine" with a namespace. It is the peer of the tests that need
no other package of the system. It listens with a `LocalEnd`, or with a `TcpEnd` in tests of what
differs between the two.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import queue
import select
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from ipyfleet_client import Client
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.blobs import BlobStore, map_blob
from ipyfleet_protocol.codec import decode, decode_part, encode, encode_part, split
from ipyfleet_protocol.columns import Payloads, PayloadWriter, float64_column, uint32_column
from ipyfleet_protocol.connection import ConnectionInfo, host_id, new_connection_info, new_instance
from ipyfleet_protocol.errors import info_from_exception
from ipyfleet_protocol.ids import new_peer_id
from ipyfleet_protocol.local import LocalRouter, Unreachable, local_url
from ipyfleet_protocol.namespace import set_namespace
from ipyfleet_protocol.serialize import pack, unpack_call, unpack_function


class LocalEnd:
    """What a controller on this host listens with. All but `wake` belongs to one thread.

    Attributes:
        options: what a connection file says of it.
    """

    def __init__(self, directory: Path) -> None:
        self._is_closed = False
        self._poll = select.poll()
        self._router = LocalRouter(directory / "local", self._poll)
        self._wake_read, self._wake_write = os.pipe()
        self._poll.register(self._wake_read, select.POLLIN)
        self.options: dict[str, Any] = {"urls": [local_url(directory / "local")]}

    def wake(self) -> None:
        """Make `receive` return None; from any thread."""
        os.write(self._wake_write, b"x")

    def receive(self, timeout_s: float) -> list[Any] | None:
        """Return ``[identity, header, …]``; None after a `wake`, or if nothing comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._router.inbox:
                message = self._router.inbox.popleft()
                if len(message) > 1:  # else its connection has ended
                    return message
            left_s = max(0.0, deadline - time.monotonic())
            if not self._step(left_s):
                return None

    def _step(self, timeout_s: float) -> bool:
        """Deal with news; return whether there was some, and no `wake`."""
        ready = self._poll.poll(timeout_s * 1000)
        is_awake = False
        for fd, events in ready:
            if not self._router.on_ready(fd, events):
                is_awake = True
                os.read(self._wake_read, 65536)
        return bool(ready) and not is_awake

    def has_news(self) -> bool:
        """Whether something has come and was not read."""
        return bool(self._router.inbox or self._poll.poll(0))

    def send(self, identity: bytes, frames: list[Any]) -> None:
        """Send a message.

        Raises:
            ConnectionError: to nobody.
        """
        try:
            while not self._router.send(identity, frames):
                self._step(1)
        except Unreachable:
            raise ConnectionError from None

    def __len__(self) -> int:
        """Return how many connections there are; from any thread."""
        return len(self._router)

    def close(self) -> None:
        """Close the sockets, with all that is in them. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._poll.unregister(self._wake_read)
        self._router.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


_server_public, _server_secret = zmq.curve_keypair()
_public, _secret = zmq.curve_keypair()


class TcpEnd:
    """What a controller on another host listens with; as `LocalEnd`."""

    def __init__(self, directory: Path) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        # A ROUTER drops what does not fit.
        self._router.sndhwm = 0
        self._router.router_handover = True
        self._router.router_mandatory = True
        self._router.curve_server = True
        self._router.curve_secretkey = _server_secret
        # Whoever listens in place of another in the same directory has its address.
        self._address = directory / "address"
        if self._address.exists():
            self._router.bind(self._address.read_text())
        else:
            self._router.bind("tcp://127.0.0.1:*")
            self._address.write_text(self._router.last_endpoint.decode())
        self._wake_read, self._wake_write = os.pipe()
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self.options: dict[str, Any] = {
            "urls": [self._address.read_text()],
            "server_public": _server_public.decode(),
            "public": _public.decode(),
            "secret": _secret.decode(),
        }

    def wake(self) -> None:
        """Make `receive` return None; from any thread."""
        os.write(self._wake_write, b"x")

    def receive(self, timeout_s: float) -> list[Any] | None:
        """Return ``[identity, header, …]``; None after a `wake`, or if nothing comes."""
        ready = dict(self._poller.poll(timeout_s * 1000))
        if self._wake_read in ready:
            os.read(self._wake_read, 65536)
            return None
        return self._router.recv_multipart() if ready else None

    def has_news(self) -> bool:
        """Whether something has come and was not read."""
        return bool(self._router.poll(0))

    def send(self, identity: bytes, frames: list[Any]) -> None:
        """Send a message.

        Raises:
            ConnectionError: to nobody.
        """
        try:
            self._router.send_multipart([identity, *frames])
        except zmq.ZMQError as error:
            raise ConnectionError from error

    def close(self) -> None:
        """Close the sockets, with all that is in them. Idempotent."""
        if self._router.closed:
            return
        self._router.close(0)
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)


End = LocalEnd | TcpEnd
MakeEnd = Callable[[Path], End]


class Task:
    """One task on its way through the fake."""

    def __init__(self, client: bytes, seq: int, engine: int, group: m.Group) -> None:
        self.client = client
        self.seq = seq
        self.engine = engine
        self.group = group
        self.pickle: Any = b""
        self.buffers: list[memoryview] = []
        self.dropped = False


class FakeController:
    """A controller and its engines in two threads of the test process.

    Attributes:
        messages: every message received, in order.
        paused: while set, submitted tasks wait (they can be cancelled then).
        reverse: run what is queued last to first, for results out of order.
        answer_hello: set to False to be deaf.
        silent_output: "before" or "after": when output is sent relative to its results.
    """

    def __init__(self, directory: Path, engines: int = 2, make_end: MakeEnd = LocalEnd) -> None:
        self.directory = directory
        self.instance = new_instance()
        self.messages: list[Any] = []
        self.paused = threading.Event()
        self.reverse = False
        self.answer_hello = True
        self._reads = threading.Event()
        self._reads.set()
        self._is_deaf = threading.Event()
        self.refuse_reason = ""
        self.warnings: list[str] = []
        self.output_order = "before"
        self.batch = 64
        self.peers: dict[int, bytes] = {k: new_peer_id() for k in range(engines)}
        self.namespaces: dict[int, dict[str, Any]] = {
            k: {"__builtins__": __builtins__, "__name__": "__main__"} for k in range(engines)
        }
        self.resources: dict[int, dict[str, float]] = {}
        self.functions: dict[bytes, tuple[list[bytes], Any]] = {}
        self.clients: list[bytes] = []
        self.blob_dir = directory / "blobs"
        self._owner = new_peer_id()
        self.blobs = BlobStore(self.blob_dir, self._owner)
        self.end = make_end(directory)
        self._outgoing: deque[tuple[bytes, list[Any]]] = deque()
        self._tasks: queue.Queue[list[Task] | None] = queue.Queue()
        self._next_engine = 0
        self._ordinal = 0
        self._threads = [
            threading.Thread(target=self._receive, name="fake-router"),
            threading.Thread(target=self._work, name="fake-engines"),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def info(self) -> ConnectionInfo:
        return new_connection_info(
            instance=self.instance,
            role="client",
            blob_dir=str(self.blob_dir),
            **self.end.options,
        )

    # -- what tests do ------------------------------------------------------------------------

    def received(self, kind: type) -> list[Any]:
        return [message for message in list(self.messages) if isinstance(message, kind)]

    def send_all(self, message: m.Message) -> None:
        """Send a message to every client; from any thread."""
        for client in list(self.clients):
            self._push(client, [encode(message)])

    def engine_info(self, engine: int) -> m.EngineInfo:
        has = self.resources.get(engine, {})
        return m.EngineInfo(engine, self.peers[engine], host_id(), "here", os.getpid(), has)

    def add_engine(self) -> int:
        engine = len(self.peers)
        self.peers[engine] = new_peer_id()
        self.namespaces[engine] = {"__builtins__": __builtins__, "__name__": "__main__"}
        self.send_all(m.EnginesChanged(joined=[self.engine_info(engine)]))
        return engine

    def lose_engine(self, engine: int, reason: str = "killed by SIGKILL") -> None:
        del self.peers[engine]
        self.send_all(m.EnginesChanged(lost=[m.EngineLost(engine, reason)]))

    def stop_reading(self) -> None:
        """Read nothing, whatever comes, until `read_on`."""
        self._is_deaf.clear()
        self._reads.clear()
        self.end.wake()
        assert self._is_deaf.wait(10)

    def read_on(self) -> None:
        self._reads.set()

    def close(self) -> None:
        self.paused.clear()
        self._reads.set()
        self._tasks.put(None)
        self._threads[1].join(10)
        self._push(b"", [])
        self._threads[0].join(10)
        self.end.close()
        self.blobs.close()
        set_namespace(None)

    # -- the router ---------------------------------------------------------------------------

    def _push(self, identity: bytes, frames: list[Any]) -> None:
        """Have the router's thread send a message; an empty identity stops it."""
        self._outgoing.append((identity, frames))
        self.end.wake()

    def _send(self, identity: bytes, frames: list[Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the client is gone
            self.end.send(identity, frames)

    def _receive(self) -> None:
        running = True
        while running:
            if not self._reads.is_set():
                self._is_deaf.set()
                self._reads.wait()
            received = self.end.receive(60)
            while self._outgoing:
                identity, frames = self._outgoing.popleft()
                if identity:
                    self._send(identity, frames)
                else:
                    running = False
            if received is not None:
                identity, header, *frames = received
                message = decode(header)
                self.messages.append(message)
                answer = self._answer(identity, message, frames)
                if answer is not None:
                    self._send(identity, [encode(answer)])

    def _answer(self, identity: bytes, message: Any, frames: list[bytes]) -> m.Message | None:
        match message:
            case m.Hello() if self.answer_hello:
                if self.refuse_reason:
                    return m.Refused(self.refuse_reason)
                self.clients.append(identity)
                return m.Welcome(
                    bytes.fromhex(self.instance),
                    engines=[self.engine_info(engine) for engine in self.peers],
                    host=host_id(),
                    blob_dir=str(self.blob_dir),
                    warnings=self.warnings,
                    greeting=message.greeting,
                )
            case m.Submit():
                self._submit(identity, message, frames)
            case m.Cancel():
                self._cancel(identity, message)
            case m.Request():
                return m.Reply(message.request, self._hub(message.question))
            case m.Control():
                for engine in message.targets:
                    if isinstance(message.action, m.ClearNamespace):
                        names = self.namespaces[engine]
                        for name in [n for n in names if not n.startswith("__")]:
                            del names[name]
                    reply = m.ControlReply(identity[:16], message.request, engine)
                    self._send(identity, [encode(reply)])
        return None

    def _hub(self, question: Any) -> bytes:
        match question:
            case m.QueueStatus():
                targets = question.targets or list(self.peers)
                status: dict[Any, Any] = {
                    engine: {"queue": 0, "completed": 0, "tasks": 0} for engine in targets
                }
                return msgspec.msgpack.encode({**status, "unassigned": 0})
            case m.FetchResults() | m.AwaitResults() | m.FetchRequests():
                # It keeps no records.
                return msgspec.msgpack.encode(dict.fromkeys(question.msg_ids))
            case m.ShutdownCluster():
                return b""
        return msgspec.msgpack.encode([])

    def _submit(self, identity: bytes, message: m.Submit, frames: list[bytes]) -> None:
        for group, parts in zip(message.groups, split(message, frames), strict=True):
            if group.function is not None and parts.function:
                self.functions[group.function.digest] = (list(map(bytes, parts.function)), None)
            payloads = Payloads(group.columns, parts.payload)
            tasks = []
            for index in range(group.count):
                if group.options.placement == "direct":
                    assert group.options.targets is not None
                    engine = group.options.targets[index]
                else:
                    allowed = group.options.targets or list(self.peers)
                    engine = allowed[self._next_engine % len(allowed)]
                    self._next_engine += 1
                task = Task(identity, group.first + index, engine, group)
                place = 0 if group.options.shared else index
                task.pickle = bytes(payloads.pickle(place))
                flags = payloads.buffer_blobs(place)
                for frame, blob in zip(payloads.buffer_frames(place), flags, strict=True):
                    if blob:
                        handle = decode_part(frame, m.BlobHandle)
                        task.buffers.append(map_blob(self.blob_dir, handle))
                    else:
                        task.buffers.append(memoryview(bytearray(frame)))
                tasks.append(task)
            self.queued.extend(tasks)
            self._tasks.put(tasks)

    @property
    def queued(self) -> list[Task]:
        tasks: list[Task] = self.__dict__.setdefault("_queued", [])
        return tasks

    def _cancel(self, identity: bytes, message: m.Cancel) -> None:
        for task in self.queued:
            for piece in message.ranges:
                if task.client == identity and 0 <= task.seq - piece.first < piece.count:
                    task.dropped = True
                    info = m.ErrorInfo("TaskAborted", "cancelled", [], own=True)
                    self._send_results([(task, m.ABORTED, encode_part(info), [], None)], -1)
        self.queued[:] = [task for task in self.queued if not task.dropped]

    # -- the engines --------------------------------------------------------------------------

    def _work(self) -> None:
        while (tasks := self._tasks.get()) is not None:
            while self.paused.is_set():
                time.sleep(0.002)
            if self.reverse:
                tasks.reverse()
            done: list[Any] = []
            for task in tasks:
                if task.dropped:
                    continue
                if task in self.queued:
                    self.queued.remove(task)
                done.append((task, *self._run(task)))
                if len(done) >= self.batch or self.reverse:
                    self._flush(done)
                    done = []
            self._flush(done)

    def _flush(self, done: list[Any]) -> None:
        """Send results in runs of neighbours of one engine."""
        run: list[Any] = []
        for entry in done:
            if run and (entry[0].engine != run[-1][0].engine or entry[0].seq != run[-1][0].seq + 1):
                self._send_results(run, run[0][0].engine)
                run = []
            run.append(entry)
        if run:
            self._send_results(run, run[0][0].engine)

    def _send_results(self, entries: list[Any], engine: int) -> None:
        writer = PayloadWriter()
        outputs = []
        now = time.time()
        for _, _, pickle, buffers, output in entries:
            writer.append(pickle, buffers)
            outputs.append(len(output or ()))
        columns, frames = writer.finish()
        first = entries[0][0]
        piece = m.ResultSlice(
            first.seq,
            len(entries),
            0,
            self._ordinal,
            bytes(entry[1] for entry in entries),
            float64_column([now - 0.001] * len(entries)),
            float64_column([now] * len(entries)),
            uint32_column(outputs) if any(outputs) else b"",
            columns,
        )
        self._ordinal += len(entries)
        client = first.client[:16]
        items = [
            m.OutputItem(entry[0].seq, k, kind, content)
            for entry in entries
            for k, (kind, content) in enumerate(entry[4] or ())
        ]
        output_message = [encode(m.Output(client, engine, items))]
        if items and self.output_order == "before":
            self._push(first.client, output_message)
        self._push(first.client, [encode(m.Results(client, engine, [piece])), *frames])
        if items and self.output_order == "after":
            self._push(first.client, output_message)

    def _run(self, task: Task) -> tuple[int, bytes, list[Any], list[Any]]:
        namespace = self.namespaces[task.engine]
        set_namespace(namespace)
        printed = io.StringIO()
        items: list[Any] = []
        method = task.group.options.method
        try:
            with contextlib.redirect_stdout(printed):
                if method == "execute":
                    value = _execute(bytes(task.pickle).decode(), namespace)
                    if value is not None and not task.group.options.silent:
                        data = {
                            "data": {"text/plain": repr(value)},
                            "metadata": {},
                            "execution_count": 7,
                        }
                        items.append(("execute_result", msgspec.msgpack.encode(data)))
                    status, payload, buffers = m.OK, encode_part(m.ExecuteInfo(7)), []
                else:
                    payload, buffers = self._call(task, method)
                    status = m.OK
        except BaseException as error:  # noqa: BLE001 - as an engine does
            info = info_from_exception(
                error,
                engine_id=task.engine,
                engine_uuid=self.peers.get(task.engine, b"").hex(),
                method="execute" if method == "execute" else "apply",
                traceback=traceback.format_exc().splitlines(),
            )
            status, payload, buffers = m.FAILED, encode_part(info), []
        if printed.getvalue():
            items.insert(0, ("stdout", printed.getvalue().encode()))
        return status, payload, buffers, items

    def _call(self, task: Task, method: str) -> tuple[bytes, list[Any]]:
        assert task.group.function is not None
        frames, _ = self.functions[task.group.function.digest]
        function = unpack_function(frames)
        args, kwargs = unpack_call(task.pickle, task.buffers)
        value = list(map(function, *args)) if method == "map" else function(*args, **kwargs)
        packed = pack(value)
        buffers = []
        for buffer in packed.buffers:
            handle = None
            if memoryview(buffer).nbytes >= 256 * 1024:
                handle = self.blobs.put(buffer)
            if handle is None:
                buffers.append((bytes(buffer), False))
            else:
                buffers.append((encode_part(handle), True))
        return packed.pickle, buffers


def _execute(code: str, namespace: dict[str, Any]) -> Any:
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path: a socket's may not be long."""
    with tempfile.TemporaryDirectory(prefix="ipf") as path:
        yield Path(path)


@pytest.fixture
def ends() -> dict[str, MakeEnd]:
    """What a controller can listen with."""
    return {"local": LocalEnd, "tcp": TcpEnd}


@pytest.fixture
def make_end(ends: dict[str, MakeEnd]) -> MakeEnd:
    """What the controller listens with; modules that try all override this."""
    return ends["local"]


@pytest.fixture
def controller(directory: Path, make_end: MakeEnd) -> Iterator[FakeController]:
    """A controller with two engines."""
    fake = FakeController(directory, make_end=make_end)
    yield fake
    fake.close()


@pytest.fixture
def empty_controller(directory: Path) -> Iterator[FakeController]:
    """A controller without engines."""
    fake = FakeController(directory, engines=0)
    yield fake
    fake.close()


@pytest.fixture
def rc(controller: FakeController) -> Iterator[Client]:
    """A connected client."""
    client = Client(controller.info, timeout=5)
    yield client
    client.close()
