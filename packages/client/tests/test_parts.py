import concurrent.futures
import gc
import operator

import pytest

from ipyfleet_client import AsyncMapResult, AsyncResult, Client
from ipyfleet_client.pending import PayloadDropped, Segment, Work
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import encode_part
from ipyfleet_protocol.columns import PayloadWriter
from ipyfleet_protocol.errors import CompositeError, RemoteError, TaskAborted
from ipyfleet_protocol.serialize import pack_call


def fail_on_two(number):
    """What fails for one of several arguments."""
    if number == 2:
        raise ValueError("two")
    return number


def test_split_gives_a_result_per_task(rc):
    """Each part has its task's value, id and metadata, and the parts are the same each time."""
    ar = rc[:].apply_async(operator.mul, 2, 3)
    parts = ar.split()
    assert [part.get(5) for part in parts] == [6, 6]
    assert [part.engine_id for part in parts] == [0, 1]
    assert [part.msg_ids for part in parts] == [[msg_id] for msg_id in ar.msg_ids]
    assert ar.split() == parts


def test_parts_are_ready_one_by_one(rc, controller):
    """A part is there as soon as its own task has ended, for callbacks and `as_completed` too."""
    controller.batch = 1
    controller.paused.set()
    ar = rc.load_balanced_view().map_async(abs, [-1, -2, -3])
    parts = ar.split()
    assert not any(part.ready() for part in parts)
    called = []
    parts[2].add_done_callback(called.append)
    controller.paused.clear()
    assert sorted(p.result() for p in concurrent.futures.as_completed(parts, timeout=5)) == [
        1,
        2,
        3,
    ]
    assert ar.get(5) == [1, 2, 3]
    assert rc.session.wait_until(lambda: called == [parts[2]], 5)


def test_a_split_after_the_end_is_ready(rc):
    """Parts of a finished result have their values, also after `get` has unpickled them."""
    ar = rc[:].apply_async(abs, -4)
    ar.get(5)
    assert [part.get(0) for part in ar.split()] == [4, 4]
    assert ar.get() == [4, 4]


def test_parts_fail_for_themselves(rc):
    """The error of a task is raised by its part only."""
    parts = rc.load_balanced_view().map_async(fail_on_two, [1, 2, 3]).split()
    assert parts[0].get(5) == 1
    assert parts[2].get(5) == 3
    with pytest.raises(RemoteError, match="two"):
        parts[1].get(5)


def test_a_part_can_be_aborted(rc, controller):
    """Aborting a part takes back that task only."""
    controller.paused.set()
    ar = rc.load_balanced_view().map_async(abs, [-1, -2])
    parts = ar.split()
    parts[1].abort()
    with pytest.raises(TaskAborted):
        parts[1].get(5)
    assert not parts[0].ready()
    controller.paused.clear()
    assert parts[0].get(5) == 1


def test_parts_have_their_output(rc):
    """What a task prints is in its part, and the part knows when it is all there."""
    ar = rc[:].apply_async(print, "hello")
    parts = ar.split()
    for part in parts:
        assert part.wait_for_output(5)
        assert part.stdout == "hello\n"
    assert ar.stdout == ["hello\n", "hello\n"]


def test_join_is_the_inverse_of_split(rc):
    """Joined parts have the values, ids and engines of the whole."""
    ar = rc[:].apply_async(operator.add, 1, 1)
    joined = AsyncResult.join(*ar.split())
    assert joined.get(5) == ar.get(5)
    assert (joined.msg_ids, joined.engine_id) == (ar.msg_ids, ar.engine_id)
    assert joined.get_dict() == {0: 2, 1: 2}


def test_join_of_pending_results(rc, controller):
    """A joined result is there when the last of its sources is."""
    controller.paused.set()
    results = [rc[k].apply_async(abs, -k) for k in (0, 1)]
    joined = AsyncResult.join(*results)
    assert not joined.ready()
    controller.paused.clear()
    assert joined.get(5) == [0, 1]
    with pytest.raises(CompositeError):
        AsyncResult.join(*results, rc[0].apply_async(fail_on_two, 2)).get(5)


def test_split_and_join_of_maps(rc):
    """A part of a direct map is the list of its engine's values; joined it is the map again."""
    ar = rc[:].map_async(abs, range(-5, 0))
    parts = ar.split()
    assert [part.get(5) for part in parts] == [[5, 4, 3], [2, 1]]
    joined = AsyncMapResult.join(*parts)
    assert (joined.get(5), len(joined), joined[3]) == ([5, 4, 3, 2, 1], 5, 2)
    assert AsyncMapResult.join(ar, ar).get(5) == [5, 4, 3, 2, 1] * 2


def test_wait_returns_sets_of_parts(rc, controller):
    """`wait(return_when=…)` tells the tasks that have ended from those that have not."""
    controller.batch = 1
    view = rc.load_balanced_view()
    ready = view.map_async(abs, [1, 2])
    assert ready.wait(5, return_when=concurrent.futures.ALL_COMPLETED) == (
        set(ready.split()),
        set(),
    )
    controller.paused.set()
    ar = view.map_async(fail_on_two, [1, 2, 3])
    parts = ar.split()
    assert ar.wait(0, return_when=concurrent.futures.FIRST_COMPLETED) == (set(), set(parts))
    controller.paused.clear()
    done, pending = ar.wait(5, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert parts[1] in done
    assert done | pending == set(parts)
    done, pending = ar.wait(5, return_when=concurrent.futures.ALL_COMPLETED)
    assert (done, pending) == (set(parts), set())


def test_join_of_what_cannot_be_joined(rc, controller):
    """Only results of one client can be joined, and there must be one."""
    ar = rc[0].apply_async(abs, 1)
    with pytest.raises(TypeError, match="at least one"):
        AsyncResult.join()
    with pytest.raises(TypeError, match="str"):
        AsyncResult.join(ar, "x")
    with Client(controller.info, timeout=5) as other:
        theirs = other[0].apply_async(abs, 1)
        theirs.get(5)
        with pytest.raises(ValueError, match="one client"):
            AsyncResult.join(ar, theirs)


def test_parts_end_with_the_client(controller):
    """Closing the client ends the parts, too."""
    client = Client(controller.info, timeout=5)
    controller.paused.set()
    parts = client[:].apply_async(abs, 1).split()
    client.close()
    assert all(part.ready() for part in parts)
    controller.paused.clear()


def test_values_are_kept_once(rc):
    """After `get` a result keeps its values, and not what they were unpickled from."""
    view = rc[0]
    ar = view.apply_async(operator.mul, b"x", 100_000)
    assert len(ar.get(5)) == 100_000
    gc.collect()
    segments = [arrival[2] for arrival in ar._work.arrivals]
    assert all(segment._frames is None for segment in segments)
    assert len(ar.get()) == 100_000
    assert ar.completed >= ar.started


def test_output_of_parts_is_streamed(rc, controller, capsys):
    """What a part's task prints is shown while one waits for the part, and nothing else is."""
    controller.paused.set()
    parts = rc[:].apply_async(print, "hello").split()
    joined = AsyncResult.join(parts[1])
    with joined.stream_output():
        controller.paused.clear()
        assert joined.wait(5)
    assert capsys.readouterr().out == "[stdout:1] hello\n"
    with parts[0].stream_output():
        assert parts[0].wait(5)
    assert "hello" in capsys.readouterr().out


def test_a_payload_that_is_dropped_while_it_is_read():
    """Who comes too late for a value in shared memory is told so, and is given nothing else."""
    packed = pack_call((b"x" * 100_000,), {})
    assert packed.buffers
    writer = PayloadWriter()
    handle = encode_part(m.BlobHandle("a", 1, 100_000))
    writer.append(packed.pickle, [(handle, True) for _ in packed.buffers])
    columns, frames = writer.finish()
    piece = m.ResultSlice(0, 1, 0, 0, bytes((m.OK,)), b"", b"", b"", columns)
    segment = Segment(piece, frames, 0, 0.0)
    segment.adopt_blobs(lambda handle: memoryview(b"x" * 100_000))
    payloads = segment._load()
    assert segment._views(payloads, 0)[0].nbytes == 100_000
    work = Work(1, method="apply", name="f", submitted=0.0)
    work.add(0, 1, segment, 0)
    work.drop_payload()  # by another thread, which has the value
    with pytest.raises(PayloadDropped):
        segment._views(payloads, 0)
