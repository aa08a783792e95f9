"""Results taken apart and put together.

What lives here: the part of `AsyncResult` that makes results of its tasks, and one result of
several. What must not: how a work follows another (`derived.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from ipyfleet_client.derived import derive

if TYPE_CHECKING:
    from ipyfleet_client.asyncresult import AsyncResult
    from ipyfleet_client.client import Client
    from ipyfleet_client.pending import Work
    from ipyfleet_client.session import Session


class ResultParts:
    """Splitting and joining."""

    _client: Client
    _session: Session
    _work: Work
    _parts: list[Any] | None = None
    _origins: list[tuple[Any, int]] | None = None
    """Of a part or a joined result: for each task the result it was made of, and where."""
    _chunk: int | None = None
    """Of a part of a map that was cut into chunks: how many items it has."""

    def split(self) -> list[AsyncResult]:
        """Return a result for each task, in their order; the same ones each time.

        They are results like any other: they can be waited for, aborted, joined. Of a direct map,
        which has one task per engine, each gives the list of values of its engine's part.

        Example:
            >>> [part.get() for part in rc[:].apply_async(os.getpid).split()]  # doctest: +SKIP
            [18993, 18994]
        """
        from ipyfleet_client.asyncresult import AsyncResult

        if self._parts is None:
            work, session = self._work, self._session
            session.submit.flush()
            with session.link.lock:
                works = [derive([(work, index)]) for index in range(work.total)]
            self._parts = [AsyncResult(self._client, part, single=True) for part in works]
            for index, part in enumerate(self._parts):
                part._origins = [(self, index)]
        return list(self._parts)

    def _sources(self) -> list[tuple[Work, int]]:
        """Where each task came from: the works that are told of output as it arrives."""
        if not self._origins:
            return [(self._work, index) for index in range(self._work.total)]
        return [origin._sources()[place] for origin, place in self._origins]

    @classmethod
    def join(cls, *results: AsyncResult) -> Self:
        """Return one result of the tasks of several; the inverse of `split`.

        Raises:
            TypeError: there is none, or one of them is no result.
            ValueError: they are of different clients.
        """
        from ipyfleet_client.asyncresult import AsyncResult

        if not results:
            raise TypeError("join() needs at least one result")
        for result in results:
            if not isinstance(result, AsyncResult):
                raise TypeError(f"join() takes results, not {type(result).__name__}")
            if result._session is not results[0]._session:
                raise ValueError("join() takes results of one client")
        first = results[0]
        first._session.submit.flush()
        with first._session.link.lock:
            work = derive([(r._work, index) for r in results for index in range(r._work.total)])
        joined = cls._of_work(first._client, work, results)
        joined._origins = [(r, index) for r in results for index in range(r._work.total)]
        return joined

    @classmethod
    def _of_work(cls, client: Client, work: Work, sources: tuple[AsyncResult, ...]) -> Self:
        """Make the joined result; subclasses know how."""
        raise NotImplementedError
