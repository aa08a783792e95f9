import pytest

import ipyfleet
from ipyfleet import serialize


def test_objects_to_frames_and_back() -> None:
    """Objects in a row of frames come out one by one; large data are frames of their own."""
    data = bytes(range(250)) * 400
    frames = serialize.serialize_object({"a": data}) + serialize.serialize_object("b")
    assert len(frames) == 3
    first, rest = serialize.deserialize_object(frames)
    assert first["a"] == data
    assert serialize.deserialize_object(rest) == ("b", [])


def test_calls_to_frames_and_back() -> None:
    """A call's function, arguments and keyword arguments come back."""
    scale = 3
    frames = serialize.pack_apply_message(lambda x, y: scale * x - y, (5,), {"y": 1})
    f, args, kwargs = serialize.unpack_apply_message([bytes(frame) for frame in frames])
    assert f(*args, **kwargs) == 14


def test_canning() -> None:
    """`uncan` gives a copy of what `can` was given, and leaves other things alone."""
    value = [1, {"a": b"x" * 100_000}]
    canned = serialize.can(value)
    value.append(2)
    assert serialize.uncan(canned) == value[:2]
    assert serialize.uncan(value) is value


@pytest.mark.parametrize("name", ["cluster", "datapub", "error", "joblib", "serialize", "util"])
def test_submodules_are_attributes(name: str) -> None:
    """``import ipyfleet as ipp`` is enough for ``ipp.util`` and its like."""
    assert getattr(ipyfleet, name).__name__ == f"ipyfleet.{name}"


def test_launchers_by_their_old_name() -> None:
    """Launchers are where scripts look for them."""
    from ipyfleet.cluster.launcher import EngineLauncher, find_launcher_class

    assert issubclass(find_launcher_class("engine", "local"), EngineLauncher)
