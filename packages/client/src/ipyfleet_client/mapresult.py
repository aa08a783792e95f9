"""The results of maps.

What lives here: `AsyncMapResult`, whose items are those of the mapped sequence however the work
    was cut
into tasks, and `JoinedResult`, whose parts are joined to what a sequence was scattered from.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.partition import Dist, join
from ipyfleet_client.pending import Work
from ipyfleet_protocol.messages import OK

if TYPE_CHECKING:
    from ipyfleet_client.client import Client


class AsyncMapResult(AsyncResult):
    """The results of a map, one per item. Iterates over them as they arrive.

    Attributes:
        ordered: whether iteration keeps the order of the items; if not, what is there first comes
            first.
    """

    def __init__(
        self,
        client: Client,
        work: Work,
        *,
        chunks: Sequence[int] | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> None:
        """Make the result of a map.

        Args:
            client: whose.
            work: one task per item, or per chunk of items.
            chunks: number of items of each task; None for one task per item.
            ordered: see the class.
            return_exceptions: errors take the place of values instead of being raised.
        """
        super().__init__(client, work, single=False)
        self.ordered = ordered
        self._return_exceptions = return_exceptions
        self._ends = None if chunks is None else array("Q", accumulate(chunks))

    def __len__(self) -> int:
        return self._n_items

    @property
    def _n_items(self) -> int:
        if self._ends is None:
            return self._work.total
        return self._ends[-1] if self._ends else 0

    def split(self) -> list[AsyncResult]:
        """Return a result for each task; see `AsyncResult.split`."""
        parts = super().split()
        if self._ends is not None:
            for index, part in enumerate(parts):
                part._chunk = self._ends[index] - (self._ends[index - 1] if index else 0)
        return parts

    @classmethod
    def _of_work(cls, client: Client, work: Work, sources: tuple[AsyncResult, ...]) -> Self:
        """Join maps, or parts of maps, to one map."""
        chunks: list[int] = []
        for source in sources:
            if isinstance(source, AsyncMapResult) and source._ends is not None:
                chunks += [part._chunk or 0 for part in source.split()]
            elif source._chunk is not None:
                chunks.append(source._chunk)
        return cls(client, work, chunks=chunks if len(chunks) == work.total else None)

    @property
    def progress(self) -> int:
        """How many items are done."""
        if self._ends is None or self.ready():
            return self._work.arrived if self._ends is None else len(self)
        return sum(
            self._ends[k] - (self._ends[k - 1] if k else 0)
            for first, count, _, _ in list(self._work.arrivals)
            for k in range(first, first + count)
        )

    def _shape(self, values: list[Any]) -> Any:
        if self._ends is None:
            return list(values)
        out: list[Any] = []
        for index, value in enumerate(values):
            if self._work.status[index] == OK:
                out += value
            else:
                out.append(value)
        return out

    def _iterate(self) -> Iterator[Any]:
        tasks = super()._iterate() if self.ordered else self._iterate_arrivals()
        return tasks if self._ends is None else _chain(tasks)

    def _iterate_arrivals(self) -> Iterator[Any]:
        work = self._work
        seen = yielded = 0
        while yielded < work.total:
            if seen == len(work.arrivals):
                self._wait_until(self._more_than(seen), None)
            first, count, _, _ = work.arrivals[seen]
            seen += 1
            yielded += count
            for index in range(first, first + count):
                yield self._item(index)

    def _more_than(self, seen: int) -> Callable[[], bool]:
        arrivals = self._work.arrivals
        return lambda: len(arrivals) > seen

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the items as they arrive."""
        work = self._work
        if self.ordered:
            async for value in super().__aiter__():
                for item in self._items_of(value):
                    yield item
            return
        seen = yielded = 0
        while yielded < work.total:
            if seen == len(work.arrivals):
                await self._session.until(self._more_than(seen))
            first, count, _, _ = work.arrivals[seen]
            seen += 1
            yielded += count
            for index in range(first, first + count):
                for item in self._items_of(self._item(index)):
                    yield item

    def _items_of(self, value: Any) -> Sequence[Any]:
        if self._ends is None or isinstance(value, BaseException):
            return (value,)
        items: Sequence[Any] = value
        return items

    def _get_one(self, index: int) -> Any:
        if self._ends is None:
            return super()._get_one(index)
        task = bisect_right(self._ends, index)
        value = super()._get_one(task)
        if isinstance(value, BaseException):
            return value
        return value[index - (self._ends[task - 1] if task else 0)]


def _chain(tasks: Iterator[Any]) -> Iterator[Any]:
    for value in tasks:
        if isinstance(value, BaseException):
            yield value
        else:
            yield from value


class JoinedResult(AsyncMapResult):
    """Parts of a sequence, one from each engine, that `get` joins to one."""

    def __init__(self, client: Client, work: Work, *, dist: Dist = "b") -> None:
        super().__init__(client, work)
        self._dist: Dist = dist

    def _joined(self) -> Any:
        return self.get()

    def _shape(self, values: list[Any]) -> Any:
        if self._work.failures:
            return list(values)
        return join(values, self._dist)

    def __len__(self) -> int:
        return len(self.get())

    def _iterate(self) -> Iterator[Any]:
        return iter(self.get())

    def __getitem__(self, key: int | slice | str) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.get()[key]
