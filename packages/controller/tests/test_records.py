"""What a real controller records, and who gets it back; over real sockets."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.blobs import BlobStore
from ipyfleet_protocol.codec import decode_part, encode_part
from ipyfleet_protocol.ids import format_msg_id, parse_msg_id
from ipyfleet_testing.waiting import wait_until


@contextmanager
def _connected(wire: Any, process: Any) -> Iterator[Any]:
    dealers = wire.Dealers(process.info())
    try:
        yield dealers
    finally:
        dealers.close()


def _ask(wire: Any, client: Any, question: Any) -> tuple[Any, list[bytes]]:
    """Return the content of the reply and its frames."""
    wire.send(client, m.Request(1, question))
    reply, frames = wire.receive(client, m.Reply)
    assert reply.error is None, reply.error
    return msgspec.msgpack.decode(reply.content, strict=False), frames


def _run(wire: Any, engine: Any, client: Any, first: int, count: int) -> list[str]:
    """Submit tasks, let the engine run them, wait for the results; return their ids."""
    group, frames = wire.make_group(first, count)
    wire.send(client, m.Submit([group]), *frames.function, *frames.payload)
    n_done = 0
    ids = []
    while n_done < count:
        message = engine.run()
        n_done += sum(piece.count for piece in message.slices)
        peer = message.slices[0].client
        ids = [format_msg_id(peer, first + i) for i in range(count)]
        wire.receive(client, m.Results)
    return ids


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_results_outlive_client_and_controller(
    start: Any, wire: Any, backend: str, request: pytest.FixtureRequest
) -> None:
    """After the client is gone, and again after the controller was killed and restarted, records
    and results are there for anybody; the file is private.
    """
    arguments = []
    if backend == "postgresql":
        server = request.getfixturevalue("postgres_server")
        request.addfinalizer(server.drop_schemas)
        arguments = ["--postgresdb", f"--db-url={server.url}"]
    first = start(*arguments)
    with _connected(wire, first) as dealers:
        client, _ = dealers.client()
        engine = dealers.engine()
        ids = _run(wire, engine, client, 0, 3)
        wire.send(client, m.Goodbye())
        other, _ = dealers.client()
        records, frames = _ask(wire, other, m.FetchResults(ids))
        assert [records[i]["status"] for i in ids] == ["ok"] * 3
        assert frames == [b"0", b"1", b"2"]
        # The answer came after everything was committed, so this loses nothing.
        first.popen.kill()
        first.popen.wait(timeout=30)
    if backend == "sqlite":
        path = first.profile / "ipyfleet-tasks.db"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = start(*arguments)
    with _connected(wire, second) as dealers:
        client, _ = dealers.client()
        records, frames = _ask(wire, client, m.FetchResults([*ids, "unknown"]))
        assert records["unknown"] is None
        assert [records[i]["result"] for i in ids] == ["kept"] * 3
        assert frames == [b"0", b"1", b"2"]
        more = _run(wire, dealers.engine(), client, 7, 1)
        assert _ask(wire, client, m.TaskHistory())[0] == [*ids, *more]
        assert _ask(wire, client, m.PurgeRecords())[0] == 4
    assert second.stop() == (0, "")
    if backend == "sqlite":
        assert not path.exists()


def test_tasks_may_depend_on_those_of_an_earlier_controller(start: Any, wire: Any) -> None:
    """What only the records know counts for `after`; its engine, which is gone, is no place to
    follow to, though another one has its number. What nobody knows is invalid.
    """
    first = start()
    with _connected(wire, first) as dealers:
        client, _ = dealers.client()
        ids = _run(wire, dealers.engine(), client, 0, 3)
        _ask(wire, client, m.FetchResults(ids))
        first.popen.kill()
        first.popen.wait(timeout=30)
    second = start()
    peer, _ = parse_msg_id(ids[0])
    with _connected(wire, second) as dealers:
        client, _ = dealers.client()
        engine = dealers.engine()
        old = m.Dependency([m.TaskRange(peer, 0, 3)])
        wrong = m.Dependency([m.TaskRange(peer, 2, 2)])
        expected = {0: "", 1: "ImpossibleDependency", 2: "InvalidDependency"}
        for seq, options in enumerate(({"after": old}, {"follow": old}, {"after": wrong})):
            group, frames = wire.make_group(seq, 1, **options)
            wire.send(client, m.Submit([group]), *frames.function, *frames.payload)
            if not seq:
                engine.run()
            message, (payload,) = wire.receive(client, m.Results)
            assert message.slices[0].first == seq
            ename = decode_part(payload, m.ErrorInfo).ename if message.slices[0].status[0] else ""
            assert ename == expected[seq]


def test_results_in_shared_memory_are_kept_although_the_client_removes_them(
    start: Any, wire: Any
) -> None:
    """A blob's content is recorded; one that is too large is not, and its record says so."""
    process = start("--IPController.db_result_bytes=400000")
    with _connected(wire, process) as dealers:
        client, welcome = dealers.client()
        engine = dealers.engine()
        ids = []
        for seq, size in enumerate((300_000, 500_000)):
            group, frames = wire.make_group(seq, 1)
            wire.send(client, m.Submit([group]), *frames.function, *frames.payload)
            tasks, _ = wire.receive(engine.task, m.RunTasks)
            [piece] = tasks.slices
            ids.append(format_msg_id(piece.client, seq))
            with BlobStore(Path(welcome.blob_dir), engine.peer) as store:
                handle = store.put(b"x" * size)
                assert handle is not None
                columns = m.Columns(b"\1\0\0\0", b"\1\0\0\0", b"\1")
                result = m.ResultSlice(
                    seq, 1, 0, piece.ordinal, b"\0", bytes(8), bytes(8), b"", columns
                )
                message = m.Results(piece.client, 0, [result])
                wire.send(engine.task, message, b"r", encode_part(handle))
                wire.receive(client, m.Results)
            # The store is closed, so the name is gone.
        records, frames = _ask(wire, client, m.FetchResults(ids))
        assert [records[i]["result"] for i in ids] == ["kept", "too large"]
        assert [len(frame) for frame in frames] == [1, 300_000]


@pytest.mark.parametrize("flag", ["--dictdb", "--db=memory", "--IPController.db_class=DictDB"])
def test_records_in_memory_leave_no_file(start: Any, wire: Any, flag: str) -> None:
    """The flag that users know, and others for the same."""
    process = start(flag)
    with _connected(wire, process) as dealers:
        client, _ = dealers.client()
        engine = dealers.engine()
        ids = _run(wire, engine, client, 0, 2)
        assert _ask(wire, client, m.TaskHistory())[0] == ids
    assert process.stop() == (0, "")
    assert not list(process.profile.glob("*.db*"))


def test_without_records_work_goes_on_and_questions_are_refused(start: Any, wire: Any) -> None:
    """With --nodb tasks run; who asks for records is told why there are none."""
    process = start("--nodb")
    with _connected(wire, process) as dealers:
        client, _ = dealers.client()
        engine = dealers.engine()
        _run(wire, engine, client, 0, 2)
        wire.send(client, m.Request(1, m.TaskHistory()))
        reply, _ = wire.receive(client, m.Reply)
        assert reply.error.ename == "KeyError"
        assert "--nodb" in reply.error.evalue
    assert process.stop() == (0, "")


def test_an_unknown_database_is_told_in_one_line(start: Any) -> None:
    """The controller does not start, and names what there is."""
    process = start("--db=oracle")
    assert process.popen.wait(timeout=30) == 1
    _, stderr = process.stop()
    assert stderr.count("\n") == 1
    assert "sqlite, memory, postgresql, none" in stderr


def test_work_goes_on_while_the_database_does_not(start: Any, wire: Any) -> None:
    """With the file locked by somebody else, tasks are placed and answered, the queue's status
    tells of it; later all is recorded.
    """
    process = start()
    with _connected(wire, process) as dealers:
        client, _ = dealers.client()
        engine = dealers.engine()
        ids = _run(wire, engine, client, 0, 1)
        assert _ask(wire, client, m.TaskHistory())[0] == ids
        assert "database" not in _ask(wire, client, m.QueueStatus())[0]
        path = process.profile / "ipyfleet-tasks.db"
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            ids += _run(wire, engine, client, 1, 2)

            def trouble() -> str:
                status = _ask(wire, client, m.QueueStatus())[0]
                return str(status.get("database", {}).get("trouble", ""))

            wait_until(lambda: "locked" in trouble())
            ids += _run(wire, engine, client, 3, 2)
            other.execute("ROLLBACK")
        finally:
            other.close()
        wait_until(lambda: not trouble())
        assert _ask(wire, client, m.TaskHistory())[0] == ids
    code, stderr = process.stop()
    assert code == 0
    assert "locked" in stderr


def test_a_corrupt_file_does_not_keep_the_controller_from_working(start: Any, wire: Any) -> None:
    """It is set aside under another name."""
    first = start()
    first.info()
    first.stop()
    path = first.profile / "ipyfleet-tasks.db"
    path.write_bytes(b"nonsense" * 1000)
    second = start()
    with _connected(wire, second) as dealers:
        client, _ = dealers.client()
        engine = dealers.engine()
        ids = _run(wire, engine, client, 0, 2)
        assert _ask(wire, client, m.TaskHistory())[0] == ids
    code, stderr = second.stop()
    assert code == 0
    assert "corrupt" in stderr
    [aside] = first.profile.glob("ipyfleet-tasks.db.corrupt-*")
    assert aside.read_bytes() == b"nonsense" * 1000


def test_the_status_lists_ended_tasks_if_asked(start: Any, wire: Any) -> None:
    """A verbose queue status has what an engine has completed, from the records."""
    process = start()
    with _connected(wire, process) as dealers:
        client, _ = dealers.client()
        engine = dealers.engine()
        ids = _run(wire, engine, client, 0, 2)
        status, _ = _ask(wire, client, m.QueueStatus(verbose=True))
        assert status[0] == {"queue": [], "completed": ids, "tasks": []}
