"""Hostile input ends as a ProtocolError: no other error, no large memory, no unpickling."""

from __future__ import annotations

import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import SliceFrames, decode, decode_part, encode, split, split_output
from ipyfleet_protocol.columns import Payloads, read_float64, read_uint32
from ipyfleet_protocol.errors import ProtocolError

MEMORY_FACTOR = 64
"""Bytes of objects that a byte of input may become: on the wire a small integer in a list, or a
struct of defaults, is one to three bytes."""
MEMORY_CONSTANT_BYTES = 32 * 1024

TAGS = [kind.__name__ for kind in m.Message.__subclasses__()]
INTERESTING = [
    b"",
    b"\x00",
    b"\xff",
    b"\xc0",
    b"\xc1",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\x00" * 7,
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdd\x00\x01\x00\x00",
    b"\xdf\xff\xff\xff\xff",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xa2\xff\xfe",
    b"\x91" * 50,
    b"\x81" * 50,
]


def receive(header: bytes, frames: Sequence[bytes]) -> bool:
    """Do with a message all that a receiver does before it trusts it; False if it is refused."""
    parts: Sequence[SliceFrames] = ()
    try:
        message = decode(header)
        if isinstance(message, m.Submit | m.RunTasks | m.Results):
            parts = split(message, frames)
        elif isinstance(message, m.Output):
            split_output(message, frames)
    except ProtocolError:
        return False
    # From here on nothing may be wrong any more.
    if isinstance(message, m.Submit | m.RunTasks | m.Results):
        pieces = message.groups if isinstance(message, m.Submit) else message.slices
        for piece, part in zip(pieces, parts, strict=True):
            if isinstance(piece, m.ResultSlice):
                check_result(piece)
            check_payloads(piece.columns, part.payload)
    return True


def check_result(piece: m.ResultSlice) -> None:
    """Read the columns of a result slice as a receiver does."""
    assert len(piece.status) == piece.count
    assert len(read_float64(piece.started)) == len(read_float64(piece.completed)) == piece.count
    assert len(read_uint32(piece.outputs)) in (0, piece.count)


def check_payloads(columns: m.Columns, frames: Sequence[bytes]) -> None:
    """Take payloads apart, and in two: what passed the checks must hold together."""
    payloads = Payloads(columns, frames)
    assert b"".join(map(payloads.pickle, range(len(payloads)))) == payloads.packed
    buffers = [frame for n in range(len(payloads)) for frame in payloads.buffer_frames(n)]
    assert buffers == list(payloads.buffers)
    for n in range(len(payloads)):
        for frame, is_blob in zip(payloads.buffer_frames(n), payloads.buffer_blobs(n), strict=True):
            if is_blob:
                read_part(frame, m.BlobHandle)
    middle = len(payloads) // 2
    for start, stop in ((0, middle), (middle, len(payloads))):
        if stop > start:
            part = Payloads(*payloads.part(start, stop))
            assert [bytes(part.pickle(n)) for n in range(len(part))] == [
                bytes(payloads.pickle(n)) for n in range(start, stop)
            ]


def read_part(data: bytes, kind: type) -> None:
    """Decode what travels inside a payload."""
    try:
        decode_part(data, kind)
    except ProtocolError:
        return


def peak_bytes(call: Callable[[], object]) -> int:
    """Return how much memory a call takes at most beyond what is in use before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def allowed_bytes(header: bytes, frames: Sequence[bytes] = ()) -> int:
    """Return how much memory a message of this size may take."""
    size = len(header) + sum(len(frame) for frame in frames)
    return MEMORY_FACTOR * size + MEMORY_CONSTANT_BYTES


# -- inputs -----------------------------------------------------------------------------------


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return the bytes changed in one to four places, as a faulty or hostile sender might."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(out))
        end = min(len(out), at + rng.choice((1, 1, 1, 2, 4, 8, 40)))
        match rng.randrange(7):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.randrange(256)
            case 2:
                del out[at:end]
            case 3:
                out[at:end] = rng.choice(INTERESTING)
            case 4:
                out[at:at] = out[at:end]
            case 5:
                start = rng.randint(0, len(other))
                out[at:end] = other[start : start + rng.randint(0, 40)]
            case _:
                del out[at:]
    return bytes(out)


def integers() -> st.SearchStrategy[int]:
    """Return integers, those at the edges of ranges most of all."""
    edges = [-(2**63), -1, 0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**62 - 1, 2**62, 2**63, 2**64 - 1]
    return st.sampled_from(edges) | st.integers(-(2**63), 2**64 - 1)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*TAGS, "apply", "map", "execute", "direct", "balanced"])
    | st.binary(max_size=40)
    | st.sampled_from([bytes(16), bytes(4), bytes(8), b"\xff" * 4, b"\x01\0\0\0" * 3]),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=30,
)


def like(kind: msgspec.inspect.Type) -> st.SearchStrategy[object]:
    """Return a strategy for plain values that decode as a type, with any numbers and lengths."""
    match kind:
        case msgspec.inspect.IntType():
            return st.integers(0, 4) | integers()
        case msgspec.inspect.FloatType():
            return st.floats()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.StrType():
            return st.text(max_size=8)
        case msgspec.inspect.BytesType():
            words = st.lists(st.sampled_from([0, 1, 2, 2**31, 2**32 - 1]), max_size=4)
            column = words.map(lambda values: struct.pack(f"<{len(values)}I", *values))
            return st.just(bytes(16)) | column | st.binary(max_size=40)
        case msgspec.inspect.LiteralType():
            return st.sampled_from(kind.values)
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.ListType():
            return st.lists(like(kind.item_type), max_size=3)
        case msgspec.inspect.DictType():
            return st.dictionaries(like(kind.key_type), like(kind.value_type), max_size=3)
        case msgspec.inspect.UnionType():
            return st.one_of([like(each) for each in kind.types])
        case msgspec.inspect.StructType():
            fields = [like(field.type) for field in kind.fields]
            tag = [] if kind.tag is None else [st.just(kind.tag)]
            return st.tuples(*tag, *fields).map(list)
    raise AssertionError(f"a field of a type that this test does not know: {kind}")


LIKE_MESSAGES = st.one_of(
    [like(msgspec.inspect.type_info(kind)) for kind in m.Message.__subclasses__()]
)
FRAMES = st.lists(st.binary(max_size=20), max_size=6)


# -- errors -----------------------------------------------------------------------------------


@given(st.binary(max_size=200), FRAMES)
def test_any_bytes(header: bytes, frames: list[bytes]) -> None:
    """Random bytes are refused or are a message."""
    receive(header, frames)


@settings(max_examples=150)
@given(st.sampled_from(TAGS), st.lists(VALUES, max_size=12), FRAMES)
def test_any_values(tag: str, values: list[object], frames: list[bytes]) -> None:
    """Well-formed values of wrong types behind a known tag are refused or are a message."""
    receive(msgspec.msgpack.encode([tag, *values]), frames)


@settings(max_examples=600)
@given(LIKE_MESSAGES, FRAMES)
def test_values_of_the_right_types(values: list[object], frames: list[bytes]) -> None:
    """Numbers, lengths and columns that contradict one another are refused or hold together."""
    receive(msgspec.msgpack.encode(values), frames)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages(samples, seed: int) -> None:
    """Messages damaged byte by byte, and frames damaged, lost or swapped, are refused or hold."""
    rng = random.Random(seed)
    headers = [encode(sample.message) for sample in samples]
    outcomes = set()
    for _ in range(20_000):
        n = rng.randrange(len(samples))
        header, frames = headers[n], list(samples[n].frames)
        if not frames or rng.random() < 0.8:
            header = mutate(header, rng.choice(headers), rng)
        else:
            match rng.randrange(4):
                case 0:
                    frames[rng.randrange(len(frames))] += b"x"
                case 1:
                    del frames[rng.randrange(len(frames))]
                case 2:
                    frames.insert(rng.randrange(len(frames) + 1), b"")
                case _:
                    rng.shuffle(frames)
        outcomes.add(receive(header, frames))
    # Damage that hits a text goes unnoticed; all other does not. Both must have been tried.
    assert outcomes == {True, False}


def test_every_truncation(sample) -> None:
    """A message cut off anywhere is refused."""
    header = encode(sample.message)
    assert receive(header, sample.frames)
    for length in range(len(header)):
        assert not receive(header[:length], sample.frames)


def test_frames_lost_or_added(sample) -> None:
    """A message with a frame too few or too many is refused, if it has frames at all."""
    header = encode(sample.message)
    for n in range(len(sample.frames)):
        assert not receive(header, sample.frames[:n] + sample.frames[n + 1 :])
    if sample.frames:
        assert not receive(header, [*sample.frames, b""])


@given(st.binary(max_size=100), st.sampled_from([m.ErrorInfo, m.BlobHandle, m.ExecuteInfo]))
def test_any_part(data: bytes, kind: type) -> None:
    """What travels inside a payload is refused or is what it should be."""
    read_part(data, kind)


@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1a", b"\x81"])
def test_depth(depth: int, nest: bytes) -> None:
    """Endless nesting is refused, also where a newer release's field is skipped."""
    assert not receive(nest * depth, [])
    assert not receive(b"\x93\xa7Goodbye\xa0" + nest * depth, [])


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("length", [b"\xc6", b"\xdb", b"\xdd", b"\xdf", b"\xc9"])
def test_announced_lengths(tag: str, length: bytes) -> None:
    """A length of gigabytes in a few bytes reserves nothing, in whatever place it stands."""
    for size in (b"\xff\xff\xff\xff", b"\x10\x00\x00\x00", b"\x00\xff\xff\xff"):
        for position in range(8):
            header = msgspec.msgpack.encode([tag] + [0] * 9)
            cut = 1 + len(msgspec.msgpack.encode(tag)) + position
            header = header[:cut] + length + size + header[cut:]
            assert peak_bytes(lambda header=header: receive(header, [])) < allowed_bytes(header)


def filled(kind: type[m.Message], item: object, count: int) -> bytes:
    """Return a message whose first list has many copies of an item."""
    values: list[object] = [kind.__name__]
    for field in msgspec.structs.fields(kind):
        if field.name in ("groups", "slices", "ranges", "peers", "items", "joined"):
            values.append([item] * count)
        elif field.required:
            values.append(bytes(16) if field.type is bytes else 0)
    return msgspec.msgpack.encode(values)


GROUP = [0, 1, [], [bytes(16)], [bytes(4)]]
SLICE = [bytes(16), 0, 1, 0, 0, "apply", False, False, "", [bytes(16)], [bytes(4)]]
RESULT = [0, 1, 0, 0, b"\0", bytes(8), bytes(8), b"", [bytes(4)]]


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        (m.Submit, GROUP),
        (m.RunTasks, SLICE),
        (m.Results, RESULT),
        (m.Cancel, [0, 1]),
        (m.DropTasks, [0, 1, 0]),
        (m.SignalEngines, bytes(16)),
        (m.EnginesChanged, [0, bytes(16), "", "", 0]),
        (m.Output, [0, 0, "stdout", b""]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_many_small_items(kind: type[m.Message], item: object) -> None:
    """The smallest items, by the thousand, take a small multiple of their bytes."""
    header = filled(kind, item, 4_000)
    frames = [b""] * 4_000 if kind in (m.Submit, m.RunTasks, m.Results) else []
    assert receive(header, frames)
    assert peak_bytes(lambda: receive(header, frames)) < allowed_bytes(header, frames)


def test_nested_announcements() -> None:
    """Lists in lists that each announce all that is left do not add up to a large multiple."""
    inner = b"\x95\x00\x01\x93\xa5apply\xa8balanced\xdd" + struct.pack(">I", 150_000)
    header = b"\x92\xa6Submit\xdd" + struct.pack(">I", 150_000) + inner + bytes(200_000)
    assert not receive(header, [])
    assert peak_bytes(lambda: receive(header, [])) < allowed_bytes(header)


@pytest.mark.parametrize("counts", [[2**32 - 1] * 3, [2**32 - 1, 1, 0], [10**6, 0, 0]])
def test_announced_frames(counts: list[int]) -> None:
    """Buffers and bytes announced by the thousand million and not sent are refused at no cost."""
    column = struct.pack("<3I", *counts)
    options = m.Options()
    for columns in (m.Columns(bytes(12), column), m.Columns(column)):
        group = m.Group(0, 3, options, m.Function(bytes(16)), columns)
        header = encode(m.Submit([group]))
        assert not receive(header, [b""])
        assert peak_bytes(lambda header=header: receive(header, [b""])) < allowed_bytes(header)


def test_complaints_are_short() -> None:
    """What was sent does not come back in full in the error's text, which goes into logs."""
    for header in (
        msgspec.msgpack.encode(["x" * 10**5]),
        msgspec.msgpack.encode(["Submit", [[0, 1, ["m" * 10**5], None, [b""]]]]),
        msgspec.msgpack.encode(["Request", 1, ["q" * 10**5]]),
    ):
        with pytest.raises(ProtocolError) as caught:
            decode(header)
        assert len(str(caught.value)) < 1000


# -- unpickling -------------------------------------------------------------------------------


class Bomb:
    """Its pickle, when loaded, makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


WATCHER = """
import sys, pathlib
found = []
sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)

import msgspec
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, decode_part, split, split_output
from ipyfleet_protocol.columns import Payloads
from ipyfleet_protocol.errors import ProtocolError

where = pathlib.Path(sys.argv[1])
outcomes = {True: 0, False: 0}
for header, frames in msgspec.msgpack.decode((where / "messages").read_bytes()):
    try:
        message = decode(header)
        if isinstance(message, (m.Submit, m.RunTasks, m.Results)):
            pieces = message.groups if isinstance(message, m.Submit) else message.slices
            for piece, part in zip(pieces, split(message, frames)):
                payloads = Payloads(piece.columns, part.payload)
                for n in range(len(payloads)):
                    bytes(payloads.pickle(n))
                    payloads.part(n, n + 1)
        elif isinstance(message, m.Output):
            split_output(message, frames)
        outcomes[True] += 1
    except ProtocolError:
        outcomes[False] += 1
for kind in (m.ErrorInfo, m.BlobHandle, m.ExecuteInfo):
    for data in ((where / "bomb").read_bytes(), (where / "error").read_bytes()):
        try:
            decode_part(data, kind)
        except ProtocolError:
            pass
silent = not found and not (where / "exploded").exists()

# The proof that the watcher sees: load it on purpose.
import pickle
pickle.loads((where / "bomb").read_bytes())
print(silent, bool(found), (where / "exploded").exists(), outcomes[True] > 20)
"""


def test_nothing_is_unpickled(samples, tmp_path: Path) -> None:
    """Receiving messages full of a pickle that makes a directory neither loads nor looks it up."""
    bomb = pickle.dumps(Bomb(str(tmp_path / "exploded")))

    def plant(value: object) -> object:
        if isinstance(value, list):
            return [plant(item) for item in value]
        return bomb if isinstance(value, bytes) and len(value) not in (4, 8, 12, 16, 24) else value

    messages = []
    for sample in samples:
        header = encode(sample.message)
        planted = msgspec.msgpack.encode(plant(msgspec.msgpack.decode(header)))
        same_size = [bomb[: len(frame)].ljust(len(frame), b".") for frame in sample.frames]
        for frames in (sample.frames, [bomb for _ in sample.frames], same_size):
            messages += [(header, frames), (planted, frames), (bomb, frames)]
    error = encode_error(bomb)
    (tmp_path / "messages").write_bytes(msgspec.msgpack.encode(messages))
    (tmp_path / "bomb").write_bytes(bomb)
    (tmp_path / "error").write_bytes(error)
    done = subprocess.run(
        [sys.executable, "-c", WATCHER, str(tmp_path)], capture_output=True, text=True, timeout=50
    )
    assert done.stdout.strip() == "True True True True", done.stderr


def encode_error(cause: bytes) -> bytes:
    """Return an error whose cause is a pickle."""
    return msgspec.msgpack.encode(m.ErrorInfo("E", "v", [], cause=cause))
