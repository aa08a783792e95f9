"""What was submitted and has not ended, kept for a controller that loses its memory.

What lives here: `Retained`, one group as it was submitted, and the messages that submit groups
again. What must not: when that is done.

Nothing is copied: a group shares its frames with the message that it went out in, and with the
user's arrays where those were too large to be pickled and not large enough for shared memory. A
user who changes such an array meanwhile has it changed in the second submission, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from ipyfleet_client.pending import PENDING, Work
from ipyfleet_protocol.codec import encode
from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import Columns, Function, Group, Options, Submit
from ipyfleet_protocol.serialize import PackedFunction

MESSAGE_GROUPS = 256
MESSAGE_BYTES = 1 << 20
"""Groups that are submitted again travel together up to these bounds."""

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
    """

    first: int
    options: Options
    function: PackedFunction | None
    columns: Columns
    frames: Sequence[Frame]
    parts: list[tuple[Work, int, int]] = []
    count: int = 0
    open: int = 0

    def release(self) -> None:
        """All tasks have ended: let go of what carried them."""
        self.frames = ()
        self.parts = []

    def submission(self, attach: Attach) -> tuple[Group, list[Frame]]:
        """Return the group as it is submitted again, with its frames."""
        header: Function | None = None
        frames = list(self.frames)
        if self.function is not None:
            header, body = attach(self.function)
            frames = [*body, *frames]
        ended = b""
        if self.open < self.count:
            ended = b"".join(
                bytes(status != PENDING for status in work.status[index : index + count])
                for work, index, count in self.parts
            )
        group = Group(self.first, self.count, self.options, header, self.columns, ended)
        return group, frames


def submit_again(retained: Iterable[Retained], attach: Attach) -> Iterator[list[Frame]]:
    """Yield the messages that submit these groups again, in their order."""
    groups: list[Group] = []
    frames: list[Frame] = []
    n_bytes = 0
    for group, body in (kept.submission(attach) for kept in retained):
        groups.append(group)
        frames += body
        n_bytes += sum(map(len, body))
        if len(groups) >= MESSAGE_GROUPS or n_bytes >= MESSAGE_BYTES:
            yield [encode(Submit(groups)), *frames]
            groups, frames, n_bytes = [], [], 0
    if groups:
        yield [encode(Submit(groups)), *frames]
