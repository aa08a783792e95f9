"""Separate calls of one kind, made one group.

What lives here: `merge_groups`. A group costs the scheduler some 40 µs, whatever its size, and a
further task of it 1 µs. Clients send the separate calls that were made while they were busy as many
groups of one task, alike in all but their arguments. Made one group, 20,000 such calls cost 10 µs
each instead of 48, decoding included (`calls` in `benchmarks/controller_round_trip.py`).

Nobody can tell: tasks keep their sequence numbers, and all else is kept per task. Only small
payloads are merged, since that copies them. What must not live here: state.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.messages import Columns, Group, Options

MERGE_MAX_BYTES = 16 << 10
"""A group with a larger payload stays by itself."""

MERGED_MAX_TASKS = 1024
"""Tasks of a merged group: the payloads of all are kept until the last has ended."""

MERGED_MAX_BYTES = 1 << 20
"""Payload bytes of a merged group."""


def merge_groups(
    groups: Sequence[Group], frames: Sequence[SliceFrames]
) -> list[tuple[Group, SliceFrames]]:
    """Return the groups of a checked `Submit` and their frames, neighbours merged where they may
    be.
    """
    pairs = list(zip(groups, frames, strict=True))
    if len(pairs) == 1:
        return pairs
    cuts = [0]
    n_tasks, n_bytes = groups[0].count, len(frames[0].payload[0])
    for number, (before, after) in enumerate(pairwise(pairs), 1):
        group, size = after[0], len(after[1].payload[0])
        n_tasks += group.count
        n_bytes += size
        if (
            n_tasks > MERGED_MAX_TASKS
            or n_bytes > MERGED_MAX_BYTES
            or not _continues(before, after)
        ):
            cuts.append(number)
            n_tasks, n_bytes = group.count, size
    cuts.append(len(pairs))
    return [_merge(pairs[start:stop]) for start, stop in pairwise(cuts)]


def _continues(before: tuple[Group, SliceFrames], after: tuple[Group, SliceFrames]) -> bool:
    """Whether two groups may be one."""
    (left, left_frames), (right, right_frames) = before, after
    return (
        left.first + left.count == right.first
        and left.options == right.options
        and left.options.method == "apply"
        and not left.options.shared
        and not _is_again(left)
        and not _is_again(right)
        # Each is blocked by itself: one of them may depend on another.
        and left.options.after is None
        and left.options.follow is None
        and left.options.resubmits is None
        and _is_small(left_frames)
        and _is_small(right_frames)
        and not right_frames.function
        and left.function is not None
        and right.function is not None
        and left.function.digest == right.function.digest
        and left.function.name == right.function.name
    )


def _is_again(group: Group) -> bool:
    """Whether more is known of a group than when it was submitted first."""
    return bool(group.ended or group.failed_before or group.waited_ms)


def _is_small(frames: SliceFrames) -> bool:
    # One frame is the packed one: there are no large buffers, and no blobs.
    payload = frames.payload
    return len(payload) == 1 and len(payload[0]) <= MERGE_MAX_BYTES


def _merge(pairs: list[tuple[Group, SliceFrames]]) -> tuple[Group, SliceFrames]:
    if len(pairs) == 1:
        return pairs[0]
    head, head_frames = pairs[0]
    merged = Group(
        head.first,
        sum(group.count for group, _ in pairs),
        _options_of_all(head.options, len(pairs)),
        head.function,
        Columns(b"".join([group.columns.sizes for group, _ in pairs])),
    )
    packed = b"".join([memoryview(frames.payload[0]) for _, frames in pairs])
    return merged, SliceFrames(head_frames.function, [packed])


def _options_of_all(options: Options, n_groups: int) -> Options:
    if options.placement != "direct" or options.targets is None:
        return options
    # One target per task.
    return Options(
        options.method,
        options.placement,
        options.targets * n_groups,
        options.shared,
        options.retries,
        options.silent,
        options.label,
        options.host,
    )


__all__ = ["MERGED_MAX_TASKS", "MERGE_MAX_BYTES", "merge_groups"]
