"""What clients submitted, kept for a while so that it can be submitted again.

What lives here: `RequestStore`, bounded in bytes, the oldest go first. What must not: tasks that
have yet to run; the scheduler has those.

Arguments in shared memory are not kept: they are gone when their tasks have ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from ipyfleet_protocol.columns import Frame, Payloads
from ipyfleet_protocol.ids import PeerId
from ipyfleet_protocol.messages import Columns, Function, Options

from .scheduler.group import TaskGroup

MAX_BYTES = 16 << 20
"""Bytes of arguments and functions that are kept."""

GROUP_OVERHEAD_BYTES = 512


class StoredRequest(NamedTuple):
    """One task as it was submitted: pickle and buffers of its arguments in `frames`."""

    options: Options
    function: Function | None
    body: Sequence[Frame]
    frames: list[Frame]
    target: int | None


class _Kept(msgspec.Struct, gc=False):
    client: PeerId
    first: int
    n_tasks: int
    options: Options
    function: Function | None
    columns: Columns
    frames: Sequence[Frame]
    n_bytes: int


class RequestStore:
    """The groups that were submitted last."""

    def __init__(
        self,
        find_body: Callable[[bytes], Sequence[Frame] | None],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Start empty.

        Args:
            find_body: gives the frames of a function by digest.
            max_bytes: see `MAX_BYTES`.
        """
        self._find_body = find_body
        self._max_bytes = max_bytes
        self._order: deque[_Kept] = deque()
        self._by_client: dict[PeerId, deque[_Kept]] = {}
        self._bodies: dict[bytes, tuple[Sequence[Frame], int]] = {}
        self.n_bytes = 0

    def note(self, group: TaskGroup) -> None:
        """Keep a group that was submitted just now; a client's seqs only grow."""
        frames = group.frames or ()
        n_bytes = sum(map(len, frames)) + GROUP_OVERHEAD_BYTES
        if 1 in group.columns.blobs or n_bytes > self._max_bytes:
            return
        if group.function is not None:
            n_bytes += self._hold(group.function.digest)
        kept = _Kept(
            group.client,
            group.first,
            group.count,
            group.options,
            group.function,
            group.columns,
            frames,
            n_bytes,
        )
        self._order.append(kept)
        of_client = self._by_client.get(group.client)
        if of_client is None:
            of_client = self._by_client[group.client] = deque()
        of_client.append(kept)
        self.n_bytes += n_bytes
        while self.n_bytes > self._max_bytes:
            self._drop_oldest()

    def find(self, client: PeerId, seq: int) -> StoredRequest | None:
        """Return a task as it was submitted, or None if it is not kept."""
        groups = self._by_client.get(client)
        if not groups:
            return None
        position = bisect_right(groups, seq, key=lambda kept: kept.first) - 1
        if position < 0:
            return None
        group = groups[position]
        index = seq - group.first
        if index >= group.n_tasks:
            return None
        options, function = group.options, group.function
        at = 0 if options.shared else index
        payloads = Payloads(group.columns, group.frames)
        body: Sequence[Frame] = ()
        if function is not None:
            found = self._bodies.get(function.digest)
            if found is None or not found[0]:
                return None
            body = found[0]
        target = None
        if options.placement == "direct" and options.targets is not None:
            target = options.targets[index]
        task: list[Frame] = [payloads.pickle(at), *payloads.buffer_frames(at)]
        return StoredRequest(options, function, body, task, target)

    def _hold(self, digest: bytes) -> int:
        """Count one more group that calls a function; return the bytes that this costs."""
        held = self._bodies.get(digest)
        if held is not None:
            self._bodies[digest] = (held[0], held[1] + 1)
            return 0
        body = self._find_body(digest) or ()
        self._bodies[digest] = (body, 1)
        return sum(map(len, body))

    def _drop_oldest(self) -> None:
        kept = self._order.popleft()
        of_client = self._by_client[kept.client]
        of_client.popleft()
        if not of_client:
            del self._by_client[kept.client]
        self.n_bytes -= kept.n_bytes
        if kept.function is not None:
            digest = kept.function.digest
            body, users = self._bodies[digest]
            if users > 1:
                self._bodies[digest] = (body, users - 1)
            else:
                del self._bodies[digest]


__all__ = ["MAX_BYTES", "RequestStore", "StoredRequest"]
