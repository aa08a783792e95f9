from collections import deque

import pytest

from ipyfleet_client.partition import as_sequence, join, partition, sizes


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_sizes_are_even(count, parts):
    """Parts differ by one at most, the larger come first, nothing is lost."""
    got = sizes(count, parts)
    assert sum(got) == count
    assert max(got) - min(got) <= 1
    assert got == sorted(got, reverse=True)


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5], (1, 2, 3), "abcdefg", b"abcde", [], [1]])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_join_undoes_partition(data, parts, dist):
    """Joined parts are what was cut."""
    assert join(partition(data, parts, dist), dist) == data


def test_what_cannot_be_sliced_is_listed():
    """A deque, a set, a dictionary and a generator become lists."""
    assert partition(as_sequence(deque([1, 2, 3])), 2) == [[1, 2], [3]]
    assert sorted(as_sequence({2, 1})) == [1, 2]
    assert as_sequence({"a": 1}) == ["a"]
    assert as_sequence(n for n in range(2)) == [0, 1]
    assert as_sequence(range(3)) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [5, None, 1.5])
def test_no_sequence(wrong):
    """What cannot be iterated is a TypeError."""
    with pytest.raises(TypeError, match="sequence"):
        as_sequence(wrong)


def test_values_that_are_no_sequences_are_listed():
    """Joining numbers gives their list."""
    assert join([1, 2]) == [1, 2]
    assert join([]) == []
    assert join(["ab", 1]) == ["ab", 1]


@pytest.mark.parametrize("dist", ["b", "r"])
def test_arrays(dist):
    """Arrays keep their type and further dimensions."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(14, dtype="int16").reshape(7, 2)
    joined = join(partition(array, 3, dist), dist)
    assert joined.dtype == array.dtype
    assert (joined == array).all()
    with pytest.raises(TypeError, match="scalar"):
        as_sequence(numpy.array(5))
