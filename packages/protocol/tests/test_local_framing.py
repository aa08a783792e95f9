"""Messages in a stream of bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.local import Deframer, frame_prefix
from ipyfleet_protocol.local.framing import COPY_MAX_BYTES, FRAMES_MAX, MAP_MIN_BYTES


def _stream(messages: list[list[bytes]]) -> bytes:
    return b"".join(
        frame_prefix([len(frame) for frame in frames]) + b"".join(frames) for frames in messages
    )


def _feed(deframer: Deframer, data: bytes, size: int) -> None:
    """Hand over bytes as a socket does, at most so many at a time."""
    at = 0
    while at < len(data):
        room = deframer.room
        if room is None:
            piece = data[at : at + size]
            deframer.feed(piece)
        else:
            piece = data[at : at + min(size, len(room))]
            room[: len(piece)] = piece
            deframer.filled(len(piece))
        at += len(piece)


@given(
    st.lists(st.lists(st.binary(max_size=60), max_size=20), max_size=8),
    st.integers(min_value=1, max_value=200),
)
def test_messages_come_out_as_they_went_in(messages: list[list[bytes]], size: int) -> None:
    """However the bytes are cut on their way, empty frames and messages included."""
    deframer = Deframer()
    _feed(deframer, _stream(messages), size)
    assert [[bytes(frame) for frame in frames] for frames in deframer.messages] == messages
    assert deframer.room is None


@pytest.mark.parametrize("size", [COPY_MAX_BYTES, COPY_MAX_BYTES + 1, MAP_MIN_BYTES + 5])
def test_a_large_message_is_received_in_place(size: int) -> None:
    """Its frames are parts of one block, but for small ones, which are bytes of their own."""
    frames = [b"head", bytes(size), b"tail"]
    deframer = Deframer()
    _feed(deframer, _stream([frames, [b"next"]]), 4096)
    large, small = deframer.messages
    assert [bytes(frame) for frame in large] == frames
    assert small == [b"next"]
    assert isinstance(large[0], bytes) and isinstance(large[2], bytes)
    assert isinstance(large[1], bytes) == (size <= COPY_MAX_BYTES)


def test_many_frames() -> None:
    """The sizes of very many frames are received like a large message."""
    frames = [bytes([number % 251]) for number in range(40_000)]
    deframer = Deframer()
    _feed(deframer, _stream([frames]), 1000)
    assert list(deframer.messages.popleft()) == frames


def test_more_frames_than_any_message_has() -> None:
    """A stream that announces them is none of ours, before anything is allocated."""
    with pytest.raises(ProtocolError, match="frames"):
        Deframer().feed(struct.pack("<I", FRAMES_MAX + 1))


@pytest.mark.parametrize("sizes", [(1 << 63,), (1 << 62, 1 << 62, 1 << 62), (1 << 50,)])
def test_more_bytes_than_there_can_be(sizes: tuple[int, ...]) -> None:
    """What no memory can hold is refused when it is announced."""
    with pytest.raises(ProtocolError, match="room"):
        Deframer().feed(frame_prefix(sizes))


def test_what_is_only_announced_takes_no_memory() -> None:
    """Room for a large message is mapped, and pages come with what is written to them."""
    deframer = Deframer()
    deframer.feed(frame_prefix([1 << 32]))
    assert deframer.room is not None
    assert len(deframer.room) == 1 << 32
    with open("/proc/self/status") as status:
        resident_kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident_kib < 2 << 20
