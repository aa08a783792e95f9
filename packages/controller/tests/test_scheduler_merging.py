"""Groups that are made one, and those that must not be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyfleet_controller.scheduler.merging import (
    MERGE_MAX_BYTES,
    MERGED_MAX_BYTES,
    MERGED_MAX_TASKS,
    merge_groups,
)
from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import Payloads, PayloadWriter
from ipyfleet_protocol.messages import Function, Group, Options


def _group(
    first: int,
    payloads: Sequence[bytes],
    *,
    body: bool = False,
    digest: bytes = b"f" * 16,
    **o: Any,
) -> tuple[Group, SliceFrames]:
    writer = PayloadWriter()
    for payload in payloads:
        writer.append(payload)
    columns, frames = writer.finish()
    function = None
    if o.get("method") != "execute":
        function = Function(digest, "f", True, "", int(body))
    group = Group(first, len(payloads), Options(**o), function, columns)
    return group, SliceFrames([b"body"] if body else [], frames)


def _merge(*pairs: tuple[Group, SliceFrames]) -> list[tuple[Group, SliceFrames]]:
    groups, frames = zip(*pairs, strict=True)
    return merge_groups(groups, frames)


def _tasks(pairs: Sequence[tuple[Group, SliceFrames]]) -> list[tuple[Any, ...]]:
    """Return what is known of each task: seq, digest, target, payload, label."""
    out: list[tuple[Any, ...]] = []
    for group, frames in pairs:
        payloads = Payloads(group.columns, frames.payload)
        options = group.options
        for i in range(group.count):
            target = options.targets[i] if options.placement == "direct" else options.targets
            digest = group.function.digest if group.function else None
            payload = bytes(payloads.pickle(i))
            out.append((group.first + i, digest, target, payload, options.label))
    return out


@given(
    st.lists(
        st.tuples(
            st.lists(st.binary(max_size=3), min_size=1, max_size=3),
            st.sampled_from([b"f" * 16, b"g" * 16]),
            st.sampled_from(["", "label"]),
            st.sampled_from([None, 0, 1]),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_merging_changes_no_task(calls: list[tuple[Any, ...]]) -> None:
    """Each task keeps its number, function, target, payload and label, whatever is merged."""
    pairs = []
    seq = 0
    for payloads, digest, label, engine, gap in calls:
        seq += gap
        where: dict[str, Any] = {}
        if engine is not None:
            where = {"placement": "direct", "targets": [engine] * len(payloads)}
        pairs.append(_group(seq, payloads, digest=digest, label=label, **where))
        seq += len(payloads)
    assert _tasks(_merge(*pairs)) == _tasks(pairs)


def test_calls_that_differ_only_in_their_arguments_are_merged() -> None:
    """Many groups of one task become one group; the body of the first stays with it."""
    pairs = [_group(i, [b"%d" % i], body=not i) for i in range(100)]
    [(group, frames)] = _merge(*pairs)
    assert (group.first, group.count) == (0, 100)
    assert frames.function == [b"body"]
    assert group.function is not None
    assert group.function.frames == 1


def test_direct_calls_at_one_engine_are_merged() -> None:
    """A merged direct group has a target for each task."""
    pairs = [_group(i, [b"x"], placement="direct", targets=[3]) for i in range(5)]
    [(group, _)] = _merge(*pairs)
    assert group.options.targets == [3] * 5
    assert pairs[0][0].options.targets == [3]


@pytest.mark.parametrize(
    "second",
    [
        _group(2, [b"x"]),
        _group(1, [b"x"], digest=b"g" * 16),
        _group(1, [b"x"], label="another"),
        _group(1, [b"x"], retries=1),
        _group(1, [b"x"], targets=[1]),
        _group(1, [b"x"], body=True),
        _group(1, [b"x"], method="execute"),
        _group(1, [b"x"], method="map"),
        _group(1, [b"x" * (MERGE_MAX_BYTES + 1)]),
    ],
)
def test_what_is_not_alike_stays_apart(second: tuple[Group, SliceFrames]) -> None:
    """A gap, another function, other options, a body or a large payload begin a new group."""
    first = _group(0, [b"x"])
    assert _merge(first, second) == [first, second]


def test_groups_with_buffers_stay_apart() -> None:
    """Large buffers are never copied, so what has some is not merged."""
    pairs = []
    for seq in range(2):
        writer = PayloadWriter()
        writer.append(b"x", [(b"buffer", False)])
        columns, frames = writer.finish()
        group = Group(seq, 1, Options(), Function(b"f" * 16), columns)
        pairs.append((group, SliceFrames([], frames)))
    assert _merge(*pairs) == pairs


def test_shared_payloads_stay_apart() -> None:
    """One payload for several tasks cannot be packed behind another's."""
    where: dict[str, Any] = {"placement": "direct", "targets": [0], "shared": True}
    pairs = [_group(i, [b"x"], **where) for i in range(2)]
    assert _merge(*pairs) == pairs


def test_merged_groups_are_bounded() -> None:
    """No merged group has more tasks or bytes than the bounds, and none is lost at the cut."""
    pairs = [_group(i, [b"x"]) for i in range(2 * MERGED_MAX_TASKS + 1)]
    merged = _merge(*pairs)
    assert [group.count for group, _ in merged] == [MERGED_MAX_TASKS, MERGED_MAX_TASKS, 1]
    n_fitting = MERGED_MAX_BYTES // MERGE_MAX_BYTES
    merged = _merge(*[_group(i, [bytes(MERGE_MAX_BYTES)]) for i in range(n_fitting + 1)])
    assert [group.count for group, _ in merged] == [n_fitting, 1]
