import itertools
import operator

import pytest

from ipyfleet_client import AsyncMapResult, AsyncResult
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import CompositeError, RemoteError, TaskAborted
from ipyfleet_protocol.serialize import PackError
from ipyfleet_testing.waiting import wait_until


def fail_on_three(x):
    """A task that fails for one item."""
    if x == 3:
        raise ValueError("three")
    return x


@pytest.fixture
def view(rc):
    """A balanced view."""
    return rc.load_balanced_view()


def test_repr_and_len(rc, view):
    """The repr shows the targets, the length how many engines may be used."""
    assert repr(view) == "<LoadBalancedView None>"
    assert len(view) == 2
    assert len(rc.load_balanced_view([1])) == 1


def test_apply(view):
    """`apply` gives one value, from any engine."""
    assert view.apply_sync(operator.add, 1, 2) == 3
    assert isinstance(view.apply(abs, 1), AsyncResult)


def test_map_keeps_order(view, controller):
    """Values are in the order of the items, however results arrive."""
    controller.reverse = True
    ar = view.map_async(lambda x: x * 2, range(200))
    assert isinstance(ar, AsyncMapResult)
    assert ar.get(5) == [x * 2 for x in range(200)]


def test_map_of_one_task_per_item(view):
    """Each item is a task of its own with its own msg_id."""
    ar = view.map_async(abs, range(100))
    assert len(set(ar.msg_ids)) == 100
    assert ar.get(5) == list(range(100))


def test_long_maps_go_in_growing_groups(view, controller):
    """A long map is sent group by group, so that work starts while the rest is packed."""
    view.map_sync(abs, range(1000))
    sizes = [g.count for s in controller.received(m.Submit) for g in s.groups]
    assert sizes == [64, 256, 680]


def test_the_function_is_sent_once(view, controller):
    """Only the first group that uses a function carries its body."""
    view.map_sync(abs, range(1000))
    view.apply_sync(abs, 1)
    functions = [g.function for s in controller.received(m.Submit) for g in s.groups]
    assert [bool(f.frames) for f in functions] == [True, False, False, False]
    assert len({f.digest for f in functions}) == 1


@pytest.mark.parametrize("chunksize", [1, 2, 3, 100])
def test_chunks_change_nothing_but_the_tasks(view, chunksize):
    """Whatever the chunk size, there is one value per item, and they can be indexed."""
    ar = view.map_async(operator.add, range(10), range(10, 20), chunksize=chunksize)
    assert len(ar) == 10
    assert ar.get(5) == [2 * x + 10 for x in range(10)]
    assert (ar[0], ar[-1], ar[3:5]) == (10, 28, [16, 18])
    assert list(ar) == ar.get()
    assert len(ar.msg_ids) == -(-10 // chunksize)
    assert ar.progress == 10


@pytest.mark.parametrize("chunksize", [0, -1, 1.5, True])
def test_wrong_chunksize(view, chunksize):
    """A chunk size is a positive int."""
    with pytest.raises(ValueError, match="chunksize"):
        view.map(abs, [1], chunksize=chunksize)


def test_map_of_iterators(view):
    """Sequences without a length, and none at all, are fine."""
    assert view.map_sync(operator.mul, (x for x in range(300)), itertools.count()) == [
        x * x for x in range(300)
    ]
    assert view.map_sync(abs, []) == []
    assert view.map_sync(abs, iter(())) == []


def test_iteration_yields_before_the_end(view, controller):
    """The first values can be taken while the last tasks have not run."""
    controller.batch = 1
    ar = view.map_async(abs, range(100))
    assert next(iter(ar)) == 0


def test_unordered_iteration_yields_what_is_there(view, controller):
    """With ``ordered=False`` values come as they arrive; all of them, each once."""
    controller.reverse = True
    ar = view.map_async(abs, range(50), ordered=False)
    values = list(ar)
    assert sorted(values) == list(range(50))
    assert values != list(range(50))
    assert ar.get() == list(range(50))


def test_errors_of_a_map(view):
    """`get` raises a CompositeError; iteration raises the RemoteError where it belongs."""
    ar = view.map_async(fail_on_three, range(6))
    with pytest.raises(CompositeError, match="raised in: fail_on_three") as caught:
        ar.get(5)
    assert len(caught.value.elist) == 1
    values = iter(ar)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RemoteError, match="three"):
        next(values)


def test_errors_as_values(view):
    """With ``return_exceptions`` errors take the place of values."""
    values = view.map_sync(fail_on_three, range(5), return_exceptions=True)
    assert isinstance(values[3], RemoteError)
    del values[3]
    assert values == [0, 1, 2, 4]
    chunked = view.map_sync(fail_on_three, range(6), chunksize=2, return_exceptions=True)
    assert [v for v in chunked if not isinstance(v, Exception)] == [0, 1, 4, 5]


def test_targets_restrict_the_engines(rc, controller):
    """A view of some engines sends their ids along."""
    view = rc.load_balanced_view([1])
    ar = view.map_async(abs, range(4))
    ar.get(5)
    assert set(ar.engine_id) == {1}
    with pytest.raises(IndexError, match="no engine 5"):
        rc.load_balanced_view([5])


def test_retries_travel(view, controller):
    """`retries` is sent; a negative one is refused."""
    view.retries = 3
    view.apply_sync(abs, 1)
    assert controller.received(m.Submit)[0].groups[0].options.retries == 3
    with pytest.raises(ValueError, match="retries"):
        view.retries = -1
    with pytest.raises(TypeError, match="retries"):
        view.set_flags(retries="x")


def test_unpicklable_item_cancels_the_map(rc, view, controller):
    """A map whose item cannot be pickled raises, takes back what was sent, and leaves no debris."""
    controller.paused.set()
    items = [*range(200), (x for x in ())]
    with pytest.raises(PackError):
        view.map_async(abs, items)
    controller.paused.clear()
    assert rc.wait(timeout=5)
    assert rc.outstanding == set()
    assert view.apply_sync(abs, -1) == 1


def test_abort(view, controller):
    """Aborted tasks that have not started end with TaskAborted."""
    controller.paused.set()
    ar = view.apply_async(abs, 1)
    ar.abort()
    with pytest.raises(TaskAborted):
        ar.get(5)
    with pytest.raises(RuntimeError, match="ended"):
        ar.abort()


def test_client_abort_takes_all(rc, view, controller):
    """`rc.abort()` takes back everything outstanding; other arguments are checked."""
    controller.paused.set()
    ars = [view.apply_async(abs, k) for k in range(3)]
    rc.abort()
    for ar in ars:
        assert isinstance(ar.exception(5), TaskAborted)
    with pytest.raises(TypeError):
        rc.abort(5.5)


def test_coalescing(rc, view, controller):
    """Many calls in a row travel in a few messages, in order."""
    ars = [view.apply_async(abs, -k) for k in range(500)]
    assert [ar.get(5) for ar in ars] == list(range(500))
    submits = controller.received(m.Submit)
    assert len(submits) < 50
    firsts = [g.first for s in submits for g in s.groups]
    assert firsts == sorted(firsts)


def test_coalescing_keeps_functions_and_targets_apart(rc, view, controller):
    """Calls with other functions, targets or options do not get into the wrong group."""
    controller.paused.set()
    first = view.apply_async(abs, -1)
    ars = []
    for k in range(20):
        ars.append(view.apply_async(operator.neg, k))
        ars.append(rc[k % 2].apply_async(operator.add, k, 1))
        ars.append(view.apply_async(operator.add, k, 2))
    controller.paused.clear()
    assert first.get(5) == 1
    assert [ar.get(5) for ar in ars] == [v for k in range(20) for v in (-k, k + 1, k + 2)]
    assert [ars[3 * k + 1].engine_id for k in range(20)] == [k % 2 for k in range(20)]


def test_fire_and_forget_is_sent(rc, view, controller):
    """A call whose result nobody waits for is sent all the same."""
    controller.paused.set()
    for k in range(3):
        view.apply_async(abs, k)
    count = lambda: sum(g.count for s in controller.received(m.Submit) for g in s.groups)  # noqa: E731
    wait_until(lambda: count() == 3)


def test_dropped_results_are_freed(rc, view):
    """What is done and not referred to any more is freed."""
    import weakref

    ar = view.map_async(abs, range(10))
    ar.get(5)
    gone = weakref.ref(ar)
    work = weakref.ref(ar._work)
    del ar
    # The thread that received may be about to let go.
    wait_until(lambda: gone() is None)
    wait_until(lambda: work() is None)
