"""Output of tasks in the records, so that others than the client that asked can see it.

What lives here: `OutputEntry`, what is kept of it (`bounded`), and what a record says of it. What
must not: storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import Output, OutputKind, TaskRange

RESUBMITTED: Literal["resubmitted"] = "resubmitted"
"""Kind of what is no output, but comes as late and goes with it: the task was submitted again."""

RecordedKind: TypeAlias = OutputKind | Literal["resubmitted"]

TASK_BYTES = 1 << 20
"""Output that is kept of a group: so much for each of its tasks, all together …"""

GROUP_BYTES = 64 << 20
"""… and no more than this. Of what comes after that only the size is kept."""

ITEM_BYTES = 100
"""What an item takes besides its content."""


class OutputRecord(msgspec.Struct, array_like=True):
    """One piece of a task's output; fields as in `messages.OutputItem`, with its buffers."""

    seq: int
    index: int
    kind: RecordedKind
    content: bytes
    buffers: list[bytes]
    dropped_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of what is in it."""
        return len(self.content) + sum(map(len, self.buffers))


class OutputEntry(msgspec.Struct):
    """Output of tasks of one client, in the order in which it came.

    Attributes:
        first, count: the sequence numbers of the tasks are in this range.
    """

    client: bytes
    first: int
    count: int
    items: list[OutputRecord]


def output_entry(message: Output, frames: Sequence[Frame]) -> OutputEntry:
    """Return the entry for a checked message and its frames; called by the database's thread."""
    items = []
    position = 0
    for item in message.items:
        buffers = [bytes(memoryview(f)) for f in frames[position : position + item.buffers]]
        position += item.buffers
        items.append(
            OutputRecord(item.seq, item.index, item.kind, item.content, buffers, item.dropped_bytes)
        )
    seqs = [item.seq for item in items] or [0]
    return OutputEntry(message.client, min(seqs), max(seqs) - min(seqs) + 1, items)


def resubmission_entry(old: TaskRange, again: str, submitted: float) -> OutputEntry:
    """Return the entry that notes, with an old task, the msg_id that it was submitted again as."""
    # Items are sorted by their indices: the last resubmission comes first, before all output.
    note = OutputRecord(old.first, -round(submitted * 1e6), RESUBMITTED, again.encode(), [])
    return OutputEntry(old.client, old.first, 1, [note])


def room(count: int, n_kept: int) -> int:
    """Return how many bytes a group of `count` tasks may still keep that keeps some already."""
    return max(0, min(count * TASK_BYTES, GROUP_BYTES) - n_kept)


def bounded(items: Iterable[OutputRecord], room_bytes: int) -> tuple[list[OutputRecord], int]:
    """Return items, without the content of those for which there is no room, and their bytes."""
    kept = []
    n_bytes = 0
    for item in items:
        size = item.n_bytes
        if n_bytes + size > room_bytes and size and item.kind != RESUBMITTED:
            dropped = item.dropped_bytes + size
            item = OutputRecord(item.seq, item.index, "stdout", b"", [], dropped)
        n_bytes += item.n_bytes + ITEM_BYTES
        kept.append(item)
    return kept, n_bytes


def by_task(items: Iterable[OutputRecord]) -> dict[int, list[OutputRecord]]:
    """Return the items of each task, in the order in which they were made, each once."""
    found: dict[int, dict[int, OutputRecord]] = {}
    for item in items:
        found.setdefault(item.seq, {}).setdefault(item.index, item)
    return {seq: [ours[index] for index in sorted(ours)] for seq, ours in found.items()}


def value_of(items: Iterable[OutputRecord]) -> dict[str, Any] | None:
    """Return the content of the value that an `execute` has displayed; None for "nothing"."""
    for item in items:
        if item.kind == "execute_result" and item.content:
            try:
                return msgspec.msgpack.decode(item.content, type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return None  # an engine has sent nonsense
    return None


def resubmission_of(items: Iterable[OutputRecord]) -> str | None:
    """Return the msg_id of the last resubmission, of a task's items in order; None for "none"."""
    return next((item.content.decode() for item in items if item.kind == RESUBMITTED), None)


def text_of(items: Iterable[OutputRecord], kind: str) -> str:
    """Return what a task has written to ``stdout`` or ``stderr``, as far as it was kept."""
    content = b"".join(item.content for item in items if item.kind == kind)
    return content.decode(errors="replace")


__all__ = [
    "GROUP_BYTES",
    "ITEM_BYTES",
    "RESUBMITTED",
    "TASK_BYTES",
    "OutputEntry",
    "OutputRecord",
    "bounded",
    "by_task",
    "output_entry",
    "resubmission_entry",
    "resubmission_of",
    "room",
    "text_of",
    "value_of",
]
