"""How much work each figure does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The amounts of one bench; the defaults are those of the published figures.

    Attributes:
        workers: Engines (worker processes) of each peer.
        calls: Round trips timed one by one; the run's figure is their median.
        tasks_small: Items of the first one-task-per-item figure.
        tasks_large: Items of the second one.
        task_budget_s: About the time that a one-task-per-item figure may take. A peer that cannot
            do all items in that time gets fewer, and the table says how many.
        chunked_items: Items of the chunked map.
        transfer_mib: Size of the array that is pushed and pulled.
        broadcast_mib: Size of the array that goes to all engines.
        idle_s: How long a cluster is left alone before it is weighed.
    """

    workers: int = 2
    calls: int = 300
    tasks_small: int = 5_000
    tasks_large: int = 50_000
    task_budget_s: float = 10.0
    chunked_items: int = 100_000
    transfer_mib: int = 256
    broadcast_mib: int = 64
    idle_s: float = 2.0


QUICK = Sizes(
    calls=30,
    tasks_small=500,
    tasks_large=2_000,
    task_budget_s=1.0,
    chunked_items=5_000,
    transfer_mib=16,
    broadcast_mib=4,
    idle_s=0.5,
)
"""Shows that everything works; its figures mean little."""
