"""What every task database does; run on each backend."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ipyfleet_controller.database.base import FIELDS, GroupEntry, PendingError, ResultsEntry
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.database.query import QueryError
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import PayloadWriter, float64_column
from ipyfleet_protocol.ids import PeerId, format_msg_id

CLIENT = PeerId(b"c" * 16)


def _id(seq: int) -> str:
    return format_msg_id(CLIENT, seq)


def _group(first: int, count: int, **changes: Any) -> GroupEntry:
    fields: dict[str, Any] = {
        "label": "", "method": "apply", "placement": "balanced", "name": "f", "submitted": 1000.0
        + first,
    }  # fmt: skip
    return GroupEntry(CLIENT, first, count, **(fields | changes))


def _results(first: int, statuses: list[int], engine_id: int = 0) -> ResultsEntry:
    writer = PayloadWriter()
    for i, status in enumerate(statuses):
        error = m.ErrorInfo("ValueError", f"no {first + i}", ["line"])
        writer.append(b"r%d" % (first + i) if status == m.OK else encode_part(error))
    columns, frames = writer.finish()
    count = len(statuses)
    started = float64_column(2000.0 + first + i for i in range(count))
    completed = float64_column(3000.0 + first + i for i in range(count))
    return ResultsEntry(
        CLIENT, first, count, engine_id, "ee", bytes(statuses), started, completed, 4000.0,
        columns, frames,
    )  # fmt: skip


@pytest.fixture(params=[MemoryDatabase])
def database(request: pytest.FixtureRequest) -> Any:
    """A database with six tasks: 0 … 3 ended, 2 with an error, 4 and 5 pending."""
    database = request.param()
    database.write([_group(0, 4, label="group_a/x"), _group(4, 2, label="b", placement="direct")])
    database.write([_results(0, [m.OK]), _results(2, [m.FAILED, m.OK], 1), _results(1, [m.OK])])
    yield database
    database.close()


def test_a_record_has_all_fields(database: Any) -> None:
    """A record has exactly the documented fields, None for what is not yet."""
    done, pending = database.get(_id(2)), database.get(_id(5))
    assert done.keys() == pending.keys() == FIELDS.keys()
    assert (done["started"], done["completed"], done["engine_id"]) == (2002.0, 3002.0, 1)
    assert done["error"] == {"ename": "ValueError", "evalue": "no 2", "traceback": ["line"]}
    assert (pending["status"], pending["completed"], pending["queue"]) == (None, None, "mux")
    assert database.get("nonsense") is None
    assert database.get(_id(6)) is None


def test_results_come_back(database: Any) -> None:
    """The payload of an ended task is found in whatever message brought it."""
    assert [database.result(_id(seq)).frames for seq in (0, 1, 3)] == [[b"r0"], [b"r1"], [b"r3"]]
    assert database.result(_id(4)) is None


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"completed": None}, [4, 5]),
        ({"completed": {"$ne": None}}, [0, 1, 2, 3]),
        ({"completed": {"$exists": False}}, [4, 5]),
        ({"seq": {"$lt": 2}}, [0, 1]),
        ({"seq": {"$gt": 1, "$lte": 3}}, [2, 3]),
        ({"started": {"$gte": 2003.0}}, [3]),
        ({"started": {"$gte": datetime.fromtimestamp(2003.0, UTC)}}, [3]),
        ({"status": "error"}, [2]),
        ({"status": {"$eq": "ok"}, "engine_id": 0}, [0, 1]),
        ({"seq": {"$in": [1, 5, 9]}}, [1, 5]),
        ({"status": {"$nin": ["ok", None]}}, [2]),
        ({"label": {"$glob": "group_a/*"}}, [0, 1, 2, 3]),
        ({"label": {"$all": ["group", "x"]}}, [0, 1, 2, 3]),
        ({"seq": {"$mod": [2, 1]}}, [1, 3, 5]),
    ],
)
def test_queries_find_what_they_ask_for(database: Any, query: Any, seqs: list[int]) -> None:
    """Each operator, and None as "not yet"."""
    assert [record["seq"] for record in database.find(query, ["seq"])] == seqs


@pytest.mark.parametrize(
    "query", [{"colour": 1}, {"seq": {"$le": 1}}, {"seq": {"$lt": "a"}}, {"seq": {"$mod": 0}}, 7]
)
def test_a_wrong_query_says_what_is_wrong(database: Any, query: Any) -> None:
    """An unknown field, operator or argument is an error of its own, not an empty answer."""
    with pytest.raises(QueryError):
        database.find(query)


def test_keys_choose_fields_and_msg_id_is_always_there(database: Any) -> None:
    """`keys` bounds what comes back."""
    assert database.find({"seq": 0}, ["label"]) == [{"msg_id": _id(0), "label": "group_a/x"}]


def test_history_is_in_the_order_of_submission(database: Any) -> None:
    """All msg_ids, oldest first."""
    assert database.history() == [_id(seq) for seq in range(6)]


def test_purging_drops_ended_tasks_only(database: Any) -> None:
    """Named tasks, those of an engine, or all that ended; a pending or unknown one stops it."""
    with pytest.raises(PendingError):
        database.purge([_id(0), _id(4)])
    with pytest.raises(KeyError):
        database.purge([_id(0), _id(77)])
    assert database.get(_id(0)) is not None
    assert database.purge([_id(0)]) == 1
    assert database.get(_id(0)) is None
    assert database.purge(engine_ids=[1]) == 2
    assert database.purge() == 1
    assert database.history() == [_id(4), _id(5)]


def test_the_oldest_ended_groups_go_first_and_live_ones_stay() -> None:
    """Above a bound ended groups are dropped, never a pending one."""
    database = MemoryDatabase(max_records=20)
    database.write([_group(0, 15)])
    for first in range(15, 65, 10):
        database.write([_group(first, 10), _results(first, [m.OK] * 10)])
    assert database.history()[:15] == [_id(seq) for seq in range(15)]
    assert database.statistics()["culled"] == 50
    database.write([_results(0, [m.OK] * 15)])
    assert len(database.history()) == 15
    small = MemoryDatabase(max_bytes=100)
    small.write([_group(0, 10), _results(0, [m.OK] * 10)])
    assert small.statistics() == {"records": 0, "bytes": 0, "culled": 10}
