import pytest
from IPython.core.error import UsageError

from ipyfleet_magics.targets import describe_targets, parse_targets


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("3", 3),
        ("-1", -1),
        ("all", "all"),
        ("::2", slice(None, None, 2)),
        ("1:3", slice(1, 3)),
        (":-1", slice(None, -1)),
        (":", slice(None)),
        ("0,2", [0, 2]),
        ("[0, 2]", [0, 2]),
        ("(1,)", [1]),
        ("'[1]'", [1]),
    ],
)
def test_targets_as_people_write_them(text: str, parsed: object):
    """Ids, slices, lists with and without brackets, and all are understood."""
    assert parse_targets(text) == parsed


@pytest.mark.parametrize("text", ["", "x", "0;1", "[0, 'a']", "[]", "1.5", "True", "[True]", "a:b"])
def test_other_texts_are_refused(text: str):
    """Whatever else is written is refused with a message that quotes it."""
    with pytest.raises(UsageError, match=r"--targets: .* is none of"):
        parse_targets(text)


def test_long_lists_are_abbreviated():
    """More than ten targets are shown as the first, the last and how many."""
    assert describe_targets("all") == "all"
    assert describe_targets(3) == "3"
    assert describe_targets(range(10)) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
    assert describe_targets(list(range(16))) == "[0, 1, 2, 3, ..., 13, 14, 15] (16 engines)"
