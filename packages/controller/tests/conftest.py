"""What the tests of the scheduler share: a scheduler with engines that answer on demand."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ipyfleet_controller.database.base import Limits, TaskDatabase
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.database.sqlite import SQLiteDatabase
from ipyfleet_controller.scheduler import events as ev
from ipyfleet_controller.scheduler.core import SchedulerCore
from ipyfleet_controller.scheduler.instructions import (
    DeliverResults,
    EndedTask,
    FindEnded,
    Instruction,
    SendDrop,
    SendRecall,
    SendTasks,
)
from ipyfleet_controller.scheduler.validate import validate, validate_placed
from ipyfleet_protocol import __version__
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames, decode, decode_part, encode, encode_part, split
from ipyfleet_protocol.columns import Payloads, PayloadWriter, float64_column
from ipyfleet_protocol.connection import ConnectionInfo, load_connection_file, pick_url
from ipyfleet_protocol.ids import Channel, EngineId, PeerId, new_peer_id, routing_id
from ipyfleet_protocol.versions import python_version
from ipyfleet_testing.postgresql import PostgresServer, find_programs
from ipyfleet_testing.raw import RawChannel, RawChannels

CLIENT = PeerId(b"client-" + b"0" * 9)
OTHER = PeerId(b"client-" + b"1" * 9)


def engine_peer(engine_id: int) -> PeerId:
    """Return the peer id that the tests give an engine."""
    return PeerId(b"engine-%09d" % engine_id)


def make_group(
    first: int, count: int, *, digest: bytes = b"f" * 16, body: bool = True, **options: Any
) -> tuple[m.Group, SliceFrames]:
    """Return a group whose payloads are its sequence numbers as text, and its frames."""
    writer = PayloadWriter()
    shared = options.get("shared", False)
    writer.extend([b"%d" % (first + i) for i in range(1 if shared else count)])
    columns, frames = writer.finish()
    function = None
    if options.get("method") != "execute":
        function = m.Function(digest, "f", True, "", int(body))
    group = m.Group(first, count, m.Options(**options), function, columns)
    return group, SliceFrames([b"body"] if function and body else [], frames)


class Bench:
    """A scheduler, its clock, and what it has sent: engines hold slices, clients hold results.

    Attributes:
        held: per engine, the tasks sent and not answered: ``(client, seq, attempt, ordinal)``.
        ended: per client, status and payload of each task that was delivered; twice is an error.
        messages: number of `SendTasks` so far.
    """

    CLIENT, OTHER = CLIENT, OTHER
    tick = ev.TickEvent()
    make_group = staticmethod(make_group)

    def __init__(self, **options: Any) -> None:
        self.core = SchedulerCore(**options)
        self.now = 100.0
        self.held: dict[int, list[tuple[PeerId, int, int, int]]] = {}
        self.ended: dict[tuple[PeerId, int], tuple[int, bytes]] = {}
        self.ended_at: dict[tuple[PeerId, int], int] = {}
        self.recalls: dict[int, tuple[int, int]] = {}
        self.drops: list[SendDrop] = []
        self.sizes: dict[int, list[int]] = {}
        self.wakes: list[float] = []
        self.places = True
        self.warmed = 0
        self.options: dict[tuple[PeerId, int], m.Options] = {}
        self.resources: dict[int, dict[str, float]] = {}
        self.refusals: set[tuple[PeerId, int, int]] = set()
        self.away: set[int] = set()
        self.questions: list[FindEnded] = []
        # What the records know; None for "they do not answer".
        self.records: list[EndedTask] | None = []
        self.ticked_at = 0.0

    def feed(self, event: ev.SchedulerEvent) -> list[Instruction]:
        """Handle an event, check all invariants, carry out what is asked, and place."""
        out = self._feed(event)
        if self.places and not isinstance(event, ev.PlaceEvent):
            out += self.feed(ev.PlaceEvent())
        return out

    def _feed(self, event: ev.SchedulerEvent) -> list[Instruction]:
        out = self.core.handle(event, self.now)
        validate(self.core)
        if isinstance(event, ev.TickEvent):
            self.ticked_at = self.now
        if isinstance(event, ev.PlaceEvent):
            validate_placed(self.core)
            for instruction in out:
                if isinstance(instruction, SendTasks):
                    self._check_order(instruction)
        for instruction in out:
            self._perform(instruction)
        return out

    def _check_order(self, sent: SendTasks) -> None:
        """Check that no task was passed by another of its client's that was not to go first."""
        engine_id = EngineId(int(sent.peer[7:]))
        engine = self.core.state.engines[engine_id]
        for piece in sent.slices:
            options = self.options.get((PeerId(piece.client), piece.first))
            if options is None or options.placement == "direct":
                continue
            last = piece.first + piece.count - 1
            for lane in self.core.state.waiting.all_lanes():
                head = lane.head()
                if head.group.client != piece.client:
                    continue
                if self.core.state.may_run(lane.constraint, engine):
                    waits = (-lane.constraint.priority, head.first_seq)
                    assert waits > (-options.priority, last), f"{head!r} was passed by {last}"

    def _check_place(self, client: PeerId, seq: int, engine_id: int) -> None:
        """Check that an engine may have a task, by what the task's client said."""
        options = self.options.get((client, seq))
        if options is None:
            return
        if options.targets is not None and options.placement == "balanced":
            assert engine_id in options.targets, f"{seq} is not for engine {engine_id}"
        has = self.resources[engine_id]
        for name, amount in options.resources.items():
            assert has.get(name, 0) >= amount, f"{seq} needs {name}, engine {engine_id} has {has}"
        assert (client, seq, engine_id) not in self.refusals, f"{engine_id} turned {seq} down"
        for dependency, is_follow in ((options.after, False), (options.follow, True)):
            if dependency is not None:
                self._check_dependency(dependency, is_follow, engine_id)

    def _check_dependency(self, dependency: m.Dependency, is_follow: bool, engine_id: int) -> None:
        keys = [
            (PeerId(tasks.client), seq)
            for tasks in dependency.tasks
            for seq in range(tasks.first, tasks.first + tasks.count)
        ]
        ends = [self.ended[key][0] if key in self.ended else None for key in keys]
        wanted = [end == m.OK if end in (m.OK, None) else dependency.failure for end in ends]
        if not dependency.success:
            wanted = [w and end != m.OK for w, end in zip(wanted, ends, strict=True)]
        wanted = [w and end is not None for w, end in zip(wanted, ends, strict=True)]
        assert all(wanted) if dependency.all else any(wanted), "placed before its time"
        if is_follow:
            places = {
                self.ended_at[key] for key, is_wanted in zip(keys, wanted, strict=True) if is_wanted
            }
            assert engine_id in places, f"placed at {engine_id}, the others ran at {places}"
            assert len(places) == 1 or not dependency.all

    def _perform(self, what: Instruction) -> None:
        if isinstance(what, SendTasks):
            engine_id = int(what.peer[7:])
            split(m.RunTasks(what.slices), what.frames)
            for piece in what.slices:
                self.sizes.setdefault(engine_id, []).append(piece.count)
                for i in range(piece.count):
                    self._check_place(PeerId(piece.client), piece.first + i, engine_id)
                    self.held[engine_id].append(
                        (PeerId(piece.client), piece.first + i, piece.attempt, piece.ordinal + i)
                    )
            ordinals = [task[3] for task in self.held[engine_id]]
            assert ordinals == sorted(set(ordinals)), "ordinals do not grow"
        elif isinstance(what, DeliverResults):
            parts = split(what.message, what.frames)
            for piece, part in zip(what.message.slices, parts, strict=True):
                payloads = Payloads(piece.columns, part.payload)
                for i in range(piece.count):
                    key = (PeerId(what.message.client), piece.first + i)
                    assert key not in self.ended, f"{key} ended twice"
                    assert piece.status[i] != m.UNMET, f"{key} ended as unmet"
                    self.ended_at[key] = what.message.engine
                    self.ended[key] = (piece.status[i], bytes(payloads.pickle(i)))
        elif isinstance(what, SendRecall):
            self.recalls[int(what.peer[7:])] = (what.first, what.last)
        elif isinstance(what, SendDrop):
            self.drops.append(what)
        elif isinstance(what, FindEnded):
            self.questions.append(what)
            if self.records is not None:
                self.feed(ev.EndedFoundEvent(what.number, self.records))
        elif hasattr(what, "at"):
            self.wakes.append(what.at)

    # -- what may happen ----------------------------------------------------------------------

    def join(self, *engine_ids: int, **resources: float) -> None:
        """Let engines join."""
        for engine_id in engine_ids:
            self.held[engine_id] = []
            self.resources[engine_id] = resources
            peer = engine_peer(engine_id)
            self.feed(ev.EngineJoinedEvent(EngineId(engine_id), peer, resources))

    def lose(self, engine_id: int, reason: str = "killed by SIGKILL", running: int = -1) -> None:
        """Let an engine die."""
        del self.held[engine_id]
        self.recalls.pop(engine_id, None)
        self.feed(ev.EngineLostEvent(EngineId(engine_id), reason, running))

    def submit(self, first: int, count: int, client: PeerId = CLIENT, **options: Any) -> None:
        """Let a client submit one group."""
        group, frames = make_group(first, count, **options)
        for seq in range(first, first + count):
            self.options[client, seq] = group.options
        self.feed(ev.SubmitEvent(client, [group], [frames]))

    def results(
        self,
        engine_id: int,
        tasks: Sequence[tuple[PeerId, int, int, int]],
        statuses: Sequence[int] | None = None,
        task_s: float = 0.0,
    ) -> ev.ResultsEvent:
        """Return an engine's answer for tasks of one client with contiguous seqs and ordinals."""
        client, seq, attempt, ordinal = tasks[0]
        statuses = statuses or [m.OK] * len(tasks)
        writer = PayloadWriter()
        for (_, task_seq, _, _), status in zip(tasks, statuses, strict=True):
            ename = "UnmetDependency" if status == m.UNMET else "ValueError"
            error = m.ErrorInfo(ename, "no", [], engine_id)
            writer.append(b"r%d" % task_seq if status == m.OK else encode_part(error))
        columns, frames = writer.finish()
        never = [math.nan if status in (m.ABORTED, m.UNMET) else 1.0 for status in statuses]
        piece = m.ResultSlice(
            seq,
            len(tasks),
            attempt,
            ordinal,
            bytes(statuses),
            float64_column(never),
            float64_column([value + task_s for value in never]),
            b"",
            columns,
        )
        return ev.ResultsEvent(EngineId(engine_id), m.Results(client, engine_id, [piece]), frames)

    def answer(
        self, engine_id: int, count: int = 1, status: int = m.OK, task_s: float = 0.0
    ) -> list[tuple[PeerId, int, int, int]]:
        """Let an engine end its oldest tasks, up to `count`; return them."""
        done = []
        while count and self.held.get(engine_id):
            held = self.held[engine_id]
            n = 1
            while n < min(count, len(held)) and _follows(held[n - 1], held[n]):
                n += 1
            tasks, self.held[engine_id] = held[:n], held[n:]
            if status == m.UNMET:
                self.refusals |= {(peer, seq, engine_id) for peer, seq, _, _ in tasks}
            self.feed(self.results(engine_id, tasks, [status] * n, task_s))
            done += tasks
            count -= n
        return done

    def give_back(self, engine_id: int, *, everything: bool = True) -> None:
        """Let an engine answer a recall: all that has not started, or nothing."""
        first, last = self.recalls.pop(engine_id)
        held = self.held[engine_id]
        back = [task for task in held[1:] if first <= task[3] <= last] if everything else []
        if back:
            first, last = back[0][3], back[-1][3]
            self.held[engine_id] = [task for task in held if task not in back]
        else:
            first, last = 0, -1
        self.feed(ev.RecalledEvent(EngineId(engine_id), first, last))

    def run_all(self, task_s: float = 0.0) -> None:
        """Let engines answer everything until nothing is held."""
        for _ in range(100_000):
            busy = [engine_id for engine_id, held in self.held.items() if held]
            if not busy:
                return
            for engine_id in busy:
                self.answer(engine_id, len(self.held[engine_id]), task_s=task_s)
        raise AssertionError("the tasks do not end")

    def warm(self) -> None:
        """Let engines run enough of the tests' function that they may hold hundreds of such
        tasks.
        """
        first = self.warmed
        self.warmed += 4096
        self.submit(first, 4096, PeerId(b"warm" * 4))
        self.run_all(task_s=1e-6)

    def error(self, seq: int, client: PeerId = CLIENT) -> m.ErrorInfo:
        """Return the error that ended a task."""
        return decode_part(self.ended[client, seq][1], m.ErrorInfo)

    def seqs(self, engine_id: int) -> list[int]:
        """Return the sequence numbers of what an engine holds."""
        return [task[1] for task in self.held[engine_id]]


def _follows(a: tuple[PeerId, int, int, int], b: tuple[PeerId, int, int, int]) -> bool:
    return (a[0], a[1] + 1, a[2], a[3] + 1) == b


@pytest.fixture
def make_bench() -> type[Bench]:
    """The class of `bench`, for tests that need several or one with options."""
    return Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A scheduler; validated once more at the end."""
    bench = Bench()
    yield bench
    validate(bench.core)


class Process:
    """A real controller in a profile of its own."""

    def __init__(self, directory: Path, *arguments: str, **options: Any) -> None:
        self.profile = directory / "profile_default"
        command = [sys.executable, "-m", "ipyfleet_controller", f"--ipython-dir={directory}"]
        self.popen = subprocess.Popen(
            [*command, *arguments], stderr=subprocess.PIPE, text=True, **options
        )

    def info(self, role: str = "client", cluster_id: str = "") -> ConnectionInfo:
        """Return the content of a connection file, as soon as it is there."""
        name = f"ipyfleet-{cluster_id}-{role}.json" if cluster_id else f"ipyfleet-{role}.json"
        return load_connection_file(self.profile / "security" / name, timeout_s=30, alive=True)

    def stop(self) -> tuple[int, str]:
        """End the process if it runs; return its exit code and what it wrote to stderr."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        _, stderr = self.popen.communicate(timeout=30)
        return self.popen.returncode, stderr


class Dealers:
    """Raw connections to a controller: what peers would send, and worse."""

    def __init__(self, info: ConnectionInfo, url: str = "") -> None:
        self.info = info
        self.instance = bytes.fromhex(info.instance)
        self.url = url or pick_url(info)
        self._channels = RawChannels(self.url)
        self._sockets: list[RawChannel] = []

    def connect(
        self, peer: PeerId, channel: Channel, keys: ConnectionInfo | None = None
    ) -> RawChannel:
        """Return a connection with the identity of a peer's channel."""
        self._sockets.append(self._channels.open(routing_id(peer, channel), keys))
        return self._sockets[-1]

    def hello(self, role: str, peer_id: PeerId, /, **changes: Any) -> m.Hello:
        """Return the Hello of a peer, with some fields changed."""
        hello = m.Hello(
            m.PROTOCOL_VERSION,
            role,
            peer_id,
            self.instance,
            self.info.host,
            "here",
            1,
            python_version(),
            __version__,
        )
        for name, value in changes.items():
            setattr(hello, name, value)
        return hello

    def client(
        self, keys: ConnectionInfo | None = None, **changes: Any
    ) -> tuple[RawChannel, m.Welcome]:
        """Return a client's connection that has joined, and its Welcome."""
        peer = new_peer_id()
        socket = self.connect(peer, Channel.CLIENT, keys)
        send(socket, self.hello("client", peer, **changes))
        welcome, _ = receive(socket, m.Welcome)
        return socket, welcome

    def engine(self, **changes: Any) -> FakeEngine:
        """Return an engine that has joined."""
        return FakeEngine(self, **changes)

    def close(self) -> None:
        """Close all sockets."""
        for socket in self._sockets:
            socket.close()
        self._channels.close()


class FakeEngine:
    """An engine's sockets; answers when told to."""

    def __init__(self, dealers: Dealers, **changes: Any) -> None:
        self.peer = new_peer_id()
        self.task = dealers.connect(self.peer, Channel.TASK)
        self.control = dealers.connect(self.peer, Channel.CONTROL)
        send(self.task, m.Attach(m.PROTOCOL_VERSION, dealers.instance))
        send(self.control, dealers.hello("engine", self.peer, **changes))
        welcome, _ = receive(self.control, m.Welcome)
        self.engine_id = welcome.engine_id

    def run(self) -> m.RunTasks:
        """Receive one message of tasks and answer each with its own payload."""
        message, frames = receive(self.task, m.RunTasks)
        for piece, part in zip(message.slices, split(message, frames), strict=True):
            times = float64_column([time.time()] * piece.count)
            result = m.ResultSlice(
                piece.first, piece.count, piece.attempt, piece.ordinal, bytes(piece.count),
                times, times, b"", piece.columns,
            )  # fmt: skip
            send(self.task, m.Results(piece.client, self.engine_id, [result]), *part.payload)
        return message

    def close(self) -> None:
        """Vanish."""
        self.task.close()
        self.control.close()


def send(socket: Any, message: m.Message, *frames: Any) -> None:
    """Send a message over a raw socket."""
    socket.send([encode(message), *frames])


def receive(socket: Any, kind: type[Any], timeout_s: float = 20.0) -> tuple[Any, list[bytes]]:
    """Return the next message of a kind and its frames; others are skipped."""
    deadline = time.monotonic() + timeout_s
    while (parts := socket.receive(max(0.0, deadline - time.monotonic()))) is not None:
        header, *frames = parts
        message = decode(header)
        if isinstance(message, kind):
            return message, frames
    raise AssertionError(f"no {kind.__name__} within {timeout_s} s")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts controllers in one IPython directory; they are stopped at the end."""
    running: list[Process] = []

    def start(*arguments: str, **options: Any) -> Process:
        running.append(Process(tmp_path, *arguments, **options))
        return running[-1]

    yield start
    for process in running:
        if process.popen.poll() is None:
            process.popen.terminate()
        process.popen.communicate(timeout=30)


@pytest.fixture
def dealers(start: Any) -> Iterator[Dealers]:
    """Raw sockets to a controller on this host; who breaks a connection is gone."""
    dealers = Dealers(start("--away-limit=0").info())
    yield dealers
    dealers.close()


@pytest.fixture
def wire() -> Any:
    """Functions that send to and receive from raw sockets, and the class of `dealers`."""

    class Wire:
        send = staticmethod(send)
        receive = staticmethod(receive)
        Dealers = Dealers
        make_group = staticmethod(make_group)

    return Wire


class _Postgres(PostgresServer):
    """A server, and what tests do to it."""

    def drop_schemas(self) -> None:
        """Drop all that controllers made."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|public|information_)'"
            )
            for (name,) in found.fetchall():
                connection.execute(f'DROP SCHEMA "{name}" CASCADE')


def _run_postgres() -> Iterator[_Postgres]:
    pytest.importorskip("psycopg", reason="psycopg, of the extra `postgresql`, is not installed")
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; `make services` does that")
    server = _Postgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[_Postgres]:
    """A PostgreSQL server of the tests' own; tests that need it are skipped where there is none."""
    yield from _run_postgres()


@pytest.fixture
def own_postgres_server() -> Iterator[_Postgres]:
    """A server that a test may stop."""
    yield from _run_postgres()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def make_database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., TaskDatabase]]:
    """Makes databases of one backend. Where `again` is true it has what the one before had, if the
    backend keeps anything.
    """
    with ExitStack() as stack:
        if request.param == "postgresql":
            server = request.getfixturevalue("postgres_server")
            stack.callback(server.drop_schemas)
        number = 0

        def make(again: bool = False, **limits: Any) -> TaskDatabase:
            nonlocal number
            number += not again
            database: TaskDatabase
            if request.param == "memory":
                chosen = {key: value for key, value in limits.items() if key != "result_bytes"}
                database = MemoryDatabase(**chosen)
            elif request.param == "sqlite":
                database = SQLiteDatabase(tmp_path / f"tasks-{number}.db", Limits(**limits))
            else:
                from ipyfleet_controller.database.postgresql import PostgreSQLDatabase

                database = PostgreSQLDatabase(server.url, f"s{number}", Limits(**limits))
            stack.callback(database.close)
            return database

        yield make
