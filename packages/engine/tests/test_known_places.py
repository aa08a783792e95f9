"""What of a rendered traceback is used again."""

from __future__ import annotations

import pytest

from ipyfleet_engine.known_places import MAX_PLACES, KnownPlaces, place_of


def _raised(message: str, kind: type[Exception] = ValueError) -> Exception:
    try:
        raise kind(message)
    except Exception as error:  # noqa: BLE001 - it is what is wanted
        return error


def _place(error: BaseException) -> object:
    return place_of(error, error.__traceback__)


def test_another_message_is_put_at_the_end() -> None:
    """All else is as it was rendered for the first error."""
    places = KnownPlaces()
    places.note(("here",), "item 1 fails", ["head", "frame", "ValueError: item 1 fails"])
    assert places.find(("here",), "item 22 fails") == ["head", "frame", "ValueError: item 22 fails"]
    assert places.find(("there",), "item 22 fails") is None


@pytest.mark.parametrize("lines", [[], ["ValueError: x, and more"]])
def test_what_does_not_end_with_the_message_is_not_kept(lines: list[str]) -> None:
    """Nobody knows where the message is in it."""
    places = KnownPlaces()
    places.note(("here",), "x", lines)
    assert places.find(("here",), "y") is None


def test_an_error_without_a_message_is_not_kept() -> None:
    """Its line has no end that could be replaced."""
    places = KnownPlaces()
    places.note(("here",), "", ["ValueError: "])
    assert places.find(("here",), "") is None


def test_the_number_of_places_is_bounded() -> None:
    """Each refers to code."""
    places = KnownPlaces()
    for number in range(MAX_PLACES + 1):
        places.note((number,), "x", ["x"])
    assert places.find((0,), "x") is None
    assert places.find((MAX_PLACES,), "y") == ["y"]


def test_errors_of_one_line_are_in_one_place() -> None:
    """Of whatever message; another class is another place."""
    assert _place(_raised("a")) == _place(_raised("b"))
    assert _place(_raised("a")) != _place(_raised("a", KeyError))


def test_an_error_that_tells_of_another_has_no_place() -> None:
    """Nor has one with notes: more than its message may differ."""
    error = _raised("a")
    error.__context__ = _raised("b")
    assert _place(error) is None
    error = _raised("a")
    error.add_note("more")
    assert _place(error) is None
