import asyncio
import concurrent.futures
import operator
import threading
from datetime import UTC, datetime

import pytest

from ipyfleet_client import AsyncResult
from ipyfleet_protocol.errors import ClientClosed, CompositeError, RemoteError


def fail(number=0):
    """What a task does that fails."""
    raise ZeroDivisionError(f"number {number}")


def test_it_is_a_future(rc):
    """Results work with everything of `concurrent.futures`."""
    ar = rc[0].apply_async(abs, -1)
    assert isinstance(ar, concurrent.futures.Future)
    done, pending = concurrent.futures.wait([ar, rc[1].apply_async(abs, -2)], timeout=5)
    assert sorted(a.result() for a in done) == [1, 2]
    assert not pending


def test_as_completed_over_mixed_futures(rc):
    """Results and other futures can be waited for together."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [rc[0].apply_async(abs, -1), pool.submit(abs, -2), rc[1].apply_async(abs, -3)]
        values = {f.result() for f in concurrent.futures.as_completed(futures, timeout=5)}
    assert values == {1, 2, 3}


def test_wait_first_exception(rc, controller):
    """`concurrent.futures.wait` returns at the first result that failed."""
    bad = rc[0].apply_async(fail)
    assert bad.wait(5)
    controller.paused.set()
    slow = rc[0].apply_async(abs, 1)
    done, pending = concurrent.futures.wait(
        [bad, slow], timeout=5, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    assert (done, pending) == ({bad}, {slow})


def test_pending_result(rc, controller):
    """A result that is not there says so in every way."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, -1)
    assert not ar.ready()
    assert not ar.done()
    assert not ar.wait(0.01)
    assert ar.progress == 0
    for call in (lambda: ar.get(0.01), lambda: ar.result(0.01), lambda: ar.exception(0.01)):
        with pytest.raises(TimeoutError):
            call()
    with pytest.raises(RuntimeError):
        ar.successful()
    for name in ("serial_time", "wall_time"):
        with pytest.raises(TimeoutError):
            getattr(ar, name)
    with pytest.raises(TimeoutError):
        ar[0]
    assert repr(ar) == "<AsyncResult: abs>"
    assert (ar.status, ar.started, ar.stdout, ar.engine_id) == (None, None, "", 0)
    controller.paused.clear()
    assert ar.get(5) == 1


def test_finished_result(rc):
    """A result that is there says so in every way, and gives the same value again."""
    ar = rc[:].apply_async(operator.mul, 2, 3)
    assert ar.get(5) == ar.r == ar.result() == [6, 6]
    assert ar.ready()
    assert ar.successful()
    assert ar.exception() is None
    assert ar.get_dict() == ar.result_dict == {0: 6, 1: 6}
    assert (len(ar), ar[0], ar[1:], list(ar)) == (2, 6, [6], [6, 6])
    assert ar.progress == 2
    assert ar.elapsed >= 0
    assert ar.serial_time == pytest.approx(0.002, abs=0.001)
    assert ar.wall_time == ar.elapsed
    assert repr(ar) == "<AsyncResult: mul:finished>"
    with pytest.raises(IndexError):
        ar[2]


def test_failed_result(rc):
    """A failed call raises from get, gives its exception, and is not successful."""
    ar = rc[0].apply_async(fail, 7)
    assert isinstance(ar.exception(5), RemoteError)
    assert not ar.successful()
    with pytest.raises(RemoteError, match="number 7"):
        ar.get()
    assert isinstance(ar.get(return_exceptions=True), RemoteError)


def test_composite_error_is_an_exception_group(rc):
    """``except*`` works on the errors of several engines."""
    caught = []
    try:
        rc[:].apply_async(fail).get(5)
    except* RemoteError as group:
        caught = list(group.exceptions)
    assert len(caught) == 2
    with pytest.raises(CompositeError):
        rc[:].apply_async(fail).get(5)


def test_single_result_cannot_be_iterated(rc):
    """A result with a single value is no sequence of values."""
    with pytest.raises(TypeError, match="single"):
        iter(rc[0].apply_async(abs, 1))


def test_an_exception_that_is_a_value_is_not_raised(rc):
    """An exception object that a function returns is a value."""
    value = rc[0].apply_sync(lambda: RemoteError("A", "b", []))
    assert isinstance(value, RemoteError)


def test_callbacks_run_once_when_done(rc, controller):
    """A callback is called when the result is there, or at once if it is already."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, -1)
    called = []
    arrived = threading.Event()
    ar.add_done_callback(lambda a: (called.append(a), arrived.set()))
    controller.paused.clear()
    assert arrived.wait(5)
    ar.add_done_callback(called.append)
    assert called == [ar, ar]


def test_callback_may_wait_for_other_results(rc):
    """A callback that calls and waits does not lock up the client."""
    ar = rc[0].apply_async(abs, -1)
    values = []
    arrived = threading.Event()

    def callback(done):
        values.append(rc[1].apply_sync(operator.add, done.get(), 10))
        arrived.set()

    ar.add_done_callback(callback)
    assert arrived.wait(5)
    assert values == [11]


def test_callback_of_a_dropped_result_is_called(rc):
    """A result that only its callback refers to is kept until that was called."""
    arrived = threading.Event()
    rc[0].apply_async(abs, -1).add_done_callback(lambda ar: arrived.set())
    assert arrived.wait(5)


def test_failing_callback_is_logged(rc, caplog):
    """A callback's error is logged; others are called."""
    arrived = threading.Event()
    ar = rc[0].apply_async(abs, -1)
    ar.add_done_callback(lambda a: 1 / 0)
    ar.add_done_callback(lambda a: arrived.set())
    assert arrived.wait(5)


def test_await(rc):
    """A result can be awaited, also with its error."""

    async def main():
        value = await rc[0].apply_async(abs, -5)
        with pytest.raises(RemoteError):
            await rc[0].apply_async(fail)
        return value, await asyncio.gather(*(rc[k % 2].apply_async(abs, -k) for k in range(20)))

    assert asyncio.run(main()) == (5, list(range(20)))


def test_async_for(rc, controller):
    """Results can be iterated in an event loop, in order or as they come."""
    view = rc.load_balanced_view()
    controller.batch = 1

    async def collect(ar):
        return [value async for value in ar]

    async def main():
        return [
            await collect(view.map_async(abs, range(30))),
            await collect(view.map_async(abs, range(30), chunksize=4)),
            sorted(await collect(view.map_async(abs, range(30), ordered=False))),
            await collect(rc[:].apply_async(abs, -1)),
        ]

    assert asyncio.run(main()) == [list(range(30))] * 3 + [[1, 1]]


def test_await_through_closing(rc, controller):
    """What is awaited when the client is closed raises what other waits raise: ClientClosed."""
    controller.paused.set()
    one, many = rc[0].apply_async(abs, -1), rc.load_balanced_view().map_async(abs, range(9))

    async def collect():
        return [value async for value in many]

    async def main():
        waits = [asyncio.ensure_future(wait) for wait in (_awaited(one), _awaited(many), collect())]
        await asyncio.sleep(0)  # they wait now
        rc.close()
        return await asyncio.gather(*waits, return_exceptions=True)

    errors = [*asyncio.run(main()), one.exception(), many.exception()]
    assert [type(error) for error in errors] == [ClientClosed] * 5
    assert all("the task itself goes on" in str(error) for error in errors)
    with pytest.raises(ClientClosed):
        many.get()


async def _awaited(ar):
    return await ar


def test_msg_ids_are_strings(rc):
    """Each task has an id of its own."""
    ids = rc[:].apply_async(abs, 1).msg_ids
    assert len(set(ids)) == 2
    assert all(isinstance(msg_id, str) for msg_id in ids)


def test_metadata(rc):
    """Metadata are dictionaries with attributes, one per task, or a single one."""
    ar = rc[0].apply_async(abs, -1)
    ar.get(5)
    metadata = ar.metadata
    assert metadata.status == metadata["status"] == "ok"
    assert metadata.engine_id == 0
    assert metadata.engine_uuid == rc.session.link.engines.uuid(0)
    assert metadata.msg_id == ar.msg_ids[0]
    now = datetime.now(UTC)
    for stamp in (ar.submitted, ar.started, ar.completed, ar.received):
        assert abs((now - stamp).total_seconds()) < 60
    assert ar.timedelta(ar.submitted, ar.received) >= 0
    with pytest.raises(KeyError):
        metadata["nonsense"] = 1
    with pytest.raises(AttributeError):
        _ = metadata.nonsense
    with pytest.raises(AttributeError):
        _ = ar.nonsense
    with pytest.raises(KeyError):
        ar["nonsense"]
    several = rc[:].apply_async(fail)
    several.wait(5)
    assert several.status == several["status"] == ["error", "error"]
    assert "engine_id" in dir(several)


def test_cancel_in_time(rc, controller):
    """A call that has not started can be cancelled: it is then cancelled as a Future is."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, 1)
    assert ar.cancel()
    assert ar.cancelled()
    assert ar.done()
    with pytest.raises(concurrent.futures.CancelledError):
        ar.result()
    with pytest.raises(concurrent.futures.CancelledError):
        ar.exception()


def test_cancel_too_late(rc):
    """A call that has ended cannot be cancelled."""
    ar = rc[0].apply_async(abs, -1)
    ar.wait(5)
    assert not ar.cancel()
    assert ar.get() == 1


def test_return_when(rc, controller):
    """FIRST_EXCEPTION raises before all have ended; FIRST_COMPLETED is ignored with a warning."""
    ar = rc[:].apply_async(abs, -1)
    with pytest.warns(UserWarning, match="FIRST_COMPLETED"):
        assert ar.get(5, return_when=concurrent.futures.FIRST_COMPLETED) == [1, 1]
    assert ar.wait(0, return_when=concurrent.futures.ALL_COMPLETED) == (
        set(ar.split()),
        set(),
    )
    controller.batch = 1
    bad = rc[:].apply_async(fail)
    with pytest.raises(CompositeError):
        bad.get(5, return_when=concurrent.futures.FIRST_EXCEPTION)
    with pytest.raises(ValueError, match="return_when"):
        ar.wait(0, return_when="x")


def test_many_threads(rc):
    """Many threads can submit and wait at the same time, each gets its own values."""
    view = rc.load_balanced_view()
    errors = []

    def work(base):
        try:
            for k in range(30):
                assert view.apply_sync(operator.add, base, k) == base + k
            assert view.map_sync(abs, range(base, base + 50)) == list(range(base, base + 50))
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert rc.outstanding == set()


def test_two_threads_wait_for_one_result(rc, controller):
    """A result can be waited for by several threads."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, -9)
    values = []
    threads = [threading.Thread(target=lambda: values.append(ar.get(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    controller.paused.clear()
    for thread in threads:
        thread.join(10)
    assert values == [9] * 4


def test_wait_interactive_counts_items(rc, capsys):
    """The bar counts items and ends when all are there."""
    ar = rc.load_balanced_view().map_async(abs, range(40), chunksize=4)
    ar.wait_interactive(interval=0.01)
    assert ar.ready()
    assert "tqdm_monitor" not in {thread.name for thread in threading.enumerate()}
    assert ar.get() == list(range(40))


def test_wait_interactive_times_out(rc, controller, capsys):
    """`wait_interactive` gives up when its time is over."""
    controller.paused.set()
    ar = rc[0].apply_async(abs, 1)
    ar.wait_interactive(interval=0.01, timeout=0.05)
    assert not ar.ready()
    assert "0/1" in capsys.readouterr().err


def test_results_are_async_results_of_their_own(rc):
    """Attributes of a result do not leak into another."""
    one, two = rc[0].apply_async(abs, 1), rc[0].apply_async(abs, 2)
    assert isinstance(one, AsyncResult)
    assert one.msg_ids != two.msg_ids
