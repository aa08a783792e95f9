"""What an engine has to tell a controller that has lost its memory.

What lives here: `KeptResults`, the results that clients are not known to have, and the arithmetic
of ranges of held tasks. What must not: sockets, locks (the owner of `KeptResults` has one).

What is kept of a result are the message and references to its frames: the payload is in memory
once, whoever else refers to it, and large buffers are in shared memory, of which a frame is only
the handle.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import HeldTasks, Results

log = logging.getLogger("ipyfleet.engine")

KEPT_MAX_BYTES = 512 * 1024 * 1024
"""Frames of kept results; beyond it the oldest are let go, and their tasks run once more should
the controller die before their client has them."""

_Kept = tuple[Results, Sequence[Frame], int]


class KeptResults:
    """Results by client, until the client has them.

    Attributes:
        n_bytes: bytes of their frames.
    """

    def __init__(self, max_bytes: int = KEPT_MAX_BYTES) -> None:
        self.n_bytes = 0
        self._max_bytes = max_bytes
        self._clients: dict[bytes, deque[_Kept]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def add(self, message: Results, frames: Sequence[Frame]) -> None:
        """Keep a message that is about to be sent; its number is above those before."""
        n_bytes = sum(map(len, frames))
        kept = self._clients.get(message.client)
        if kept is None:
            kept = self._clients[message.client] = deque()
        kept.append((message, frames, n_bytes))
        self.n_bytes += n_bytes
        while self.n_bytes > self._max_bytes and len(self) > 1:
            oldest = min(self._clients.values(), key=lambda kept: kept[0][0].number)
            log.warning("a result is not kept any longer, though its client may not have it")
            self._drop(oldest[0][0].client, oldest)

    def taken(self, client: bytes, number: int) -> None:
        """A client has its results up to `number`."""
        kept = self._clients.get(client)
        while kept and kept[0][0].number <= number:
            self._drop(client, kept)

    def _drop(self, client: bytes, kept: deque[_Kept]) -> None:
        self.n_bytes -= kept.popleft()[2]
        if not kept:
            del self._clients[client]

    def messages(self) -> list[tuple[Results, Sequence[Frame]]]:
        """Return all that is kept, in the order of the numbers."""
        everything = [entry for kept in self._clients.values() for entry in kept]
        everything.sort(key=lambda entry: entry[0].number)
        return [(message, frames) for message, frames, _ in everything]

    def tasks(self) -> Iterator[HeldTasks]:
        """Yield the tasks whose results are kept."""
        for message, _ in self.messages():
            for piece in message.slices:
                yield HeldTasks(
                    message.client, piece.first, piece.count, piece.ordinal, piece.attempt
                )


def after(tasks: Iterable[HeldTasks], last: int) -> Iterator[HeldTasks]:
    """Yield of some tasks those whose ordinal is above `last`."""
    for piece in tasks:
        skip = max(0, last + 1 - piece.ordinal)
        if skip < piece.count:
            yield _part(piece, skip, piece.count)


def without(tasks: Iterable[HeldTasks], ordinals: Sequence[tuple[int, int]]) -> list[HeldTasks]:
    """Return some tasks without those of some ranges of ordinals (last included)."""
    left = list(tasks)
    for first, last in ordinals:
        cut: list[HeldTasks] = []
        for piece in left:
            start = max(0, first - piece.ordinal)
            stop = min(piece.count, last + 1 - piece.ordinal)
            if start >= stop:
                cut.append(piece)
                continue
            if start:
                cut.append(_part(piece, 0, start))
            if stop < piece.count:
                cut.append(_part(piece, stop, piece.count))
        left = cut
    return left


def joined(tasks: Iterable[HeldTasks]) -> list[HeldTasks]:
    """Return tasks in the order of their ordinals, those that go on in one range."""
    out: list[HeldTasks] = []
    for piece in sorted(tasks, key=lambda piece: piece.ordinal):
        last = out[-1] if out else None
        if (
            last is not None
            and last.client == piece.client
            and last.attempt == piece.attempt
            and last.first + last.count == piece.first
            and last.ordinal + last.count == piece.ordinal
        ):
            last.count += piece.count
        else:
            out.append(_part(piece, 0, piece.count))
    return out


def _part(piece: HeldTasks, start: int, stop: int) -> HeldTasks:
    return HeldTasks(
        piece.client, piece.first + start, stop - start, piece.ordinal + start, piece.attempt
    )
