"""Results, records and errors as a user meets them, on real clusters."""

from __future__ import annotations

import datetime
import gc
import os
import re
import signal
import time
import traceback
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION
from pathlib import Path
from typing import Any

import pytest

import ipyfleet as ipf
from ipyfleet_testing.waiting import wait_until

TIMEOUT_S = 60


def nap(seconds: float) -> float:
    """Sleep, and return for how long."""
    time.sleep(seconds)
    return seconds


def hold(path: str) -> str:
    """Return the path when there is something."""
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.002)
    return path


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """What `hold` waits for; it is there after the test at the latest."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def wait_for_file(path: str) -> str:
    """Return when the file is there."""
    while not os.path.exists(path):
        time.sleep(0.002)
    return path


# -- results ----------------------------------------------------------------------------------


def test_results_by_task_as_they_come(client: ipf.Client, tmp_path: Any) -> None:
    """`wait(return_when=…)` tells the tasks that have ended from those that run."""
    gate = tmp_path / "gate"
    ar = client.load_balanced_view().map_async(
        lambda path: wait_for_file(path) if path else "", ["", os.fspath(gate)]
    )
    client[:].push({"wait_for_file": wait_for_file, "os": os, "time": time})
    done, pending = ar.wait(TIMEOUT_S, return_when=FIRST_COMPLETED)
    assert [part.get() for part in done] == [""]
    assert pending == {ar.split()[1]}
    gate.touch()
    assert ar.get(TIMEOUT_S) == ["", os.fspath(gate)]
    failing = client.load_balanced_view().map_async(lambda x: 1 / x, [1, 0, 2])
    done, _ = failing.wait(TIMEOUT_S, return_when=FIRST_EXCEPTION)
    assert any(isinstance(part.exception(), ipf.RemoteError) for part in done)


def test_split_and_join(client: ipf.Client) -> None:
    """Parts have their engine's value and output; joined they are the whole again."""
    ar = client[:].apply_async(lambda: print("hi") or os.getpid())
    client[:].push({"os": os})
    parts = ar.split()
    assert [part.get(TIMEOUT_S) for part in parts] == ar.get()
    assert all(part.wait_for_output(TIMEOUT_S) for part in parts)
    assert [part.stdout for part in parts] == ["hi\n", "hi\n"]
    assert ipf.AsyncResult.join(*parts).get_dict(TIMEOUT_S) == ar.result_dict


def test_times(client: ipf.Client) -> None:
    """Durations and stamps say what happened when."""
    ar = client[:].apply_async(nap, 0.2)
    assert ar.submitted is not None
    assert ar.completed == [None, None]
    ar.get(TIMEOUT_S)
    assert 0.4 <= ar.serial_time < 0.4 + 2 * ar.wall_time
    assert 0.2 <= ar.wall_time <= ar.elapsed
    assert ar.timedelta(ar.started, ar.completed) >= 0.2
    assert ar.timedelta(ar.submitted, ar.received) == pytest.approx(ar.wall_time, abs=0.05)
    assert all(stamp.tzinfo is datetime.UTC for stamp in ar.received)


# -- what others have submitted ---------------------------------------------------------------


def test_results_of_another_client_are_pushed(cluster: Any, client: ipf.Client, gate: Path) -> None:
    """Who waits for another client's task is told when it ends, with one question."""
    with cluster.connect_client_sync() as other:
        ar = client[:].apply_async(hold, str(gate))
        ar.msg_ids  # noqa: B018 - sends it
        theirs = other.get_result(ar.msg_ids)
        assert isinstance(theirs, ipf.AsyncHubResult)
        assert not theirs.ready()
        asked = other.session._next_request
        gate.touch()
        assert theirs.get(TIMEOUT_S) == ar.get(TIMEOUT_S) == [str(gate)] * 2
        # So it was not looked for now and then.
        assert other.session._next_request == asked
        assert theirs.msg_ids == ar.msg_ids
        assert theirs.engine_id == ar.engine_id


def test_a_task_is_aborted_by_its_client_only(cluster: Any, client: ipf.Client, gate: Path) -> None:
    """Whoever names another client's task in an abort is told, and none of those named ends."""
    with cluster.connect_client_sync() as other:
        theirs = client[0].apply_async(hold, str(gate))
        ours = other[0].apply_async(abs, -1)  # waits behind it
        with pytest.raises(RuntimeError, match="by the client that submitted it only"):
            other.abort([ours, *theirs.msg_ids])
        with pytest.raises(RuntimeError, match="by the client that submitted it only"):
            other[:].abort(theirs.msg_ids)
        gate.touch()
        assert (theirs.get(TIMEOUT_S), ours.get(TIMEOUT_S)) == (str(gate), 1)
        other.abort(theirs.msg_ids)  # it has ended


def test_results_of_a_client_that_is_gone(cluster: Any, client: ipf.Client) -> None:
    """What a client has left behind is found by msg_id: values, errors, large arrays."""
    with cluster.connect_client_sync() as other:
        value = other[0].apply_async(lambda: {"a": 1}).msg_ids[0]
        error = other[1].apply_async(lambda: 1 / 0).msg_ids[0]
        large = other[0].apply_async(lambda: b"x" * 1_000_000).msg_ids[0]
        mapped = other.load_balanced_view().map_async(lambda x: x + 1, range(100)).msg_ids
        other.wait(timeout=TIMEOUT_S)
    assert client.get_result(value).get(TIMEOUT_S) == {"a": 1}
    with pytest.raises(ipf.RemoteError, match=r"\[1:apply\] ZeroDivisionError"):
        client.get_result(error).get(TIMEOUT_S)
    assert client.get_result(large).get(TIMEOUT_S) == b"x" * 1_000_000
    assert client.get_result(mapped).get(TIMEOUT_S) == list(range(1, 101))
    assert client.get_result(mapped[7], block=True) == 8


def test_output_of_a_client_that_is_gone(
    cluster: Any, client: ipf.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """What tasks have printed and displayed is found by msg_id, too, and shown as ever."""
    code = "import sys\nprint('out', 1)\nprint('err', file=sys.stderr)\ndisplay({'a': 2})\n6 * 7"
    with cluster.connect_client_sync() as other:
        ar = other[:].execute(code, silent=False)
        ar.wait(TIMEOUT_S)
        assert ar.wait_for_output(TIMEOUT_S)
        msg_ids, shown = ar.msg_ids, ar.outputs
        quiet = other[0].apply_async(lambda: 1)
        quiet.wait(TIMEOUT_S)
    found = client.get_result(msg_ids)
    assert found.wait(TIMEOUT_S)
    assert found.wait_for_output(TIMEOUT_S)
    assert found.stdout == ["out 1\n"] * 2
    assert found.stderr == ["err\n"] * 2
    assert found.outputs == shown
    assert [reply.execute_result["data"]["text/plain"] for reply in found.get()] == ["42", "42"]
    capsys.readouterr()
    found.display_outputs()
    assert "[stdout:1] out 1" in capsys.readouterr().out
    nothing = client.get_result(quiet.msg_ids[0])
    assert nothing.get(TIMEOUT_S) == 1
    assert (nothing.stdout, nothing.outputs) == ("", [])


def test_own_results_after_they_were_dropped(client: ipf.Client) -> None:
    """A result that nobody holds any more can be had again."""
    client[0].apply_async(lambda: 11).get(TIMEOUT_S)
    assert client.get_result(-1).get(TIMEOUT_S) == 11
    assert client.get_result(client.history[-1]).get(TIMEOUT_S) == 11


def test_values_and_metadata_by_msg_id(cluster: Any, client: ipf.Client) -> None:
    """`rc.results` and `rc.metadata` find any task, also another client's."""
    with cluster.connect_client_sync() as other:
        msg_id = client[1].apply_async(lambda: 12).msg_ids[0]
        client.wait(timeout=TIMEOUT_S)
        assert other.results[msg_id] == client.results[msg_id] == 12
        assert other.metadata[msg_id].engine_id == 1
    assert list(client.results)[-1] == msg_id
    with pytest.raises(KeyError, match=r"rc\.hub_history"):
        client.results["0" * 32 + "_1"]


def test_records(client: ipf.Client) -> None:
    """The hub's records tell of this client's tasks, with times as datetimes in UTC."""
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
    view = client.load_balanced_view(label="records/test")
    ar = view.map_async(abs, range(5))
    ar.get(TIMEOUT_S)
    records = client.db_query({"label": {"$glob": "records/*"}, "submitted": {"$gt": before}})
    assert [record["msg_id"] for record in records] == ar.msg_ids
    assert all(record["completed"].tzinfo is datetime.UTC for record in records)
    (one,) = client.db_query({"msg_id": ar.msg_ids[2]}, keys=["engine_id"])
    assert one == {"msg_id": ar.msg_ids[2], "engine_id": ar.engine_id[2]}
    assert set(ar.msg_ids) <= set(client.hub_history())
    with pytest.raises(ValueError, match="there is no field 'nope'; there are msg_id"):
        client.db_query({"nope": 1})
    with pytest.raises(ValueError, match=r"there is no operator '\$nope'"):
        client.db_query({"started": {"$nope": 1}})


def test_status_of_tasks(client: ipf.Client, gate: Path) -> None:
    """`result_status` tells pending from completed, and fetches what is there."""
    done = client[0].apply_async(lambda: 1)
    done.get(TIMEOUT_S)
    running = client[1].apply_async(hold, str(gate))
    ids = [*done.msg_ids, *running.msg_ids]
    assert client.result_status(ids) == {"pending": running.msg_ids, "completed": done.msg_ids}
    status = client.result_status(ids, status_only=False)
    assert status[done.msg_ids[0]] == 1
    gate.touch()
    failed = client[0].apply_async(lambda: 1 / 0)
    failed.wait(TIMEOUT_S)
    with pytest.raises(ipf.CompositeError) as caught:
        client.result_status(failed, status_only=False)
    assert "ZeroDivisionError" in str(caught.value)


def test_purging(client: ipf.Client, gate: Path) -> None:
    """Records of ended tasks can be dropped, those of others not."""
    kept, purged = client[0].apply_async(abs, -1), client[0].apply_async(abs, -2)
    client.wait([kept, purged], TIMEOUT_S)
    client.purge_results(purged)
    assert purged.msg_ids[0] not in client.hub_history()
    assert kept.msg_ids[0] in client.hub_history()
    assert purged.get() == 2
    running = client[1].apply_async(hold, str(gate))
    with pytest.raises(IndexError, match="has not ended"):
        client.purge_hub_results(running)
    with pytest.raises(KeyError):
        client.purge_hub_results("0" * 32 + "_1")
    gate.touch()
    running.get(TIMEOUT_S)
    client[:].purge_results()
    client.purge_everything()
    assert client.history == client.hub_history() == []
    assert client[0].apply_sync(abs, -3) == 3


def test_resubmission(cluster: Any, client: ipf.Client) -> None:
    """A task runs again with its own arguments, also one of another client."""
    ar = client[:].apply_async(lambda a, b=2: (a, b, os.getpid()), 1, b=[3])
    client[:].push({"os": os})
    again = client.resubmit(ar)
    assert again.get(TIMEOUT_S) == ar.get(TIMEOUT_S)
    assert not set(again.msg_ids).intersection(ar.msg_ids)
    mapped = client.load_balanced_view().map_async(lambda x: x * x, range(50))
    mapped.get(TIMEOUT_S)
    with cluster.connect_client_sync() as other:
        assert other.resubmit(mapped.msg_ids[10:20]).get(TIMEOUT_S) == [
            x * x for x in range(10, 20)
        ]
        assert other.resubmit(mapped.msg_ids[7], block=True) == 49


def test_queue_status(client: ipf.Client, gate: Path) -> None:
    """The queue's state is a dictionary by engine; of one engine it is that engine's."""
    ar = client[0].apply_async(hold, str(gate))
    waiting = client[0].apply_async(abs, -1)
    waiting.msg_ids  # noqa: B018 - sends it
    status = client.queue_status()
    assert set(status) == {0, 1, "unassigned"}
    assert status[0]["queue"] == 2
    assert set(client.queue_status(0, verbose=True)["queue"]) == {*ar.msg_ids, *waiting.msg_ids}
    gate.touch()
    client.wait([ar, waiting], TIMEOUT_S)
    assert client.outstanding == set()


# -- errors -----------------------------------------------------------------------------------

only_here = {"defined": "in the test's module"}


def test_a_missing_name_that_exists_here(client: ipf.Client) -> None:
    """A remote NameError for a name of the caller's says how to send it."""
    local_only = 5
    for name, advice in (
        ("local_only", r"view\.push\(dict\(local_only=local_only\)\)"),
        ("only_here", r"@require\(only_here=only_here\)"),
        ("datetime", r"with view\.sync_imports\(\): import datetime"),
    ):
        with pytest.raises(ipf.RemoteError) as caught:
            client[0].apply_sync(eval, name)
        text = "\n".join(caught.value.render_traceback())
        assert re.search(advice, text), text
        assert name in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ipf.CompositeError) as composite:
        client[:].apply_sync(eval, "local_only")
    assert "view.push" in "\n".join(composite.value.render_traceback())
    with pytest.raises(ipf.RemoteError) as caught:
        client[0].apply_sync(eval, "nowhere_at_all")
    assert not getattr(caught.value, "__notes__", [])
    assert local_only == 5


def test_equal_errors_are_shown_once(client: ipf.Client) -> None:
    """The same error of all engines is one traceback with the engines' list."""
    with pytest.raises(ipf.CompositeError) as caught:
        client[:].apply_sync(lambda: 1 / 0)
    assert str(caught.value).splitlines()[1] == ("[0-1:apply] ZeroDivisionError: division by zero")
    # Whether there are colours is a matter of the engines' IPython.
    rendered = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in caught.value.render_traceback()]
    assert rendered[0] == "[0-1:apply]:"
    assert sum("ZeroDivisionError: division by zero" in line for line in rendered) == 1
    assert [type(error.__cause__) for error in caught.value.exceptions] == [ZeroDivisionError] * 2


def test_our_own_errors_say_what_to_do(cluster_factory: Callable[..., Any]) -> None:
    """An engine's death says what is lost and how to survive it."""
    with cluster_factory(n=1).connect_client_sync() as client:
        pid = client[0].apply_sync(os.getpid)
        ar = client[0].apply_async(nap, 60)
        ar.msg_ids  # noqa: B018 - sends it
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ipf.EngineError, match="SIGKILL") as caught:
            ar.get(TIMEOUT_S)
        assert "retries" in "".join(traceback.format_exception(caught.value))


def test_a_killed_controller_ends_all_waits(cluster_factory: Callable[..., Any]) -> None:
    """A client on the same host notices a controller that nobody starts again, and says so."""
    with cluster_factory(n=1, restart_controller=False).connect_client_sync() as client:
        ar = client[0].apply_async(nap, 60)
        ar.msg_ids  # noqa: B018 - sends it
        started = time.monotonic()
        os.kill(client.session.info.pid, signal.SIGKILL)
        with pytest.raises(ipf.KernelError, match=r"controller .* has died"):
            ar.get(TIMEOUT_S)
        assert time.monotonic() - started < TIMEOUT_S / 2
        with pytest.raises(ipf.ClientClosed, match="has died; make a new Client"):
            client[0].apply_async(abs, 1)


# -- how they look ----------------------------------------------------------------------------


def test_reprs(client: ipf.Client, gate: Path) -> None:
    """Clients and results show what they are, in text and in notebooks."""
    assert repr(client) == "<Client: 2 engines>"
    html = client._repr_html_()
    assert "2 engines" in html
    assert str(client[1].apply_sync(os.getpid)) in html
    ar = client[:].apply_async(hold, str(gate))
    assert "<progress" in ar._repr_html_()
    gate.touch()
    ar.get(TIMEOUT_S)
    assert "wall time" in ar._repr_html_()
    assert repr(ar) == "<AsyncResult: hold:finished>"


# -- memory -----------------------------------------------------------------------------------


def test_a_dropped_result_is_freed(client: ipf.Client) -> None:
    """Nothing here keeps a result whose `AsyncResult` is gone, whether it was read or not."""
    for read in (False, True):
        ar = client[0].apply_async(lambda: b"x" * 100_000)
        ar.wait(TIMEOUT_S)
        if read:
            ar.get()
        work, segment = weakref.ref(ar._work), weakref.ref(ar)
        del ar
        gc.collect()
        assert wait_until(lambda: work() is None and segment() is None, 5)  # noqa: B023


def test_a_long_map_costs_no_object_per_item(client: ipf.Client) -> None:
    """100,000 items leave a few hundred objects and some ten bytes each until they are read."""
    view = client.load_balanced_view()
    view.map_async(abs, range(1000)).wait(TIMEOUT_S)
    gc.collect()
    tracemalloc.start()
    try:
        objects, (held, _) = len(gc.get_objects()), tracemalloc.get_traced_memory()
        ar = view.map_async(abs, range(100_000))
        assert ar.wait(TIMEOUT_S)
        gc.collect()
        assert len(gc.get_objects()) - objects < 20_000
        assert tracemalloc.get_traced_memory()[0] - held < 100_000 * 120
    finally:
        tracemalloc.stop()
    assert ar.get() == list(range(100_000))


def test_a_lazy_map_stays_small(client: ipf.Client) -> None:
    """50,000 items pass through `imap` and leave nothing behind."""
    stream = client.load_balanced_view().imap(abs, iter(range(50_000)))
    for _ in range(10_000):
        next(stream)
    gc.collect()
    objects = len(gc.get_objects())
    assert sum(1 for _ in stream) == 40_000
    gc.collect()
    assert len(gc.get_objects()) - objects < 5_000
    link = client.session.link
    assert link.ledger.outstanding == len(link.late) == 0
    assert len(list(link.ledger.works())) == 0


def test_functions_that_were_sent_are_remembered_within_bounds(client: ipf.Client) -> None:
    """A client that sends ever new functions does not remember all of them."""
    view = client[0]
    results = [view.apply_async(eval(f"lambda: {n}")) for n in range(200)]
    assert [ar.get(TIMEOUT_S) for ar in results] == list(range(200))
    from ipyfleet_client.submission import MAX_SENT_DIGESTS

    assert len(client.session.submit._sent_digests) <= MAX_SENT_DIGESTS


def test_records_of_executes_and_resubmissions(cluster: Any, client: ipf.Client) -> None:
    """Records and metadata have code and value of an `execute`, and its resubmission."""
    ar = client[0].execute("6 * 7", silent=False)
    ar.get(TIMEOUT_S)
    again = client.resubmit(ar)
    again.get(TIMEOUT_S)
    assert again.metadata.execute_input == "6 * 7"
    fields = ["execute_input", "execute_result", "resubmitted"]
    query = {"msg_id": ar.msg_ids[0], "execute_result": {"$ne": None}}
    wait_until(lambda: client.db_query(query, keys=fields))
    [record] = client.db_query(query, keys=fields)
    assert record["execute_result"]["data"]["text/plain"] == "42"
    assert (record["execute_input"], record["resubmitted"]) == ("6 * 7", again.msg_ids[0])
    with cluster.connect_client_sync() as other:
        metadata = other.get_result(again.msg_ids[0]).metadata
        assert metadata.execute_input == "6 * 7"
        assert metadata.execute_result["data"]["text/plain"] == "42"


def test_a_client_of_a_cluster_object(cluster: Any) -> None:
    """`Client(cluster=cluster)` finds that cluster, and knows it."""
    with ipf.Client(cluster=cluster) as rc:
        assert rc.cluster is cluster
        assert rc[0].apply_sync(abs, -3) == 3
