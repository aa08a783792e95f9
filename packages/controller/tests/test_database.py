"""What every task database does; each test runs on each backend. Output has a module of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from ipyfleet_controller.database.base import (
    FIELDS,
    GONE,
    TOO_LARGE,
    GroupEntry,
    NotKept,
    PendingError,
    ResultsEntry,
    TaskDatabase,
)
from ipyfleet_controller.database.conditions import pack_conditions
from ipyfleet_controller.database.detached import DetachedGroup, load_detached
from ipyfleet_controller.database.memory import MemoryDatabase
from ipyfleet_controller.database.query import OPERATORS, QueryError
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames, encode_part
from ipyfleet_protocol.columns import PayloadWriter, float64_column
from ipyfleet_protocol.ids import PeerId, format_msg_id

CLIENT = PeerId(b"c" * 16)
OTHER = PeerId(b"d" * 16)

Make = Callable[..., TaskDatabase]


def _id(seq: int, client: PeerId = CLIENT) -> str:
    return format_msg_id(client, seq)


def _group(first: int, count: int, client: PeerId = CLIENT, **changes: Any) -> GroupEntry:
    fields: dict[str, Any] = {
        "label": "", "method": "apply", "placement": "balanced", "name": "f", "submitted": 1000.0
        + first,
    }  # fmt: skip
    return GroupEntry(client, first, count, **(fields | changes))


def _results(
    first: int,
    statuses: list[int],
    engine_id: int = 0,
    client: PeerId = CLIENT,
    received: float = 4000.0,
    buffers: list[tuple[bytes, int]] | None = None,
    loss: str = "",
) -> ResultsEntry:
    writer = PayloadWriter()
    for i, status in enumerate(statuses):
        error = m.ErrorInfo("ValueError", f"no {first + i}", ["line"])
        pickle = b"r%d" % (first + i) if status == m.OK else encode_part(error)
        writer.append(pickle, [(content, False) for content, _ in buffers or ()])
    columns, frames = writer.finish()
    if buffers:
        columns.blobs = bytes(flag for _, flag in buffers) * len(statuses)
    count = len(statuses)
    never = [math.nan if status == m.ABORTED else 0.0 for status in statuses]
    started = float64_column([2000.0 + first + i + x for i, x in enumerate(never)])
    completed = float64_column([3000.0 + first + i + x for i, x in enumerate(never)])
    return ResultsEntry(
        client, first, count, engine_id, "ee" if engine_id >= 0 else "", bytes(statuses), started,
        completed, received, columns, [] if loss else frames, loss,
    )  # fmt: skip


@pytest.fixture
def make(make_database: Make) -> Make:
    """Makes databases of one backend."""
    return make_database


@pytest.fixture
def database(make: Make) -> TaskDatabase:
    """A database with six tasks: 0 … 3 ended, 2 with an error, 4 and 5 pending."""
    database = make()
    database.write([_group(0, 4, label="group_a/x"), _group(4, 2, label="b", placement="direct")])
    database.write([_results(0, [m.OK]), _results(2, [m.FAILED, m.OK], 1), _results(1, [m.OK])])
    return database


def test_what_tasks_waited_for_is_recorded(make: Make) -> None:
    """Dependencies, timeout, retries, priority and resources are fields that can be asked for."""
    database = make()
    options = m.Options(
        after=m.Dependency([m.TaskRange(CLIENT, 0, 2), m.TaskRange(OTHER, 7, 1)]),
        follow=m.Dependency([m.TaskRange(CLIENT, 1, 1)]),
        timeout_s=1.5,
        retries=2,
        priority=-3,
        resources={"gpu": 0.5},
    )
    huge = m.Options(after=m.Dependency([m.TaskRange(OTHER, 5, 2000)]))
    database.write([_group(0, 2), _group(2, 2, conditions=pack_conditions(options))])
    database.write([_group(4, 1, conditions=pack_conditions(huge))])
    fields = ["after", "follow", "timeout", "retries", "priority", "resources"]
    plain, asked, many = (database.get(_id(seq)) for seq in (0, 3, 4))
    assert plain is not None
    assert asked is not None
    assert many is not None
    assert [plain[field] for field in fields] == [None, None, None, 0, 0, None]
    tasks = [_id(0), _id(1), _id(7, OTHER)]
    assert [asked[field] for field in fields] == [tasks, [_id(1)], 1.5, 2, -3, {"gpu": 0.5}]
    assert many["after"] == [f"{_id(5, OTHER)}..2004"]
    for query, found in (
        ({"after": {"$all": [_id(7, OTHER)]}}, [2, 3]),
        ({"after": {"$exists": True}}, [2, 3, 4]),
        ({"follow": [_id(1)]}, [2, 3]),
        ({"timeout": {"$lt": 2}}, [2, 3]),
        ({"priority": {"$lt": 0}, "retries": 2}, [2, 3]),
        ({"resources": None}, [0, 1, 4]),
        ({"resources": {"$eq": {"gpu": 0.5}}}, [2, 3]),
    ):
        assert [record["msg_id"] for record in database.find(query)] == [_id(k) for k in found]


def test_a_record_has_all_fields(database: TaskDatabase) -> None:
    """A record has exactly the documented fields, None for what is not yet."""
    done, pending = database.get(_id(2)), database.get(_id(5))
    assert done is not None and pending is not None
    assert done.keys() == pending.keys() == FIELDS.keys()
    assert (done["started"], done["completed"], done["engine_id"]) == (2002.0, 3002.0, 1)
    assert done["error"] == {"ename": "ValueError", "evalue": "no 2", "traceback": ["line"]}
    assert (pending["status"], pending["completed"], pending["queue"]) == (None, None, "mux")
    for nobody in ("nonsense", _id(6), f"{CLIENT.hex()}_00", _id(1 << 70), _id(0, OTHER)):
        assert database.get(nobody) is None
        assert database.result(nobody) is None


def test_a_task_that_never_ran_has_no_start_and_no_engine(make: Make) -> None:
    """What the controller ended itself is completed when it was received."""
    database = make()
    database.write([_group(0, 1), _results(0, [m.ABORTED], -1)])
    record = database.get(_id(0))
    assert record is not None
    assert (record["status"], record["started"], record["completed"]) == ("aborted", None, 4000.0)
    assert (record["engine_id"], record["engine_uuid"]) == (None, None)


def test_results_come_back(database: TaskDatabase) -> None:
    """The payload of an ended task is found in whatever message brought it."""
    frames = [[b"r0"], [b"r1"], [b"r3"]]
    assert [_frames(database, seq) for seq in (0, 1, 3)] == frames
    assert database.result(_id(4)) is None


def _frames(database: TaskDatabase, seq: int) -> list[bytes]:
    result = database.result(_id(seq))
    assert result is not None
    return [bytes(memoryview(frame)) for frame in result.frames]


def test_large_buffers_come_back(make: Make) -> None:
    """Each task's buffers are its own, also empty ones and those of some MiB."""
    database = make()
    large = bytes(range(256)) * 8192
    database.write([_group(0, 2), _results(0, [m.OK, m.OK], buffers=[(large, 0), (b"", 0)])])
    assert _frames(database, 1) == [b"r1", large, b""]


@pytest.mark.parametrize(("flag", "why"), [(TOO_LARGE, "too large"), (GONE, "gone")])
def test_a_result_that_was_not_kept_says_so(make: Make, flag: int, why: str) -> None:
    """A record tells why there is no result; never is a part of one handed out."""
    database = make()
    database.write(
        [
            _group(0, 3),
            _results(0, [m.OK], buffers=[(b"here", 0), (b"", flag)]),
            _results(1, [m.FAILED], loss="missed"),
        ]
    )
    records = database.find({}, ["result", "error"])
    assert [record["result"] for record in records] == [why, "missed", None]
    assert [database.result(_id(seq)) for seq in range(3)] == [None] * 3


def test_results_of_several_groups_in_one_entry_are_told_apart(make: Make) -> None:
    """An entry may go across the borders of groups and beyond what is known."""
    database = make()
    database.write([_group(0, 2, label="a"), _group(2, 3, label="b"), _results(1, [m.OK] * 9)])
    assert [r["status"] for r in database.find({})] == [None, "ok", "ok", "ok", "ok"]
    assert [_frames(database, seq) for seq in range(1, 5)] == [[b"r%d" % i] for i in range(1, 5)]


def test_what_is_told_twice_is_recorded_once(make: Make) -> None:
    """Groups and results that overlap what is known only add what is new."""
    database = make()
    database.write([_group(0, 4, label="first"), _results(1, [m.OK, m.OK])])
    database.write([_group(2, 4, label="again"), _results(0, [m.FAILED] * 6)])
    records = database.find({}, ["label", "status"])
    assert [record["label"] for record in records] == ["first"] * 4 + ["again"] * 2
    statuses = ["error", "ok", "ok", "error", "error", "error"]
    assert [record["status"] for record in records] == statuses
    assert database.statistics()["records"] == 6


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"completed": None}, [4, 5]),
        ({"completed": {"$ne": None}}, [0, 1, 2, 3]),
        ({"completed": {"$exists": False}}, [4, 5]),
        ({"seq": {"$lt": 2}}, [0, 1]),
        ({"seq": {"$gt": 1, "$lte": 3}}, [2, 3]),
        ({"seq": {"$gt": 3}}, [4, 5]),
        ({"started": {"$gte": 2003.0}}, [3]),
        ({"started": {"$gte": datetime.fromtimestamp(2003.0, UTC)}}, [3]),
        ({"submitted": {"$lt": datetime.fromtimestamp(1004.0, UTC)}}, [0, 1, 2, 3]),
        ({"submitted": 1004}, [4, 5]),
        ({"status": "error"}, [2]),
        ({"status": {"$eq": "ok"}, "engine_id": 0}, [0, 1]),
        ({"engine_id": 0, "seq": 1}, [1]),
        ({"seq": 1, "engine_id": 0, "label": "group_a/x"}, [1]),
        ({"seq": {"$in": [1, 5, 9]}}, [1, 5]),
        ({"msg_id": _id(3)}, [3]),
        ({"msg_id": {"$in": [_id(5), _id(0), "what"]}}, [0, 5]),
        ({"msg_id": {"$glob": "*_[12]"}}, [1, 2]),
        ({"client_uuid": OTHER.hex()}, []),
        ({"client_uuid": CLIENT.hex(), "status": None}, [4, 5]),
        ({"status": {"$nin": ["ok", None]}}, [2]),
        ({"label": {"$glob": "group_a/*"}}, [0, 1, 2, 3]),
        ({"label": {"$all": ["group", "x"]}}, [0, 1, 2, 3]),
        ({"seq": {"$mod": [2, 1]}}, [1, 3, 5]),
        ({"result": "kept"}, [0, 1, 2, 3]),
    ],
)
def test_queries_find_what_they_ask_for(
    database: TaskDatabase, query: Any, seqs: list[int]
) -> None:
    """Each operator, and None as "not yet"; all conditions hold, in whatever order they are."""
    assert [record["seq"] for record in database.find(query, ["seq"])] == seqs
    backwards = dict(reversed(query.items()))
    assert [record["seq"] for record in database.find(backwards, ["seq"])] == seqs


@pytest.mark.parametrize(
    "query",
    [
        {"colour": 1},
        {"seq": {"$le": 1}},
        {"seq": {"$lt": "a"}},
        {"seq": {"$mod": [0, 1]}},
        {"seq": {"$mod": 2}},
        {"label": {"$mod": [2, 1]}},
        {"label": {"$in": "group"}},
        {"label": {"$glob": 1}},
        {"label": {"$all": [1]}},
        {"error": {"$gt": 1}},
        7,
    ],
)
def test_a_wrong_query_says_what_is_wrong(make: Make, query: Any) -> None:
    """An unknown field, operator or argument is an error of its own, not an empty answer, whatever
    is in the database.
    """
    with pytest.raises(QueryError):
        make().find(query)


def test_keys_choose_fields_and_msg_id_is_always_there(database: TaskDatabase) -> None:
    """`keys` bounds what comes back."""
    assert database.find({"seq": 0}, ["label"]) == [{"msg_id": _id(0), "label": "group_a/x"}]
    with pytest.raises(QueryError):
        database.find({}, ["colour"])


def test_answers_are_copies(database: TaskDatabase) -> None:
    """Changing a record that was returned changes nothing in the database."""
    record = database.get(_id(2))
    assert record is not None
    before = record | {"error": dict(record["error"])}
    record["error"]["ename"] = record["label"] = "changed"
    assert database.get(_id(2)) == before


def test_history_is_in_the_order_of_submission(make: Make) -> None:
    """All msg_ids, oldest first, whoever submitted them."""
    database = make()
    database.write([_group(5, 2, OTHER), _group(0, 1), _group(0, 2, OTHER)])
    expected = [_id(5, OTHER), _id(6, OTHER), _id(0), _id(0, OTHER), _id(1, OTHER)]
    assert database.history() == expected
    assert [record["msg_id"] for record in database.find({})] == expected


def test_purging_drops_ended_tasks_only(database: TaskDatabase) -> None:
    """Named tasks, those of an engine, or all that ended; a pending or unknown one stops it."""
    with pytest.raises(PendingError):
        database.purge([_id(0), _id(4)])
    with pytest.raises(KeyError):
        database.purge([_id(0), _id(77)])
    assert database.get(_id(0)) is not None
    assert database.purge([_id(0), _id(0)]) == 1
    assert database.get(_id(0)) is None
    assert database.result(_id(0)) is None
    assert database.history() == [_id(seq) for seq in range(1, 6)]
    assert database.purge(engine_ids=[1]) == 2
    assert database.purge(engine_ids=[]) == 0
    assert database.purge() == 1
    assert database.history() == [_id(4), _id(5)]
    assert database.statistics()["records"] == 2
    database.write([_results(4, [m.OK, m.OK])])
    assert database.purge() == 2
    assert database.statistics() == {"records": 0, "bytes": 0, "culled": 0}


def test_the_oldest_ended_groups_go_first_and_live_ones_stay(make: Make) -> None:
    """Above a bound ended groups are dropped, never a pending one."""
    database = make(max_records=20)
    database.write([_group(0, 15)])
    for first in range(15, 65, 10):
        database.write([_group(first, 10), _results(first, [m.OK] * 10)])
        database.cull(5000.0)
    assert database.history()[:15] == [_id(seq) for seq in range(15)]
    assert database.statistics()["records"] <= 20
    assert database.statistics()["culled"] == 50
    database.write([_results(0, [m.OK] * 15)])
    database.cull(5000.0)
    assert len(database.history()) == 15


def test_bytes_are_bounded(make: Make) -> None:
    """The bound counts what results take; what is too old for it goes, what is new stays."""
    database = make(max_bytes=500_000)
    for seq in range(10):
        result = _results(seq, [m.OK], buffers=[(bytes(100_000), 0)])
        database.write([_group(seq, 1), result])
        database.cull(5000.0)
        assert database.statistics()["bytes"] <= 500_000
        assert database.result(_id(seq)) is not None
    assert database.get(_id(0)) is None


def test_age_is_bounded_and_live_groups_do_not_age(make: Make) -> None:
    """What had its last result too long ago goes; what has not ended stays, however old it is."""
    database = make(max_age_s=100.0)
    database.write([_group(0, 1), _group(1, 1), _group(2, 2)])
    database.write([_results(0, [m.OK]), _results(2, [m.OK]), _results(1, [m.OK], received=4050.0)])
    assert database.cull(4120.0) == 1
    assert database.history() == [_id(1), _id(2), _id(3)]
    assert database.cull(1e9) == 1
    assert database.history() == [_id(2), _id(3)]


def test_make_room_drops_ended_groups_only(database: TaskDatabase) -> None:
    """Where a database is full, some of what has ended makes room."""
    assert database.make_room() == 4
    assert database.history() == [_id(4), _id(5)]
    assert database.make_room() == 0


def test_records_outlive_the_process_where_they_are_kept(make: Make) -> None:
    """Another run finds records and results, takes in results of what was pending, and adds
    groups; what the clients of the earlier run tell again is not recorded twice.
    """
    database = make()
    if isinstance(database, MemoryDatabase):
        pytest.skip("records in memory end with the process")
    database.write([_group(0, 2, label="x"), _group(2, 3), _results(0, [m.OK] * 3)])
    database.close()
    again = make(again=True)
    assert [record["status"] for record in again.find({})] == ["ok"] * 3 + [None] * 2
    assert _frames(again, 1) == [b"r1"]
    again.write([_group(0, 6, label="y"), _results(0, [m.FAILED] * 6), _group(0, 1, OTHER)])
    records = again.find({"client_uuid": CLIENT.hex()}, ["label", "status"])
    assert [record["status"] for record in records] == ["ok"] * 3 + ["error"] * 3
    assert [record["label"] for record in records] == ["x", "x", "", "", "", "y"]
    assert len(again.history()) == 7


def test_what_an_earlier_run_left_pending_ages(make: Make) -> None:
    """Nobody will ever end a task of a controller that is gone for long; its record goes."""
    database = make(max_age_s=100.0)
    if isinstance(database, MemoryDatabase):
        pytest.skip("records in memory end with the process")
    database.write([_group(0, 2), _results(0, [m.OK], received=2000.0)])
    database.close()
    again = make(again=True, max_age_s=100.0)
    again.write([_group(2, 1)])
    assert again.cull(2050.0) == 0
    assert again.cull(9000.0) == 2
    assert again.history() == [_id(2)]
    again.write([_results(0, [m.OK, m.OK])])
    assert again.history() == [_id(2)]


# -- equal answers ----------------------------------------------------------------------------

_TEXTS = st.text("ab/*[]?\0é", max_size=4)
_NUMBERS = st.integers(-2, 12) | st.sampled_from([1000.0, 2003.5, 3002.0, 1e308, math.inf, 1 << 62])
_VALUES = st.none() | _TEXTS | _NUMBERS | st.booleans() | st.sampled_from(["ok", "error", "kept"])
_ENGINES = st.integers(-1, 2)


@st.composite
def _entries(draw: st.DrawFn) -> list[GroupEntry | ResultsEntry]:
    entries: list[GroupEntry | ResultsEntry] = []
    for _ in range(draw(st.integers(1, 8))):
        client = draw(st.sampled_from([CLIENT, OTHER]))
        first = draw(st.integers(0, 12))
        if draw(st.booleans()):
            placement = draw(st.sampled_from(["direct", "balanced"]))
            label, name = draw(_TEXTS), draw(_TEXTS)
            changes = {"label": label, "name": name, "placement": placement}
            changes["conditions"] = draw(st.sampled_from(_CONDITIONS))
            entries.append(_group(first, draw(st.integers(1, 6)), client, **changes))
        else:
            statuses = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
            flags = draw(st.none() | st.lists(st.sampled_from([0, 0, 2, 3]), max_size=2))
            buffers = None if flags is None else [(b"b" * (flag == 0), flag) for flag in flags]
            loss = draw(st.sampled_from(["", "", "", "missed"]))
            engine = draw(_ENGINES)
            entries.append(_results(first, statuses, engine, client, 4000.0, buffers, loss))
    return entries


_CONDITIONS = [
    b"",
    pack_conditions(m.Options(priority=2, resources={"gpu": 1.0})),
    pack_conditions(m.Options(after=m.Dependency([m.TaskRange(CLIENT, 0, 3)]), timeout_s=2.5)),
]


@st.composite
def _conditions(draw: st.DrawFn, field: str) -> Any:
    kind = FIELDS[field][0]
    own = _TEXTS | st.sampled_from(["ok", "error", "apply", "mux", _id(1), _id(2, OTHER), "", "a*"])
    own = own if kind is str else _NUMBERS
    own = st.just(CLIENT.hex()) if field == "client_uuid" else own
    if draw(st.booleans()):
        return draw(st.none() | own | _VALUES)
    name = draw(st.sampled_from([*OPERATORS, "$what"]))
    argument: Any
    if name in ("$in", "$nin", "$all"):
        argument = draw(st.lists(own | st.none(), max_size=3))
    elif name == "$mod":
        argument = draw(st.tuples(st.integers(0, 3), st.integers(0, 2)))
    else:
        argument = draw(own | _VALUES)
    return {name: argument}


@st.composite
def _queries(draw: st.DrawFn) -> Any:
    fields = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True))
    return {field: draw(_conditions(field)) for field in fields}


def _answers(database: TaskDatabase, queries: list[Any]) -> list[Any]:
    """Return all that can be asked, with errors as answers."""
    answers: list[Any] = [database.history(), database.statistics()["records"]]
    for query in queries:
        try:
            answers.append(database.find(query))
        except QueryError as error:
            answers.append(str(error))
    for client in (CLIENT, OTHER):
        for seq in range(20):
            result = database.result(_id(seq, client))
            frames = result and [bytes(memoryview(frame)) for frame in result.frames]
            answers.append((database.get(_id(seq, client)), frames))
    return answers


@hypothesis.settings(
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    first=_entries(),
    second=_entries(),
    queries=st.lists(_queries(), min_size=1, max_size=6),
    purged=st.lists(st.integers(0, 12), max_size=3),
    engines=st.none() | st.lists(_ENGINES, max_size=2),
)
def test_all_backends_give_the_answers_that_memory_gives(
    make: Make, first: Any, second: Any, queries: Any, purged: list[int], engines: Any
) -> None:
    """Random entries and queries, before and after a purge and a restart: the same records, results
    and complaints.
    """
    model, database = MemoryDatabase(), make()
    for entries in (first, second):
        model.write(entries)
        database.write(entries)
        assert _answers(database, queries) == _answers(model, queries)
        for arguments in ([_id(seq) for seq in purged], None), ([], engines):
            outcomes = []
            for one in (model, database):
                try:
                    outcomes.append(one.purge(*arguments))
                except (KeyError, PendingError) as error:
                    outcomes.append(repr(error))
            assert outcomes[0] == outcomes[1]
        assert _answers(database, queries) == _answers(model, queries)
        if not isinstance(database, MemoryDatabase):
            database.close()
            database = make(again=True)
    assert _answers(database, queries) == _answers(model, queries)
    database.close()


# -- detached work ----------------------------------------------------------------------------


def _detached(first: int, count: int, client: PeerId = CLIENT, ended: bytes = b"") -> DetachedGroup:
    writer = PayloadWriter()
    for index in range(count):
        writer.append(b"p%d" % (first + index), [(b"buffer", False)])
    columns, frames = writer.finish()
    function = m.Function(b"f" * 16, "f", True, "", 2)
    options = m.Options(retries=2, label="nightly")
    group = m.Group(first, count, options, function, columns, ended)
    return DetachedGroup(client, group, SliceFrames([b"body", b"more"], frames), 1000.0)


def _keeps_detached(database: TaskDatabase) -> None:
    """Skip the test, having seen that a backend that forgets says so."""
    if isinstance(database, MemoryDatabase):
        with pytest.raises(NotKept, match="--sqlitedb"):
            database.keep_detached([_detached(0, 1)])
        assert database.detached() == []
        pytest.skip("records in memory end with the process")


def test_detached_groups_outlive_the_process_until_their_tasks_have_ended(make: Make) -> None:
    """Payloads, options and function are as they were; what has ended since is marked, and how."""
    database = make()
    _keeps_detached(database)
    database.write([_group(0, 3), _group(3, 2), _group(0, 1, OTHER), _results(0, [m.OK])])
    groups = [_detached(0, 3, ended=b"\1\0\0"), _detached(3, 2), _detached(0, 1, OTHER)]
    database.keep_detached(groups)
    database.close()

    database = make(again=True)
    assert load_detached(database) == groups
    database.write([_results(2, [m.FAILED]), _results(3, [m.OK, m.ABORTED])])
    database.cull(5000.0)
    [first, other] = load_detached(database)
    assert first.group.ended == bytes((1 + m.OK, 0, 1 + m.FAILED))
    assert first.n_live == 1
    assert other == groups[2]
    database.write([_results(0, [m.OK], client=OTHER), _results(1, [m.OK])])
    database.cull(5000.0)
    assert load_detached(database) == []
    database.close()
    assert load_detached(make(again=True)) == []


def test_detaching_again_replaces(make: Make) -> None:
    """A second call for the same tasks leaves one group, the later one."""
    database = make()
    _keeps_detached(database)
    database.write([_group(0, 2)])
    database.keep_detached([_detached(0, 2)])
    database.keep_detached([_detached(0, 2, ended=b"\0\1")])
    [found] = database.detached()
    assert found.group.ended == b"\0\1"
    assert found.frames == _detached(0, 2).frames


def test_detached_work_does_not_age(make: Make) -> None:
    """Records that an earlier run left pending go with age, those of detached tasks do not."""
    database = make(max_age_s=10.0)
    _keeps_detached(database)
    database.write([_group(0, 1), _group(1, 1)])
    database.keep_detached([_detached(1, 1)])
    database.close()
    database = make(again=True, max_age_s=10.0)
    database.open()
    database.cull(1e9)
    assert database.history() == [_id(1)]
    assert [each.group.first for each in database.detached()] == [1]
