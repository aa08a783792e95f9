"""Detaching from work, over real sockets and with real files."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipyfleet_controller.database.detached import (
    PayloadGone,
    detach_groups,
    load_detached,
    take_in_blobs,
)
from ipyfleet_controller.database.sqlite import SQLiteDatabase, database_file
from ipyfleet_controller.scheduler import events as ev
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.blobs import BlobStore, sweep_blobs
from ipyfleet_protocol.codec import SliceFrames, encode_part
from ipyfleet_protocol.columns import PayloadWriter
from ipyfleet_testing.simulated import SimulatedClient, SimulatedPeers

TIMEOUT_S = 30.0


@contextlib.contextmanager
def _busy(info: Any) -> Iterator[tuple[SimulatedPeers, SimulatedClient]]:
    """A client of an engine that never answers."""
    with SimulatedPeers(info) as peers:
        [engine] = peers.add_engines(1)
        [client] = peers.add_clients(1)
        engine.is_busy = True
        peers.run_until(lambda: client.engines, TIMEOUT_S)
        yield peers, client


def _ask(peers: SimulatedPeers, client: SimulatedClient, question: m.Question) -> m.Reply:
    request = client.ask(question)
    peers.run_until(lambda: request in client.replies, TIMEOUT_S)
    return client.replies[request]


def test_what_was_detached_is_there_when_the_controller_was_killed(start: Any) -> None:
    """The reply counts the tasks; their payloads are in the database then, whatever happens."""
    process = start()
    with _busy(process.info()) as (peers, client):
        client.submit(3, b"payload", label="nightly", retries=1)
        client.submit(1, b"other", placement="direct", targets=[0])
        reply = _ask(peers, client, m.DetachClient())
        assert msgspec.msgpack.decode(reply.content) == 4
        process.popen.send_signal(signal.SIGKILL)
        process.popen.wait(TIMEOUT_S)
    database = SQLiteDatabase(database_file(process.profile, ""))
    try:
        balanced, direct = load_detached(database)
    finally:
        database.close()
    assert balanced.client == client.peer
    assert (balanced.group.first, balanced.group.count, balanced.group.ended) == (0, 3, b"")
    assert balanced.group.options.label == "nightly"
    assert balanced.frames == SliceFrames([b"body"], [b"payload" * 3])
    assert direct.group.options.targets == [0]
    assert direct.frames == SliceFrames([b"body"], [b"other"])
    start().info()  # the next controller removes what the one that was killed left


def test_records_that_end_with_the_controller_cannot_be_detached_to(start: Any) -> None:
    """Memory says so, and how to have it otherwise."""
    with _busy(start("--dictdb").info()) as (peers, client):
        client.submit(3)
        reply = _ask(peers, client, m.DetachClient())
        assert reply.error is not None
        assert "--sqlitedb" in reply.error.evalue


def test_a_database_that_does_not_take_it_is_an_error(start: Any) -> None:
    """A locked file: no reply that says that all is safe. Later it works."""
    process = start()
    with _busy(process.info()) as (peers, client):
        client.submit(1)
        assert msgspec.msgpack.decode(_ask(peers, client, m.DetachClient()).content) == 1
        lock = sqlite3.connect(database_file(process.profile, ""), isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
            client.submit(1)
            reply = _ask(peers, client, m.DetachClient())
            assert reply.error is not None
            assert "locked" in reply.error.evalue
        finally:
            lock.close()
        assert msgspec.msgpack.decode(_ask(peers, client, m.DetachClient()).content) == 2


def _submit_blob(bench: Any, store: BlobStore) -> bytes:
    """Submit a task that has its argument in shared memory and stays queued; return the content."""
    content = os.urandom(300_000)
    handle = store.put(content)
    assert handle is not None
    writer = PayloadWriter()
    writer.append(b"pickle", [(encode_part(handle), True)])
    columns, frames = writer.finish()
    group = m.Group(0, 1, m.Options("execute"), None, columns)
    bench.join(0)
    bench.places = False
    bench.feed(ev.SubmitEvent(bench.OTHER, [group], [SliceFrames([], frames)]))
    return content


def test_detached_tasks_do_not_need_their_clients_shared_memory(bench: Any, tmp_path: Path) -> None:
    """Blobs become buffers, in the records and for the engines that are there."""
    store = BlobStore(tmp_path, bench.CLIENT)
    content = _submit_blob(bench, store)
    state = bench.core.state
    [detached] = detach_groups(state, bench.OTHER, tmp_path, 0.0)
    store.close()
    assert not detached.group.columns.blobs
    assert [bytes(memoryview(frame)) for frame in detached.frames.payload] == [b"pickle", content]
    [live] = state.groups[bench.OTHER].live()
    assert [bytes(memoryview(frame)) for frame in live.part(0, 1)[1]] == [b"pickle", content]


def test_tasks_of_a_client_that_is_gone_keep_their_arguments(bench: Any, tmp_path: Path) -> None:
    """Its shared memory is removed some time after its end; its tasks may wait for longer."""
    content = _submit_blob(bench, BlobStore(tmp_path, bench.OTHER))
    take_in_blobs(bench.core.state, bench.OTHER, tmp_path)
    assert sweep_blobs(tmp_path, bench.OTHER) == 1
    [live] = bench.core.state.groups[bench.OTHER].live()
    assert bytes(memoryview(live.part(0, 1)[1][1])) == content


def test_arguments_that_are_gone_are_an_error(bench: Any, tmp_path: Path) -> None:
    """A blob that was removed cannot be detached."""
    writer = PayloadWriter()
    missing = m.BlobHandle(f"{bench.OTHER.hex()}-1", 300_000)
    writer.append(b"pickle", [(encode_part(missing), True)])
    columns, frames = writer.finish()
    group = m.Group(0, 1, m.Options("execute"), None, columns)
    bench.join(0)
    bench.places = False
    bench.feed(ev.SubmitEvent(bench.OTHER, [group], [SliceFrames([], frames)]))
    with pytest.raises(PayloadGone, match="shared memory"):
        detach_groups(bench.core.state, bench.OTHER, tmp_path, 0.0)
