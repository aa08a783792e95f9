"""When engines are replaced."""

from __future__ import annotations

import pytest

from ipyfleet_engine.respawn import GOOD_LIFE_S, LONGEST_DELAY_S, Policy, Respawn


@pytest.mark.parametrize(
    ("policy", "exit_code", "is_replaced"),
    [
        ("never", -9, False),
        ("never", 0, False),
        ("on_failure", -9, True),
        ("on_failure", 3, True),
        ("on_failure", 0, False),
        ("always", 0, True),
        ("always", -11, True),
    ],
)
def test_policies(policy: Policy, exit_code: int, is_replaced: bool) -> None:
    """What each policy makes of an end."""
    delay_s = Respawn(policy).delay_s(0, exit_code=exit_code, lived_s=1.0)
    assert delay_s == (0.0 if is_replaced else None)


def test_who_was_told_to_stop_stays_away() -> None:
    """Whatever the policy."""
    assert Respawn("always").delay_s(0, exit_code=0, lived_s=1.0, was_told=True) is None


def test_who_was_killed_by_force_is_replaced() -> None:
    """Whatever the policy, at once and without limit: it was not the engine's fault."""
    respawn = Respawn("never", limit=1)
    for _ in range(3):
        assert respawn.delay_s(0, exit_code=-9, lived_s=0.1, was_forced=True) == 0.0


def test_delays_grow_to_a_bound_and_end() -> None:
    """Twice as long each time, half a minute at most; after the limit never again."""
    respawn = Respawn("on_failure", limit=14)
    delays = [respawn.delay_s(0, exit_code=1, lived_s=0.1) for _ in range(15)]
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert delays[13] == LONGEST_DELAY_S and delays[14] is None


def test_a_good_life_clears_the_record() -> None:
    """An engine that lived for a minute starts anew; another place has a record of its own."""
    respawn = Respawn("on_failure", limit=2)
    for _ in range(3):
        last = respawn.delay_s(0, exit_code=1, lived_s=0.1)
    assert last is None
    assert respawn.delay_s(1, exit_code=1, lived_s=0.1) == 0.0
    assert respawn.delay_s(0, exit_code=1, lived_s=GOOD_LIFE_S) == 0.0


def test_no_limit() -> None:
    """With limit 0 it goes on for ever, and the delay stays a number."""
    respawn = Respawn("always", limit=0)
    for _ in range(3000):
        last = respawn.delay_s(0, exit_code=1, lived_s=0.1)
    assert last == LONGEST_DELAY_S


def test_the_longest_delay_can_be_chosen() -> None:
    """No replacement waits for longer than asked for."""
    respawn = Respawn("always", limit=0, longest_delay_s=0.2)
    delays = [respawn.delay_s(0, exit_code=1, lived_s=0.1) for _ in range(5)]
    assert delays == [0.0, 0.1, 0.2, 0.2, 0.2]
