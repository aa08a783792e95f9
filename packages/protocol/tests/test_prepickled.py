import pickle

import pytest

from ipyfleet_protocol.serialize import PackError, PrePickled, pack, unpack, unpack_function


def test_what_arrives_is_the_object():
    """At any depth, what arrives is the object as it was when it was pickled."""
    values = [1, 2]
    once = PrePickled(values)
    values.append(3)
    packed = pack({"a": [once, once]})
    assert unpack(packed.pickle, packed.buffers) == {"a": [[1, 2], [1, 2]]}
    assert pickle.loads(pickle.dumps(once)) == [1, 2]


def test_large_data_travel_out_of_band():
    """Arrays stay frames of their own, are not those of the original, and arrive writable."""
    np = pytest.importorskip("numpy", reason="numpy is not installed")
    array = np.arange(100_000)
    once = PrePickled(array)
    array[0] = 7
    packed = pack((once,))
    assert max(map(len, packed.buffers)) >= array.nbytes
    (found,) = unpack(packed.pickle, [memoryview(bytearray(b)) for b in packed.buffers])
    assert (found == np.arange(100_000)).all()
    found[0] = 5
    assert once.load()[0] == 0


def test_functions():
    """A function that was pickled once can be called where it arrives, closure and all."""
    factor = 3
    once = PrePickled(lambda x: factor * x)
    factor = 4
    assert unpack_function(once.function.frames)(2) == 6
    assert PrePickled(once).function is once.function
    assert once.load()(2) == 6


def test_what_cannot_be_pickled_or_called():
    """What cannot be pickled is refused at once, what cannot be called when it is called."""
    with pytest.raises(PackError):
        PrePickled(iter(x for x in ()))
    with pytest.raises(TypeError, match="PrePickled list object is not callable"):
        _ = PrePickled([1]).function
