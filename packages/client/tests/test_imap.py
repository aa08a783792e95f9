import itertools
import signal
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import RemoteError
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


def test_lazy_map(view):
    """`imap` gives the values in order."""
    assert list(view.imap(abs, range(-500, 0))) == list(range(500, 0, -1))
    assert list(view.imap(pow, range(5), itertools.repeat(2))) == [0, 1, 4, 9, 16]
    assert list(view.imap(abs, [])) == []


def test_endless_input(view, controller):
    """An endless input is taken only as far as needed."""
    taken = []
    numbers = (taken.append(n) or n for n in itertools.count())
    values = view.imap(abs, numbers, max_outstanding=10)
    assert [next(values) for _ in range(25)] == list(range(25))
    assert len(taken) <= 25 + 10
    values.cancel()
    assert list(values) == []


def test_window_bounds_what_is_under_way(view, controller):
    """No more than `max_outstanding` tasks are submitted before something is consumed."""
    values = view.imap(abs, range(100), max_outstanding=4)
    assert next(values) == 0
    submitted = sum(g.count for s in controller.received(m.Submit) for g in s.groups)
    assert submitted <= 4
    assert list(values) == list(range(1, 100))


def test_greedy(view, controller):
    """0 means no window."""
    values = view.imap(abs, range(3000), max_outstanding=0)
    assert list(values) == list(range(3000))


def test_unordered(view, controller):
    """With ``ordered=False`` all values come, each once, as they arrive."""
    controller.reverse = True
    values = list(view.imap(abs, range(100), ordered=False, max_outstanding=20))
    assert sorted(values) == list(range(100))
    assert values != sorted(values)


def test_errors(view):
    """A failed item raises where it is due, and the rest goes on; or is a value."""
    values = view.imap(fail_on_three, range(6))
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RemoteError, match="three"):
        next(values)
    assert list(values) == [4, 5]
    mixed = list(view.imap(fail_on_three, range(6), return_exceptions=True))
    assert isinstance(mixed[3], RemoteError)


def test_error_of_the_input(view):
    """An error of the input reaches the consumer after the values before it."""

    def numbers():
        yield from range(3)
        raise OSError("disk")

    values = view.imap(abs, numbers())
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk"):
        next(values)


@pytest.mark.parametrize("wrong", ["much", -1])
def test_wrong_window(view, wrong):
    """A window is an int or "auto"."""
    with pytest.raises(ValueError, match="max_outstanding"):
        view.imap(abs, [1], max_outstanding=wrong)


class Interrupted:
    """Numbers; before the fourth the user presses Ctrl-C."""

    def __init__(self):
        self.numbers = itertools.count()
        self.left = 3

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        return next(self.numbers)


def test_an_interrupt_loses_nothing_of_the_input(view):
    """What had been taken when Ctrl-C came is submitted by the next call."""
    values = view.imap(abs, Interrupted(), max_outstanding=10)
    with pytest.raises(KeyboardInterrupt):
        next(values)
    assert [next(values) for _ in range(20)] == list(range(20))
    values.cancel()


def test_memory_is_freed_as_values_are_consumed(view):
    """Consumed works are forgotten."""
    values = view.imap(abs, range(2000), max_outstanding=16)
    for _ in values:
        assert len(values._works) <= 16
    assert not values._works


@pytest.mark.parametrize("ordered", [True, False])
def test_a_cancel_reaches_who_waits(rc, view, controller, ordered):
    """A thread that waits for the next value is told when another ends the map."""
    controller.paused.set()
    values = view.imap(abs, itertools.count(), ordered=ordered)
    with ThreadPoolExecutor() as threads:
        told = threads.submit(next, values, "the end")
        wait_until(lambda: rc.session.wire._waiters)
        values.cancel()
        try:
            assert told.result(30) == "the end"
        finally:
            controller.paused.clear()
    assert list(values) == []


def test_what_cannot_be_packed_ends_the_map(view):
    """Values before it are given, then the error; none after it, as if nothing were missing."""
    values = view.imap(abs, [1, 2, (k for k in ()), 4, 5, 6], max_outstanding=1)
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(PackError):
        next(values)
    assert list(values) == []


class InterruptedPacking:
    """Ctrl-C comes when it is pickled for the first time; it arrives as -3."""

    come = False

    def __reduce__(self):
        if not self.come:
            self.come = True
            raise KeyboardInterrupt
        return int, (-3,)


@pytest.mark.parametrize("more", [[], [4, 5, 6]])
def test_an_interrupt_while_it_packs_loses_nothing(view, more):
    """What was being packed when Ctrl-C came is packed again by the next call."""
    values = view.imap(abs, [1, 2, InterruptedPacking(), *more])
    with pytest.raises(KeyboardInterrupt):
        next(values)
    assert list(values) == [1, 2, 3, *more]


class InterruptedDeque(deque):
    """Ctrl-C comes right after something was deleted."""

    def __delitem__(self, place):
        super().__delitem__(place)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_interrupt_between_two_works(view, ordered):
    """Ctrl-C while a work is forgotten leaves an iterator that goes on with the next."""
    values = view.imap(abs, range(6), ordered=ordered, max_outstanding=2)
    seen = [next(values)]
    values._works = InterruptedDeque(values._works)
    with pytest.raises(KeyboardInterrupt):
        seen += iter(values)
    values._works = deque(values._works)
    rest = list(values)
    # What was to be given when it came is gone, as with any iterator.
    assert len(seen) + 1 + len(rest) == 6
    assert sorted(rest) == list(range(6))[-len(rest) :]
