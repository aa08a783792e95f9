import itertools
from collections import deque

import pytest

from ipyfleet_client.partition import as_sequence, cut_in_chunks, join, partition, sizes
from ipyfleet_protocol.blobs import BlobStore, map_blob
from ipyfleet_protocol.ids import new_peer_id
from ipyfleet_protocol.serialize import pack, unpack


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


@pytest.fixture
def received(tmp_path):
    """Returns what gives arrays as they arrive through shared memory."""

    def receive(arrays):
        out = []
        for array in arrays:
            pickle, buffers = pack(array)
            handles = [store.put(buffer) for buffer in buffers]
            out.append(unpack(pickle, [map_blob(tmp_path / "blobs", each) for each in handles]))
        return out

    with BlobStore(tmp_path / "blobs", new_peer_id()) as store:
        yield receive


@pytest.mark.parametrize(
    "dtypes",
    [["f8"], ["c16"], ["?"], [">f4"], ["M8[ms]"], ["U3"], ["f8", "i4"], ["i4,f8"]],
    ids="-".join,
)
@pytest.mark.parametrize(
    "shapes",
    [
        [(2048,), (1024,)],
        [(1000,), (2000,), (30,)],
        [(64, 64), (0, 64), (33, 64)],
        [(4096, 2, 1), (7, 2, 1)],
    ],
    ids=str,
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_shared_memory_are_joined_as_numpy_does(received, dtypes, shapes, order):
    """Whatever can be mapped instead of copied: type, shape, order and values are numpy's."""
    numpy = pytest.importorskip("numpy")
    arrays = []
    for k, shape in enumerate(shapes):
        values = numpy.arange(numpy.prod(shape), dtype="i8").reshape(shape) + 1000 * k
        dtype = numpy.dtype(dtypes[k % len(dtypes)])
        arrays.append(numpy.asarray(values.astype(dtype), order=order))
    expected = numpy.concatenate(arrays)
    joined = join(received(arrays))
    assert (joined.dtype, joined.shape, joined.strides) == (
        expected.dtype,
        expected.shape,
        expected.strides,
    )
    assert joined.flags.writeable
    assert (joined == expected).all()
    joined[-1] = joined[0]


def test_subclasses_of_arrays_are_joined_by_numpy(received):
    """What is more than an array stays that."""
    numpy = pytest.importorskip("numpy")
    with pytest.warns(PendingDeprecationWarning):
        matrix = numpy.matrix(numpy.ones((1024, 4)))
    assert type(join(received([matrix, matrix]))) is numpy.matrix


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "make",
    [
        lambda: [list(range(10))],
        lambda: [tuple(range(10)), range(10, 30)],
        lambda: [iter(range(10))],
        lambda: [{1: 2, 3: 4}, "abc"],
        lambda: [itertools.count(), [5, 6, 7, 8, 9]],
        lambda: [[]],
        lambda: [[1, 2], ()],
    ],
)
def test_chunks_hold_what_zip_yields(make, size):
    """Whatever is cut, the chunks have the items that the builtin map would take, in order."""
    chunks = list(cut_in_chunks(make(), size))
    rows = [row for chunk in chunks for row in zip(*chunk, strict=True)]
    assert rows == list(zip(*make()))  # noqa: B905 - the shortest ends it
    assert all(len(chunk[0]) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk[0]) <= size for chunk in chunks)
