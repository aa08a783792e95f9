import operator
import os

import pytest

from ipyfleet_client import AsyncMapResult, AsyncResult, ExecuteReply, Reference
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import CompositeError, RemoteError
from ipyfleet_protocol.serialize import PackError


def fail(number=0):
    """What a task does that fails."""
    raise ZeroDivisionError(f"number {number}")


def test_shape_follows_the_targets(rc):
    """A list of targets gives a list, even of one; an int gives that engine's value."""
    assert rc[0].apply_sync(abs, -1) == 1
    assert rc[[0]].apply_sync(abs, -1) == [1]
    assert rc[:].apply_sync(abs, -1) == [1, 1]
    assert rc.direct_view("all").apply_sync(os.getpid) == [os.getpid()] * 2


def test_repr_names_the_targets(rc):
    """The repr shows the targets."""
    assert repr(rc[:]) == "<DirectView [0, 1]>"
    assert repr(rc[0]) == "<DirectView 0>"
    assert repr(rc.direct_view("all")) == "<DirectView all>"
    assert len(rc[0]) == 1
    assert len(rc.direct_view("all")) == 2


def test_all_is_evaluated_at_each_call(rc, controller):
    """A view of "all" includes engines that come later; a slice does not."""
    everything, frozen = rc.direct_view("all"), rc[:]
    controller.add_engine()
    rc.wait_for_engines(3, timeout=5)
    assert len(everything.apply_sync(abs, 1)) == 3
    assert len(frozen.apply_sync(abs, 1)) == 2


def test_block_decides_whether_apply_waits(rc):
    """`apply` returns an AsyncResult, or the value if the view blocks."""
    view = rc[0]
    assert isinstance(view.apply(abs, -1), AsyncResult)
    view.block = True
    assert view.apply(abs, -1) == 1
    assert isinstance(view.apply_async(abs, -1), AsyncResult)


def test_new_views_take_the_clients_block(rc):
    """`rc.block` is the default for views made afterwards."""
    rc.block = True
    assert rc[0].apply(abs, -1) == 1


def test_f_may_be_a_keyword_argument(rc):
    """The name of the first parameter is not taken from the function's own."""
    assert rc[0].apply_sync(lambda f, self: (f, self), f=1, self=2) == (1, 2)


def test_one_payload_for_all_engines(rc, controller):
    """A call on several engines is one group with one shared payload."""
    rc[:].apply_sync(operator.add, [1] * 100, [2])
    (submit,) = controller.received(m.Submit)
    (group,) = submit.groups
    assert (group.count, group.options.shared, len(group.columns.sizes)) == (2, True, 4)


def test_single_error_is_a_remote_error(rc):
    """An int target's failure raises RemoteError with the remote traceback and the cause."""
    with pytest.raises(RemoteError) as caught:
        rc[0].apply_sync(fail)
    assert str(caught.value) == "[0:apply] ZeroDivisionError: number 0"
    assert type(caught.value.__cause__) is ZeroDivisionError
    assert any("fail" in line for line in caught.value.render_traceback())


def test_several_errors_are_a_composite_error(rc):
    """A list of targets raises CompositeError with the function's name."""
    with pytest.raises(CompositeError, match="one or more exceptions raised in: fail") as caught:
        rc[:].apply_sync(fail)
    assert len(caught.value.elist) == 2


def test_uncallable_function(rc):
    """What is no function is a TypeError at the call."""
    with pytest.raises(TypeError, match="callable"):
        rc[0].apply_async(5)


def test_unpicklable_argument(rc):
    """An argument that cannot be pickled is an error at the call; the client stays usable."""
    with pytest.raises(PackError):
        rc[0].apply_async(abs, (n for n in []))
    assert rc[0].apply_sync(abs, -1) == 1
    assert rc.outstanding == set()


def test_reference_is_evaluated_on_the_engine(rc):
    """A Reference arrives as the engine's own object, also as the function."""
    view = rc[:]
    view["a"] = [1, 2]
    assert view.apply_sync(sum, Reference("a")) == [3, 3]
    view.execute("def double(x): return 2 * x", block=True)
    assert view.apply_sync(Reference("double"), 4) == [8, 8]


def test_map_is_one_task_per_engine(rc):
    """A direct map has one msg_id per engine and as many values as items."""
    ar = rc[:].map_async(lambda x: x**2, range(7))
    assert isinstance(ar, AsyncMapResult)
    assert len(ar.msg_ids) == 2
    assert len(ar) == 7
    assert ar.get(5) == [x**2 for x in range(7)]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_map_of_few_items(rc, count):
    """Fewer items than engines, or none, work as with the builtin."""
    assert rc[:].map_sync(abs, range(count)) == list(range(count))


def test_map_takes_generators_and_several_sequences(rc):
    """The shortest sequence ends the map."""
    assert rc[:].map_sync(operator.add, (n for n in range(5)), [10, 20, 30]) == [10, 21, 32]


def test_map_takes_no_block_in_async_and_sync(rc):
    """`map_async` and `map_sync` refuse `block`; `map` needs a sequence."""
    for call in (rc[:].map_async, rc[:].map_sync):
        with pytest.raises(TypeError, match="block"):
            call(abs, [1], block=True)
    with pytest.raises(TypeError, match="sequence"):
        rc[:].map(abs)


def test_items_are_names_on_the_engines(rc):
    """``view["a"] = x`` and ``view["a"]`` push and pull; keys may be expressions."""
    view = rc[:]
    view["a"] = {"k": 1}
    view["a['k']"] = 5
    assert view["a['k'] + 1"] == [6, 6]
    assert view.get(["a", "1 + 1"]) == [[{"k": 5}, 2]] * 2
    assert rc[0].pull(("a", "2"), block=True) == [{"k": 5}, 2]
    assert view.update({"b": 2}).get(5) == [None, None]
    assert rc[0]["b"] == 2


def test_push_checks_its_argument(rc):
    """A push takes a dictionary with string keys."""
    for wrong in ([1], {1: 2}):
        with pytest.raises(TypeError, match="push"):
            rc[0].push(wrong)
    with pytest.raises(TypeError, match="pull"):
        rc[0].pull([1])


def test_missing_name_is_a_remote_name_error(rc):
    """A name that the engine lacks is the engine's NameError."""
    with pytest.raises(RemoteError, match="NameError"):
        rc[0]["no_such_name"]


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize(
    ("data", "gathered"),
    [
        (list(range(7)), list(range(7))),
        (range(5), [0, 1, 2, 3, 4]),
        ((1, 2, 3), (1, 2, 3)),
        ("abcde", "abcde"),
        (b"abcde", b"abcde"),
        ([1], [1]),
        ([], []),
    ],
)
def test_gather_gives_back_what_was_scattered(rc, data, gathered, dist):
    """What was scattered is what gather returns, for every kind of sequence."""
    view = rc[:]
    assert view.scatter("part", data, dist=dist, block=True) is None
    assert view.gather("part", dist=dist, block=True) == gathered


def test_scatter_cuts_in_blocks(rc):
    """Parts are as even as can be, the larger first; flatten unwraps parts of one."""
    view = rc[:]
    view.scatter("a", range(5), block=True)
    assert view["a"] == [[0, 1, 2], [3, 4]]
    view.scatter("id", rc.ids, flatten=True, block=True)
    assert view["id"] == [0, 1]
    assert view.gather("id", block=True) == [0, 1]


def test_scatter_needs_a_sequence(rc):
    """A number cannot be scattered."""
    with pytest.raises(TypeError, match="sequence"):
        rc[:].scatter("a", 5)
    with pytest.raises(ValueError, match="dist"):
        rc[:].scatter("a", [1], dist="x")


def test_gather_without_blocking(rc):
    """A gather that does not block gives a result of the joined sequence."""
    view = rc[:]
    view.scatter("a", range(4), block=True)
    ar = view.gather("a")
    assert list(ar) == [0, 1, 2, 3]
    assert len(ar) == 4


def test_numpy_arrays_are_scattered_and_gathered(rc):
    """Arrays are cut along their first axis and concatenated again, by either distribution."""
    numpy = pytest.importorskip("numpy")
    view = rc[:]
    array = numpy.arange(20).reshape(5, 4)
    for dist in ("b", "r"):
        view.scatter("a", array, dist=dist, block=True)
        assert (view.gather("a", dist=dist, block=True) == array).all()
    assert rc[0]["a"].shape == (3, 4)


def test_large_arrays_travel_through_shared_memory(rc, controller):
    """A large array goes as one blob for all engines, arrives writable, and nothing is left."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000.0)
    view = rc[:]
    view.push({"big": array}, block=True)
    assert controller.received(m.Submit)[0].groups[0].columns.blobs == b"\1"
    back = view["big"]
    assert [(value == array).all() for value in back] == [True, True]
    back[0][0] = 5
    assert back[1][0] == 0
    del back
    assert rc.session.wait_until(lambda: not list(controller.blob_dir.iterdir()), 5)


def test_execute_returns_its_result_object(rc):
    """`execute` returns an AsyncResult also when it blocks; its value is an ExecuteReply."""
    ar = rc[0].execute("x = 3", block=True)
    assert isinstance(ar, AsyncResult)
    assert ar.successful()
    assert isinstance(ar.get(), ExecuteReply)
    assert rc[0]["x"] == 3


def test_blocking_execute_raises(rc):
    """A blocking execute raises what the code raised."""
    with pytest.raises(CompositeError) as caught:
        rc[:].execute("nope", block=True)
    assert "[0-1:execute] NameError" in str(caught.value)


def test_execute_takes_text(rc):
    """Code is a string."""
    with pytest.raises(TypeError, match="str"):
        rc[:].execute(5)


def test_run_executes_a_file(rc, tmp_path):
    """`run` executes the content of a local file."""
    path = tmp_path / "code.py"
    path.write_text("from_file = 12")
    rc[:].run(path, block=True)
    assert rc[:]["from_file"] == [12, 12]


def test_flags(rc):
    """Flags are set, overridden for a block, and misspelt ones refused."""
    view = rc[:]
    assert view.set_flags(block=True) is view
    with view.temp_flags(block=False, label="x"):
        assert isinstance(view.apply(abs, 1), AsyncResult)
        assert view.label == "x"
    assert view.block
    assert view.label == ""
    for call in (view.set_flags, lambda **f: view.temp_flags(**f).__enter__()):
        with pytest.raises(KeyError, match="blok"):
            call(blok=True)


def test_temporary_flags_are_of_one_thread(rc):
    """Another thread does not see the flags of a `temp_flags` block."""
    import threading

    view = rc[:]
    seen = []
    with view.temp_flags(block=True):
        thread = threading.Thread(target=lambda: seen.append(view.block))
        thread.start()
        thread.join(5)
    assert seen == [False]


def test_targets_can_be_set(rc):
    """Targets are checked when they are set."""
    view = rc[:]
    view.targets = 1
    assert view.apply_sync(abs, -2) == 2
    view.targets = "all"
    assert repr(view) == "<DirectView all>"
    with pytest.raises(IndexError):
        view.targets = [7]


def test_label_travels(rc, controller):
    """A view's label is in the options of its groups."""
    rc[:].set_flags(label="mine").apply_sync(abs, 1)
    assert controller.received(m.Submit)[0].groups[0].options.label == "mine"


def test_empty_view(rc):
    """A view of no engines says so when it is used."""
    with pytest.raises(IndexError, match="no engines"):
        rc[5:].apply_async(abs, 1)


def test_history_of_a_view(rc):
    """A view knows its own tasks."""
    one, two = rc[0], rc[1]
    a, b = one.apply_async(abs, 1), two.apply_async(abs, 1)
    assert (one.history, two.history) == (a.msg_ids, b.msg_ids)
    assert one.wait(timeout=5)
    assert one.outstanding == set()


def test_what_was_pickled_once_is_sent_many_times(rc):
    """A `PrePickled` may be the function, and stand anywhere in arguments."""
    from ipyfleet_protocol.serialize import PrePickled

    table = PrePickled({n: n * n for n in range(10)})
    look_up = PrePickled(lambda table, n: table[n])
    assert [rc[0].apply_async(look_up, table, n).get(5) for n in (2, 3)] == [4, 9]
    assert rc[:].map_sync(look_up, [table] * 3, range(3)) == [0, 1, 4]
    with pytest.raises(TypeError, match="not callable"):
        rc[0].apply(table)
