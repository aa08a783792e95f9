"""What every task database does with output and with what is known of an `execute`; each test runs
on each backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ipyfleet_controller.database.base import GroupEntry, ResultsEntry, TaskDatabase
from ipyfleet_controller.database.conditions import pack_conditions
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.database.output import (
    TASK_BYTES,
    OutputEntry,
    output_entry,
    resubmission_entry,
)
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.columns import PayloadWriter, float64_column
from ipyfleet_protocol.ids import PeerId, format_msg_id

CLIENT = PeerId(b"c" * 16)
OTHER = PeerId(b"d" * 16)

Make = Callable[..., TaskDatabase]


@pytest.fixture
def make(make_database: Make) -> Make:
    """Makes databases of one backend."""
    return make_database


def _id(seq: int) -> str:
    return format_msg_id(CLIENT, seq)


def _group(first: int, count: int, **changes: Any) -> GroupEntry:
    fields = {"label": "", "method": "apply", "placement": "balanced", "name": "f"}
    return GroupEntry(CLIENT, first, count, submitted=1000.0, **(fields | changes))


def _results(first: int, count: int) -> ResultsEntry:
    """Return that tasks have ended well."""
    writer = PayloadWriter()
    for _ in range(count):
        writer.append(b"r", [])
    columns, frames = writer.finish()
    times = float64_column([2000.0] * count)
    return ResultsEntry(
        CLIENT, first, count, 0, "ee", bytes([m.OK] * count), times, times, 4000.0, columns,
        frames, "",
    )  # fmt: skip


def _output(*items: tuple[int, int, str, bytes], client: PeerId = CLIENT) -> OutputEntry:
    message = m.Output(client, 0, [m.OutputItem(*item) for item in items])
    return output_entry(message, [])


def test_output_is_in_the_records(make: Make) -> None:
    """Text in fields, in the order in which it was made; everything with a task's result."""
    database = make()
    database.write([_group(0, 3)])
    database.write([_output((1, 1, "stdout", b"b\n"), (0, 0, "stdout", "ö".encode()))])
    database.write([_output((1, 0, "stdout", b"a\n"), (1, 2, "stderr", b"e\xff"))])
    database.write([_results(0, 2)])
    display = m.OutputItem(2, 0, "data", b"content", 2)
    database.write([output_entry(m.Output(CLIENT, 0, [display]), [b"one", b"two"])])
    records = database.find({}, ["stdout", "stderr"])
    assert [(r["stdout"], r["stderr"]) for r in records] == [
        ("ö", ""),
        ("a\nb\n", "e\N{REPLACEMENT CHARACTER}"),
        ("", ""),
    ]
    record = database.get(_id(1))
    assert record is not None
    assert record["stdout"] == "a\nb\n"
    assert [item.index for item in database.outputs(_id(1))] == [0, 1, 2]
    [shown] = database.outputs(_id(2))
    assert (shown.kind, shown.content, shown.buffers) == ("data", b"content", [b"one", b"two"])
    assert [r["seq"] for r in database.find({"stdout": {"$glob": "a*"}})] == [1]
    assert database.outputs(_id(9)) == []


def test_output_of_a_task_may_come_after_its_groups_end(make: Make) -> None:
    """It is recorded; that of unknown tasks is ignored; what comes twice counts once."""
    database = make()
    database.write([_group(0, 1), _results(0, 1)])
    late = _output((0, 0, "stdout", b"late"))
    database.write([late, _output((7, 0, "stdout", b"whose?"), client=OTHER)])
    database.write([late])
    assert [r["stdout"] for r in database.find({})] == ["late"]


def test_output_is_bounded(make: Make) -> None:
    """Of what is over the bound the size is kept, which counts; it goes with its group."""
    database = make()
    database.write([_group(0, 1)])
    chunk = b"x" * (TASK_BYTES // 2)
    database.write([_output(*[(0, index, "stdout", chunk) for index in range(4)])])
    items = database.outputs(_id(0))
    assert [len(item.content) for item in items] == [len(chunk), 0, 0, 0]
    assert sum(item.dropped_bytes for item in items) == 3 * len(chunk)
    assert database.statistics()["bytes"] >= len(chunk)
    database.write([_results(0, 1)])
    assert database.purge() == 1
    assert database.statistics()["bytes"] == 0
    assert database.outputs(_id(0)) == []


def test_output_outlives_the_process_where_records_do(make: Make) -> None:
    """The next run has it, and adds to it."""
    database = make()
    if isinstance(database, MemoryDatabase):
        pytest.skip("records in memory end with the process")
    database.write([_group(0, 2), _output((0, 0, "stdout", b"before, "))])
    database.close()
    database = make(again=True)
    database.write([_output((0, 1, "stdout", b"after"))])
    record = database.get(_id(0))
    assert record is not None
    assert record["stdout"] == "before, after"


def test_code_is_recorded_and_can_be_searched(make: Make) -> None:
    """The code of an `execute` is in the record, cut where it is long; others have None there."""
    database = make()
    code = pack_conditions(m.Options("execute"), "print('ü')".encode())
    long = pack_conditions(m.Options("execute"), b"x" * 100_000)
    database.write([_group(0, 2, conditions=code), _group(2, 1), _group(3, 1, conditions=long)])
    found = database.find({"execute_input": {"$glob": "print*"}}, ["execute_input"])
    assert found == [{"msg_id": _id(seq), "execute_input": "print('ü')"} for seq in (0, 1)]
    [other, cut] = database.find({"seq": {"$gte": 2}}, ["execute_input"])
    assert other["execute_input"] is None
    assert cut["execute_input"] == "x" * 65536


def test_a_displayed_value_is_in_the_record(make: Make) -> None:
    """`execute_result` is what Jupyter's message of that name says; None where there was none."""
    database = make()
    value = {"data": {"text/plain": "5"}, "execution_count": 1, "metadata": {}}
    content = msgspec.msgpack.encode(value)
    database.write(
        [_group(0, 3), _output((0, 0, "stdout", b"x"), (0, 1, "execute_result", content))]
    )
    database.write([_output((2, 0, "execute_result", b"nonsense"))])
    values = [record["execute_result"] for record in database.find({}, ["execute_result"])]
    assert values == [value, None, None]


def test_an_old_record_names_the_last_resubmission(make: Make) -> None:
    """The link is there in all ways of asking, is no output, and goes with its record."""
    database = make()
    database.write([_group(0, 2), _results(0, 2)])
    database.write([_output((1, 0, "stdout", b"x" * 3 * TASK_BYTES))])
    for again, when in ((7, 20.0), (8, 30.0), (6, 10.0)):
        old = m.TaskRange(CLIENT, 1, 1)
        database.write([_group(again, 1), resubmission_entry(old, _id(again), when)])
    record = database.get(_id(1))
    assert record is not None and record["resubmitted"] == _id(8)
    assert [item.kind for item in database.outputs(_id(1))] == ["stdout"]
    query = {"resubmitted": {"$ne": None}}
    assert database.find(query, []) == [{"msg_id": _id(1)}]
    database.purge([_id(1)])
    assert database.find(query, []) == []
