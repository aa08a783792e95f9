"""Dependencies as users make them, and their tasks as ranges."""

import copy
import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.dependencies import Dependency, merge_ranges, msg_ids_of, ranges_of
from ipyfleet_protocol.ids import PeerId, format_msg_id

ONE, OTHER = PeerId(b"\1" * 16), PeerId(b"\2" * 16)


class Result:
    """What has msg_ids, as an AsyncResult has."""

    def __init__(self, *msg_ids: str) -> None:
        self.msg_ids = list(msg_ids)


@pytest.mark.parametrize(
    ("made_of", "expected"),
    [
        ((), set()),
        ("a", {"a"}),
        (["a", "b", "a"], {"a", "b"}),
        (Result("a", "b"), {"a", "b"}),
        ([Result("a"), "c", {Result("d"), "e"}], {"a", "c", "d", "e"}),
        (Dependency("ab"), {"ab"}),
        ((name for name in "xy"), {"x", "y"}),
    ],
)
def test_made_of_whatever_has_msg_ids(made_of, expected) -> None:
    """A dependency is the set of the msg_ids in what it is made of."""
    dependency = Dependency(made_of)
    assert dependency == expected
    assert isinstance(dependency, set)
    assert (dependency.all, dependency.success, dependency.failure) == (True, True, False)


@pytest.mark.parametrize("made_of", [5, None, b"abc", [1], {"a": 1}, object()])
def test_of_something_else(made_of) -> None:
    """What has no msg_ids is refused by name."""
    with pytest.raises(TypeError, match="made of msg_ids"):
        Dependency(made_of)


def test_that_nothing_can_meet() -> None:
    """A dependency for which no end counts is refused when it is made."""
    with pytest.raises(ValueError, match="success=True, failure=True"):
        Dependency("a", success=False, failure=False)


ENDS = st.sets(st.sampled_from("abcd"))


@given(
    tasks=ENDS,
    completed=ENDS,
    failed=ENDS,
    rule=st.tuples(st.booleans(), st.sampled_from([(True, False), (False, True), (True, True)])),
)
def test_check_and_unreachable(tasks, completed, failed, rule) -> None:
    """Met when all, or one, ended as wanted; unreachable when no future could still meet it."""
    failed -= completed
    needs_all, (success, failure) = rule
    dependency = Dependency(tasks, needs_all, success, failure)
    wanted = (completed if success else set()) | (failed if failure else set())
    pending = tasks - completed - failed
    how_many = all if needs_all else any
    assert dependency.check(completed, failed) == (
        not tasks or how_many(task in wanted for task in tasks)
    )
    best = wanted | pending
    assert dependency.unreachable(completed, failed) == (
        bool(tasks) and not how_many(task in best for task in tasks)
    )


def test_as_a_dictionary_and_back() -> None:
    """`as_dict` has the rule and the tasks, and `from_dict` reads what it says."""
    dependency = Dependency(["b", "a"], all=False, failure=True)
    fields = dependency.as_dict()
    assert fields == {"all": False, "success": True, "failure": True, "dependencies": ["a", "b"]}
    again = Dependency.from_dict(fields)
    assert again.as_dict() == fields
    assert Dependency.from_dict({"dependencies": "a"}).as_dict() == Dependency("a").as_dict()


@pytest.mark.parametrize("fields", [{}, {"msg_ids": ["a"]}, {"dependencies": [], "any": True}])
def test_other_dictionaries(fields) -> None:
    """A dictionary with other keys is refused with the keys there are."""
    with pytest.raises(ValueError, match="'dependencies', 'failure', 'success'"):
        Dependency.from_dict(fields)


@pytest.mark.parametrize(
    "clone",
    [lambda d: pickle.loads(pickle.dumps(d)), copy.copy, copy.deepcopy, Dependency.copy],
    ids=["pickle", "copy", "deepcopy", "method"],
)
def test_copies_keep_the_rule(clone) -> None:
    """A copy has the same tasks and the same rule, and is another object."""
    dependency = Dependency(["a", "b"], all=False, success=False, failure=True)
    again = clone(dependency)
    assert again is not dependency
    assert type(again) is Dependency
    assert again.as_dict() == dependency.as_dict()
    assert repr(again).endswith("all=False, success=False, failure=True)")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ONE, OTHER]),
            st.integers(min_value=0, max_value=30),
            st.integers(min_value=1, max_value=6),
        )
    )
)
def test_ranges_merge_and_lose_nothing(pieces) -> None:
    """Merged ranges name the same tasks once each, and no two of them touch."""
    merged = merge_ranges(m.TaskRange(*piece) for piece in pieces)
    named = [(r.client, seq) for r in merged for seq in range(r.first, r.first + r.count)]
    assert len(named) == len(set(named))
    assert set(named) == {(peer, first + k) for peer, first, count in pieces for k in range(count)}
    for one, other in itertools.pairwise(merged):
        assert one.client != other.client or one.first + one.count < other.first


def test_from_msg_ids_to_ranges_and_back() -> None:
    """Ranges of msg_ids, and msg_ids of ranges, are those of the same tasks."""
    msg_ids = [format_msg_id(peer, seq) for peer in (ONE, OTHER) for seq in (3, 4, 9)]
    ranges = ranges_of(reversed(msg_ids))
    assert ranges == [
        m.TaskRange(ONE, 3, 2),
        m.TaskRange(ONE, 9, 1),
        m.TaskRange(OTHER, 3, 2),
        m.TaskRange(OTHER, 9, 1),
    ]
    assert msg_ids_of(m.Dependency(ranges)) == msg_ids
    assert msg_ids_of(None) == []
    with pytest.raises(ValueError, match="not a msg_id"):
        ranges_of(["0123_x"])
