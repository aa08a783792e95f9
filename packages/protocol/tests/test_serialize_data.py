import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import itertools
import pathlib
import pickle
import sys
import threading
import uuid
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_protocol.namespace import Reference, set_namespace
from ipyfleet_protocol.serialize import (
    IN_BAND_MAX_BYTES,
    PackError,
    UnpackError,
    pack,
    pack_call,
    pack_items,
    unpack,
    unpack_call,
    unpack_many,
)

BIG = 256 * 1024
LOCK = threading.Lock()


class Colour(enum.Enum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


def received(packed):
    """What arrives: the frames are copied into memory that is the receiver's alone."""
    return packed.pickle, [memoryview(bytearray(buffer)) for buffer in packed.buffers]


def round_trip(obj):
    """What the receiver gets of an object."""
    return unpack(*received(pack(obj)))


CASES = {
    "none": None,
    "int": 12345678901234567890,
    "float": 1.5,
    "complex": 1 + 2j,
    "str": "grün",
    "ellipsis": ...,
    "range": range(3),
    "slice": slice(1, 2),
    "empties": [(), [], {}, set(), b"", "", bytearray()],
    "nested": {"a": [1, (2, {3: {4, frozenset({5})}})]},
    "mixed keys": {1: "a", "1": "b", None: "c", (1, "x"): "d", b"k": "e", 1.5: "f", False: "t"},
    "namedtuple": Point(1, [2]),
    "ordered": collections.OrderedDict(b=1, a=2),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2], maxlen=2),
    "enum": Colour.RED,
    "time": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "decimal": [decimal.Decimal("1.1"), fractions.Fraction(1, 3)],
    "uuid": uuid.UUID(int=7),
    "path": pathlib.PurePosixPath("/a/b"),
    "small bytes": b"abc",
    "large bytes": bytes(BIG),
    "large bytearray": bytearray(BIG),
    "large str": "x" * BIG,
    "many strings": ["x" * 70_000, "y" * 70_000, b"z" * 100],
    "deep large bytes": {"a": [{"b": (bytes(BIG), bytearray(BIG), 1)}] * 20},
    "bytes among many": [*range(100), bytes(BIG), *range(20_000)],
    "memoryview": memoryview(b"abc"),
    "memoryview in depth": {"m": [memoryview(bytes(BIG))]},
    "array": array("d", [1.0, 2.0]),
    "type": [int, type(None), type(...), type(NotImplemented), NotImplemented],
    "module": sys,
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name):
    """What arrives is equal to what was sent and of the same type, at every level."""
    obj = CASES[name]
    back = round_trip(obj)
    assert back == obj
    assert type(back) is type(obj)
    if isinstance(obj, list | tuple):
        assert [type(part) for part in back] == [type(part) for part in obj]


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(lambda b: b * 30_000, st.binary(min_size=1, max_size=9))
    | st.builds(lambda b: bytearray(b * 30_000), st.binary(max_size=9)),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.none() | st.integers() | st.text() | st.binary(), inner)
    ),
    max_leaves=20,
)


@given(trees)
def test_round_trip_of_any_tree(tree):
    """Containers of anything in anything come back equal."""
    assert round_trip(tree) == tree


@given(st.lists(trees, max_size=4), st.dictionaries(st.text(), trees, max_size=3))
def test_call_round_trip(args, kwargs):
    """The arguments of a call come back as a tuple and a dict."""
    assert unpack_call(*received(pack_call(tuple(args), kwargs))) == (tuple(args), kwargs)


@given(st.lists(st.tuples(trees)))
def test_items_are_packed_like_calls(items):
    """Each item of a map is packed as a call with positional arguments is."""
    packed = pack_items(iter(items))
    assert [unpack_call(*received(p)) for p in packed] == [(item, {}) for item in items]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "wrap", [lambda b: b, lambda b: [1, {"k": (b,)}], lambda b: [*range(99), b]]
)
def test_large_bytes_leave_the_pickle(kind, wrap):
    """Large bytes-likes at any depth are buffers of their own, and are not copied."""
    content = bytearray(range(256)) * 1024
    large = kind(content)
    packed = pack(wrap(large))
    assert len(packed.pickle) < 1000
    (buffer,) = packed.buffers
    assert buffer == content
    if kind is not memoryview:
        assert buffer.obj is large


def test_small_buffers_stay_in_the_pickle():
    """Nothing smaller than the limit makes a frame."""
    small = IN_BAND_MAX_BYTES - 1
    data = [bytes(small), bytearray(small), memoryview(bytearray(small)), memoryview(bytes(small))]
    assert pack(data).buffers == []


def test_the_same_large_object_stays_the_same():
    """One large object in several places travels once and arrives as one object."""
    large = bytearray(BIG)
    packed = pack([large, {"again": large}])
    assert len(packed.buffers) == 1
    first, second = unpack(*received(packed))
    assert first is second["again"]


def test_many_frames_keep_their_order():
    """Buffers of pickle's callback and of persistent ids do not get in each other's way."""
    parts = []
    for n in range(4):
        parts += [bytes([n]) * BIG, bytearray([n]) * BIG, memoryview(bytearray([n]) * BIG)]
    assert round_trip(parts) == parts


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abcdef")[::2],
        memoryview(array("d", range(6))),
        memoryview(array("i", range(6)))[::-2],
        memoryview(bytes(range(12))).cast("B", (3, 4)),
        memoryview(array("h", range(12))).cast("B").cast("h", (2, 2, 3)),
        memoryview(array("f")),
        memoryview(b""),
        memoryview(array("q", range(BIG)))[::3],
    ],
    ids=["strided", "double", "reversed", "2-d", "3-d", "empty", "no bytes", "large strided"],
)
def test_memoryview_keeps_format_and_shape(view):
    """A memoryview comes back as one, with format, shape and whether it may be written to."""
    back = round_trip(view)
    assert type(back) is memoryview
    assert (back.format, back.shape, back.readonly) == (view.format, view.shape, view.readonly)
    assert back.tolist() == view.tolist()


def test_received_bytearrays_are_private():
    """Two receivers of the same frames do not see each other's changes."""
    packed = pack(bytearray(BIG))
    first, second = unpack(*received(packed)), unpack(*received(packed))
    first[0] = 1
    assert second[0] == 0


def test_read_only_frames_will_do():
    """Frames that are read-only memory are copied where something writable is made of them."""
    packed = pack([bytearray(BIG), memoryview(bytearray(BIG))])
    array_like, view = unpack(
        memoryview(packed.pickle), [memoryview(bytes(b)) for b in packed.buffers]
    )
    array_like[0] = view[0] = 1
    assert view[0] == array_like[0] == 1


def test_unpack_takes_a_view_of_a_larger_frame():
    """The pickle may be a slice of a frame that holds many."""
    first, second = pack({"a": "QQQ"}).pickle, pack([1, bytes(BIG)])
    frame = memoryview(first + second.pickle)
    assert unpack(frame[: len(first)]) == {"a": "QQQ"}
    assert unpack(frame[len(first) :], received(second)[1]) == [1, bytes(BIG)]


def test_reference_at_any_depth():
    """A Reference inside of arguments arrives as the thing that it names."""
    set_namespace({"a": {"b": [7]}})
    try:
        call = pack_call(([{"x": (Reference("a['b'][0]"),)}],), {"k": Reference("a")})
        assert unpack_call(*received(call)) == (([{"x": (7,)}],), {"k": {"b": [7]}})
    finally:
        set_namespace(None)


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def generate():
    """A generator has a state that cannot be sent."""
    yield 1


def locked(lock=None):
    """A function with a default that cannot be sent; by value, as if it were of __main__."""


locked.__defaults__ = (threading.Lock(),)
locked.__module__ = "__main__"


@pytest.mark.parametrize(
    ("args", "kwargs", "where", "hint"),
    [
        ((1, {"lock": LOCK}), {}, "args[1]['lock']: cannot pickle '_thread.lock'", "create it"),
        ((), {"k": [0, (LOCK,)]}, "kwargs['k'][1][0]: cannot pickle '_thread.lock'", "create it"),
        ((generate(),), {}, "args[0]: cannot pickle 'generator' object", "list of its values"),
        ((Holder(a=1, b=[threading.Lock()]),), {}, "args[0].b[0]: cannot pickle", "create it"),
        (({threading.Lock(): 1},), {}, "args[0] key <unlocked _thread.lock", "create it"),
        ((sys._getframe(),), {}, "args[0]: cannot pickle 'frame' object", "send plain data"),
        (({"f": locked},), {}, "args[0]['f'].__defaults__[0]: cannot", "create it"),
    ],
    ids=["dict", "kwargs", "generator", "attribute", "key", "frame", "default"],
)  # fmt: skip
def test_unpicklable_argument_is_named(args, kwargs, where, hint):
    """The error for an unpicklable argument says what it is, where it sits and what to do."""
    with pytest.raises(PackError) as caught:
        pack_call(args, kwargs)
    assert isinstance(caught.value, TypeError)
    assert str(caught.value).startswith(where)
    assert hint in str(caught.value)
    assert caught.value.__cause__ is not None


def test_unpicklable_item_is_named():
    """The error for an item of a map gives its place in the map."""
    with pytest.raises(PackError, match=r"^items\[2\] args\[0\]: cannot pickle '_thread.lock'"):
        pack_items([(1,), (2,), (threading.Lock(),), (4,)])


def test_error_of_the_iterable_is_its_own():
    """What the iterable of a map raises is not dressed up as a packing error."""
    with pytest.raises(ZeroDivisionError):
        pack_items((1 / n,) for n in (1, 0))


def test_unpicklable_result_is_named():
    """The caller of pack says what the text calls the thing."""
    with pytest.raises(PackError, match=r"^result\['x'\]: cannot pickle '_thread.lock' object; "):
        pack({"x": threading.Lock()}, what="result")


class Refuses:
    def __reduce__(self):
        raise RuntimeError("I stay here")


def test_reason_of_a_class_that_refuses_is_kept():
    """An error of a class's own pickling is told with the name of the class."""
    with pytest.raises(
        PackError, match=r"^value\[0\]: cannot pickle 'Refuses' object \(I stay here\)"
    ):
        pack([Refuses()])


def test_too_deep_data_has_a_hint():
    """Absurdly deep nesting is a PackError that says so, not a RecursionError."""
    deep = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(PackError, match=r"args\[0\].*nested too deeply.*flat"):
        pack_call((deep,), {})


def test_searching_for_the_culprit_ends():
    """Data that contain themselves do not send the search for the culprit round in circles."""
    knot = []
    knot += [knot, {"again": knot}, threading.Lock()]
    with pytest.raises(PackError, match=r"\[2\]: cannot pickle '_thread.lock'"):
        pack(knot)


@given(st.binary(max_size=200))
def test_garbage_gives_unpack_error(garbage):
    """Whatever is wrong with a pickle, the error is one type."""
    # Bytes that name something to import or call could do anything here.
    garbage = garbage.translate(None, b"cRiobtR\x81\x82\x83\x84\x92\x93")
    with contextlib.suppress(UnpackError):
        unpack(garbage)


@pytest.mark.parametrize(
    ("pickled", "buffers"),
    [
        (b"", []),
        (b"\x80\x05", []),
        (pack(bytes(BIG)).pickle, []),
        (pack(memoryview(bytearray(BIG))).pickle, []),
        (pickle.dumps(7) [:-1] + pickle.BINPERSID + b".", []),
        (b"cno_such_module\nf\n.", []),
    ],
    ids=["empty", "cut", "no persistent buffer", "no buffer", "bad persistent id", "no module"],
)  # fmt: skip
def test_broken_frames_give_unpack_error(pickled, buffers):
    """Frames that are cut, missing or that this process cannot load give an UnpackError."""
    with pytest.raises(UnpackError, match="cannot unpickle: "):
        unpack(pickled, buffers)


@pytest.mark.parametrize("other", [1, "ab", (1, {}), ((), []), [(), {}, 3], {"a": 1, "b": 2}])
def test_unpack_call_takes_calls_only(other):
    """A pickle of something that is no call is refused."""
    with pytest.raises(UnpackError, match="not the arguments of a call"):
        unpack_call(pack(other).pickle)


def test_a_name_missing_here_shows_as_cause():
    """The NameError of a Reference is the cause of the UnpackError."""
    with pytest.raises(UnpackError, match="NameError: name 'no_such_name'") as caught:
        unpack(*pack([Reference("no_such_name")]))
    assert isinstance(caught.value.__cause__, NameError)


def _unpack_together(packed):
    ends = [0, *itertools.accumulate(len(one) for one in packed)]
    return unpack_many(b"".join(packed), ends)


@given(st.lists(st.one_of(st.integers(), st.text("PQRS"), st.binary(max_size=5)), max_size=30))
def test_many_are_rebuilt_as_each_is(values):
    """What lies one behind the other is rebuilt, also where it has the byte of a persistent id."""
    assert _unpack_together([pack(value).pickle for value in values]) == values


def test_many_with_a_small_read_only_buffer_among_them():
    """A value with a persistent id is rebuilt between others that have none."""
    view = memoryview(b"abc")
    packed = [pack(value).pickle for value in (1, view, "Q", 2)]
    one, got, text, two = _unpack_together(packed)
    assert (one, bytes(got), text, two) == (1, b"abc", "Q", 2)


def test_the_first_of_many_that_cannot_be_rebuilt_is_told():
    """The error is the same as for one by itself."""
    with pytest.raises(UnpackError, match="cannot unpickle"):
        _unpack_together([pack(1).pickle, b"nonsense", pack(2).pickle])
