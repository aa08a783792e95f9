"""Calls that one thread makes later."""

from ipyfleet_client.timers import Timers


def test_only_what_is_due_is_given_out():
    """What is due is given out once; the rest says how long it takes."""
    timers = Timers()
    assert timers.left() is None
    timers.set("now", 0.0, lambda: None)
    timers.set("later", 100.0, lambda: None)
    assert timers.left() == 0.0
    assert len(timers.pop_due()) == 1
    assert timers.pop_due() == []
    assert "now" not in timers
    assert "later" in timers
    assert 90 < timers.left() <= 100


def test_a_name_is_set_once():
    """A second call under a name takes the place of the first."""
    timers = Timers()
    called = []
    timers.set("x", 0.0, lambda: called.append(1))
    timers.set("x", 0.0, lambda: called.append(2))
    for function in timers.pop_due():
        function()
    assert called == [2]
