"""The interface that every measured system implements.

A peer file imports its system inside :meth:`Peer.start` and nowhere else: the import is part of the
time to the first result, and the driver loads every peer file to know its title.

Every peer is used the way its documentation recommends for speed, with its defaults otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class NotOffered(Exception):
    """The peer has no notion of what is asked; its cell in the table is a dash."""


class Peer(ABC):
    """One system under measurement: started once, asked for each figure, stopped.

    Calls are synchronous: they return when the result is in the caller's hands.
    """

    title: ClassVar[str]
    """The heading of the peer's column."""
    module: ClassVar[str]
    """What has to be importable for the peer to be measured."""
    distribution: ClassVar[str | None]
    """Whose version is reported; None: the standard library."""
    figures: ClassVar[frozenset[str] | None] = None
    """Keys of the figures that it is asked for; None: all."""
    notes: ClassVar[Mapping[str, str]] = {}
    """Keys of figures, and what a reader has to know about this peer's value there."""

    @abstractmethod
    def start(self, workers: int) -> None:
        """Import the system and start it; return when ``workers`` workers can take tasks."""

    @abstractmethod
    def stop(self) -> None:
        """Shut down cleanly. What is left behind is counted, reported and killed."""

    @abstractmethod
    def call(self) -> int:
        """Run :func:`benchmarks.workload.noop` wherever the system likes."""

    def call_one(self) -> int:
        """Run :func:`benchmarks.workload.noop` on one given worker."""
        raise NotOffered

    def call_all(self) -> list[int]:
        """Run :func:`benchmarks.workload.noop` once on every worker, at the same time."""
        raise NotOffered

    def separate(self, count: int) -> list[int]:
        """Start ``noop(item)`` for ``range(count)`` by a call each, then take all results."""
        raise NotOffered

    def nap_all(self, seconds: Sequence[float]) -> None:
        """Run :func:`benchmarks.workload.nap` as one task for each number, in that order."""
        raise NotOffered

    def fail_all(self, count: int) -> int:
        """Run :func:`benchmarks.workload.fail` as so many tasks; return how many have failed."""
        raise NotOffered

    @abstractmethod
    def map_single(self, count: int) -> list[int]:
        """Map ``noop`` over ``range(count)``, each item a task of its own."""

    @abstractmethod
    def map_chunked(self, count: int) -> list[int]:
        """Map ``noop`` over ``range(count)``, in chunks of the size that the system prefers."""

    def warm_up_data(self) -> None:  # noqa: B027 - optional, most peers have nothing to do
        """Have the workers that data may go to import what they need (not timed)."""

    def push(self, array: Any) -> None:
        """Send an array to one worker; return when it has it."""
        raise NotOffered

    def pushed_bytes(self) -> int:
        """Return the size of what the last push left at that worker (not timed: a check)."""
        raise NotOffered

    def prepare_pull(self, size: int) -> None:
        """Have a worker hold an array of ``size`` bytes (not timed)."""
        raise NotOffered

    def pull(self) -> Any:
        """Fetch the array that :meth:`prepare_pull` made."""
        raise NotOffered

    def scatter(self, array: Any) -> None:
        """Give every worker its part of an array."""
        raise NotOffered

    def gather(self) -> Any:
        """Fetch the parts of the last :meth:`scatter` as one array."""
        raise NotOffered

    def broadcast(self, array: Any) -> None:
        """Send an array to every worker; return when all have it."""
        raise NotOffered

    def broadcast_bytes(self) -> list[int]:
        """Return what the last broadcast left at each worker (not timed: a check)."""
        raise NotOffered


def even_chunks(count: int, workers: int) -> list[range]:
    """Cut ``range(count)`` into four chunks per worker, multiprocessing's default.

    For systems that leave the cutting to their users.
    """
    step = max(1, -(-count // (4 * workers)))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]
