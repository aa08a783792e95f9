"""What engines are told when clients acknowledge."""

from __future__ import annotations

from ipyfleet_controller.lines import ForwardedResults
from ipyfleet_protocol.ids import PeerId

CLIENT, OTHER = PeerId(b"c" * 16), PeerId(b"o" * 16)
ENGINE, SECOND = PeerId(b"e" * 16), PeerId(b"f" * 16)


def test_an_engine_is_told_of_the_last_of_its_results_that_a_client_has() -> None:
    """Each engine's highest number behind an acknowledged position is returned, once."""
    forwarded = ForwardedResults()
    for position, engine, number in [
        (1, ENGINE, 7),
        (2, SECOND, 1),
        (2, ENGINE, 8),
        (5, ENGINE, 9),
    ]:
        forwarded.note(CLIENT, position, engine, number)
    forwarded.note(OTHER, 1, ENGINE, 10)
    assert forwarded.take(CLIENT, 0) == {}
    assert forwarded.take(CLIENT, 1) == {ENGINE: 7}
    assert forwarded.take(CLIENT, 4) == {ENGINE: 8, SECOND: 1}
    assert forwarded.take(CLIENT, 4) == {}
    assert forwarded.take(CLIENT, None) == {ENGINE: 9}
    assert forwarded.take(OTHER, 1) == {ENGINE: 10}
