"""A raw peer that plays the controller: a real ROUTER that speaks the protocol, no more."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from ipyfleet_protocol.reliable import SESSION_MESSAGES, Sent
from ipyfleet_protocol.reliable import Received as ReceivedCount
from ipyfleet_protocol.serialize import pack_call, pack_function, unpack

T = TypeVar("T")
TIMEOUT_S = 20.0
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


class FakeController:
    """The controller's end of the wire, driven by a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"ipc://{directory}/router"
        self.incarnation = b""
        """Empty: this controller knows nothing of resuming."""
        self.heartbeat_ms = 0
        self.sent: dict[tuple[PeerId, Channel], Sent] = {}
        self.got: dict[tuple[PeerId, Channel], ReceivedCount] = {}
        self.attached: set[tuple[PeerId, Channel]] = set()
        self.repeated: list[int] = []
        """Tasks of which a result came once more."""
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
        """Stop every process that was started, and close the socket."""
        for process in self.processes:
            self.stop(process)
        self.router.close()
        self.context.term()

    # -- breaks -------------------------------------------------------------------------------

    def come_up(self, incarnation: bytes | None = None) -> None:
        """Listen; as another run of the controller if `incarnation` says so."""
        if incarnation is not None:
            self.incarnation = incarnation
            self.sent, self.got = {}, {}
        self.context: zmq.Context[Any] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.router.setsockopt(zmq.LINGER, 0)
        if self.heartbeat_ms:
            self.router.setsockopt(zmq.HEARTBEAT_IVL, self.heartbeat_ms)
            self.router.setsockopt(zmq.HEARTBEAT_TIMEOUT, self.heartbeat_ms)
        self.router.bind(self.url)

    def go_down(self) -> None:
        """Break all connections; what was not read is lost, and so is what has not left."""
        self.router.close(0)
        self.context.term()
        self.attached.clear()

    def _count(self, received: Received) -> bool:
        """Count a message; False if its sender has to say hello first."""
        key = (received.peer, received.channel)
        match received.message:
            case m.Ack():
                self.sent[key].acknowledge(received.message.received)
            case m.Hello() | m.Attach() if self.incarnation and self.welcome:
                # The peer may have opened yet another socket: then it greets again.
                with contextlib.suppress(zmq.ZMQError):
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
            self.send(peer, channel, m.Attached(self.incarnation, got.count))
        else:
            welcome = m.Welcome(bytes.fromhex(self.instance), self.engines.get(peer, -1))
            welcome.incarnation, welcome.received = self.incarnation, got.count
            self.send(peer, channel, welcome)
        for frames in sent.unacknowledged(received):
            self.router.send_multipart([self.addresses[peer, channel], *frames])

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
        if not self.router.poll(max(1, int(timeout_s * 1000))):
            return False
        identity, header, *frames = self.router.recv_multipart()
        found = split_routing_id(identity)
        if found is None:
            # What is read of a connection after the next one of the same name has come.
            assert self.incarnation
            return True
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
            self.send(peer, Channel.CONTROL, welcome)

    def _note_results(self, piece: m.ResultSlice, frames: Sequence[Any], channel: Channel) -> None:
        payloads = Payloads(piece.columns, frames)
        started, completed = read_float64(piece.started), read_float64(piece.completed)
        outputs = read_uint32(piece.outputs)
        for i in range(piece.count):
            seq = piece.first + i
            if self.incarnation and seq in self.ended:
                self.repeated.append(seq)
                continue
            assert seq not in self.ended, f"task {seq} ended twice"
            self.ended[seq] = Ended(
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

    # -- sending ------------------------------------------------------------------------------

    def send(
        self, peer: PeerId, channel: Channel, message: Any, frames: Sequence[Any] = ()
    ) -> None:
        parts = [encode(message), *frames]
        if self.incarnation and type(message) not in SESSION_MESSAGES:
            self.sent.setdefault((peer, channel), Sent()).note(parts)
            if (peer, channel) in self.attached:
                # A connection that has just broken: it is sent when the peer has greeted.
                with contextlib.suppress(zmq.ZMQError):
                    self.router.send_multipart([self.addresses[peer, channel], *parts])
            return
        self.router.send_multipart([self.addresses[peer, channel], *parts])

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


def _controller() -> Iterator[FakeController]:
    # Not tmp_path: the path of a Unix socket must be short.
    directory = Path(tempfile.mkdtemp(prefix="ipyfleet-test-"))
    controller = FakeController(directory)
    try:
        yield controller
    finally:
        controller.close()
        shutil.rmtree(directory)


@pytest.fixture
def controller() -> Iterator[FakeController]:
    """A controller for one test."""
    yield from _controller()


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeController]:
    """A controller for the tests of one module, with one engine: `shared.engine`."""
    for controller in _controller():
        controller.start("-n=1")
        [controller.engine] = controller.wait_engines(1)
        yield controller


@pytest.fixture(scope="session")
def wait() -> Callable[..., Any]:
    """The function `wait_until`."""
    return wait_until


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
