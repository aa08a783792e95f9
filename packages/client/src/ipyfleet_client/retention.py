"""What was submitted and has not ended, kept for a controller that loses its memory.

What lives here: `Retained`, one group as it was submitted, and the messages that submit groups
again. What must not: when that is done.

Nothing is copied: a group shares its frames with the message that it went out in, and with the
user's arrays where those were too large to be pickled and not large enough for shared memory. A
user who changes such an array meanwhile has it changed in the second submission, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from ipyfleet_client.pending import PENDING, Work
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import Columns, EndedRange, Function, Group, Options, Submit
from ipyfleet_protocol.serialize import PackedFunction

if TYPE_CHECKING:
    from ipyfleet_client.ledger import Ledger

MESSAGE_GROUPS = 256
MESSAGE_BYTES = 1 << 20
"""Groups that are submitted again travel together up to these bounds."""

# From a status to what is in `Group.ended`.
_ENDED_MARKS = bytes(0 if status == PENDING else (status + 1) % 256 for status in range(256))

Attach = Callable[[PackedFunction], tuple[Function, Sequence[Frame]]]
"""Returns a function's header and the frames that are to go with it: none where they have been."""


class Retained(msgspec.Struct, eq=False):
    """A group with tasks that have not ended.

    Attributes:
        first: seq of its first task.
        options, function, columns, frames: as it was submitted; the frames without the function's.
        parts: tasks ``index … index+count-1`` of a work, for each call in the group.
        count: how many tasks it has.
        open: how many of them have not ended.
        since: the time, by `time.monotonic`, of the submission, where it has a time limit.
    """

    first: int
    options: Options
    function: PackedFunction | None
    columns: Columns
    frames: Sequence[Frame]
    parts: list[tuple[Work, int, int]] = []
    count: int = 0
    open: int = 0
    since: float = 0.0

    def release(self) -> None:
        """All tasks have ended: let go of what carried them."""
        self.frames = ()
        self.parts = []

    def submission(
        self, attach: Attach, failed_before: list[EndedRange], now: float
    ) -> tuple[Group, list[Frame]]:
        """Return the group as it is submitted again, with its frames.

        Args:
            attach: what goes with the function.
            failed_before: see `Group`.
            now: as `since`.
        """
        header: Function | None = None
        frames = list(self.frames)
        if self.function is not None:
            header, body = attach(self.function)
            frames = [*body, *frames]
        ended = b""
        if self.open < self.count:
            ended = b"".join(
                bytes(work.status[index : index + count].translate(_ENDED_MARKS))
                for work, index, count in self.parts
            )
        waited_ms = round(1000 * (now - self.since)) if self.options.timeout_s else 0
        group = Group(
            self.first,
            self.count,
            self.options,
            header,
            self.columns,
            ended,
            failed_before,
            waited_ms,
        )
        return group, frames


def submit_again(ledger: Ledger, attach: Attach, now: float) -> Iterator[list[Frame]]:
    """Yield the messages that submit again what has not ended, in its order.

    Args:
        ledger: has it.
        attach: see there.
        now: by `time.monotonic`.
    """
    groups: list[Group] = []
    frames: list[Frame] = []
    n_bytes = at = 0
    for kept in ledger.groups.values():
        group, body = kept.submission(attach, ledger.failed.between(at, kept.first), now)
        at = kept.first + kept.count
        groups.append(group)
        frames += body
        n_bytes += sum(map(len, body))
        if len(groups) >= MESSAGE_GROUPS or n_bytes >= MESSAGE_BYTES:
            yield [encode(Submit(groups)), *frames]
            groups, frames, n_bytes = [], [], 0
    if groups:
        yield [encode(Submit(groups)), *frames]
