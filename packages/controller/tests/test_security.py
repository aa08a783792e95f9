"""What peers can do that mean no good: other clients see no error, memory stays bounded.

`benchmarks/hostile.py` measures what the others' calls take meanwhile.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import zmq

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.ids import Channel, PeerId, new_peer_id, routing_id
from ipyfleet_protocol.local import connect_local, frame_prefix, socket_path
from ipyfleet_testing.hostile import N_MESSAGES, Fuzzer
from ipyfleet_testing.raw import ZmqChannel
from ipyfleet_testing.simulated import SimulatedClient, SimulatedEngine, SimulatedPeers

TIMEOUT_S = 30.0
MAX_GROWTH = 64 << 20
N_DEATHS = 1000


class Bystander:
    """A client and an engine that mind their own business at a controller under attack."""

    def __init__(self, peers: SimulatedPeers) -> None:
        self.peers = peers
        [self.engine] = peers.add_engines(1)
        [self.client] = peers.add_clients(1)
        peers.run_until(lambda: self.client.engines and self.engine.is_welcome, TIMEOUT_S)
        self.work()
        self.before = self.resident()

    def work(self) -> None:
        """Make a call and wait for its end; it must be a good one."""
        wanted = self.client.n_ended + 1
        self.client.apply_to([self.engine.engine_id])
        self.peers.run_until(lambda: self.client.n_ended == wanted, TIMEOUT_S)
        assert self.client.n_failed == 0
        assert self.client.refused == ""

    def ask(self, question: m.Question) -> Any:
        """Ask the hub."""
        request = self.client.ask(question)
        self.peers.run_until(lambda: request in self.client.replies, TIMEOUT_S)
        reply = self.client.replies.pop(request)
        assert reply.error is None
        return msgspec.msgpack.decode(reply.content, strict=False)

    def resident(self) -> int:
        """Return the controller's memory in bytes."""
        return int(self.ask(m.Metrics())["bytes"]["resident"])

    def check(self) -> None:
        """Everything is as before."""
        self.work()
        assert self.resident() - self.before < MAX_GROWTH


@pytest.fixture
def info(start: Any) -> Any:
    """A controller's connection file. What waits for one client is bounded below the test's."""
    return start("--outbox-max-bytes=16777216", "--away-limit=1").info()


@pytest.fixture
def bystander(info: Any) -> Iterator[Bystander]:
    """See there."""
    with SimulatedPeers(info) as peers:
        yield Bystander(peers)


@pytest.fixture
def evil(info: Any) -> Iterator[SimulatedPeers]:
    """Peers that the bystander shares no loop with."""
    with SimulatedPeers(info) as peers:
        yield peers


def _evil_client(evil: SimulatedPeers) -> SimulatedClient:
    [client] = evil.add_clients(1)
    evil.run_until(lambda: client.is_welcome, TIMEOUT_S)
    return client


@pytest.mark.timeout(120)
def test_random_and_mutated_messages_harm_nobody(
    bystander: Bystander, evil: SimulatedPeers
) -> None:
    """A hundred thousand of them, over every kind of channel, from peers that have joined and from
    strangers: most are malformed or refused, all are counted, and the others work meanwhile.
    """
    before = bystander.ask(m.Metrics())["messages"]
    fuzzer = Fuzzer(evil, seed=7)
    per_kind = N_MESSAGES // len(fuzzer.senders)
    for sender in fuzzer.senders:
        for _ in range(10):
            fuzzer.attack(sender, per_kind // 10)
            bystander.work()

    def has_all() -> bool:
        evil.turn(0)
        after = bystander.ask(m.Metrics())["messages"]
        return bool(after["received"] - before["received"] >= fuzzer.n_sent)

    bystander.peers.run_until(has_all, TIMEOUT_S)
    after = bystander.ask(m.Metrics())["messages"]
    assert after["malformed"] - before["malformed"] > N_MESSAGES // 10
    assert after["refused"] - before["refused"] > N_MESSAGES // 100
    assert after["bugs"] == 0
    bystander.check()


def test_a_peer_that_asks_and_never_reads_is_parted_with(
    bystander: Bystander, evil: SimulatedPeers, info: Any
) -> None:
    """Answers, refusals and results for it are bounded; then it is told that it is out."""
    peer = new_peer_id()
    path = socket_path(evil.url)
    assert path is not None
    stream = connect_local(path, routing_id(peer, Channel.CLIENT))
    try:
        question = m.Request(1, m.FindRecords(msgspec.msgpack.encode({})))
        stream.send([encode(SimulatedClient(evil, peer=new_peer_id()).hello(peer=peer))])
        for number in range(20_000):
            stream.send([encode(m.Recalled(0, number))])  # not for it to say
        n_asked = 0
        while bystander.ask(m.Metrics())["peers"]["clients"] == 2 or not n_asked:
            for _ in range(500):
                stream.send([encode(question)])
            assert stream.wait_sent(TIMEOUT_S)
            n_asked += 500
            assert n_asked < 1_000_000
            bystander.work()
        bystander.check()
    finally:
        stream.close()


@pytest.mark.timeout(120)
def test_peers_that_connect_and_die_leave_nothing(
    bystander: Bystander, evil: SimulatedPeers
) -> None:
    """A thousand clients and engines that vanish in the middle of something."""
    for number in range(N_DEATHS):
        peer: SimulatedClient | SimulatedEngine
        if number % 4:
            peer = SimulatedClient(evil)
            peer.join()
            peer.submit(3, b"x" * 1000, placement="direct", targets=[bystander.engine.engine_id])
        else:
            peer = SimulatedEngine(evil)
            peer.join()
        if number % 2:
            evil.run_until(lambda peer=peer: peer.is_welcome, TIMEOUT_S)
        peer.close()
        if number % 50 == 0:
            bystander.work()

    def is_over() -> bool:
        return bool(
            bystander.ask(m.Metrics())["peers"] == {"clients": 1, "engines": 1, "agents": 0}
        )

    bystander.peers.run_until(is_over, TIMEOUT_S)
    bystander.check()
    status = bystander.ask(m.QueueStatus())
    assert set(status) - {"unassigned", "database"} in ({0}, {"0"})


# -- streams that make no sense ---------------------------------------------------------------


def _connect(peers: SimulatedPeers) -> socket.socket:
    """Return a bare connection to the controller."""
    path = socket_path(peers.url)
    assert path is not None
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    connection.connect(path)
    return connection


def _n_sockets(info: Any) -> int:
    """Return how many connections the controller has."""
    kinds = []
    for link in Path(f"/proc/{info.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the database's come and go
            kinds.append(str(link.readlink()).partition(":")[0])
    return kinds.count("socket")


def _has_ended(connection: socket.socket) -> bool:
    """Whether the controller ends a connection; waits for that."""
    try:
        while connection.recv(4096):
            continue
    except ConnectionResetError:
        pass  # what was sent last was not read
    return True


@pytest.mark.parametrize("is_named", [False, True])
def test_random_bytes_harm_nobody(
    bystander: Bystander, evil: SimulatedPeers, info: Any, is_named: bool
) -> None:
    """Whatever comes over a connection ends that at most, before it has a name and after."""
    chance = random.Random(5)
    name = routing_id(new_peer_id(), Channel.CLIENT)
    before = _n_sockets(info)
    for number in range(300):
        with _connect(evil) as connection:
            if is_named:
                connection.sendall(frame_prefix([len(name)]) + name)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(chance.randrange(1, 8)):
                    size = chance.choice((1, 3, 4, 5, 200, 100_000))
                    connection.sendall(chance.randbytes(size))
        if number % 50 == 0:
            bystander.work()
    bystander.check()
    bystander.peers.run_until(lambda: bystander.ask(m.Metrics()) and _n_sockets(info) <= before, 10)


@pytest.mark.parametrize(
    "announced",
    [
        struct.pack("<I", 2**32 - 1) + bytes(8),
        struct.pack("<IQ", 1, 2**64 - 1),
        struct.pack("<IQQ", 2, 2**63, 2**63),
        struct.pack("<IQ", 1, 2**50),
    ],
)
def test_what_cannot_be_is_not_waited_for(
    bystander: Bystander, evil: SimulatedPeers, announced: bytes
) -> None:
    """Who announces more frames or bytes than there can be is parted with."""
    name = routing_id(new_peer_id(), Channel.CLIENT)
    for prefix in (b"", frame_prefix([len(name)]) + name):
        with _connect(evil) as connection:
            connection.sendall(prefix + announced)
            assert _has_ended(connection)
    bystander.check()


def test_what_is_announced_and_never_sent_takes_no_memory(
    bystander: Bystander, evil: SimulatedPeers
) -> None:
    """A hundred messages of 256 MiB each are waited for, and cost nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(_connect(evil))
            connection.sendall(frame_prefix([3]) + b"abc" + frame_prefix([4, 1 << 28]) + b"head")
        bystander.check()


def test_connections_that_end_at_any_byte_leave_nothing(
    bystander: Bystander, evil: SimulatedPeers, info: Any
) -> None:
    """A thousand that die before, in and behind the first things that a peer says."""
    before = _n_sockets(info)
    client = SimulatedClient(evil)
    client.close()
    for number in range(N_DEATHS):
        name = routing_id(new_peer_id(), Channel.CLIENT)
        hello = encode(client.hello(peer=PeerId(name[:-1])))
        said = frame_prefix([len(name)]) + name + frame_prefix([len(hello)]) + hello
        with _connect(evil) as connection:
            connection.sendall(said[: number % (len(said) + 1)])
        if number % 100 == 0:
            bystander.work()

    def is_over() -> bool:
        peers = bystander.ask(m.Metrics())["peers"]
        return peers["clients"] == 1 and _n_sockets(info) <= before

    bystander.peers.run_until(is_over, TIMEOUT_S)
    bystander.check()


# -- identities and keys ----------------------------------------------------------------------


def test_a_valid_peer_cannot_use_anothers_hello(bystander: Bystander, evil: SimulatedPeers) -> None:
    """A Hello that names somebody else is refused, over whatever channel, and changes nothing."""
    thief = _evil_client(evil)
    [agent, engine] = [SimulatedClient(evil), SimulatedEngine(evil)]
    for victim in (bystander.client, bystander.engine):
        thief.refused = ""
        thief.send(Channel.CLIENT, victim.hello())
        evil.run_until(lambda: thief.refused, TIMEOUT_S)
        assert "not named after it" in thief.refused
    engine.send(Channel.CONTROL, bystander.client.hello())
    evil.run_until(lambda: engine.refused, TIMEOUT_S)
    assert "not named after it" in engine.refused
    agent.close()
    bystander.check()


@pytest.fixture
def tcp(start: Any) -> Any:
    """The two connection files of a controller that listens at TCP, and that url."""
    process = start("--ip=127.0.0.1", "--dictdb", "--away-limit=1")
    client, engine = process.info("client"), process.info("engine")
    [url] = [url for url in client.urls if url.startswith("tcp://")]
    return client, engine, url


def _new_keys() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _without(info: Any) -> Any:
    return msgspec.structs.replace(info, public="", secret="")


def _strange(info: Any) -> Any:
    public, secret = _new_keys()
    return msgspec.structs.replace(info, public=public, secret=secret)


def _half(info: Any) -> Any:
    return msgspec.structs.replace(info, secret=_new_keys()[1])


def _of_another_server(info: Any) -> Any:
    return msgspec.structs.replace(info, server_public=_new_keys()[0])


@pytest.mark.parametrize("spoil", [_without, _strange, _half, _of_another_server])
def test_without_the_clusters_keys_nobody_gets_in(tcp: Any, spoil: Callable[[Any], Any]) -> None:
    """Over TCP a Hello without the right keys is never read, so it is not even refused."""
    info, _, url = tcp
    with SimulatedPeers(info, url) as good, SimulatedPeers(spoil(info), url) as bad:
        [stranger] = bad.add_clients(1)
        [client] = good.add_clients(1)
        good.run_until(lambda: client.is_welcome, TIMEOUT_S)
        with pytest.raises(TimeoutError):
            bad.run_until(lambda: stranger.is_welcome or stranger.refused, 0.5)
        request = client.ask(m.Metrics())
        good.run_until(lambda: request in client.replies, TIMEOUT_S)
        metrics = msgspec.msgpack.decode(client.replies[request].content, strict=False)
        assert metrics["peers"]["clients"] == 1
        assert metrics["messages"]["refused"] == metrics["messages"]["malformed"] == 0


def test_who_was_turned_away_already_need_not_wait_to_speak() -> None:
    """A peer of the tests whose handshake failed before it has sent anything sends to nobody, at
    once: zmq has let go of its connection then, as of one that was never made.
    """
    with zmq.Context() as context:
        channel = ZmqChannel(context.socket(zmq.DEALER))
        with contextlib.closing(channel):
            channel.send([b"hello"])
            assert channel.is_over
            assert channel.take() is None


def test_an_engines_key_is_not_a_clients(tcp: Any) -> None:
    """With the engine's key: no joining as a client, and no request of a client without joining."""
    _, engine_info, url = tcp
    with SimulatedPeers(engine_info, url) as peers:
        [engine] = peers.add_engines(1)
        peers.run_until(lambda: engine.is_welcome, TIMEOUT_S)
        [client] = peers.add_clients(1)
        peers.run_until(lambda: client.refused, TIMEOUT_S)
        assert "needs the key of a client" in client.refused
        client.refused = ""
        client.ask(m.ShutdownCluster(hub=True))
        peers.run_until(lambda: client.refused, TIMEOUT_S)
        engine.send(Channel.CONTROL, m.Request(1, m.ShutdownCluster(hub=True)))
        peers.run_until(lambda: engine.refused, TIMEOUT_S)
        assert "not a message for an engine" in engine.refused


class Scene(NamedTuple):
    """A client and an engine, each with its role's key, and peers with the key of `evil`."""

    good: SimulatedPeers
    engines: SimulatedPeers
    evil: SimulatedPeers
    client: SimulatedClient
    engine: SimulatedEngine

    def run_one(self, number: int) -> None:
        """Have the engine run one more task of the client, the `number`-th of all."""
        self.client.apply_to([self.engine.engine_id])
        self.engines.run_until(lambda: self.engine.n_tasks == number, TIMEOUT_S)
        self.good.run_until(lambda: self.client.n_ended == number, TIMEOUT_S)


@contextlib.contextmanager
def _scene(tcp: Any, key: str) -> Iterator[Scene]:
    client_info, engine_info, url = tcp
    evil_info = client_info if key == "client" else engine_info
    with (
        SimulatedPeers(client_info, url) as good,
        SimulatedPeers(engine_info, url) as engines,
        SimulatedPeers(evil_info, url) as evil,
    ):
        [engine] = engines.add_engines(1)
        [client] = good.add_clients(1)
        engines.run_until(lambda: engine.is_welcome, TIMEOUT_S)
        good.run_until(lambda: client.engines, TIMEOUT_S)
        yield Scene(good, engines, evil, client, engine)


def _thieves(thieves: SimulatedPeers, victim: Any) -> list[Any]:
    """Peers with the id of another: with a secret of their own, and with none."""
    kind = type(victim)
    one, other = kind(thieves, victim.peer), kind(thieves, victim.peer, secret=b"")
    return [one, other]


@pytest.mark.parametrize("key", ["client", "engine"])
def test_nobody_can_take_a_clients_place(tcp: Any, key: str) -> None:
    """Not with the engine's key, and not with the client's: the ids that all know are not enough to
    have a connection handed over. The client notices nothing.
    """
    with _scene(tcp, key) as scene:
        client = scene.client
        for number, thief in enumerate(_thieves(scene.evil, client), 1):
            thief.send(
                Channel.CLIENT, thief.hello(incarnation=client.incarnation, pid=client.hello().pid)
            )
            thief.ask(m.ShutdownCluster(hub=True))
            scene.evil.run_until(lambda thief=thief: thief.refused, TIMEOUT_S)
            scene.run_one(number)
            assert not thief.is_welcome
            assert thief.n_ended == 0
        assert client.n_failed == 0
        assert client.refused == ""


@pytest.mark.parametrize("key", ["client", "engine"])
def test_nobody_can_take_an_engines_place(tcp: Any, key: str) -> None:
    """The engine gets its tasks and its answers count; the thief gets none, and cannot say goodbye
    in its name.
    """
    with _scene(tcp, key) as scene:
        client, engine = scene.client, scene.engine
        for number, thief in enumerate(_thieves(scene.evil, engine), 1):
            thief.join()
            thief.send(Channel.CONTROL, m.Goodbye("mine now"))
            scene.evil.run_until(lambda thief=thief: thief.refused, TIMEOUT_S)
            scene.run_one(number)
            assert not thief.is_welcome
            assert thief.n_tasks == 0
        assert client.n_failed == 0
        assert client.engines == {engine.engine_id}
