"""The router, over real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.blobs import BlobStore
from ipyfleet_protocol.codec import decode_part, encode_part, split
from ipyfleet_protocol.columns import Payloads
from ipyfleet_protocol.ids import Channel, format_msg_id, new_peer_id
from ipyfleet_testing.waiting import wait_until


def _submit(wire: Any, socket: Any, first: int, count: int, **options: Any) -> None:
    group, frames = wire.make_group(first, count, **options)
    wire.send(socket, m.Submit([group]), *frames.function, *frames.payload)


def _ask(wire: Any, socket: Any, question: Any, request: int = 1) -> Any:
    wire.send(socket, m.Request(request, question))
    reply, frames = wire.receive(socket, m.Reply)
    assert reply.request == request
    return reply, frames


def test_tasks_go_to_an_engine_and_results_come_back(dealers: Any, wire: Any) -> None:
    """A client learns of an engine, submits, and gets what the engine answered, recorded too."""
    client, welcome = dealers.client()
    assert welcome.engines == []
    assert welcome.blob_dir == dealers.info.blob_dir
    engine = dealers.engine()
    changed, _ = wire.receive(client, m.EnginesChanged)
    assert [info.engine_id for info in changed.joined] == [engine.engine_id] == [0]
    _submit(wire, client, 0, 3, label="mine")
    ended: dict[int, bytes] = {}
    while len(ended) < 3:
        engine.run()
        results, frames = wire.receive(client, m.Results)
        for piece, part in zip(results.slices, split(results, frames), strict=True):
            payloads = Payloads(piece.columns, part.payload)
            for i in range(piece.count):
                ended[piece.first + i] = bytes(payloads.pickle(i))
    assert ended == {0: b"0", 1: b"1", 2: b"2"}

    reply, _ = _ask(wire, client, m.QueueStatus())
    assert msgspec.msgpack.decode(reply.content, strict=False) == {
        0: {"queue": 0, "completed": 3, "tasks": 0},
        "unassigned": 0,
    }
    reply, _ = _ask(wire, client, m.TaskHistory(), 2)
    [first, _, last] = msgspec.msgpack.decode(reply.content)
    reply, frames = _ask(wire, client, m.FetchResults([last, first, "unknown"]), 3)
    records = msgspec.msgpack.decode(reply.content)
    assert records["unknown"] is None
    assert frames == [b"2", b"0"]
    assert records[last]["status"] == "ok"
    query = msgspec.msgpack.encode({"label": {"$glob": "mi*"}, "completed": {"$ne": None}})
    reply, _ = _ask(wire, client, m.FindRecords(query, ["seq"]), 4)
    assert [record["seq"] for record in msgspec.msgpack.decode(reply.content)] == [0, 1, 2]


def test_large_frames_pass_unchanged(dealers: Any, wire: Any) -> None:
    """A buffer of some MiB reaches engine and client byte for byte."""
    client, _ = dealers.client()
    engine = dealers.engine()
    group, frames = wire.make_group(0, 1)
    group.columns.buffer_counts = (1).to_bytes(4, "little")
    buffer = os.urandom(3 << 20)
    wire.send(client, m.Submit([group]), *frames.function, *frames.payload, buffer)
    engine.run()
    _, received = wire.receive(client, m.Results)
    assert received == [b"0", buffer]


def test_an_engine_that_vanishes_is_noticed_and_its_task_fails(dealers: Any, wire: Any) -> None:
    """When an engine's connections break, clients are told without any heartbeat's help, and its
    task ends then.
    """
    client, _ = dealers.client()
    engine = dealers.engine()
    wire.receive(client, m.EnginesChanged)
    _submit(wire, client, 0, 1)
    wire.receive(engine.task, m.RunTasks)
    engine.close()
    changed, _ = wire.receive(client, m.EnginesChanged)
    assert changed.lost[0].engine_id == 0
    results, frames = wire.receive(client, m.Results)
    assert results.engine == -1
    error = decode_part(frames[0], m.ErrorInfo)
    assert (error.ename, error.own, error.engine_id) == ("EngineError", True, 0)


def test_the_agents_word_on_a_death_reaches_the_client(dealers: Any, wire: Any) -> None:
    """What an agent says of an engine's end is the reason that clients read."""
    client, _ = dealers.client()
    agent_id = new_peer_id()
    agent = dealers.connect(agent_id, Channel.AGENT)
    wire.send(agent, dealers.hello("agent", agent_id))
    wire.receive(agent, m.Welcome)
    engine = dealers.engine(agent=agent_id)
    _submit(wire, client, 0, 1)
    wire.receive(engine.task, m.RunTasks)
    engine.close()
    wire.send(agent, m.EngineExited(engine.peer, -9, "killed by signal 9 (SIGKILL)"))
    _, frames = wire.receive(client, m.Results)
    assert "SIGKILL" in decode_part(frames[0], m.ErrorInfo).evalue


def test_output_goes_to_the_client_that_asked(dealers: Any, wire: Any) -> None:
    """Output names its client and reaches nobody else."""
    client, _ = dealers.client()
    other, _ = dealers.client()
    engine = dealers.engine()
    _submit(wire, client, 0, 1)
    tasks, _ = wire.receive(engine.task, m.RunTasks)
    item = m.OutputItem(0, 0, "stdout", b"hello\n")
    wire.send(engine.task, m.Output(tasks.slices[0].client, 0, [item]))
    output, _ = wire.receive(client, m.Output)
    assert output.items == [item]
    _ask(wire, other, m.QueueStatus())
    assert not other.wait(0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 999}, "speaks protocol version 999"),
        ({"instance": b"\1" * 16}, "wants to join cluster 01010101"),
        ({"peer": b"\2" * 16}, "not named after it"),
    ],
)
def test_who_does_not_fit_is_refused_with_a_reason(
    dealers: Any, wire: Any, changes: dict[str, Any], text: str
) -> None:
    """A Hello that does not fit is answered by a sentence that names both sides."""
    peer = new_peer_id()
    socket = dealers.connect(peer, Channel.CLIENT)
    wire.send(socket, dealers.hello("client", peer, **changes))
    refused, _ = wire.receive(socket, m.Refused)
    assert text in refused.reason


def test_strangers_and_wrong_roles_are_refused_once(dealers: Any, wire: Any) -> None:
    """Without Hello nothing is done; a client cannot send what engines send; garbage is ignored."""
    client, _ = dealers.client()
    stranger = dealers.connect(new_peer_id(), Channel.CLIENT)
    for _ in range(2):
        wire.send(stranger, m.Request(1, m.TaskHistory()))
    refused, _ = wire.receive(stranger, m.Refused)
    assert "say Hello first" in refused.reason
    wire.send(client, m.Recalled(0, 1))
    refused, _ = wire.receive(client, m.Refused)
    assert "Recalled" in refused.reason
    for garbage in ([b""], [b"\xc1"], [os.urandom(100)], [b"\x91\xa6Submit"], [b""] * 50):
        client.send(garbage)
    reply, _ = _ask(wire, client, m.TaskHistory())
    assert reply.error is None
    assert not stranger.wait(0)


def test_a_second_peer_with_the_same_id_is_refused(dealers: Any, wire: Any) -> None:
    """Nobody joins twice."""
    peer = new_peer_id()
    socket = dealers.connect(peer, Channel.CLIENT)
    for pid in (1, 2):
        wire.send(socket, dealers.hello("client", peer, pid=pid))
    wire.receive(socket, m.Welcome)
    refused, _ = wire.receive(socket, m.Refused)
    assert "has joined already" in refused.reason


def test_control_reaches_the_engine_and_its_answer_the_client(dealers: Any, wire: Any) -> None:
    """Each target of a Control answers for itself; the controller answers for an unknown one."""
    client, _ = dealers.client()
    engine = dealers.engine()
    wire.send(client, m.Control(7, [0, 5], m.PingEngine()))
    command, _ = wire.receive(engine.control, m.EngineControl)
    assert command.action == m.PingEngine()
    wire.send(engine.control, m.ControlReply(command.client, command.request, 0))
    answers = {wire.receive(client, m.ControlReply)[0].engine for _ in range(2)}
    assert answers == {0, 5}


def test_engine_ids_are_not_used_twice(dealers: Any, wire: Any) -> None:
    """A new engine gets a new id; a wanted one is given if nobody ever had it."""
    client, _ = dealers.client()
    dealers.engine().close()
    wire.receive(client, m.EnginesChanged)
    assert dealers.engine(wanted_id=3).engine_id == 3
    assert [dealers.engine(wanted_id=0).engine_id for _ in range(3)] == [1, 2, 4]


def test_a_client_that_leaves_is_recorded_for(dealers: Any, wire: Any) -> None:
    """The tasks of a client that is gone run to their end and can be fetched by another."""
    client, _ = dealers.client()
    engine = dealers.engine()
    _submit(wire, client, 0, 1)
    tasks, _ = wire.receive(engine.task, m.RunTasks)
    peer = tasks.slices[0].client
    other, _ = dealers.client()
    wire.send(client, m.Goodbye())
    _submit(wire, other, 0, 1)
    piece = tasks.slices[0]
    nan = bytes(8)
    result = m.ResultSlice(0, 1, 0, piece.ordinal, b"\0", nan, nan, b"", m.Columns(b"\1\0\0\0"))
    wire.send(engine.task, m.Results(peer, 0, [result]), b"x")
    engine.run()
    wire.receive(other, m.Results)
    _, frames = _ask(wire, other, m.FetchResults([format_msg_id(peer, 0)]))
    assert frames == [b"x"]


def _blob_results(
    store: BlobStore, client: bytes, piece: m.TaskSlice, content: bytes, number: int
) -> tuple[m.Results, bytes, bytes]:
    """Return the message, with its frames, that a task's result is in shared memory."""
    handle = store.put(content)
    assert handle is not None
    one, nan = (1).to_bytes(4, "little"), bytes(8)
    columns = m.Columns(one, one, b"\1")
    result = m.ResultSlice(piece.first, 1, 0, piece.ordinal, b"\0", nan, nan, b"", columns)
    return m.Results(client, 0, [result], number), b"x", encode_part(handle)


def test_results_in_shared_memory_do_not_outlive_a_client_that_leaves(
    dealers: Any, wire: Any
) -> None:
    """What it did not read, and what comes for it later, is removed when the records have it."""
    directory = Path(dealers.info.blob_dir)
    client, _ = dealers.client()
    engine = dealers.engine()

    def left() -> list[Path]:
        return list(directory.glob(f"{engine.peer.hex()}*"))

    with BlobStore(directory, engine.peer) as store:
        _submit(wire, client, 0, 1)
        tasks, _ = wire.receive(engine.task, m.RunTasks)
        peer = tasks.slices[0].client
        content = os.urandom(1 << 20)
        wire.send(engine.task, *_blob_results(store, peer, tasks.slices[0], content, 1))
        wire.receive(client, m.Results)
        _submit(wire, client, 1, 1)
        tasks, _ = wire.receive(engine.task, m.RunTasks)
        other, _ = dealers.client()
        msg_ids = [format_msg_id(peer, seq) for seq in range(2)]
        assert _ask(wire, other, m.FetchResults(msg_ids[:1]))[1] == [b"x", content]
        assert len(left()) == 1
        wire.send(client, m.Goodbye())
        wire.receive(engine.control, m.ResultsTaken)
        wire.send(engine.task, *_blob_results(store, peer, tasks.slices[0], content, 2))
        wire.receive(engine.control, m.ResultsTaken)
        wait_until(lambda: not left(), message="them to be removed")
        assert _ask(wire, other, m.FetchResults(msg_ids))[1] == [b"x", content] * 2


@pytest.fixture
def stoppable() -> Iterator[subprocess.Popen[bytes]]:
    """A process that peers may say is theirs."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_an_engine_whose_process_is_stopped_is_parted_with(
    start: Any, wire: Any, stoppable: subprocess.Popen[bytes]
) -> None:
    """After the limit, and not before; clients may be stopped for as long as they like."""
    dealers = wire.Dealers(start("--heartbeat-limit=0.3", "--away-limit=0").info())
    try:
        client, _ = dealers.client(pid=stoppable.pid)
        engine = dealers.engine(pid=stoppable.pid)
        wire.receive(client, m.EnginesChanged)
        begin = time.monotonic()
        stoppable.send_signal(signal.SIGSTOP)
        changed, _ = wire.receive(client, m.EnginesChanged)
        assert [lost.engine_id for lost in changed.lost] == [engine.engine_id]
        assert time.monotonic() - begin >= 0.3
        assert engine.control.receive(5.0) is None
        assert engine.control.is_over
        _ask(wire, client, m.QueueStatus())
    finally:
        dealers.close()


def test_shutdown_tells_everybody_and_ends(dealers: Any, wire: Any) -> None:
    """After a shutdown with hub, engines and clients read Closing."""
    client, _ = dealers.client()
    engine = dealers.engine()
    _ask(wire, client, m.ShutdownCluster(hub=True))
    wire.receive(client, m.Closing)
    wire.receive(engine.control, m.Closing)


def test_keys_decide_who_may_connect_over_tcp(start: Any, wire: Any) -> None:
    """Over TCP a client's key lets a client in, an engine's key does not, and no key nobody."""
    process = start("--ip=127.0.0.1")
    info, engine_info = process.info("client"), process.info("engine")
    [tcp] = [url for url in info.urls if url.startswith("tcp://")]
    dealers = wire.Dealers(info, tcp)
    try:
        client, _ = dealers.client(keys=info)
        _ask(wire, client, m.TaskHistory())
        peer = new_peer_id()
        wrong = dealers.connect(peer, Channel.CLIENT, keys=engine_info)
        wire.send(wrong, dealers.hello("client", peer))
        refused, _ = wire.receive(wrong, m.Refused)
        assert "key" in refused.reason
        agent = dealers.connect(peer, Channel.AGENT, keys=engine_info)
        wire.send(agent, dealers.hello("agent", peer))
        wire.receive(agent, m.Welcome)
        keyless = dealers.connect(new_peer_id(), Channel.CLIENT)
        wire.send(keyless, dealers.hello("client", peer))
        assert not keyless.wait(0.3)
        local = wire.Dealers(info)
        local.client()
        local.close()
    finally:
        dealers.close()
