"""Breaks and restarts, over real sockets: peers here do what real ones do, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ipyfleet_controller.endpoints import JOURNAL
from ipyfleet_controller.hub.journal import recall
from ipyfleet_controller.journal import read_journal
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, encode, split
from ipyfleet_protocol.columns import Payloads, float64_column
from ipyfleet_protocol.ids import Channel, format_msg_id, new_peer_id
from ipyfleet_protocol.paths import runtime_dir
from ipyfleet_protocol.reliable import SESSION_MESSAGES, Received, Sent

CHANNELS = {
    "client": [Channel.CLIENT],
    "agent": [Channel.AGENT],
    "engine": [Channel.CONTROL, Channel.TASK, Channel.OUTPUT],
}


class Peer:
    """A peer with reliable channels.

    Attributes:
        incarnation: of the controller that it was welcomed by.
        inbox: per channel what came and was counted.
        last: the last Welcome, Attached, Refused or Closing of each channel.
    """

    def __init__(self, dealers: Any, role: str, **hello: Any) -> None:
        self.dealers, self.role, self._hello = dealers, role, {"pid": os.getpid(), **hello}
        self.peer = new_peer_id()
        self.incarnation = b""
        self.sockets: dict[Channel, Any] = {}
        self.sent: dict[Channel, Sent] = {}
        self.received: dict[Channel, Received] = {}
        self.inbox: dict[Channel, list[tuple[Any, list[bytes]]]] = {}
        self.last: dict[Channel, Any] = {}
        for channel in CHANNELS[role]:
            self._begin(channel)
            self.connect(channel)

    def _begin(self, channel: Channel) -> None:
        self.sent[channel], self.received[channel] = Sent(), Received()
        self.inbox[channel] = []

    def connect(self, channel: Channel, **more: Any) -> None:
        """Throw a channel's socket away and say hello over a new one."""
        self.cut(channel)
        self.last.pop(channel, None)
        self.sockets[channel] = socket = self.dealers.connect(self.peer, channel)
        said = {"incarnation": self.incarnation, "received": self.received[channel].told()}
        if channel in (Channel.TASK, Channel.OUTPUT):
            message = m.Attach(m.PROTOCOL_VERSION, self.dealers.instance, **said)
        else:
            message = self.dealers.hello(self.role, self.peer, **{**self._hello, **said, **more})
        socket.send([encode(message)])

    def cut(self, channel: Channel) -> None:
        """Break a connection."""
        if channel in self.sockets:
            self.sockets.pop(channel).close()

    def send(self, channel: Channel, message: Any, *frames: Any) -> None:
        """Send and keep a message."""
        parts = [encode(message), *frames]
        self.sent[channel].note(parts)
        if channel in self.sockets:
            self.sockets[channel].send(parts)

    def read(self, channel: Channel, timeout_s: float = 0.0) -> bool:
        """Take in one message if there is one."""
        socket = self.sockets[channel]
        received = socket.receive(timeout_s)
        if received is None:
            return False
        header, *frames = received
        message = decode(header)
        kind = type(message)
        if kind is m.Ack:
            self.sent[channel].acknowledge(message.received)
        elif kind in (m.Welcome, m.Attached):
            self.last[channel] = message
            if message.incarnation == self.incarnation:
                for parts in self.sent[channel].unacknowledged(message.received):
                    socket.send(list(parts))
            elif kind is m.Welcome:
                if self.incarnation:
                    for each in CHANNELS[self.role]:
                        self._begin(each)
                self.incarnation = message.incarnation
        elif kind in SESSION_MESSAGES:
            if kind is not m.Probe:  # which may come before the answer to a hello
                self.last[channel] = message
        elif channel in self.last or channel in (Channel.TASK, Channel.OUTPUT):
            self.received[channel].note(len(header), time.monotonic())
            self.inbox[channel].append((message, frames))
        return True

    def wait(self, channel: Channel, condition: Any, timeout_s: float = 30.0) -> None:
        """Read until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{self.role}: {self.last} {self.inbox}"
            self.read(channel, 0.05)

    def get(self, channel: Channel, kind: type[Any]) -> tuple[Any, list[bytes]]:
        """Return the next counted message of a kind; others stay."""
        inbox = self.inbox[channel]

        def found() -> list[int]:
            return [at for at, (message, _) in enumerate(inbox) if isinstance(message, kind)]

        self.wait(channel, found)
        return inbox.pop(found()[0])

    def welcomed(self, channel: Channel) -> Any:
        """Wait for the answer to a hello."""
        self.wait(channel, lambda: channel in self.last)
        return self.last[channel]

    def acknowledge(self, channel: Channel) -> None:
        """Say what has arrived."""
        self.sockets[channel].send([encode(m.Ack(self.received[channel].told()))])


class Client(Peer):
    """A client that keeps what it submitted."""

    def __init__(self, dealers: Any, wire: Any) -> None:
        super().__init__(dealers, "client")
        self.groups: list[tuple[Any, Any]] = []
        self.ended: dict[int, bytes] = {}
        self.twice: list[int] = []
        self.wire = wire
        self.welcomed(Channel.CLIENT)

    def submit(self, first: int, count: int, **options: Any) -> None:
        """Submit a group."""
        self.groups.append(self.wire.make_group(first, count, **options))
        self._send_group(*self.groups[-1])

    def _send_group(self, group: Any, frames: Any) -> None:
        self.send(Channel.CLIENT, m.Submit([group]), *frames.function, *frames.payload)

    def submit_again(self) -> None:
        """Submit what has not ended, and say that this was all."""
        for group, frames in self.groups:
            seqs = range(group.first, group.first + group.count)
            group.ended = bytes(seq in self.ended for seq in seqs)
            if 0 in group.ended:
                self._send_group(group, frames)
        self.sockets[Channel.CLIENT].send([encode(m.Ack(0))])

    def come_back(self, dealers: Any) -> None:
        """Say hello to another controller, and submit again."""
        self.dealers = dealers
        self.connect(Channel.CLIENT)
        self.welcomed(Channel.CLIENT)
        self.submit_again()

    def collect(self, count: int) -> None:
        """Read results until so many tasks have ended."""
        while len(self.ended) < count:
            message, frames = self.get(Channel.CLIENT, m.Results)
            for piece, part in zip(message.slices, split(message, frames), strict=True):
                payloads = Payloads(piece.columns, part.payload)
                for i in range(piece.count):
                    if piece.first + i in self.ended:
                        self.twice.append(piece.first + i)
                    self.ended[piece.first + i] = bytes(payloads.pickle(i))


class Engine(Peer):
    """An engine that keeps its results until they are taken.

    Attributes:
        queue: slices and their frames that have not run.
        kept: results by number.
        ran: seqs, in the order in which they ran.
    """

    def __init__(self, dealers: Any, **hello: Any) -> None:
        super().__init__(dealers, "engine", **hello)
        self.engine_id = self.welcomed(Channel.CONTROL).engine_id
        self.queue: list[tuple[Any, list[bytes]]] = []
        self.kept: dict[int, list[bytes]] = {}
        self.ran: list[int] = []
        self.next_ordinal = 0
        self.number = 0

    def take(self) -> None:
        """Take in one message of tasks."""
        message, frames = self.get(Channel.TASK, m.RunTasks)
        for piece, part in zip(message.slices, split(message, frames), strict=True):
            self.queue.append((piece, part.payload))
            self.next_ordinal = piece.ordinal + piece.count

    def run(self) -> None:
        """Run the oldest slice; tell its results, kept until they are taken."""
        piece, payload = self.queue.pop(0)
        self.ran += range(piece.first, piece.first + piece.count)
        times = float64_column([time.time()] * piece.count)
        result = m.ResultSlice(
            piece.first, piece.count, piece.attempt, piece.ordinal, bytes(piece.count), times,
            times, b"", piece.columns,
        )  # fmt: skip
        self.number += 1
        message = m.Results(piece.client, self.engine_id, [result], self.number)
        self.kept[self.number] = [encode(message), *payload]
        self.send(Channel.CONTROL, message, *payload)

    def taken(self) -> None:
        """Read one ResultsTaken."""
        message, _ = self.get(Channel.CONTROL, m.ResultsTaken)
        for number in [number for number in self.kept if number <= message.number]:
            del self.kept[number]

    def held(self) -> list[m.HeldTasks]:
        """Return what a Hello says of tasks."""
        done = [decode(frames[0]) for frames in self.kept.values()]
        ended = [(message.client, piece) for message in done for piece in message.slices]
        queued = [(piece.client, piece) for piece, _ in self.queue]
        return [
            m.HeldTasks(client, piece.first, piece.count, piece.ordinal, piece.attempt)
            for client, piece in [*ended, *queued]
        ]

    def come_back(self, dealers: Any) -> None:
        """Say hello to a controller that may be another one."""
        self.dealers = dealers
        state = {"wanted_id": self.engine_id, "held": self.held()}
        self.connect(Channel.TASK)
        self.connect(Channel.OUTPUT)
        self.connect(Channel.CONTROL, next_ordinal=self.next_ordinal, **state)

    def send_again(self) -> None:
        """Send all results again that have not been taken."""
        for parts in self.kept.values():
            self.sent[Channel.CONTROL].note(parts)
            self.sockets[Channel.CONTROL].send(parts)


class World:
    """A controller, those who are connected to it, and its successors."""

    def __init__(self, start: Any, wire: Any, *arguments: str) -> None:
        self._start, self._wire, self._arguments = start, wire, arguments
        self._all: list[Any] = []
        self.process: Any = None
        self.dealers: Any = None

    def start(self, *more: str) -> None:
        """Start a controller, and wait until it can be reached."""
        before = self.dealers.info.pid if self.dealers else 0
        self.process = self._start("--recover=30", *self._arguments, *more)
        deadline = time.monotonic() + 10
        info = self.process.info()
        while info.pid == before:
            assert time.monotonic() < deadline
            info = self.process.info()
        self.dealers = self._wire.Dealers(info)
        self._all.append(self.dealers)

    def kill(self) -> None:
        """Kill the controller."""
        self.process.popen.kill()
        self.process.popen.wait(10)

    def close(self) -> None:
        """Close all sockets."""
        for dealers in self._all:
            dealers.close()


@pytest.fixture
def world(start: Any, wire: Any) -> Iterator[World]:
    """A controller that is waited for when it dies."""
    world = World(start, wire)
    world.start()
    yield world
    world.close()


def test_a_break_loses_nothing_in_either_direction(world: World, wire: Any) -> None:
    """Tasks, results and requests that were under way when connections broke arrive once."""
    client = Client(world.dealers, wire)
    engine = Engine(world.dealers)
    client.submit(0, 1)
    engine.take()
    engine.run()
    client.collect(1)
    # The client's socket goes; what was sent to it and by it meanwhile goes with it.
    client.cut(Channel.CLIENT)
    client.submit(1, 1)
    client.connect(Channel.CLIENT)
    assert client.welcomed(Channel.CLIENT).received == 1
    engine.take()
    for channel in (Channel.CONTROL, Channel.TASK, Channel.OUTPUT):
        engine.cut(channel)
    engine.run()
    client.submit(2, 3)
    engine.connect(Channel.CONTROL)
    assert engine.welcomed(Channel.CONTROL).engine_id == engine.engine_id
    client.collect(2)
    engine.connect(Channel.TASK)
    while len(client.ended) < 5:
        engine.take()
        engine.run()
        client.collect(len(engine.ran))
    assert (engine.ran, client.twice) == ([0, 1, 2, 3, 4], [])
    assert client.ended == {seq: b"%d" % seq for seq in range(5)}


def test_an_engine_that_is_away_is_no_loss(world: World, wire: Any) -> None:
    """While one engine's connections are broken the other works; back, it runs what it was sent."""
    client = Client(world.dealers, wire)
    engines = [Engine(world.dealers), Engine(world.dealers)]
    for channel in CHANNELS["engine"]:
        engines[0].cut(channel)
    client.submit(0, 6)
    client.submit(6, 1, placement="direct", targets=[engines[0].engine_id])
    # At most one was sent to the one that is away before that was noticed.
    while len(client.ended) < 5:
        engines[1].take()
        while engines[1].queue:
            engines[1].run()
        client.collect(len(engines[1].ran))
    engines[0].connect(Channel.CONTROL)
    engines[0].connect(Channel.TASK)
    assert isinstance(engines[0].welcomed(Channel.TASK), m.Attached)
    run_all(client, engines, 7)
    assert client.twice == []


def run_all(client: Client, engines: list[Engine], count: int) -> None:
    """Let engines run what comes until so many tasks have ended for a client."""
    deadline = time.monotonic() + 20
    while len(client.ended) < count:
        assert time.monotonic() < deadline, sorted(client.ended)
        for engine in engines:
            engine.read(Channel.TASK, 0.01)
            while engine.inbox[Channel.TASK]:
                engine.take()
            while engine.queue:
                engine.run()
        client.read(Channel.CLIENT, 0.01)
        while any(isinstance(each, m.Results) for each, _ in client.inbox[Channel.CLIENT]):
            client.collect(len(client.ended) + 1)


def test_engines_are_told_what_was_taken(world: World, wire: Any) -> None:
    """An engine may forget results when their client has acknowledged them, or is gone."""
    client = Client(world.dealers, wire)
    engine = Engine(world.dealers)
    for seq in range(3):
        client.submit(seq, 1)
        engine.take()
        engine.run()
    client.collect(3)
    assert sorted(engine.kept) == [1, 2, 3]
    client.acknowledge(Channel.CLIENT)
    while engine.kept:
        engine.taken()
    client.submit(3, 1)
    engine.take()
    client.send(Channel.CLIENT, m.Goodbye())
    other = Client(world.dealers, wire)
    engine.run()
    engine.taken()
    assert not engine.kept
    question = m.FetchResults([format_msg_id(client.peer, 3)])
    other.send(Channel.CLIENT, m.Request(1, question))
    _, frames = other.get(Channel.CLIENT, m.Reply)
    assert frames == [b"3"]


def test_a_controller_that_is_killed_is_replaced(world: World, wire: Any) -> None:
    """Queued, running and finished tasks survive kill -9: each runs once and ends once, engines
    keep their ids.
    """
    client = Client(world.dealers, wire)
    agent = Peer(world.dealers, "agent")
    agent.welcomed(Channel.AGENT)
    engines = [Engine(world.dealers, agent=agent.peer) for _ in range(2)]
    client.submit(0, 2, placement="direct", targets=[0, 1])
    for engine in engines:
        engine.take()
    engines[0].run()
    client.collect(1)
    client.submit(2, 20)
    client.submit(22, 2, placement="direct", targets=[1, 1])
    engines[0].take()
    # One ended, and nobody knows; the rest waits at engines, or at the controller.
    world.kill()
    engines[0].run()

    world.start("--resume")
    assert world.dealers.instance == client.dealers.instance
    client.dealers = agent.dealers = world.dealers
    client.connect(Channel.CLIENT)
    agent.connect(Channel.AGENT)
    welcome = client.welcomed(Channel.CLIENT)
    assert sorted(info.engine_id for info in welcome.engines) == [0, 1]
    client.submit_again()
    for engine in engines:
        engine.come_back(world.dealers)
    for engine in engines:
        again = engine.welcomed(Channel.CONTROL)
        assert isinstance(again, m.Welcome), again
        assert (again.engine_id, again.incarnation) == (engine.engine_id, welcome.incarnation)
        engine.send_again()
    run_all(client, engines, 24)
    assert client.ended == {seq: b"%d" % seq for seq in range(24)}
    assert sorted(engines[0].ran + engines[1].ran) == list(range(24))
    assert client.twice == []
    client.submit(24, 2)
    for seq in range(24, 26):
        client.send(Channel.CLIENT, m.Request(seq, m.QueueStatus()))
        reply, _ = client.get(Channel.CLIENT, m.Reply)
        assert set(msgspec.msgpack.decode(reply.content, strict=False)) == {0, 1, "unassigned"}
    assert Engine(world.dealers).engine_id == 2


def test_who_does_not_come_back_is_not_waited_for_ever(world: World, wire: Any) -> None:
    """An engine whose process is gone is lost at once, also when it died with the controller."""
    client = Client(world.dealers, wire)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = Engine(world.dealers, pid=process.pid)
        process.kill()
        world.kill()
    client.submit(0, 1, placement="direct", targets=[gone.engine_id])
    client.submit(1, 1)
    world.start("--resume")
    begin = time.monotonic()
    client.come_back(world.dealers)
    changed, _ = client.get(Channel.CLIENT, m.EnginesChanged)
    assert [lost.engine_id for lost in changed.lost] == [gone.engine_id]
    assert time.monotonic() - begin < 2
    other = Engine(world.dealers)
    assert other.engine_id == gone.engine_id + 1
    while 1 not in client.ended:
        other.take()
        other.run()
        client.collect(2)
    assert b"EngineError" in client.ended[0]


def test_an_engine_that_died_meanwhile_is_mourned_for_its_reason(world: World, wire: Any) -> None:
    """An agent repeats how an engine ended; its tasks end with that, whoever comes first."""
    client = Client(world.dealers, wire)
    agent = Peer(world.dealers, "agent")
    agent.welcomed(Channel.AGENT)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        engine = Engine(world.dealers, agent=agent.peer, pid=process.pid)
        client.submit(0, 1, placement="direct", targets=[engine.engine_id])
        engine.take()
        world.kill()
        process.kill()
    world.start("--resume")
    client.come_back(world.dealers)
    agent.dealers = world.dealers
    agent.connect(Channel.AGENT)
    agent.welcomed(Channel.AGENT)
    agent.send(Channel.AGENT, m.EngineExited(engine.peer, -9, "killed by signal 9 (SIGKILL)"))
    client.collect(1)
    assert b"SIGKILL" in client.ended[0]
    assert any(isinstance(message, m.EnginesChanged) for message, _ in client.inbox[Channel.CLIENT])


def test_detached_work_goes_on_after_a_restart(world: World, wire: Any) -> None:
    """The queue of a client that has left is run by the successor, and what had run is not."""
    client = Client(world.dealers, wire)
    engine = Engine(world.dealers)
    client.submit(0, 6)
    engine.take()
    engine.run()
    client.collect(1)
    client.send(Channel.CLIENT, m.Request(1, m.DetachClient()))
    reply, _ = client.get(Channel.CLIENT, m.Reply)
    assert reply.error is None
    client.send(Channel.CLIENT, m.Goodbye())
    path = runtime_dir(world.dealers.info.instance) / JOURNAL
    deadline = time.monotonic() + 10
    while client.peer in recall(read_journal(path)).peers:
        assert time.monotonic() < deadline
        time.sleep(0)
    engine.take()
    world.kill()
    world.start("--resume")
    engine.come_back(world.dealers)
    engine.welcomed(Channel.CONTROL)
    engine.welcomed(Channel.TASK)
    engine.send_again()
    other = Client(world.dealers, wire)
    while len(engine.ran) < 6:
        while engine.queue:
            engine.run()
        if len(engine.ran) < 6:
            engine.take()
    assert sorted(engine.ran) == list(range(6))
    question = m.AwaitResults([format_msg_id(client.peer, 5)])
    other.send(Channel.CLIENT, m.Request(1, question))
    _, frames = other.get(Channel.CLIENT, m.Reply)
    while frames != [b"5"]:
        _, frames = other.get(Channel.CLIENT, m.Reply)


def test_a_client_that_is_late_gets_its_results_all_the_same(world: World, wire: Any) -> None:
    """What an engine ran for a client that had not come back is not run again when it does."""
    client = Client(world.dealers, wire)
    engine = Engine(world.dealers)
    client.submit(0, 1)
    engine.take()
    client.submit(1, 2)
    world.kill()
    world.start("--resume")
    engine.come_back(world.dealers)
    engine.welcomed(Channel.CONTROL)
    engine.run()
    client.come_back(world.dealers)
    while len(client.ended) < 3:
        client.collect(len(engine.ran))
        if len(client.ended) < 3:
            engine.take()
            engine.run()
    assert (engine.ran, client.twice) == ([0, 1, 2], [])


def test_a_living_controller_is_not_replaced(world: World, start: Any) -> None:
    """`--resume` while the controller lives is an error, and changes nothing."""
    popen = start("--resume").popen
    _, stderr = popen.communicate(timeout=10)
    assert popen.returncode == 1
    assert "the controller lives" in stderr
    assert Peer(world.dealers, "client").welcomed(Channel.CLIENT).incarnation


def test_without_a_predecessor_a_resuming_controller_starts_fresh(start: Any) -> None:
    """Who restarts a controller need not know whether it had come far enough to be resumed."""
    process = start("--resume", "--recover=7")
    info = process.info()
    assert info.recover_s == 7
    assert process.stop()[0] == 0


def test_keys_and_port_are_the_same_after_a_restart(start: Any, wire: Any) -> None:
    """Over TCP peers find the successor where the dead one was, with the keys that they have."""
    world = World(start, wire, "--ip=127.0.0.1")
    world.start()
    old = world.dealers.info
    world.kill()
    world.start("--resume")
    new = world.dealers.info
    assert (new.urls, new.server_public, new.secret) == (old.urls, old.server_public, old.secret)
    [tcp] = [url for url in old.urls if url.startswith("tcp://")]
    dealers = wire.Dealers(old, tcp)
    client, welcome = dealers.client(keys=old)
    assert welcome.incarnation
    client.close()
    dealers.close()
    world.close()
