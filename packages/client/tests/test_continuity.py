"""What goes out over a connection, and what again over the next one."""

import pytest

from ipyfleet_client.continuity import Continuity, Phase
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.messages import Ack

FIRST, SECOND = b"1" * 8, b"2" * 8


def send(continuity, *messages):
    """Send messages as the wire does."""
    for message in messages:
        if continuity.phase is Phase.OPEN:
            continuity.sent.note([message])
        else:
            continuity.note_unsent([message])


@pytest.fixture
def joined():
    """A session that has begun, with three messages sent and two received."""
    continuity = Continuity()
    assert continuity.greet() == (b"", 0, 1)
    assert continuity.welcome(FIRST, 0)
    send(continuity, b"a", b"b", b"c")
    continuity.received.note(1, 0.0)
    continuity.received.note(1, 0.0)
    return continuity


def test_the_same_run_gets_what_it_lacks(joined):
    """After a break what was lost and what was sent meanwhile goes out, in order, and no more."""
    joined.lose()
    send(joined, b"d")
    assert joined.greet() == (FIRST, 2, 2)
    assert not joined.takes
    send(joined, b"e")
    assert joined.welcome(FIRST, 2)
    assert [frames[0] for frames in joined.backlog] == [b"c", b"d", b"e", encode(Ack(2))]
    assert joined.takes


def test_another_run_gets_nothing_before_the_restart(joined):
    """A controller without memory is first of all sent what is to be done again."""
    joined.lose()
    joined.greet()
    assert not joined.welcome(SECOND, 0)
    assert joined.phase is Phase.WELCOMED
    assert joined.takes
    assert joined.received.count == 0
    send(joined, b"in the groups")
    assert not joined.backlog
    joined.restart([[b"x"], [b"y"]], [[b"z"]])
    assert [frames[0] for frames in joined.backlog] == [b"x", b"y", encode(Ack(0)), b"z"]
    assert joined.sent.count == 3


def test_a_break_before_the_restart(joined):
    """A run that was not yet told what is open still has to be, though it is known by then."""
    joined.lose()
    joined.greet()
    joined.welcome(SECOND, 0)
    joined.lose()
    assert joined.greet() == (SECOND, 0, 3)
    assert not joined.welcome(SECOND, 0)
    joined.restart([[b"x"]])
    joined.lose()
    joined.greet()
    assert joined.welcome(SECOND, 0)
    assert [frames[0] for frames in joined.backlog] == [b"x", encode(Ack(0))]


def test_only_one_answer_to_the_last_greeting_is_awaited(joined):
    """Not those to greetings of connections that are gone, nor a second one."""
    assert not joined.is_awaited(1)
    for greeting in (2, 3):
        joined.lose()
        assert not joined.is_awaited(greeting)
        assert joined.greet()[2] == greeting
    assert [joined.is_awaited(greeting) for greeting in range(5)] == [False] * 3 + [True, False]
    joined.welcome(SECOND, 0)
    assert not joined.is_awaited(3)


def test_a_controller_that_has_given_the_client_up(joined):
    """One that lacks what it had acknowledged is told everything anew."""
    joined.sent.acknowledge(2)
    joined.lose()
    joined.greet()
    assert not joined.welcome(FIRST, 0)
    assert joined.phase is Phase.WELCOMED


def test_a_controller_that_cannot_resume():
    """Nothing is kept for one; what is sent while there is no connection goes out later."""
    continuity = Continuity()
    continuity.greet()
    assert continuity.welcome(b"", 0)
    assert not continuity.keeps
    continuity.lose()
    send(continuity, b"a")
    continuity.greet()
    assert continuity.welcome(b"", 0)
    assert [frames[0] for frames in continuity.backlog] == [b"a"]
    assert len(continuity.sent) == 0
