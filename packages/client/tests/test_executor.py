import operator
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from ipyfleet_client.executor import SHARE_S, ViewExecutor
from ipyfleet_client.executor_future import original_error
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import KernelError, RemoteError, TaskAborted
from ipyfleet_protocol.serialize import PackError
from ipyfleet_testing.waiting import wait_until


@pytest.fixture
def executor(rc):
    """An executor on the two engines of the fake controller."""
    executor = rc.executor()
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)


def submitted(controller):
    """How many tasks the controller was sent."""
    return sum(group.count for message in controller.received(m.Submit) for group in message.groups)


def test_a_new_function_is_sent_once_per_engine(rc, controller, executor):
    """Of a function whose calls may be long, as many calls are sent as there are engines."""
    controller.paused.set()
    futures = [executor.submit(abs, -k) for k in range(10)]
    rc.queue_status()
    assert submitted(controller) == 2
    assert [future.running() for future in futures] == [True] * 2 + [False] * 8
    controller.paused.clear()
    assert [future.result(10) for future in futures] == list(range(10))


def test_short_calls_are_sent_ahead(rc, controller, executor):
    """Of a function whose calls were short, many are sent before a result is there."""
    assert [executor.submit(abs, -k).result(10) for k in range(3)] == [0, 1, 2]
    controller.paused.set()
    before = submitted(controller)
    futures = [executor.submit(abs, -k) for k in range(40)]
    rc.queue_status()
    assert submitted(controller) - before > 2
    controller.paused.clear()
    assert [future.result(10) for future in futures] == list(range(40))


def test_a_long_call_counts_at_once(executor):
    """One long call is enough to send no more than one per engine."""
    future = executor.submit(abs, -1)
    future.result(10)
    digest = future._call.function.function.digest
    executor._durations[digest] = SHARE_S
    executor._learn(future)
    assert executor._durations[digest] < SHARE_S


def test_what_was_not_sent_is_cancelled_here(rc, controller, executor):
    """Cancelling a call that waits here sends nothing, and the call never leaves."""
    controller.paused.set()
    futures = [executor.submit(abs, -k) for k in range(4)]
    assert futures[3].cancel() and futures[3].cancelled()
    rc.queue_status()
    assert not controller.received(m.Cancel)
    controller.paused.clear()
    assert [future.result(10) for future in futures[:3]] == [0, 1, 2]
    with pytest.raises(CancelledError):
        futures[3].result(0)
    assert submitted(controller) == 3


def test_what_was_sent_is_asked_for(controller, executor):
    """A call that waits elsewhere is cancelled, too, if nobody was told that it runs."""
    controller.paused.set()
    first, second = executor.submit(abs, -1), executor.submit(abs, -2)
    assert first.cancel() and first.cancelled()
    assert second.running() and not second.cancel()
    assert len(controller.received(m.Cancel)) == 1
    controller.paused.clear()
    assert second.result(10) == 2


def test_a_late_yes_is_taken_back(rc, executor, controller):
    """A call that comes back after `cancel` has returned False is sent again."""
    controller.paused.set()
    future = executor.submit(abs, -7)
    future._cancel_asked = future._cancel_refused = True
    future._session.submit.cancel(future._work)
    rc.queue_status()
    controller.paused.clear()
    assert future.result(10) == 7
    assert not future.cancelled()
    assert submitted(controller) == 2


def test_abort_is_no_cancel(controller, executor):
    """An aborted call ends with TaskAborted, whether it was sent or not."""
    controller.paused.set()
    futures = [executor.submit(abs, -k) for k in range(3)]
    for future in (futures[0], futures[2]):
        future.abort()
        with pytest.raises(TaskAborted):
            future.result(10)
        assert not future.cancelled()
    controller.paused.clear()
    assert futures[1].result(10) == 1


def test_closing_the_client_ends_all(rc, controller, executor):
    """Calls that were sent and calls that were not end with an error when the client is closed."""
    controller.paused.set()
    futures = [executor.submit(abs, -k) for k in range(5)]
    rc.close()
    assert all(isinstance(future.exception(10), KernelError) for future in futures)
    executor.shutdown()


def test_what_cannot_be_packed_is_refused_at_once(executor):
    """An argument that cannot be pickled raises in `submit`, and nothing is outstanding."""
    with pytest.raises(PackError):
        executor.submit(abs, (k for k in ()))
    executor.shutdown(wait=True)


def test_one_executor_per_view(rc):
    """`view.executor` is the same until it is shut down; `rc.executor()` is always new."""
    view = rc.load_balanced_view()
    first = view.executor
    assert view.executor is first and isinstance(first, ViewExecutor)
    first.shutdown()
    assert view.executor is not first
    assert rc.executor() is not rc.executor()
    assert repr(first) == "<ViewExecutor of <LoadBalancedView None>, shut down>"


def test_direct_calls_go_one_at_a_time(rc, controller):
    """A call on all engines takes them all, so the next one waits here."""
    executor = rc[:].executor
    controller.paused.set()
    futures = [executor.submit(operator.neg, k) for k in range(3)]
    rc.queue_status()
    assert [future.running() for future in futures] == [True, False, False]
    controller.paused.clear()
    assert [future.result(10) for future in futures] == [[0, 0], [-1, -1], [-2, -2]]


def test_the_original_error():
    """The original is caused by the RemoteError, never both ways round; others stay as they are."""
    remote, original = RemoteError("ValueError", "no", ["\x1b[31mline\x1b[0m"]), ValueError("no")
    remote.__cause__ = original
    assert original_error(remote) is original
    assert original.__cause__ is remote and remote.__cause__ is None
    assert remote.__notes__ == ["\nOn the engine:\nline"]
    alone = RemoteError("Odd", "x")
    assert original_error(alone) is alone
    failure = KernelError("x")
    assert original_error(failure) is failure


def test_a_cancel_reaches_who_waits(rc, controller, executor):
    """A thread that waits for a call that waits here is told when another cancels it."""
    controller.paused.set()
    futures = [executor.submit(abs, -k) for k in range(4)]
    with ThreadPoolExecutor() as threads:
        told = threads.submit(futures[3].result, 60)
        wait_until(lambda: rc.session.wire._waiters)
        assert futures[3].cancel()
        try:
            assert isinstance(told.exception(30), CancelledError)
        finally:
            controller.paused.clear()


def test_what_ends_while_nothing_seems_to_have_is_seen(rc, executor):
    """A call that ends just when the queue was found empty calls for another look at it."""
    future = executor.submit(abs, -1)
    assert future.result(10) == 1
    wait_until(lambda: not executor._ended and not executor._feed_noted)

    class Late(deque):
        """Found empty right before something is put there."""

        def __bool__(self):
            if not self.found_empty:
                self.found_empty = True
                executor._in_flight += 1
                executor._note_end(future)
                return False
            return len(self) > 0

        found_empty = False

    executor._ended = Late()
    executor._feed_noted = True  # a look was called for, and this is it
    executor._feed()
    wait_until(lambda: not len(executor._ended))
