"""What balanced views send for `after`, `follow` and the flags of placement."""

import threading
import time

import pytest

from ipyfleet_client import Client
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.dependencies import Dependency
from ipyfleet_protocol.ids import parse_msg_id


@pytest.fixture
def view(rc):
    """A balanced view."""
    return rc.load_balanced_view()


def last_options(controller):
    """The options of the group that was submitted last."""
    return controller.received(m.Submit)[-1].groups[-1].options


def tasks_of(*msg_ids):
    """The tasks as the wire has them, one by one."""
    return {parse_msg_id(msg_id) for msg_id in msg_ids}


def tasks_in(dependency):
    """The tasks of a dependency on the wire, one by one."""
    return {(r.client, r.first + k) for r in dependency.tasks for k in range(r.count)}


def test_nothing_to_wait_for_is_the_default(view, controller):
    """Without flags a task waits for nothing, needs nothing and has no limit."""
    assert (view.after, view.follow, view.timeout, view.priority) == (None, None, None, 0)
    assert dict(view.resources) == {}
    view.apply_sync(abs, 1)
    options = last_options(controller)
    assert (options.after, options.follow, options.timeout_s) == (None, None, 0.0)
    assert (options.priority, options.resources) == (0, {})


@pytest.mark.parametrize("flag", ["after", "follow"])
def test_forms_of_a_dependency(view, controller, flag):
    """A result, a msg_id, lists and sets of them and a Dependency all name their tasks."""
    one = view.apply_async(abs, 1)
    many = view.map_async(abs, range(100))
    strings = many.msg_ids
    forms = [
        (one, one.msg_ids),
        (many, strings),
        (strings[7], strings[7:8]),
        ([one, strings[3]], [*one.msg_ids, strings[3]]),
        ({strings[3], strings[4]}, strings[3:5]),
        ((one, [many]), [*one.msg_ids, *strings]),
        (Dependency(many), strings),
        (Dependency(strings).as_dict(), strings),
        ([Dependency(one), strings[0]], [*one.msg_ids, strings[0]]),
    ]
    for form, msg_ids in forms:
        with view.temp_flags(**{flag: form}):
            view.apply_sync(abs, 2)
        sent = getattr(last_options(controller), flag)
        assert tasks_in(sent) == tasks_of(*msg_ids), form
        assert (sent.all, sent.success, sent.failure) == (True, True, False)
    view.apply_sync(abs, 3)
    assert getattr(last_options(controller), flag) is None


def test_a_million_tasks_are_one_range(view, controller):
    """A map is named by its range, not task by task."""
    many = view.map_async(abs, range(5000))
    view.after = many
    view.apply_sync(abs, 1)
    assert [r.count for r in last_options(controller).after.tasks] == [5000]


def test_the_rule_is_sent(view, controller):
    """`all`, `success` and `failure` of a Dependency reach the scheduler."""
    done = view.apply_async(abs, 1)
    view.after = Dependency(done, all=False, success=False, failure=True)
    view.apply_sync(abs, 1)
    sent = last_options(controller).after
    assert (sent.all, sent.success, sent.failure) == (False, False, True)


def test_a_dependency_counts_as_it_was_given(view, controller):
    """What is changed in a Dependency or list later is not noticed; the flag shows what was set."""
    one, two = view.apply_async(abs, 1), view.apply_async(abs, 2)
    given = Dependency(one)
    view.after = given
    given.update(two.msg_ids)
    view.apply_sync(abs, 1)
    assert tasks_in(last_options(controller).after) == tasks_of(*one.msg_ids)
    assert view.after is given
    view.after = None
    view.apply_sync(abs, 1)
    assert last_options(controller).after is None


@pytest.mark.parametrize("empty", [[], set(), Dependency()])
def test_no_task_is_nothing_to_wait_for(view, controller, empty):
    """An empty collection is met at once."""
    view.set_flags(after=empty, follow=empty)
    view.apply_sync(abs, 1)
    assert last_options(controller).after is last_options(controller).follow is None


def test_results_of_other_views_and_parts_of_results(rc, view, controller):
    """Tasks of direct views, and parts of results, can be waited for."""
    direct = rc[:].apply_async(abs, 1)
    third = view.map_async(abs, range(5)).split()[3]
    view.after = [direct, third]
    view.apply_sync(abs, 1)
    assert tasks_in(last_options(controller).after) == tasks_of(*direct.msg_ids, *third.msg_ids)


def test_tasks_of_another_client(view, controller):
    """Another client's tasks are named by its id, and are on their way before the call is sent."""
    with Client(controller.info, timeout=5) as other:
        controller.paused.set()
        theirs = other.load_balanced_view().map_async(abs, range(3))
        view.after = theirs
        ours = view.apply_async(abs, 1)
        controller.paused.clear()
        assert ours.get(5) == 1
        assert tasks_in(last_options(controller).after) == tasks_of(*theirs.msg_ids)
        kinds = [type(message) for message in controller.messages]
        first, _ = (k for k, kind in enumerate(kinds) if kind is m.Submit)
        assert first < kinds.index(m.Request)


def test_calls_that_an_executor_holds_back(rc, view, controller):
    """A future whose call is not submitted cannot be named; the error says what to use."""
    controller.paused.set()
    with view.executor as executor:
        futures = [executor.submit(abs, k) for k in range(50)]
        with pytest.raises(ValueError, match="not submitted yet"):
            view.after = futures[-1]
        controller.paused.clear()
    view.after = futures[-1]


def test_flags_hold_for_all_calls_of_a_block(view, controller):
    """`temp_flags` counts for maps and imap, too, in its thread and not in others."""
    done = view.apply_async(abs, 1)
    seen = []
    with view.temp_flags(after=done, priority=3, timeout=9, resources={"gpu": 1}, retries=2):
        thread = threading.Thread(target=lambda: seen.append((view.after, view.priority)))
        thread.start()
        thread.join(5)
        view.map_sync(abs, range(3), chunksize=2)
        for call in (
            lambda: view.map_sync(abs, range(3)),
            lambda: list(view.imap(abs, range(3))),
            lambda: view.apply_sync(abs, 1),
            lambda: view.executor.submit(abs, 1).result(5),
        ):
            call()
            options = last_options(controller)
            assert tasks_in(options.after) == tasks_of(*done.msg_ids)
            assert (options.priority, options.timeout_s, options.retries) == (3, 9.0, 2)
            assert options.resources == {"gpu": 1.0}
    assert seen == [(None, 0)]
    assert view.after is None


def test_calls_with_other_options_are_not_merged(view, controller):
    """Calls made in a row keep their own options."""
    first = view.apply_async(time.sleep, 0.05)
    results = []
    for number in range(4):
        with view.temp_flags(priority=number, after=first):
            results.append(view.apply_async(abs, number))
    assert [ar.get(5) for ar in results] == [0, 1, 2, 3]
    groups = [g for s in controller.received(m.Submit) for g in s.groups][-4:]
    assert [g.options.priority for g in groups] == [0, 1, 2, 3]


def test_decorated_functions_take_flags(view, controller):
    """`@view.remote` and `@view.parallel` take the flags of their view."""
    done = view.apply_async(abs, 1)
    view.remote(block=True, after=done)(abs)(-1)
    assert last_options(controller).after is not None
    view.parallel(block=True, priority=-2)(abs).map([1, 2])
    assert last_options(controller).priority == -2


def test_metadata_tells_what_was_waited_for(view):
    """A task's metadata names the tasks that it waited for and followed."""
    many = view.map_async(abs, range(3))
    with view.temp_flags(after=many, follow=many.msg_ids[1]):
        ar = view.apply_async(abs, 1)
    ar.get(5)
    assert ar.metadata.after == many.msg_ids
    assert ar.follow == many.msg_ids[1:2]
    assert many.metadata[0].after == []


MSG_ID = "00" * 16 + "_1"
BAD = {
    "a number after": ("after", 5, TypeError, "takes results, msg_ids"),
    "bytes after": ("after", b"abc", TypeError, "not bytes"),
    "a number in a list": ("follow", [MSG_ID, 5], TypeError, "not int"),
    "a generator": ("after", (x for x in "ab"), TypeError, "not generator"),
    "no msg_id": ("after", "bogus", ValueError, "not a msg_id: 'bogus'"),
    "no msg_id in a set": ("follow", {"bogus"}, ValueError, "not a msg_id"),
    "a dictionary": ("after", {"msg_ids": []}, ValueError, "'dependencies'"),
    "a lost rule": ("after", [Dependency(MSG_ID, all=False)], ValueError, "one Dependency"),
    "a negative timeout": ("timeout", -1, ValueError, "not be negative: -1"),
    "a timeout of text": ("timeout", "5", TypeError, "a number"),
    "no timeout at all": ("timeout", float("nan"), ValueError, "NaN"),
    "a timeout of truth": ("timeout", True, TypeError, "a number"),
    "negative retries": ("retries", -1, ValueError, "negative"),
    "half a retry": ("retries", 0.5, TypeError, "an int"),
    "a priority of text": ("priority", "high", TypeError, "an int"),
    "a huge priority": ("priority", 1 << 40, ValueError, "less than"),
    "resources as a list": ("resources", ["gpu"], TypeError, "a dictionary such as"),
    "resources of text": ("resources", {"gpu": "1"}, TypeError, "a number"),
    "resources of nothing": ("resources", {"": 1}, ValueError, "must not be empty"),
    "resources by number": ("resources", {1: 1}, TypeError, "a str"),
    "negative resources": ("resources", {"gpu": -1}, ValueError, "0 or more"),
    "endless resources": ("resources", {"gpu": float("inf")}, ValueError, "finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(view, case):
    """Each value that a flag cannot have is refused with what it can have, wherever it is set."""
    flag, value, kind, match = BAD[case]
    before = getattr(view, flag)
    with pytest.raises(kind, match=match):
        setattr(view, flag, value)
    with pytest.raises(kind), view.temp_flags(**{flag: value}):
        pytest.fail("the block must not run")
    with pytest.raises(kind):
        view.set_flags(**{flag: value})
    assert getattr(view, flag) == before


@pytest.mark.parametrize("endless", [None, 0, float("inf"), 1e30])
def test_timeouts_without_an_end(view, controller, endless):
    """None, 0 and infinity are for any time."""
    view.timeout = endless
    view.apply_sync(abs, 1)
    assert last_options(controller).timeout_s == 0.0


def test_resources_cannot_be_changed_unseen(view):
    """What a view needs is set as a whole, so that it is checked."""
    needed = {"gpu": 1}
    view.resources = needed
    needed["gpu"] = 5
    assert dict(view.resources) == {"gpu": 1.0}
    with pytest.raises(TypeError):
        view.resources["gpu"] = 2
    view.resources = None
    assert dict(view.resources) == {}


def test_direct_views_have_no_such_flags(rc):
    """A direct view says which flags it has."""
    with pytest.raises(KeyError, match="no flag 'after'"):
        rc[:].set_flags(after=MSG_ID)
