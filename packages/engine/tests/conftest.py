"""A raw peer that plays the controller: what engines connect to, and the protocol, no more."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pytest
import zmq

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, decode_part, encode, encode_part, split, split_output
from ipyfleet_protocol.columns import Payloads, PayloadWriter, read_float64, read_uint32
from ipyfleet_protocol.connection import (
    ConnectionInfo,
    new_connection_info,
    new_instance,
    save_connection_file,
)
from ipyfleet_protocol.hosts import host_id
from ipyfleet_protocol.ids import Channel, PeerId, split_routing_id
from ipyfleet_protocol.local import LocalRouter, Unreachable, local_url
from ipyfleet_protocol.reliable import SESSION_MESSAGES, Sent
from ipyfleet_protocol.reliable import Received as ReceivedCount
from ipyfleet_protocol.serialize import pack_call, pack_function, unpack

T = TypeVar("T")
TIMEOUT_S = 60.0
CLIENT = PeerId(b"client" + b"\0" * 10)


class Ended(NamedTuple):
    """How one task ended, as a client would see it."""

    seq: int
    ordinal: int
    status: int
    pickle: bytes
    buffers: list[bytes]
    blobs: bytes
    started: float
    completed: float
    n_outputs: int
    channel: Channel

    @property
    def value(self) -> Any:
        assert self.status == m.OK, self.error
        return unpack(self.pickle, [memoryview(bytearray(b)) for b in self.buffers])

    @property
    def error(self) -> m.ErrorInfo:
        assert self.status != m.OK
        return decode_part(self.pickle, m.ErrorInfo)


class Received(NamedTuple):
    peer: PeerId
    channel: Channel
    message: Any
    frames: list[bytes]


class Wire(Protocol):
    """What peers connect to."""

    url: str

    def receive(self, timeout_s: float) -> list[Any] | None:
        """Return a sender's identity and its message; the identity alone when it is gone."""

    def send(self, identity: bytes, frames: Sequence[Any]) -> None:
        """Send a message; raises `Unreachable` where there is nobody of that name."""

    def close(self, *, at_once: bool = False) -> None:
        """Break all connections; what has not left is lost if `at_once`."""


class LocalWire:
    """Unix sockets, as on the controller's host."""

    def __init__(self, path: Path) -> None:
        self.url = local_url(path)
        self._poll = select.poll()
        self._router = LocalRouter(path, self._poll)

    def _turn(self, timeout_s: float) -> None:
        for fd, events in self._poll.poll(1000 * timeout_s):
            self._router.on_ready(fd, events)

    def receive(self, timeout_s: float) -> list[Any] | None:
        if not self._router.inbox:
            self._turn(timeout_s)
        return self._router.inbox.popleft() if self._router.inbox else None

    def send(self, identity: bytes, frames: Sequence[Any]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not self._router.send(identity, frames):
            assert time.monotonic() < deadline, "it does not read"
            self._turn(0.05)

    def disconnect(self, identity: bytes) -> None:
        self._router.disconnect(identity)

    def has_unread(self, identity: bytes) -> bool:
        """Whether a peer has sent something that has not been received."""
        stream = self._router._streams[identity]
        return bool(select.select([stream], [], [], 0)[0])

    def close(self, *, at_once: bool = False) -> None:
        self._router.close(0.0 if at_once else 1.0)


class ZmqWire:
    """zmq, as for other hosts and through tunnels.

    Args:
        url: where to listen; a port of ``*`` is chosen and stays.
        heartbeat_ms: who is silent for longer is cut off; 0 for nobody.
    """

    def __init__(self, url: str, heartbeat_ms: int = 0) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.LINGER, 1000)
        if heartbeat_ms:
            self._router.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
            self._router.setsockopt(zmq.HEARTBEAT_TIMEOUT, heartbeat_ms)
        self._router.bind(url)
        self.url = self._router.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()

    def receive(self, timeout_s: float) -> list[Any] | None:
        if not self._router.poll(int(1000 * timeout_s)):
            return None
        return list(self._router.recv_multipart())

    def send(self, identity: bytes, frames: Sequence[Any]) -> None:
        try:
            self._router.send_multipart([identity, *frames])
        except zmq.ZMQError as error:
            raise Unreachable from error

    def close(self, *, at_once: bool = False) -> None:
        if not self._router.closed:
            self._router.close(0 if at_once else None)
            self._context.term()


class FakeController:
    """The controller's end of the wire, driven by a test.

    Args:
        directory: for its files.
        listen: makes the wire, given the url that it had before, or "".
    """

    def __init__(self, directory: Path, listen: Callable[[str], Wire] | None = None) -> None:
        self.directory = directory
        self.incarnation = b""
        """Empty: this controller knows nothing of resuming."""
        self._listen = listen or (lambda url: LocalWire(directory / "router"))
        self.url = ""
        self.sent: dict[tuple[PeerId, Channel], Sent] = {}
        self.got: dict[tuple[PeerId, Channel], ReceivedCount] = {}
        self.attached: set[tuple[PeerId, Channel]] = set()
        self.repeats: list[Ended] = []
        """Results that came once more."""
        self.come_up()
        self.instance = new_instance()
        self.info: ConnectionInfo = new_connection_info(
            instance=self.instance,
            role="engine",
            urls=[self.url],
            blob_dir=str(directory / "blobs"),
        )
        self.file = directory / "ipyfleet-engine.json"
        save_connection_file(self.file, self.info)
        self.engines: dict[PeerId, int] = {}
        self.hellos: dict[PeerId, m.Hello] = {}
        self.inbox: list[Received] = []
        self.addresses: dict[tuple[PeerId, Channel], bytes] = {}
        self.ended: dict[int, Ended] = {}
        self.outputs: dict[int, list[tuple[m.OutputItem, list[bytes]]]] = {}
        self.exited: list[m.EngineExited] = []
        self.welcome = True
        self.client = CLIENT
        self.host = host_id()
        self.engine = PeerId(b"")
        self.processes: list[subprocess.Popen[bytes]] = []
        self._next_ordinal: dict[PeerId, int] = {}
        self._next_seq = 0
        self._attached: dict[PeerId, set[Channel]] = {}

    def close(self) -> None:
        """Stop every process that was started, and listen no more."""
        for process in self.processes:
            self.stop(process)
        self.wire.close(at_once=True)

    # -- breaks -------------------------------------------------------------------------------

    def come_up(self, incarnation: bytes | None = None) -> None:
        """Listen; as another run of the controller if `incarnation` says so."""
        if incarnation is not None:
            self.incarnation = incarnation
            self.sent, self.got = {}, {}
        self.wire = self._listen(self.url)
        self.url = self.wire.url

    def go_down(self) -> None:
        """Break all connections; what was not read is lost, and so is what has not left."""
        self.wire.close(at_once=True)
        self.attached.clear()

    def forget(self, peer: PeerId) -> None:
        """Take a peer's connections for broken, as they are for whoever ended them."""
        self.attached = {(other, channel) for other, channel in self.attached if other != peer}

    @property
    def repeated(self) -> list[int]:
        """Tasks of which a result came once more."""
        return [ended.seq for ended in self.repeats]

    def _count(self, received: Received) -> bool:
        """Count a message; False if its sender has to say hello first."""
        key = (received.peer, received.channel)
        match received.message:
            case m.Ack():
                self.sent[key].acknowledge(received.message.received)
            case m.Hello() | m.Attach() if self.incarnation and self.welcome:
                # The peer may have opened yet another socket: then it greets again.
                with contextlib.suppress(Unreachable):
                    self._resume(key, received.message)
            case message if self.incarnation and type(message) not in SESSION_MESSAGES:
                if key not in self.attached:
                    return False
                self.got[key].note(0, 0.0)
        return True

    def _resume(self, key: tuple[PeerId, Channel], message: m.Hello | m.Attach) -> None:
        """Answer a peer that was here before."""
        peer, channel = key
        self.attached.add(key)
        sent, got = self.sent.setdefault(key, Sent()), self.got.setdefault(key, ReceivedCount())
        if not message.incarnation:
            return
        received = message.received if message.incarnation == self.incarnation else 0
        if isinstance(message, m.Attach):
            self.send(peer, channel, m.Attached(self.incarnation, got.count, message.greeting))
        else:
            welcome = m.Welcome(bytes.fromhex(self.instance), self.engines.get(peer, -1))
            welcome.incarnation, welcome.received = self.incarnation, got.count
            welcome.greeting = message.greeting
            self.send(peer, channel, welcome)
        for frames in sent.unacknowledged(received):
            self.wire.send(self.addresses[peer, channel], frames)

    # -- processes ----------------------------------------------------------------------------

    def start(self, *flags: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start `ipengine` against this controller."""
        environ = dict(os.environ, IPYTHONDIR=str(self.directory / "ipython"))
        environ.update(options.pop("env", {}))
        if not {"--single", "--mpi"}.intersection(flags):
            # `tox -e no-fork`: everything again, with engines that are programs of their own.
            flags = (*os.environ.get("IPYFLEET_TEST_ENGINE_ARGS", "").split(), *flags)
        command = [sys.executable, "-m", "ipyfleet_engine", f"--file={self.file}", *flags]
        process = subprocess.Popen(command, env=environ, **options)
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """Stop a process of `start`; returns its exit code."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        return process.wait(10)

    # -- receiving ----------------------------------------------------------------------------

    def receive(self, timeout_s: float) -> bool:
        parts = self.wire.receive(timeout_s)
        if parts is None:
            return False
        identity = bytes(parts[0])
        found = split_routing_id(identity)
        if found is None:
            # What zmq reads of a connection after the next one of the same name has come.
            assert self.incarnation
            return True
        if len(parts) == 1:
            self.attached.discard(found)
            return True
        header, *frames = parts[1:]
        self.addresses[found] = identity
        received = Received(*found, decode(header), frames)
        if self._count(received):
            self.inbox.append(received)
            self._note(received)
        return True

    def until(self, condition: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            left = deadline - time.monotonic()
            assert left > 0, f"not reached; received: {[type(r.message) for r in self.inbox]}"
            self.receive(min(left, 0.05))
        return value

    def _note(self, received: Received) -> None:
        peer, channel, message, frames = received
        match message:
            case m.Hello(role="engine"):
                self.hellos[peer] = message
                self._attached.setdefault(peer, set()).add(channel)
                self._greet(peer)
            case m.Attach():
                self._attached.setdefault(peer, set()).add(channel)
                self._greet(peer)
            case m.Hello(role="agent"):
                self.hellos[peer] = message
                if self.welcome and not message.incarnation:
                    welcome = m.Welcome(bytes.fromhex(self.instance), incarnation=self.incarnation)
                    welcome.greeting = message.greeting
                    self.send(peer, Channel.AGENT, welcome)
            case m.EngineExited():
                self.exited.append(message)
            case m.Results():
                for piece, parts in zip(message.slices, split(message, frames), strict=True):
                    self._note_results(piece, parts.payload, channel)
            case m.Output():
                for item, parts in zip(message.items, split_output(message, frames), strict=True):
                    self.outputs.setdefault(item.seq, []).append((item, list(parts)))

    def _greet(self, peer: PeerId) -> None:
        attached = self._attached[peer]
        if (
            self.welcome
            and peer not in self.engines
            and {Channel.CONTROL, Channel.TASK} <= attached
        ):
            self.engines[peer] = len(self.engines)
            welcome = m.Welcome(bytes.fromhex(self.instance), engine_id=self.engines[peer])
            welcome.incarnation = self.incarnation
            welcome.greeting = self.hellos[peer].greeting
            self.send(peer, Channel.CONTROL, welcome)

    def _note_results(self, piece: m.ResultSlice, frames: Sequence[Any], channel: Channel) -> None:
        payloads = Payloads(piece.columns, frames)
        started, completed = read_float64(piece.started), read_float64(piece.completed)
        outputs = read_uint32(piece.outputs)
        for i in range(piece.count):
            seq = piece.first + i
            ended = Ended(
                seq,
                piece.ordinal + i,
                piece.status[i],
                bytes(payloads.pickle(i)),
                [bytes(b) for b in payloads.buffer_frames(i)],
                payloads.buffer_blobs(i),
                started[i],
                completed[i],
                outputs[i] if outputs else 0,
                channel,
            )
            if self.incarnation and seq in self.ended:
                self.repeats.append(ended)
                continue
            assert seq not in self.ended, f"task {seq} ended twice"
            self.ended[seq] = ended

    # -- sending ------------------------------------------------------------------------------

    def send(
        self, peer: PeerId, channel: Channel, message: Any, frames: Sequence[Any] = ()
    ) -> None:
        parts = [encode(message), *frames]
        if self.incarnation and type(message) not in SESSION_MESSAGES:
            self.sent.setdefault((peer, channel), Sent()).note(parts)
            if (peer, channel) in self.attached:
                # A connection that has just broken: it is sent when the peer has greeted.
                with contextlib.suppress(Unreachable):
                    self.wire.send(self.addresses[peer, channel], parts)
            return
        self.wire.send(self.addresses[peer, channel], parts)

    def wait_engines(self, count: int = 1, timeout_s: float = TIMEOUT_S) -> list[PeerId]:
        self.until(lambda: len(self.engines) >= count, timeout_s)
        return list(self.engines)

    def run(
        self,
        peer: PeerId,
        method: m.Method,
        calls: Sequence[Any],
        function: Callable[..., Any] | None = None,
        *,
        silent: bool = False,
        host: str = "",
        client: PeerId = CLIENT,
        balanced: bool = False,
        blobs: bool = False,
    ) -> list[int]:
        """Place tasks at an engine; returns their seqs. `function` may be a bare header.

        With `blobs` large arguments are handles (of nothing).
        """
        writer = PayloadWriter()
        for call in calls:
            if method == "execute":
                writer.append(call.encode())
            else:
                packed = pack_call(*call)
                handle = encode_part(m.BlobHandle(f"{client.hex()}-0", 1 << 20))
                writer.append(
                    packed.pickle, [(handle if blobs else b, blobs) for b in packed.buffers]
                )
        columns, frames = writer.finish()
        header = None
        if isinstance(function, m.Function):
            header = function
        elif function is not None:
            packed_function = pack_function(function)
            header = packed_function.function
            frames = [*packed_function.frames, *frames]
        first, count = self._next_seq, len(calls)
        self._next_seq += count
        ordinal = self._next_ordinal.get(peer, 0)
        self._next_ordinal[peer] = ordinal + count
        piece = m.TaskSlice(
            client,
            first,
            count,
            attempt=0,
            ordinal=ordinal,
            method=method,
            silent=silent,
            shared=False,
            host=host,
            function=header,
            columns=columns,
            balanced=balanced,
        )
        self.send(peer, Channel.TASK, m.RunTasks([piece]), frames)
        return list(range(first, first + count))

    def results(self, seqs: Sequence[int], timeout_s: float = TIMEOUT_S) -> list[Ended]:
        self.until(lambda: all(s in self.ended for s in seqs), timeout_s)
        return [self.ended[s] for s in seqs]

    def apply(self, peer: PeerId, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Ended:
        return self.results(self.run(peer, "apply", [(args, kwargs)], function))[0]

    def execute(self, peer: PeerId, code: str, **options: Any) -> Ended:
        return self.results(self.run(peer, "execute", [code], **options))[0]

    def output(self, seq: int) -> list[m.OutputItem]:
        """The items of a task that has ended, in order, all of them."""
        ended = self.ended[seq]
        self.until(lambda: len(self.outputs.get(seq, ())) >= ended.n_outputs)
        items = sorted((item for item, _ in self.outputs.get(seq, ())), key=lambda i: i.index)
        assert [item.index for item in items] == list(range(len(items)))
        return items

    def text(self, seq: int, kind: str = "stdout") -> str:
        return "".join(i.content.decode() for i in self.output(seq) if i.kind == kind)

    def next_ordinal(self, peer: PeerId) -> int:
        """The ordinal that the next task placed at an engine will have."""
        return self._next_ordinal[peer]

    def ping(self, peer: PeerId) -> m.ControlReply:
        """Ask an engine's second thread for a sign of life."""
        action = m.EngineControl(CLIENT, 4242, m.PingEngine())
        self.send(peer, Channel.CONTROL, action)

        def find() -> Received | None:
            for received in self.inbox:
                reply = received.message
                if isinstance(reply, m.ControlReply) and reply.request == 4242:
                    return received
            return None

        found = self.until(find)
        self.inbox.remove(found)
        return found.message

    def expect(self, kind: type[T], peer: PeerId | None = None) -> T:
        """Wait for a message of a kind and take it out of the inbox."""

        def find() -> Received | None:
            for received in self.inbox:
                if isinstance(received.message, kind) and peer in (None, received.peer):
                    return received
            return None

        found = self.until(find)
        self.inbox.remove(found)
        return found.message


def wait_until(condition: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """Wait for a condition that no message tells of."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "not reached"
        threading.Event().wait(0.005)
    return value


def _listen_tcp(url: str, heartbeat_ms: int = 0) -> ZmqWire:
    return ZmqWire(url or "tcp://127.0.0.1:*", heartbeat_ms)


def _controller(listen: Callable[[str], Wire] | None = None) -> Iterator[FakeController]:
    # Not tmp_path: the path of a Unix socket must be short.
    directory = Path(tempfile.mkdtemp(prefix="ipyfleet-test-"))
    controller = FakeController(directory, listen)
    try:
        yield controller
    finally:
        controller.close()
        shutil.rmtree(directory)


@pytest.fixture
def controller() -> Iterator[FakeController]:
    """A controller for one test."""
    yield from _controller()


@pytest.fixture(params=["unix", "tcp"])
def either(request: pytest.FixtureRequest) -> Iterator[FakeController]:
    """A controller on this host, and one on another."""
    yield from _controller(None if request.param == "unix" else _listen_tcp)


@pytest.fixture
def remote() -> Iterator[FakeController]:
    """A controller on another host, for one test."""
    yield from _controller(_listen_tcp)


@pytest.fixture
def impatient() -> Iterator[FakeController]:
    """A controller on another host that cuts off who is silent for 0.3 s."""
    yield from _controller(lambda url: _listen_tcp(url, 300))


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeController]:
    """A controller for the tests of one module, with one engine: `shared.engine`."""
    for controller in _controller():
        controller.start("-n=1")
        [controller.engine] = controller.wait_engines(1)
        # No connection shall come in the middle of a test and be taken for its leak.
        controller.until(lambda known=controller.addresses: len(known) == 4)
        yield controller


@pytest.fixture(scope="session")
def wait() -> Callable[..., Any]:
    """The function `wait_until`."""
    return wait_until


@pytest.fixture(scope="session")
def listen() -> Callable[[str, Path], Wire]:
    """A function that listens over "unix" or over "ipc", with a socket at a path."""

    def listen(kind: str, path: Path) -> Wire:
        return LocalWire(path) if kind == "unix" else ZmqWire(f"ipc://{path}")

    return listen


@pytest.fixture(scope="session")
def make_controller() -> Callable[[], Iterator[FakeController]]:
    """A generator that makes a controller and closes it, for fixtures of a module's own."""
    return _controller


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """The process's kernel, put away afterwards."""
    import builtins
    import getpass

    from ipyfleet_engine.kernel import FleetKernel, make_kernel
    from ipyfleet_engine.output import OutputCollector

    before = sys.modules["__main__"], builtins.input, getpass.getpass, sys.displayhook
    kernel = make_kernel(OutputCollector())
    yield kernel
    sys.modules["__main__"], builtins.input, getpass.getpass, sys.displayhook = before
    kernel.shell.restore_sys_module_state()
    type(kernel.shell).clear_instance()
    FleetKernel.clear_instance()
