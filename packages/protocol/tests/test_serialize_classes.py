import enum

import pytest

from ipyfleet_protocol.serialize import (
    ClassTable,
    UnpackError,
    equip_function,
    pack_call,
    pack_function,
    pack_items,
    unpack_call,
    unpack_function,
    use_cloudpickle,
    use_pickle,
)
from ipyfleet_protocol.serialize import classes as registry


def make_class(factor: int) -> type:
    """Return a class of ``__main__``, which travels by value."""

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

        def scaled(self) -> int:
            return self.x * factor

    Point.__module__ = "__main__"
    return Point


@pytest.fixture(autouse=True)
def receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that has no classes yet."""
    monkeypatch.setattr(registry, "_classes", {})


def test_a_class_travels_once_with_the_function() -> None:
    """Items carry a few bytes each; whoever has the function has the class."""
    point = make_class(3)
    table = ClassTable()
    items = [(point(n), [point(n + 1)]) for n in range(10)]
    packed = pack_items(items, table)
    assert len(table.bodies) == 1
    assert all(
        len(p.pickle) < 200 < len(pack_call(item, {}).pickle)
        for p, item in zip(packed, items, strict=True)
    )
    with pytest.raises(UnpackError, match="did not come with its function"):
        unpack_call(packed[0].pickle)
    function = equip_function(pack_function(lambda one, more: one.scaled() + more[0].x), table)
    f = unpack_function(function.frames)
    assert [f(*unpack_call(p.pickle)[0]) for p in packed] == [3 * n + n + 1 for n in range(10)]


def test_the_digest_is_that_of_all() -> None:
    """Other classes make another function, the same ones the same; without any it is as it was."""
    function = pack_function(abs)
    one, same, other = (make_class(n) for n in (1, 1, 2))
    digests = []
    for cls in (one, one, same, other):
        table = ClassTable()
        pack_items([(cls(1),)], table)
        equipped = equip_function(function, table)
        assert equipped.function.name == function.function.name
        assert equipped.function.reusable == function.function.reusable
        digests.append(equipped.function.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert equip_function(function, ClassTable()) is function


def test_a_class_that_changes_between_groups() -> None:
    """Each group brings its classes as they are when it is packed."""
    point = make_class(1)
    found = []
    for colour in ("red", "blue"):
        point.colour = colour  # type: ignore[attr-defined]
        table = ClassTable()
        (packed,) = pack_items([(point(1),)], table)
        (digest,) = table.bodies
        found.append(digest)
        unpack_function(equip_function(pack_function(abs), table).frames)
        assert unpack_call(packed.pickle)[0][0].colour == colour
    assert found[0] != found[1]


def test_enumerations_and_importable_classes() -> None:
    """Members stay members; what the receiver can import is imported."""
    colour = enum.Enum("colour", ["RED"], module="__main__")  # type: ignore[misc]
    table = ClassTable()
    packed = pack_items([(colour.RED,), (ValueError("x"),)], table)  # type: ignore[attr-defined]
    unpack_function(equip_function(pack_function(abs), table).frames)
    (member,), _ = unpack_call(packed[0].pickle)
    assert member.name == "RED"
    assert str(unpack_call(packed[1].pickle)[0][0]) == "x"
    assert len(table.bodies) == 1


def test_other_picklers_do_without() -> None:
    """Where functions travel by another pickler's rules each item brings its class."""
    table = ClassTable()
    use_cloudpickle()
    try:
        (packed,) = pack_items([(make_class(2)(5),)], table)
    finally:
        use_pickle()
    assert not table.bodies
    assert unpack_call(packed.pickle)[0][0].scaled() == 10
