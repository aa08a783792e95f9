"""Works made of the tasks of other works: what `split` and `join` are made of.

What lives here: `derive`. A derived work stores nothing of its own: it has the segments of its
sources, and the outputs of their tasks are the same objects.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipyfleet_client.outputs import TaskOutput
from ipyfleet_client.pending import Work


def derive(sources: Sequence[tuple[Work, int]]) -> Work:
    """Return a work of tasks of other works: some of one, or those of several.

    The link's lock must be held.

    Args:
        sources: a work and the index of a task in it, for each task of the new work.
    """
    first = sources[0][0]
    work = Work(
        len(sources),
        method=first.method,
        name=first.name,
        submitted=min(source.submitted for source, _ in sources),
        label=first.label,
    )
    work.shares = True
    work.code = first.code
    work.after, work.follow = first.after, first.follow
    if all(source.targets is not None for source, _ in sources):
        work.targets = [source.targets[index] for source, index in sources]  # type: ignore[index]
    if any(source.foreign_ids is not None for source, _ in sources):
        work.foreign_ids = [s.foreign_ids[k] if s.foreign_ids else "" for s, k in sources]
    work.outputs = {}
    for position, (source, index) in enumerate(sources):
        source.shares = True
        seq = source.seq(index)
        if seq is not None:
            work.sent(position, seq, 1)
        if source.outputs is None:
            source.outputs = {}
        work.outputs[position] = source.outputs.setdefault(index, TaskOutput())
        place = source.locate(index)
        if place is not None:
            work.add(position, 1, place[0], place[1])
        else:
            if source.followers is None:
                source.followers = {}
            source.followers.setdefault(index, []).append((work, position))
    return work
