import argparse

import pytest

from ipyfleet_magics.options import parse_signal


@pytest.mark.parametrize(("text", "signum"), [("SIGINT", 2), ("int", 2), ("15", 15), ("0", 0)])
def test_signals_by_name_and_number(text: str, signum: int):
    """A signal is named with or without SIG, in any case, or given as a number; 0 is none."""
    assert parse_signal(text) == signum


@pytest.mark.parametrize("text", ["SIGNOTHING", "999", "", "-1"])
def test_what_is_no_signal(text: str):
    """Anything else is refused by name."""
    with pytest.raises(argparse.ArgumentTypeError, match="no signal"):
        parse_signal(text)
