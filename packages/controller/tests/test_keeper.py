"""The database's thread: what it does when the database does not."""

from __future__ import annotations

import select
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ipyfleet_controller.database.base import (
    BadEntry,
    DatabaseUnavailable,
    GroupEntry,
    ResultsEntry,
    TaskDatabase,
)
from ipyfleet_controller.database.keeper import RecordKeeper
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.database.sqlite import SQLiteDatabase
from ipyfleet_protocol.columns import PayloadWriter, float64_column
from ipyfleet_protocol.ids import PeerId, format_msg_id
from ipyfleet_testing.waiting import wait_until

CLIENT = PeerId(b"c" * 16)


def _group(first: int, count: int = 1) -> GroupEntry:
    return GroupEntry(CLIENT, first, count, "", "apply", "balanced", "f", time.time())


def _results(first: int, content: bytes = b"r", count: int = 1) -> ResultsEntry:
    writer = PayloadWriter()
    writer.extend([content] * count)
    columns, frames = writer.finish()
    now = float64_column([time.time()] * count)
    received = time.time()
    return ResultsEntry(
        CLIENT, first, count, 0, "ee", bytes(count), now, now, received, columns, frames
    )


class FaultyDatabase(MemoryDatabase):
    """Fails or blocks as told."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.bad: set[int] = set()

    def write(self, entries: Sequence[GroupEntry | ResultsEntry]) -> None:
        """Write, block, or fail."""
        self.gate.wait(20)
        if self.trouble is not None:
            raise self.trouble
        if any(entry.first in self.bad for entry in entries):
            raise BadEntry("cannot be stored")
        super().write(entries)


@pytest.fixture
def start() -> Iterator[Callable[..., RecordKeeper]]:
    """Starts keepers; they are closed at the end."""
    keepers: list[RecordKeeper] = []

    def start(database: Any, **options: Any) -> RecordKeeper:
        make = database if callable(database) else lambda: database
        keepers.append(RecordKeeper(make, **options))
        keepers[-1].start()
        return keepers[-1]

    yield start
    for keeper in keepers:
        keeper.close(10)


def _put(keeper: RecordKeeper, *entries: GroupEntry | ResultsEntry) -> None:
    n_bytes = 0
    for entry in entries:
        n_bytes += 100
        if isinstance(entry, ResultsEntry):
            n_bytes += sum(map(len, entry.frames))
    keeper.put(lambda: entries, n_bytes)


def _ask(keeper: RecordKeeper, work: Callable[[TaskDatabase], Any]) -> Any:
    answers: list[Any] = []
    keeper.ask(work, answers.append)
    deadline = time.monotonic() + 10
    while not answers:
        assert select.select([keeper.fd], [], [], max(0, deadline - time.monotonic()))[0]
        keeper.deliver()
    assert len(answers) == 1
    return answers[0]


def _history(database: TaskDatabase) -> list[str]:
    return database.history()


def test_a_question_sees_all_that_was_handed_over_before(start: Any) -> None:
    """Questions and entries are taken in order."""
    keeper = start(MemoryDatabase())
    for seq in range(50):
        _put(keeper, _group(seq))
        assert len(_ask(keeper, _history)) == seq + 1
    assert keeper.waiting_bytes == 0
    assert keeper.is_well


def test_an_error_of_a_question_is_its_answer(start: Any) -> None:
    """An exception comes back, and the thread goes on."""
    keeper = start(MemoryDatabase())
    error = _ask(keeper, lambda database: database.purge(["nonsense"]))
    assert isinstance(error, KeyError)
    assert _ask(keeper, _history) == []


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    """What was handed over before the end is in the file after it."""
    database = SQLiteDatabase(tmp_path / "tasks.db")
    keeper = RecordKeeper(lambda: database)
    keeper.start()
    _put(keeper, _group(0), _results(0))
    keeper.close(10)
    again = SQLiteDatabase(tmp_path / "tasks.db")
    [record] = again.find({})
    assert record["status"] == "ok"
    again.close()


def test_nothing_is_done_when_nothing_is_to_be_done(start: Any) -> None:
    """An idle thread takes no processor time."""
    keeper = start(MemoryDatabase())
    _put(keeper, _group(0))
    _ask(keeper, _history)
    before = time.process_time()
    select.select([keeper.fd], [], [], 0.3)
    assert time.process_time() - before < 0.02


def test_a_slow_database_costs_results_first_then_records(start: Any) -> None:
    """While the database is stuck, handing over returns at once, what waits is bounded, and what
    is missed is counted.
    """
    database = FaultyDatabase()
    keeper = start(database, max_bytes=100_000)
    _put(keeper, *[_group(seq) for seq in range(100)])
    assert len(_ask(keeper, _history)) == 100
    database.gate.clear()
    began = time.monotonic()
    for seq in range(100):
        _put(keeper, _results(seq, bytes(10_000)))
        assert keeper.waiting_bytes <= 125_000
    for seq in range(1000, 1200):
        _put(keeper, _group(seq))
    assert time.monotonic() - began < 10  # the database is stuck for twice that
    status = keeper.status()
    assert 80 <= status["missed_results"] < 100
    assert 200 <= status["missed_records"] < 220
    database.gate.set()
    records = _ask(keeper, lambda db: db.find({"seq": {"$lt": 1000}}))
    assert [record["status"] for record in records].count("ok") >= 80
    missed = [record["seq"] for record in records if record["result"] == "missed"]
    assert len(missed) == status["missed_results"]
    assert not keeper.is_well
    _put(keeper, _group(5000), _results(5000))
    assert _ask(keeper, lambda db: db.get(format_msg_id(CLIENT, 5000)))["result"] == "kept"


def test_what_failed_is_written_when_the_database_is_back(start: Any) -> None:
    """A failure is told while it lasts, and nothing is lost by it if there is room to wait."""
    database = FaultyDatabase()
    database.trouble = DatabaseUnavailable("it is locked")
    keeper = start(database)
    _put(keeper, _group(0), _results(0))
    wait_until(lambda: keeper.status()["trouble"] == "it is locked")
    assert _ask(keeper, _history) == []
    database.trouble = None
    wait_until(lambda: keeper.is_well and not keeper.waiting_bytes)
    assert len(_ask(keeper, _history)) == 1


def test_an_entry_that_cannot_be_stored_costs_itself_only(start: Any) -> None:
    """Of a batch with a bad entry, the others are written; the bad one is counted."""
    database = FaultyDatabase()
    database.bad = {1}
    keeper = start(database)
    _put(keeper, _group(0), _group(1), _group(2))
    assert _ask(keeper, _history) == [format_msg_id(CLIENT, seq) for seq in (0, 2)]
    assert keeper.status()["missed_records"] == 1


def test_a_backend_that_cannot_be_made_ends_nothing(start: Any) -> None:
    """Where a library is missing, questions are answered with the error."""

    def make() -> TaskDatabase:
        raise ImportError("there is no such library")

    keeper = start(make, max_bytes=1000)
    for seq in range(100):
        _put(keeper, _group(seq))
    assert isinstance(_ask(keeper, _history), ImportError)
    assert "no such library" in keeper.status()["trouble"]


# -- faults of SQLite, real ones --------------------------------------------------------------


def test_a_locked_file_is_waited_for(start: Any, tmp_path: Path) -> None:
    """While another process holds the lock entries wait and questions are answered; then they are
    written.
    """
    path = tmp_path / "tasks.db"
    keeper = start(SQLiteDatabase(path))
    _put(keeper, _group(0))
    assert len(_ask(keeper, _history)) == 1
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        _put(keeper, _group(1))
        wait_until(lambda: "locked" in keeper.status()["trouble"])
        assert len(_ask(keeper, _history)) == 1
        other.execute("ROLLBACK")
        wait_until(lambda: not keeper.waiting_bytes)
        assert len(_ask(keeper, _history)) == 2
    finally:
        other.close()


def test_a_corrupt_file_is_set_aside(start: Any, tmp_path: Path) -> None:
    """What is no database is renamed, not deleted, and recording goes on in a new file."""
    path = tmp_path / "tasks.db"
    path.write_bytes(b"this is no database" * 1000)
    keeper = start(SQLiteDatabase(path))
    _put(keeper, _group(0), _results(0))
    assert len(_ask(keeper, _history)) == 1
    [aside] = tmp_path.glob("tasks.db.corrupt-*")
    assert aside.read_bytes() == b"this is no database" * 1000
    assert not keeper.status()["trouble"]


def test_a_file_that_gets_corrupt_is_set_aside_and_live_groups_go_on(
    start: Any, tmp_path: Path
) -> None:
    """Groups that have not ended get into the new file; what had ended of them is gone."""
    path = tmp_path / "tasks.db"
    keeper = start(SQLiteDatabase(path))
    _put(keeper, _group(0, 3), _group(3, 1), _results(3), _results(1))
    assert len(_ask(keeper, _history)) == 4
    # With its page cache, an open connection may not notice for long; a new one does.
    _ask(keeper, lambda database: database.close())
    content = bytearray(path.read_bytes())
    content[100:] = bytes(len(content) - 100)
    path.write_bytes(content)
    _put(keeper, _results(0), _results(2))
    records = _ask(keeper, lambda database: database.find({}))
    assert [(record["seq"], record["status"]) for record in records] == [(0, "ok"), (2, "ok")]
    assert len(list(tmp_path.glob("tasks.db.corrupt-*"))) >= 1


def test_a_file_that_is_removed_is_made_anew(start: Any, tmp_path: Path) -> None:
    """Records do not go to a file that nobody can find."""
    path = tmp_path / "tasks.db"
    keeper = start(SQLiteDatabase(path))
    _put(keeper, _group(0), _group(1))
    assert len(_ask(keeper, _history)) == 2
    for file in tmp_path.glob("tasks.db*"):
        file.unlink()
    _put(keeper, _results(0))
    assert len(_ask(keeper, _history)) == 2
    assert path.exists()
    assert _ask(keeper, lambda database: database.find({"status": "ok"}, ["seq"]))[0]["seq"] == 0


def test_a_full_file_makes_room(start: Any, tmp_path: Path) -> None:
    """When the file may not grow, the oldest ended groups go, and what is new is recorded."""

    class SmallDatabase(SQLiteDatabase):
        def write(self, entries: Sequence[GroupEntry | ResultsEntry]) -> None:
            with self._connected() as connection:
                connection.run("PRAGMA max_page_count = 100")
            super().write(entries)

    keeper = start(SmallDatabase(tmp_path / "tasks.db"))
    for seq in range(20):
        _put(keeper, _group(seq), _results(seq, bytes(50_000)))
        record = _ask(keeper, lambda database, seq=seq: database.get(format_msg_id(CLIENT, seq)))
        assert record is not None
        assert record["status"] == "ok"
    assert keeper.status()["culled"] > 0
    assert keeper.status()["missed_records"] == 0


def test_a_full_disk_ends_nothing(start: Any, tmp_path: Path) -> None:
    """Where nothing can be dropped to make room, it is told and tried again."""

    class FullDatabase(SQLiteDatabase):
        is_full = True

        def write(self, entries: Sequence[GroupEntry | ResultsEntry]) -> None:
            with self._connected() as connection:
                number = 30 if self.is_full else 1_000_000
                connection.run(f"PRAGMA max_page_count = {number}")
            super().write(entries)

    database = FullDatabase(tmp_path / "tasks.db")
    keeper = start(database, max_bytes=1_000_000)
    _put(keeper, _group(0))
    for _ in range(20):
        _put(keeper, _results(0, bytes(200_000)))
    wait_until(lambda: "full" in keeper.status()["trouble"])
    assert keeper.waiting_bytes <= 1_250_000
    database.is_full = False
    wait_until(lambda: not keeper.waiting_bytes)
    assert _ask(keeper, _history) == [format_msg_id(CLIENT, 0)]


def test_a_read_only_place_is_told(start: Any, tmp_path: Path) -> None:
    """Where no file can be made, questions are answered with the reason."""
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    keeper = start(SQLiteDatabase(blocked / "tasks.db"))
    _put(keeper, _group(0))
    error = _ask(keeper, _history)
    assert isinstance(error, DatabaseUnavailable)
    assert str(blocked) in str(error)


def test_the_file_is_private_and_an_empty_one_is_not_left(tmp_path: Path) -> None:
    """The file and its companions have rights 0600; one without records goes at the end."""
    path = tmp_path / "tasks.db"
    database = SQLiteDatabase(path)
    database.write([_group(0), _results(0)])
    files = list(tmp_path.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    database.purge()
    database.close()
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_failed_halfway_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Writing it again after the failure records all of it, once."""
    database = SQLiteDatabase(tmp_path / "tasks.db")
    database.write([_group(0, 4), _results(1)])
    other = sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        batch = [_group(4, 2), _results(0), _results(4), _results(2, count=2)]
        with pytest.raises(DatabaseUnavailable):
            database.write(batch)
        other.execute("ROLLBACK")
    finally:
        other.close()
    database.write(batch)
    statuses = [record["status"] for record in database.find({})]
    assert statuses == ["ok"] * 5 + [None]
    assert database.statistics()["records"] == 6
    database.close()


def test_a_server_that_is_gone_is_connected_anew(start: Any, own_postgres_server: Any) -> None:
    """While PostgreSQL is stopped questions are refused and entries wait; then all is written."""
    from ipyfleet_controller.database.postgresql import PostgreSQLDatabase

    keeper = start(PostgreSQLDatabase(own_postgres_server.url, "gone"))
    _put(keeper, _group(0, 2), _results(0))
    assert len(_ask(keeper, _history)) == 2
    own_postgres_server.stop()
    try:
        _put(keeper, _results(1))
        wait_until(lambda: keeper.status()["trouble"])
        assert isinstance(_ask(keeper, _history), DatabaseUnavailable)
    finally:
        own_postgres_server.start()
    wait_until(lambda: not keeper.waiting_bytes)
    records = _ask(keeper, lambda database: database.find({}))
    assert [record["status"] for record in records] == ["ok", "ok"]


def test_a_schema_has_one_controller(postgres_server: Any) -> None:
    """A second one is refused while the first is there, and not right after its end."""
    from ipyfleet_controller.database.postgresql import PostgreSQLDatabase

    first = PostgreSQLDatabase(postgres_server.url, "one")
    first.open()
    second = PostgreSQLDatabase(postgres_server.url, "one")
    with pytest.raises(DatabaseUnavailable, match="another controller"):
        second.open()
    first.close()
    second.open()
    second.close()
    postgres_server.drop_schemas()


def test_entries_that_cannot_be_made(start: Any) -> None:
    """They are counted as missed; what comes later is written, and questions are answered."""

    def fail() -> list[GroupEntry]:
        raise MemoryError("no room for a copy of its buffers")

    keeper = start(MemoryDatabase())
    keeper.put(fail, 1000)
    _put(keeper, _group(1))
    assert _ask(keeper, _history) == [format_msg_id(CLIENT, 1)]
    wait_until(lambda: not keeper.waiting_bytes)
    assert not keeper.is_well
    assert keeper.status()["missed_records"] == 1


def test_entries_that_cannot_be_made_when_too_much_waits(start: Any) -> None:
    """The loop, which makes them then, notices nothing."""

    def fail() -> list[GroupEntry]:
        raise MemoryError("no room for a copy of its buffers")

    keeper = start(MemoryDatabase(), max_bytes=100)
    keeper.put(fail, 1000)
    assert _ask(keeper, _history) == []
    assert keeper.status()["missed_records"] == 1
    assert keeper.waiting_bytes == 0


def test_an_answer_that_nobody_can_take(start: Any) -> None:
    """It is in nobody's way."""

    def fail(answer: object) -> None:
        raise OverflowError("more than fits into a message")

    keeper = start(MemoryDatabase())
    keeper.ask(_history, fail)
    assert _ask(keeper, _history) == []
