"""How long tasks take, and so how many of them an engine should hold.

What lives here: `Estimates`, the durations seen per kind of task, and `room`, the number of further
tasks that an engine may be given. What must not: queues, messages.

The aim is some 10 ms of work at each engine: enough to hide the round trip, little enough to bind
late. A kind of task is a function (by digest), or all `execute` calls of a client. Of a kind
never seen an engine gets one task; the number at most doubles each time that as many tasks have
come back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TypeAlias

from ipyfleet_protocol.ids import PeerId

from .group import TaskGroup

PREFETCH_S = 0.010
"""Work, in seconds, that an engine should hold."""

TASK_FLOOR_S = 6e-6
"""What a task costs an engine beyond the time that user code takes."""

PAIR_BELOW_S = 0.050
"""An engine may hold a second task while it runs one, if tasks are shorter than this; otherwise the
gap between two tasks is too small to matter, and binding late is worth more.
"""

TWO_BELOW_S = 0.015
"""Tasks shorter than this come to an engine by two at least: reading a message between two tasks,
with the CPU's caches gone cold, takes 60 µs.
"""

MAX_KINDS = 4096
"""Kinds of tasks to remember; the one unused for longest is forgotten first."""

Kind: TypeAlias = bytes


class Estimate:
    """What is known of one kind of task.

    Attributes:
        mean_s: seconds of user code, a moving average; NaN for "never seen".
        cost_s: seconds that an engine is expected to need for one task; the floor where not known.
        limit: tasks that an engine may hold at present.
    """

    __slots__ = ("_seen", "cost_s", "limit", "mean_s")

    def __init__(self) -> None:
        self.mean_s = math.nan
        self.cost_s = TASK_FLOOR_S
        self.limit = 1
        self._seen = 0

    def learn(self, count: int, total_s: float) -> None:
        """Take in that `count` tasks took `total_s` seconds together."""
        if not total_s >= 0:  # NaN: some never ran. A clock that was set back is as useless.
            return
        mean_s = total_s / count
        if math.isnan(self.mean_s):
            self.mean_s = mean_s
        else:
            self.mean_s += (mean_s - self.mean_s) * (1 - 0.8 ** min(count, 16))
        self.cost_s = self.mean_s + TASK_FLOOR_S
        self._seen += count
        if self._seen >= self.limit:
            self._seen = 0
            self.limit = min(2 * self.limit, 1 << 16)

    def room(self, n_held: int, load_s: float) -> int:
        """Return how many more such tasks an engine may get.

        Args:
            n_held: tasks that it has.
            load_s: seconds that it is expected to need for them.
        """
        if not n_held:
            return min(self.limit, max(1, int(PREFETCH_S / self.cost_s)))
        if math.isnan(self.mean_s) or n_held >= self.limit:
            return 0
        if load_s <= PREFETCH_S / 2:
            room = max(1, int((PREFETCH_S - load_s) / self.cost_s))
        elif n_held == 1 and self.mean_s < PAIR_BELOW_S and load_s < 2 * self.cost_s:
            room = 1
        else:
            return 0
        if n_held == room == 1 and self.mean_s < TWO_BELOW_S:
            room = 2
        return min(room, self.limit - n_held)


class Estimates:
    """The estimates of all kinds of tasks, bounded."""

    __slots__ = ("_by_kind",)

    def __init__(self) -> None:
        self._by_kind: OrderedDict[Kind, Estimate] = OrderedDict()

    def of(self, group: TaskGroup) -> Estimate:
        """Return the estimate for the tasks of a group; it keeps the same one."""
        if group.estimate is not None:
            return group.estimate
        function = group.function
        kind = function.digest if function is not None else kind_of(None, group.client)
        estimate = self._by_kind.get(kind)
        if estimate is None:
            estimate = self._by_kind[kind] = Estimate()
            if len(self._by_kind) > MAX_KINDS:
                self._by_kind.popitem(last=False)
        else:
            self._by_kind.move_to_end(kind)
        group.estimate = estimate
        return estimate


def kind_of(digest: bytes | None, client: PeerId) -> Kind:
    """Return what names a kind of task: the function, or for `execute` the client."""
    return b"execute " + client if digest is None else digest


__all__ = ["PREFETCH_S", "TASK_FLOOR_S", "Estimate", "Estimates", "Kind", "kind_of"]
