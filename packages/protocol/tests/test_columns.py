"""Payloads packed into columns and frames come apart as they went in, whole and in runs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_protocol.columns import (
    Payloads,
    PayloadWriter,
    float64_column,
    read_float64,
    read_uint32,
    uint32_column,
)
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.messages import Columns

PAYLOAD = st.tuples(
    st.binary(max_size=12), st.lists(st.tuples(st.binary(max_size=9), st.booleans()), max_size=3)
)


def taken_apart(payloads: Payloads) -> list[tuple[bytes, list[tuple[bytes, bool]]]]:
    """Return what went in."""
    return [
        (
            bytes(payloads.pickle(n)),
            [
                (bytes(frame), bool(blob))
                for frame, blob in zip(
                    payloads.buffer_frames(n), payloads.buffer_blobs(n), strict=True
                )
            ],
        )
        for n in range(len(payloads))
    ]


@given(st.lists(PAYLOAD, min_size=1, max_size=8), st.data())
def test_any_payloads(items: list, data: st.DataObject) -> None:
    """Any payloads, with any buffers, survive packing, and so does any run of them."""
    writer = PayloadWriter()
    for pickle, buffers in items:
        writer.append(pickle, buffers)
    assert len(writer) == len(items)
    size = sum(len(pickle) + sum(len(f) for f, _ in buffers) for pickle, buffers in items)
    assert writer.n_bytes == size
    payloads = Payloads(*writer.finish())
    assert taken_apart(payloads) == items
    assert payloads.n_bytes == size
    start = data.draw(st.integers(0, len(items) - 1))
    stop = data.draw(st.integers(start + 1, len(items)))
    part = Payloads(*payloads.part(start, stop))
    assert taken_apart(part) == items[start:stop]


@given(st.lists(st.binary(max_size=9), max_size=5), PAYLOAD, st.lists(st.binary(max_size=9)))
def test_extend(before: list[bytes], one: tuple, after: list[bytes]) -> None:
    """The fast way in for many small payloads mixes with the slow one."""
    writer = PayloadWriter()
    writer.extend(before)
    writer.append(*one)
    writer.extend(after)
    expected = [*[(p, []) for p in before], one, *[(p, []) for p in after]]
    assert taken_apart(Payloads(*writer.finish())) == expected


def test_nothing_is_copied() -> None:
    """A part refers to the memory of the whole."""
    packed = bytearray(b"abcdef")
    payloads = Payloads(Columns(uint32_column([2, 2, 2])), [packed])
    _, (frame,) = payloads.part(1, 3)
    packed[2:4] = b"XY"
    assert bytes(frame) == b"XYef"
    assert bytes(payloads.pickle(1)) == b"XY"


def test_no_frame() -> None:
    """Columns without any frame are refused."""
    with pytest.raises(ProtocolError):
        Payloads(Columns(b""), [])


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_uint32(values: list[int]) -> None:
    """Columns of integers are little-endian and come back."""
    column = uint32_column(values)
    assert column == b"".join(value.to_bytes(4, "little") for value in values)
    assert list(read_uint32(column)) == values


def test_float64() -> None:
    """Columns of times come back, NaN included."""
    one, nan = read_float64(float64_column([1.5, math.nan]))
    assert one == 1.5
    assert math.isnan(nan)


@pytest.mark.parametrize("length", [1, 7, 9])
def test_broken_columns(length: int) -> None:
    """A column that ends within a value is refused."""
    with pytest.raises(ProtocolError):
        read_uint32(bytes(length))
    with pytest.raises(ProtocolError):
        read_float64(bytes(length))
