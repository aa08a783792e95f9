"""What is kept of results: large ones are not, and those in shared memory are read in time.

What lives here: `hold`, for the loop, and `bound`, for the database's thread; `blobs_in`, for what
no client will remove. A client removes a blob as soon as it has mapped it, so it has to be opened
before the client hears of it; mapping costs little, and the pages stay until they are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ipyfleet_protocol.blobs import map_blob
from ipyfleet_protocol.codec import decode_part
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.messages import BlobHandle, Columns

from .base import BLOB, GONE, INLINE, LOSSES, TOO_LARGE


def hold(
    columns: Columns, frames: Sequence[Frame], blob_dir: Path | None, max_bytes: int
) -> tuple[Columns, Sequence[Frame]]:
    """Return columns and frames with the blobs mapped; what is larger than a bound, or gone, is an
    empty frame with its flag.
    """
    if BLOB not in columns.blobs:
        return columns, frames
    flags = bytearray(columns.blobs)
    held = list(frames)
    for place, flag in enumerate(columns.blobs):
        if flag == BLOB:
            held[place + 1], flags[place] = _map(held[place + 1], blob_dir, max_bytes)
    return Columns(columns.sizes, columns.buffer_counts, bytes(flags)), held


def bound(
    columns: Columns, frames: Sequence[Frame], max_bytes: int
) -> tuple[Columns, Sequence[Frame], str]:
    """Return columns and frames without buffers that are larger than a bound, and a loss, if the
    pickles are.
    """
    if len(frames[0]) > max_bytes:
        return Columns(b""), (), LOSSES[0]
    if not any(len(frame) > max_bytes for frame in frames[1:]):
        return columns, frames, ""
    flags = bytearray(columns.blobs or bytes(len(frames) - 1))
    kept = list(frames)
    for place, frame in enumerate(frames[1:]):
        if len(frame) > max_bytes:
            kept[place + 1], flags[place] = b"", TOO_LARGE
    return Columns(columns.sizes, columns.buffer_counts, bytes(flags)), kept, ""


def blobs_in(columns: Columns, frames: Sequence[Frame]) -> Iterator[BlobHandle]:
    """Yield the handles among frames; those that make no sense are left out."""
    for place, flag in enumerate(columns.blobs):
        if flag == BLOB:
            with suppress(ProtocolError):
                yield decode_part(frames[place + 1], BlobHandle)


def _map(frame: Frame, blob_dir: Path | None, max_bytes: int) -> tuple[Frame, int]:
    try:
        handle = decode_part(frame, BlobHandle)
        if handle.size > max_bytes:
            return b"", TOO_LARGE
        if blob_dir is not None:
            return map_blob(blob_dir, handle), INLINE
    except ProtocolError:
        # A handle that is none, or of a blob that was removed.
        return b"", GONE
    return b"", GONE


__all__ = ["blobs_in", "bound", "hold"]
