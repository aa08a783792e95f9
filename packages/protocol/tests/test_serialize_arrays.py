import pytest

from ipyfleet_protocol.serialize import IN_BAND_MAX_BYTES, pack, pack_call, unpack

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

BIG = 10 * IN_BAND_MAX_BYTES


def round_trip(obj, frame=bytearray):
    """What the receiver gets of an object, its frames being of the given kind."""
    packed = pack(obj)
    return unpack(packed.pickle, [memoryview(frame(buffer)) for buffer in packed.buffers])


def make(dtype, size):
    """An array of some numbers, or what they are as the dtype."""
    return (numpy.arange(size) % 100).astype(dtype)


RECORD = numpy.dtype([("name", "U8"), ("at", "<i8"), ("xy", ">f4", (2,))])
CASES = {
    "int": lambda n: make("i8", n),
    "float": lambda n: make("f8", n),
    "bool": lambda n: make("?", n),
    "complex": lambda n: make("c16", n),
    "big-endian": lambda n: make(">f8", n),
    "datetime": lambda n: make("i8", n).view("M8[ms]"),
    "timedelta": lambda n: make("i8", n).view("m8[s]"),
    "text": lambda n: make("U5", n),
    "bytes": lambda n: make("S5", n),
    "record": lambda n: numpy.zeros(n, RECORD),
    "object": lambda n: numpy.array([{"k": i} for i in range(n)], object),
    "record with object": lambda n: numpy.zeros(n, [("o", "O"), ("i", "i4")]),
    "2-d": lambda n: make("f8", n * 2).reshape(2, n),
    "fortran": lambda n: numpy.asfortranarray(make("f8", n * 2).reshape(2, n)),
    "strided": lambda n: make("f8", n * 2)[::2],
    "reversed": lambda n: make("f8", n)[::-1],
    "transposed": lambda n: make("f8", n * 6).reshape(n, 2, 3).transpose(1, 2, 0),
    "broadcast": lambda n: numpy.broadcast_to(make("f8", 2), (n, 2)),
    "masked": lambda n: numpy.ma.masked_array(make("f8", n), mask=make("i8", n) == 1),
    "recarray": lambda n: numpy.zeros(n, RECORD).view(numpy.recarray),
}


def assert_same(back, array):
    """Equal in type, dtype, shape and content."""
    assert type(back) is type(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert numpy.array_equal(back, array)


def assert_writable(back):
    """All of the array can be written to."""
    assert back.flags.writeable
    back[...] = back.flat[0] if back.size else 0


@pytest.mark.parametrize("frame", [bytearray, bytes], ids=["writable frames", "read-only frames"])
@pytest.mark.parametrize("size", [0, 1, 7, BIG // 8], ids=["empty", "one", "small", "large"])
@pytest.mark.parametrize("name", CASES)
def test_array_round_trip(name, size, frame):
    """Every kind of array arrives equal and writable, in the pickle and out of it."""
    array = CASES[name](size)
    back = round_trip(array, frame)
    assert_same(back, array)
    assert_writable(back)


@pytest.mark.parametrize("frame", [bytearray, bytes], ids=["writable frames", "read-only frames"])
@pytest.mark.parametrize("size", [0, 7, BIG // 8], ids=["empty", "small", "large"])
@pytest.mark.parametrize("name", CASES)
def test_read_only_array_arrives_writable(name, size, frame):
    """An array that is read-only where it is sent from is not so where it arrives."""
    array = CASES[name](size)
    array.flags.writeable = False
    back = round_trip({"k": [array]}, frame)["k"][0]
    assert_same(back, array)
    assert_writable(back)


@pytest.mark.parametrize("value", [1, 1.5, True, "text", numpy.datetime64("2020-01-01"), None])
def test_zero_dimensional(value):
    """Arrays without dimensions and scalars keep type and value."""
    array = numpy.array(value)
    back = round_trip(array)
    assert_same(back, array)
    assert_writable(back)
    scalar = array[()]
    assert type(round_trip(scalar)) is type(scalar)
    assert round_trip(scalar) == scalar


def test_large_arrays_are_not_copied():
    """The buffer of a large array is the array's own memory, in whatever it is nested."""
    array = make("f8", BIG)
    packed = pack_call(([{"x": array}],), {"k": (array[: BIG // 2],)})
    assert len(packed.pickle) < 1000
    assert len(packed.buffers) == 2
    assert numpy.shares_memory(numpy.frombuffer(packed.buffers[0]), array)


def test_received_arrays_use_the_frame():
    """A writable frame is the memory of the array that arrives: no copy there either."""
    packed = pack(make("f8", BIG))
    frame = bytearray(packed.buffers[0])
    back = unpack(packed.pickle, [memoryview(frame)])
    back[0] = 42
    assert numpy.frombuffer(frame)[0] == 42


def test_views_of_one_array_and_bytes_together():
    """Arrays, read-only arrays and bytes in one object find their own buffers."""
    fixed = make("f8", BIG)
    fixed.flags.writeable = False
    data = [bytes(BIG), make("f8", BIG), fixed, bytearray(BIG), make("i4", BIG)]
    for back, sent in zip(round_trip(data), data, strict=True):
        assert type(back) is type(sent)
        assert numpy.array_equal(back, sent)


def test_mapped_file_arrives_as_array(tmp_path):
    """A read-only memory-mapped array arrives with its content, writable."""
    numpy.save(tmp_path / "a.npy", make("f8", BIG))
    mapped = numpy.load(tmp_path / "a.npy", mmap_mode="r")
    back = round_trip(mapped)
    assert numpy.array_equal(back, mapped)
    assert_writable(back)


@pytest.mark.parametrize(
    "array",
    [make(">f8", 6), numpy.zeros(3, "i4,f8"), numpy.array(1.5), numpy.zeros((0, 3)), make("e", 4)],
    ids=["big-endian", "record", "0-d", "empty 2-d", "half"],
)  # fmt: skip
def test_memoryview_of_any_array(array):
    """A memoryview that no cast can build comes back with its format and shape."""
    view = memoryview(array)
    back = round_trip(view)
    assert type(back) is memoryview
    assert (back.format, back.shape, back.readonly) == (view.format, view.shape, view.readonly)
    assert numpy.array_equal(numpy.asarray(back), array)


def test_random_generator():
    """A generator of random numbers goes on where it was."""
    generator = numpy.random.default_rng(1)
    back = round_trip(generator)
    assert back.random() == generator.random()


def test_data_frame():
    """A data frame with columns of every kind arrives equal, and can be changed."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    n = BIG // 8
    frame = pandas.DataFrame(
        {
            "i": numpy.arange(n),
            "f": numpy.arange(n) / 3,
            "s": [f"row {i}" for i in range(n)],
            "t": pandas.date_range("2020-01-01", periods=n, freq="s", tz="UTC"),
            "c": pandas.Categorical(["a", "b"] * (n // 2)),
            "o": [{"k": i} for i in range(n)],
        }
    )
    for sent in (frame, frame.set_index("t"), frame["f"], frame.iloc[::2], frame.iloc[:0]):
        assert round_trip(sent).equals(sent)
    back = round_trip(frame)
    back.loc[0, "f"] = 42.0
    back["i"] += 1
    assert back.loc[0, "f"] == 42.0
