"""What the controller alone costs per task: its CPU time and the time of a round trip. Linux only.

A real controller process, and one process that plays a client and an engine over bare connections
and does next to nothing itself. Five ways in which tasks arrive: one at a time, each awaited, for
any engine (`trip`) or for one (`direct`); many groups of one task in one message, as a client sends
separate calls (`calls`); the same with labels that differ, so that they cannot be made one group
(`labels`); and one group of many (`map`). A router that forwards what it is sent and does nothing
else shows the limit of `trip`.

    python benchmarks/controller_round_trip.py                      # the controller installed here
    python benchmarks/controller_round_trip.py --against OTHER/src  # and another source tree's
    python benchmarks/controller_round_trip.py --profile out.prof   # cProfile in the controller
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipyfleet_protocol import __version__
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, encode
from ipyfleet_protocol.columns import float64_column, uint32_column
from ipyfleet_protocol.connection import load_connection_file, pick_url
from ipyfleet_protocol.ids import Channel, PeerId, new_peer_id, routing_id
from ipyfleet_protocol.local import LocalStream, connect_local, socket_path
from ipyfleet_protocol.versions import python_version

PAYLOAD = b"p" * 40
"""About the pickle of a no-op's arguments."""

WINDOW = 4
"""Messages of `calls` that are on their way at a time."""

PATIENCE_S = 20.0

_FORWARDER = """
import select, sys
from pathlib import Path
from ipyfleet_protocol.local import LocalRouter
poller = select.epoll()
router = LocalRouter(Path(sys.argv[1]), poller)
while True:
    for fd, events in poller.poll():
        router.on_ready(fd, events)
    while router.inbox:
        sender, *frames = router.inbox.popleft()
        if frames:
            router.send(frames[0], [sender, *frames[1:]])
"""


class Wire:
    """A connection, waited for."""

    def __init__(self, path: Path | str, peer: PeerId, channel: Channel) -> None:
        self.stream: LocalStream = connect_local(path, routing_id(peer, channel))
        self._poll = select.poll()
        self._poll.register(self.stream, select.POLLIN)

    def send(self, *frames: Any) -> None:
        """Send a message."""
        if not self.stream.send(frames) and not self.stream.wait_sent(PATIENCE_S):
            raise TimeoutError("the controller does not read")

    def take(self) -> list[Any]:
        """Return the next message."""
        while (frames := self.stream.receive()) is None:
            if not self._poll.poll(1000 * PATIENCE_S) or self.stream.is_over:
                raise TimeoutError("the controller does not answer")
        return frames

    def receive(self, kind: type[Any]) -> Any:
        """Return the next message of a kind, decoded; others are skipped."""
        while True:
            message = decode(self.take()[0])
            if isinstance(message, kind):
                return message


class Peers:
    """A client and an engine, as connections."""

    def __init__(self, path: Path | str, instance: bytes) -> None:
        self.client_id, self.engine_id = new_peer_id(), new_peer_id()
        self.seq = 0
        self._labels: tuple[str, ...] = ("",)
        self._targets: list[int] | None = None
        self.client = Wire(path, self.client_id, Channel.CLIENT)
        self.task = Wire(path, self.engine_id, Channel.TASK)
        self.control = Wire(path, self.engine_id, Channel.CONTROL)
        if instance:
            _send(self.task, m.Attach(m.PROTOCOL_VERSION, instance))
            _send(self.control, _hello("engine", self.engine_id, instance))
            self.control.receive(m.Welcome)
            _send(self.client, _hello("client", self.client_id, instance))
            self.client.receive(m.Welcome)

    def close(self) -> None:
        """Close the connections."""
        for wire in (self.client, self.task, self.control):
            wire.stream.close()

    def trips(self, count: int) -> None:
        """Submit `count` tasks, one after the other."""
        for _ in range(count):
            self._submit(1, 1)
            self._answer(self.task.receive(m.RunTasks).slices)
            self.client.receive(m.Results)

    def direct(self, count: int) -> None:
        """As `trips`, for the one engine."""
        self._targets = [0]
        self.trips(count)
        self._targets = None

    def calls(self, count: int) -> None:
        """Submit `count` tasks, a hundred groups of one in each message."""
        self._stream(count, 100, 1)

    def labels(self, count: int) -> None:
        """As `calls`, each group with another label than the one before."""
        self._labels = ("a", "b")
        self._stream(count, 100, 1)
        self._labels = ("",)

    def map(self, count: int) -> None:
        """Submit `count` tasks as groups of a thousand."""
        self._stream(count, 1, 1000)

    def forwarded(self, count: int) -> None:
        """Make `count` round trips through a router that forwards to the peer named in front."""
        frames = [self.seq.to_bytes(8, "little") * 16, PAYLOAD]
        client, engine = (
            routing_id(self.client_id, Channel.CLIENT),
            routing_id(self.engine_id, Channel.TASK),
        )
        for _ in range(count):
            self.client.send(engine, *frames)
            _, *received = self.task.take()
            self.task.send(client, *received)
            self.client.take()

    def _stream(self, count: int, n_groups: int, group_size: int) -> None:
        poller = select.poll()
        wires = (self.client, self.task)
        for wire in wires:
            poller.register(wire.stream, select.POLLIN)
        first, end = self.seq, self.seq + count
        n_done = 0
        step = n_groups * group_size
        while n_done < count:
            while self.seq < end and self.seq - first - n_done < WINDOW * step:
                self._submit(n_groups, group_size)
            poller.poll(1000 * PATIENCE_S)
            for wire in wires:
                while (frames := wire.stream.receive()) is not None:
                    message = decode(frames[0])
                    if isinstance(message, m.RunTasks):
                        self._answer(message.slices)
                    elif isinstance(message, m.Results):
                        n_done += sum(s.count for s in message.slices)

    def _submit(self, n_groups: int, size: int) -> None:
        """Send groups of `size` tasks; the first message of all brings the function."""
        groups = []
        frames = [b"body"] if not self.seq else []
        columns = m.Columns(uint32_column([len(PAYLOAD)]) * size)
        for _ in range(n_groups):
            function = m.Function(b"f" * 16, "f", True, "", int(not self.seq))
            options = m.Options(host="h", label=self._labels[self.seq % len(self._labels)])
            if self._targets is not None:
                options.placement, options.targets = "direct", self._targets
            groups.append(m.Group(self.seq, size, options, function, columns))
            frames.append(PAYLOAD * size)
            self.seq += size
        _send(self.client, m.Submit(groups), *frames)

    def _answer(self, tasks: Sequence[m.TaskSlice]) -> None:
        """End all tasks of a message, in as few slices as an engine would."""
        results: list[m.ResultSlice] = []
        for piece in tasks:
            last = results[-1] if results else None
            if last and (last.first + last.count, last.ordinal + last.count) == (
                piece.first, piece.ordinal,
            ):  # fmt: skip
                last.count += piece.count
            else:
                nothing = m.Columns(b"")
                results.append(
                    m.ResultSlice(piece.first, piece.count, 0, piece.ordinal, b"", b"", b"", b"",
                                  nothing)
                )  # fmt: skip
        now = time.time()
        for result in results:
            result.status = bytes(result.count)
            result.started = float64_column([now]) * result.count
            result.completed = float64_column([now + 2e-6]) * result.count
            result.columns = m.Columns(uint32_column([4]) * result.count)
        frames = [b"none" * result.count for result in results]
        _send(self.task, m.Results(tasks[0].client, 0, results), *frames)


def _send(wire: Wire, message: m.Message, *frames: bytes) -> None:
    wire.send(encode(message), *frames)


def _hello(role: m.Role, peer: PeerId, instance: bytes) -> m.Hello:
    versions = python_version(), __version__
    return m.Hello(m.PROTOCOL_VERSION, role, peer, instance, "h", "h", os.getpid(), *versions)


@contextmanager
def controller(source: str, profile: str) -> Iterator[tuple[int, Peers]]:
    """Run a controller from a source tree ("" for the one installed), with peers at it."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable]
        if profile:
            command += ["-m", "cProfile", "-o", profile]
        command += ["-m", "ipyfleet_controller", f"--ipython-dir={directory}"]
        environment = {**os.environ, **({"PYTHONPATH": source} if source else {})}
        process = subprocess.Popen(command, env=environment)
        try:
            path = Path(directory, "profile_default", "security", "ipyfleet-client.json")
            info = load_connection_file(path, timeout_s=20, alive=True)
            socket = socket_path(pick_url(info))
            assert socket is not None
            peers = Peers(socket, bytes.fromhex(info.instance))
            try:
                yield process.pid, peers
            finally:
                peers.close()
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def forwarder() -> Iterator[tuple[int, Peers]]:
    """Run the bare router, with peers at it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "forwarder")
        process = subprocess.Popen([sys.executable, "-c", _FORWARDER, path])
        try:
            while not path.exists():
                time.sleep(0.01)
            peers = Peers(path, b"")
            # Nothing is sent to a peer whose connection is not there yet.
            peers.task.send(routing_id(peers.engine_id, Channel.TASK), b"hello")
            peers.task.take()
            try:
                yield process.pid, peers
            finally:
                peers.close()
        finally:
            process.kill()
            process.wait(20)


def cpu_us(pid: int) -> tuple[float, float]:
    """Return microseconds of CPU that a process has used: its main thread, its other threads."""
    main = other = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        used_us = int((thread / "schedstat").read_text().split()[0]) / 1e3
        if thread.name == str(pid):
            main = used_us
        else:
            other += used_us
    return main, other


def measure(pid: int, work: Callable[[int], None], count: int) -> tuple[float, float, float]:
    """Return microseconds per task: CPU of the main thread, of other threads, and passed."""
    before, started = cpu_us(pid), time.perf_counter()
    work(count)
    passed = time.perf_counter() - started
    after = cpu_us(pid)
    return (after[0] - before[0]) / count, (after[1] - before[1]) / count, passed / count * 1e6


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--against", default="", help="src directory of another controller")
    parser.add_argument("--profile", default="", help="write what cProfile saw in the controller")
    parser.add_argument("--only", default="", help="one of trip, direct, calls, labels, map")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    sources = {"this": ""} | ({"against": arguments.against} if arguments.against else {})
    counts = {"trip": 3000, "direct": 3000, "calls": 20_000, "labels": 20_000, "map": 200_000}
    seen: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for _ in range(arguments.runs):
        for name, source in sources.items():
            with controller(source, arguments.profile) as (pid, peers):
                work = {
                    "trip": peers.trips,
                    "direct": peers.direct,
                    "calls": peers.calls,
                    "labels": peers.labels,
                    "map": peers.map,
                }
                for what in [arguments.only] if arguments.only else work:
                    work[what](counts[what] // 10)
                    seen.setdefault((what, name), []).append(measure(pid, work[what], counts[what]))
        with forwarder() as (pid, peers):
            peers.forwarded(300)
            seen.setdefault(("trip", "bare router"), []).append(
                measure(pid, peers.forwarded, counts["trip"])
            )
    print(f"{'us per task':20}{'main thread':>14}{'other threads':>16}{'passed':>10}")
    for (what, name), values in sorted(seen.items()):
        main, other, passed = (statistics.median(c) for c in zip(*values, strict=True))
        print(f"{what + ' ' + name:20}{main:14.1f}{other:16.1f}{passed:10.1f}")


if __name__ == "__main__":
    main()
