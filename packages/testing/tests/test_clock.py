import pytest

from ipyfleet_testing.clock import MockClock


def test_moves_only_when_told() -> None:
    """The clock shows its start until it is advanced, by a step or to a time."""
    clock = MockClock(10)
    assert (clock(), clock.now) == (10, 10)
    assert clock.advance(0.5) == 10.5
    assert clock.advance_to(12) == 12
    assert clock() == 12


def test_never_goes_backwards() -> None:
    """A step back is refused and leaves the clock where it was."""
    clock = MockClock(10)
    with pytest.raises(ValueError, match="cannot go back by 1"):
        clock.advance(-1)
    with pytest.raises(ValueError, match=r"from 10\.0 to 9"):
        clock.advance_to(9)
    assert clock() == 10
