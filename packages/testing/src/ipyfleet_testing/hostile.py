"""Peers that mean no good: messages that are random, mutated, or not for their sender to send.

What lives here: `Fuzzer`. What must not: what is to be expected of who receives them.

It never sends what a peer may rightly use to end a cluster or an engine: a client may do that.
"""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import PayloadWriter, float64_column
from ipyfleet_protocol.ids import Channel, PeerId, format_msg_id, new_peer_id

from .simulated import (
    SimulatedAgent,
    SimulatedClient,
    SimulatedEngine,
    SimulatedPeer,
    SimulatedPeers,
)

N_MESSAGES = int(os.environ.get("IPYFLEET_FUZZ_MESSAGES", "100000"))
"""How many messages the tests send."""

READ_EVERY = 100
"""A sender reads what it is answered after so many messages."""


class Fuzzer:
    """Sends messages that make no sense, or that their sender may not send.

    Attributes:
        senders: peers and channels: a client, an engine and an agent that have joined, and
            strangers of the same kinds.
        n_sent: messages so far.
    """

    def __init__(self, peers: SimulatedPeers, seed: int, timeout_s: float = 10.0) -> None:
        """Connect the senders, and let three of them join."""
        self._peers = peers
        self._random = random.Random(seed)
        self.n_sent = 0
        joined: list[SimulatedPeer] = [
            SimulatedClient(peers),
            SimulatedEngine(peers),
            SimulatedAgent(peers),
        ]
        for peer in joined:
            peer.join()
        peers.run_until(lambda: all(peer.is_welcome for peer in joined), timeout_s)
        strangers: list[SimulatedPeer] = [SimulatedClient(peers), SimulatedEngine(peers)]
        self.senders = [
            (peer, channel) for peer in (*joined, *strangers) for channel in peer.channels
        ]
        self._messages = _messages(joined[0].peer, joined[1].peer, peers.instance)
        self._headers = [encode(message) for message in self._messages]

    def attack(self, sender: tuple[SimulatedPeer, Channel], count: int) -> None:
        """Have one of the senders send `count` messages."""
        peer, channel = sender
        for number in range(count):
            peer.send_raw(channel, self._make())
            self.n_sent += 1
            if number % READ_EVERY == 0:
                self._peers.turn(0)

    def _make(self) -> list[bytes]:
        """Return the frames of one message."""
        chance = self._random
        kind = chance.random()
        number = chance.randrange(len(self._headers))
        if kind < 0.2:
            return [chance.randbytes(chance.randrange(200)) for _ in range(chance.randrange(1, 5))]
        if kind < 0.3:
            return [msgspec.msgpack.encode(self._structure(0))]
        header = self._headers[number]
        if kind < 0.8:
            header = self._mutate(header)
        elif kind > 0.9:
            return [header, *_frames(self._messages[number])]
        frames = [chance.randbytes(chance.randrange(64)) for _ in range(chance.randrange(4))]
        return [header, *frames]

    def _mutate(self, header: bytes) -> bytes:
        chance = self._random
        changed = bytearray(header)
        for _ in range(chance.randrange(1, 5)):
            place = chance.randrange(len(changed) + 1)
            match chance.randrange(4):
                case 0:
                    changed[place:place] = chance.randbytes(chance.randrange(1, 9))
                case 1:
                    del changed[place : place + chance.randrange(1, 9)]
                case 2:
                    del changed[place:]
                case _:
                    changed[place : place + 1] = chance.randbytes(1)
        return bytes(changed)

    def _structure(self, depth: int) -> Any:
        chance = self._random
        match chance.randrange(7 if depth < 4 else 5):
            case 0:
                return chance.choice((None, True, False))
            case 1:
                return chance.choice((0, -1, 2**31, 2**63, -(2**63), 2**64 - 1))
            case 2:
                return chance.choice((0.0, float("nan"), float("inf"), -1e308))
            case 3:
                return chance.choice(("", "Submit", "é" * chance.randrange(50)))
            case 4:
                return chance.randbytes(chance.randrange(40))
            case 5:
                return [self._structure(depth + 1) for _ in range(chance.randrange(5))]
            case _:
                kind = chance.choice(("type", "groups", "request"))
                tag = chance.choice(("Submit", "Results", "Request", "Hello"))
                return {kind: self._structure(depth + 1), "type": tag}


def _frames(message: m.Message) -> list[bytes]:
    """Return the frames that one of the messages announces."""
    match message:
        case m.Submit():
            return [b"onetwo"] * len(message.groups)
        case m.Results():
            return [b"onetwo"] * len(message.slices)
        case m.Output():
            return [b"buffer"] * sum(item.buffers for item in message.items)
    return []


def _messages(client: PeerId, engine: PeerId, instance: bytes) -> list[m.Message]:
    """Return messages that are right in themselves, of all kinds that peers send."""
    writer = PayloadWriter()
    writer.extend([b"one", b"two"])
    columns, _ = writer.finish()
    function = m.Function(b"d" * 16, "f", True, "", 0)
    after = m.Dependency([m.TaskRange(client, 0, 2)])
    groups = [
        m.Group(10**9, 2, m.Options(), function, columns),
        m.Group(10**9, 2, m.Options("execute", "direct", [0, 999]), None, columns),
        m.Group(10**9, 2, m.Options(after=after, timeout_s=1.0, priority=3), function, columns),
        m.Group(10**9, 2, m.Options(resources={"gpu": 1.0}, retries=5), function, columns),
    ]
    times = float64_column([1.0, 2.0])
    piece = m.ResultSlice(0, 2, 0, 0, b"\0\0", times, times, b"", columns)
    version = m.PROTOCOL_VERSION
    stranger = new_peer_id()
    msg_id = format_msg_id(client, 0)
    query = msgspec.msgpack.encode({"msg_id": msg_id})
    questions: list[m.Question] = [
        m.QueueStatus(),
        m.FetchResults([msg_id]),
        m.AwaitResults([msg_id]),
        m.FetchRequests([msg_id]),
        m.FindRecords(query, ["status"]),
        m.PurgeRecords([msg_id]),
        m.ExplainTasks([msg_id]),
        m.Metrics(),
    ]
    return [
        m.Hello(version, "client", client, instance, "h", "n", 1, "3", "0"),
        m.Hello(version, "engine", stranger, instance, "h", "n", 1, "3", "0"),
        m.Attach(version, instance),
        m.Attach(version, instance, b"r" * 8, 5),
        m.Ack(3),
        m.Ack(2**40),
        *(m.Submit([group]) for group in groups),
        m.Submit(groups),
        m.Results(client, 1, [piece]),
        m.Results(stranger, 1, [piece], 7),
        m.Recalled(0, 5),
        m.Cancel([m.SeqRange(0, 10**6)], interrupt=True),
        m.Output(client, 1, [m.OutputItem(0, 0, "stdout", b"text")]),
        m.Output(stranger, 1, [m.OutputItem(0, 0, "data", b"", 1)]),
        m.CommMessage(1, client, "comm_msg", b"\x80"),
        m.EngineExited(engine, -9, "killed", 3),
        m.EngineExited(stranger, -9, "killed"),
        m.Control(1, [1, 999], m.PingEngine()),
        m.ControlReply(client, 1, 1),
        m.Welcome(instance),
        m.RunTasks([]),
        m.EnginesChanged(),
        *(m.Request(number, question) for number, question in enumerate(questions)),
    ]


__all__ = ["N_MESSAGES", "Fuzzer"]
