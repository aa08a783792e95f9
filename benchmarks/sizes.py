"""How much work each figure does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The amounts of one bench; the defaults are those of the published figures.

    Attributes:
        workers: Engines (worker processes) of each peer.
        calls: Round trips timed one by one; the run's figure is their median.
        tasks_large: Items of the one-task-per-item figures.
        task_budget_s: About the time that a one-task-per-item figure may take. A peer that cannot
            do all items in that time gets fewer, and the table says how many.
        chunked_items: Items of the chunked map.
        transfer_mib: Size of the array that is pushed and pulled.
        broadcast_mib: Size of the array that goes to all engines.
        many: Engines of the large cluster.
        naps: Tasks of the figure whose tasks sleep 10 ms.
        short_naps: Tasks that sleep 1 ms in the mixed figure.
        long_nap_s: How long each of its four other tasks sleeps.
        failures: Failing tasks.
        lazy_items: Items of the lazy map.
        queued: Tasks that are queued where the cost of a task is measured.
        idle_s: How long a cluster is left alone before it is weighed.
    """

    workers: int = 2
    calls: int = 300
    tasks_large: int = 50_000
    task_budget_s: float = 5.0
    chunked_items: int = 100_000
    transfer_mib: int = 256
    broadcast_mib: int = 64
    many: int = 16
    naps: int = 1_000
    short_naps: int = 1_000
    long_nap_s: float = 2.0
    failures: int = 1_000
    lazy_items: int = 1_000_000
    queued: int = 1_000_000
    idle_s: float = 2.0


QUICK = Sizes(
    calls=30,
    tasks_large=2_000,
    task_budget_s=1.0,
    chunked_items=5_000,
    transfer_mib=16,
    broadcast_mib=4,
    many=4,
    naps=100,
    short_naps=100,
    long_nap_s=0.1,
    failures=100,
    lazy_items=20_000,
    queued=10_000,
    idle_s=0.5,
)
"""Shows that everything works; its figures mean little."""
