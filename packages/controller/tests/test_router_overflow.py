"""The router and a client that does not read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ipyfleet_controller.app import make_router
from ipyfleet_controller.database.keeper import RecordKeeper
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.doors import Doors
from ipyfleet_controller.scheduler.core import SchedulerCore
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import Channel, format_msg_id, new_peer_id
from ipyfleet_protocol.local import local_url

MAX_BYTES = 1 << 20
TASK_BYTES = 64 << 10
N_TASKS = 64


@pytest.fixture
def overflowing(tmp_path: Path, wire: Any) -> Iterator[Any]:
    """Dealers at a router, run by a thread, that lets little wait for a peer."""
    path = tmp_path / "s"
    doors = Doors(path)
    instance = b"i" * 16
    site = SimpleNamespace(instance=instance.hex(), blob_dir=tmp_path, doors=doors, heartbeat_s=0.0)
    keeper = RecordKeeper(MemoryDatabase)
    router = make_router(site, SchedulerCore(), keeper=keeper)
    router._outbox.max_bytes = MAX_BYTES
    keeper.start()
    thread = threading.Thread(target=router.run)
    thread.start()
    info = SimpleNamespace(instance=instance.hex(), host="h")
    dealers = wire.Dealers(info, local_url(path))
    yield dealers
    last, _ = dealers.client()
    wire.send(last, m.Request(1, m.ShutdownCluster(hub=True)))
    thread.join(5)
    keeper.close(5)
    dealers.close()
    doors.close(0.0)
    assert not thread.is_alive()


def test_a_client_that_does_not_read_is_parted_with(overflowing: Any, wire: Any) -> None:
    """It reads what its connection took, then Closing; all its results are in the database."""
    dealers = overflowing
    other, _ = dealers.client()
    engine = dealers.engine()
    peer = new_peer_id()
    client = dealers.connect(peer, Channel.CLIENT)
    wire.send(client, dealers.hello("client", peer))
    wire.receive(client, m.Welcome)
    for seq in range(N_TASKS):
        group, frames = wire.make_group(seq, 1)
        payload = bytes(TASK_BYTES)
        group.columns = m.Columns(len(payload).to_bytes(4, "little"))
        wire.send(client, m.Submit([group]), *frames.function, payload)
    # The answer shows that all have arrived: who was parted with can submit nothing.
    wire.send(client, m.Request(1, m.QueueStatus()))
    wire.receive(client, m.Reply)
    n_done = 0
    while n_done < N_TASKS:
        n_done += sum(piece.count for piece in engine.run().slices)
    msg_ids = [format_msg_id(peer, seq) for seq in range(N_TASKS)]
    status: list[str | None] = [None]
    for attempt in range(1000):
        wire.send(other, m.Request(attempt, m.FetchResults(msg_ids, status_only=True)))
        reply, _ = wire.receive(other, m.Reply)
        records = msgspec.msgpack.decode(reply.content)
        status = [records[msg_id]["status"] for msg_id in msg_ids]
        if None not in status:
            break
    assert status == ["ok"] * N_TASKS

    kinds = []
    while True:
        message, _ = wire.receive(client, m.Message)
        kinds.append(type(message))
        if isinstance(message, m.Closing):
            break
    assert "1 MiB" in message.reason
    assert kinds.count(m.Results) < N_TASKS
