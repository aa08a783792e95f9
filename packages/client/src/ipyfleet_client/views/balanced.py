"""A view of engines that share the work.

What lives here: `LoadBalancedView`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.dependencies import DependencyFlag, read_dependency
from ipyfleet_client.mapresult import AsyncMapResult, JoinedResult
from ipyfleet_client.partition import Dist, as_sequence, cut_in_chunks, partition
from ipyfleet_client.pending import Work
from ipyfleet_client.placement import (
    NO_RESOURCES,
    check_priority,
    check_resources,
    check_retries,
    check_timeout,
    timeout_on_wire,
)
from ipyfleet_client.submission import Spec
from ipyfleet_client.views.base import Flag, PreparedCall, View, check_sequences
from ipyfleet_protocol.messages import Method
from ipyfleet_protocol.namespace import Reference
from ipyfleet_protocol.serialize import PackedFunction, pack_call

if TYPE_CHECKING:
    from ipyfleet_client.imap import LazyMapIterator


class LoadBalancedView(View):
    """Engines that take tasks from one queue, whichever is free.

    Attributes:
        targets: a list of the engines that may be used, or None for all.
        retries: how many more attempts a task that failed gets, on other engines.
        after: tasks begin when these have ended: a result, a msg_id, a list or set of those, or a
            `Dependency`, which has the rule. None for nothing to wait for.
        follow: likewise, and tasks run on engines where these ran.
        timeout: seconds that a task may wait for a place; None or 0 for any time.
        priority: of this client's waiting tasks those with the higher number go first.
        resources: what an engine must have, and how much of each, such as ``{"gpu": 1}``.

    Example:
        >>> view = rc.load_balanced_view()  # doctest: +SKIP
        >>> view.map_sync(lambda x: x ** 2, range(4))  # doctest: +SKIP
        [0, 1, 4, 9]
    """

    flag_names = View.flag_names | {
        "after",
        "follow",
        "priority",
        "resources",
        "retries",
        "timeout",
    }

    retries = Flag[int](0)
    after: Flag[Any] = DependencyFlag()
    follow: Flag[Any] = DependencyFlag()
    timeout = Flag["float | None"](None)
    priority = Flag[int](0)
    resources = Flag[Mapping[str, float]](NO_RESOURCES)

    def _check_flag(self, name: str, value: Any) -> Any:
        if name in ("after", "follow"):
            return read_dependency(name, value, self._session)
        if name in _CHECKS:
            return _CHECKS[name](value)
        if name == "targets":
            if value is None or (isinstance(value, str) and value == "all"):
                return None
            chosen = self._session.link.engines.choose(value)
            return [chosen] if isinstance(chosen, int) else chosen
        return super()._check_flag(name, value)

    def __len__(self) -> int:
        return len(self.client.ids) if self.targets is None else len(self.targets)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.targets}>"

    def _spec(self, method: Method = "apply", label: str | None = None) -> Spec:
        engines = self.client.session.link.engines
        if not engines.ids:
            engines.require_some()
        flags = self._flags_now()
        targets = flags["targets"]
        if targets is not None:
            targets = tuple(engines.choose(targets))  # type: ignore[arg-type]
            if not targets:
                raise IndexError(f"{self!r} has no engines: its slice or list was empty")
        if label is None:
            label = flags.get("label", "")
        spec = _plain_spec(method, targets, flags.get("retries", 0), label)
        if _PLACEMENT.isdisjoint(flags):
            return spec
        return spec._replace(
            after=_AFTER.wire(self),
            follow=_FOLLOW.wire(self),
            timeout_s=timeout_on_wire(self.timeout),
            priority=self.priority,
            resources=tuple(self.resources.items()),
        )

    def _apply(
        self, f: Callable[..., Any] | Reference, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncResult:
        call = self._prepare(f, args, kwargs)
        result = AsyncResult(self.client, call.work, single=True)
        self._send(call)
        return result

    def _prepare(
        self, f: Callable[..., Any] | Reference, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> PreparedCall:
        function = self._pack_function(f)
        spec = self._spec()
        payload = pack_call(args, kwargs)
        work = Work(
            1,
            method="apply",
            name=function.function.name,
            submitted=time.time(),
            label=spec.label,
        )
        return PreparedCall(work, spec, function, payload, None, True)

    def map(
        self,
        f: Callable[..., Any] | Reference,
        /,
        *sequences: Iterable[Any],
        block: bool | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        return_exceptions: bool = False,
        label: str | None = None,
    ) -> Any:
        """Map ``f`` over sequences as the builtin does, one task per item.

        Args:
            f: called with one item of each sequence.
            *sequences: as many as `f` takes arguments; the shortest ends the map.
            block: whether to wait; None for ``view.block``.
            chunksize: how many items make a task. Tasks travel in batches anyway, so this saves
                little.
            ordered: whether iteration keeps the order; if not, what is there first comes first.
            return_exceptions: give errors as values instead of raising them.
            label: a name for this work; None for the view's.

        Returns:
            The list of values if it blocks, else an `AsyncMapResult`.
        """
        check_sequences(sequences)
        if isinstance(chunksize, bool) or not isinstance(chunksize, int) or chunksize < 1:
            raise ValueError(f"chunksize must be an int of 1 or more, not {chunksize!r}")
        function = self._pack_function(f)
        if chunksize > 1:
            result = self._map_chunks(
                function, sequences, chunksize, ordered, return_exceptions, label
            )
        else:
            result = self._map_items(function, sequences, ordered, return_exceptions, label)
        return self._finish(result, block)

    def _map_items(
        self,
        function: PackedFunction,
        sequences: tuple[Iterable[Any], ...],
        ordered: bool,
        return_exceptions: bool,
        label: str | None,
    ) -> AsyncMapResult:
        spec = self._spec(label=label)
        count = _count(sequences)
        work = self._new_work(count or 0, "apply", function.function.name, closed=count is not None)
        work.label = spec.label
        result = AsyncMapResult(
            self.client, work, ordered=ordered, return_exceptions=return_exceptions
        )
        items: Iterator[tuple[Any, ...]] = zip(*sequences)  # noqa: B905 - the shortest ends it
        if count is not None:
            items = islice(items, count)
        self._submit_items(work, spec, function, items)
        return result

    def _map_chunks(
        self,
        function: PackedFunction,
        sequences: tuple[Iterable[Any], ...],
        chunksize: int,
        ordered: bool,
        return_exceptions: bool,
        label: str | None,
    ) -> AsyncMapResult:
        spec = self._spec("map", label)
        chunks = list(cut_in_chunks(sequences, chunksize))
        work = self._new_work(len(chunks), "map", function.function.name)
        work.label = spec.label
        result = AsyncMapResult(
            self.client,
            work,
            chunks=[len(chunk[0]) for chunk in chunks],
            ordered=ordered,
            return_exceptions=return_exceptions,
        )
        self._submit_items(work, spec, function, chunks)
        return result

    def _submit_items(
        self,
        work: Work,
        spec: Spec,
        function: PackedFunction,
        items: Iterable[tuple[Any, ...]],
    ) -> None:
        session = self._session
        session.submit.submit_items(work, spec, function, items, history=self._history)
        if not work.closed:
            session.close_work(work)

    def _apply_parts(
        self,
        f: Callable[..., Any] | Reference,
        sequences: tuple[Any, ...],
        dist: Dist,
        chunksize: int | None = None,
        ordered: bool = True,
    ) -> AsyncMapResult:
        """Call ``f`` with parts of the sequences: one per engine, or of `chunksize` items."""
        function = self._pack_function(f)
        spec = self._spec()
        count = len(sequences[0])
        parts = -(-count // chunksize) if chunksize else min(count, len(self))
        work = self._new_work(parts, "apply", function.function.name)
        result = JoinedResult(self.client, work, dist=dist)
        result.ordered = ordered
        if parts:
            cut = [partition(as_sequence(sequence), parts, dist) for sequence in sequences]
            self._submit_items(work, spec, function, zip(*cut, strict=True))
        return result

    def imap(
        self,
        f: Callable[..., Any] | Reference,
        /,
        *sequences: Iterable[Any],
        ordered: bool = True,
        max_outstanding: int | str | None = "auto",
        return_exceptions: bool = False,
    ) -> LazyMapIterator:
        """Map lazily: items are taken from the sequences, which may be endless, as results are
        consumed.

        Args:
            f: called with one item of each sequence.
            *sequences: anything that can be iterated.
            ordered: keep the order; if not, what is there first comes first.
            max_outstanding: how many tasks may be under way or not yet consumed; "auto" starts
                with two for each engine and grows while tasks are so short that engines would
                wait; 0 or None for no limit.
            return_exceptions: give errors as values instead of raising them.

        Returns:
            An iterator; its `cancel` ends it early.
        """
        from ipyfleet_client.imap import LazyMapIterator

        check_sequences(sequences)
        return LazyMapIterator(
            self,
            self._pack_function(f),
            zip(*sequences),  # noqa: B905 - the shortest ends it
            ordered=ordered,
            max_outstanding=max_outstanding,
            return_exceptions=return_exceptions,
        )

    def register_joblib_backend(self, name: str = "ipyfleet", make_default: bool = False) -> None:
        """Make ``joblib.parallel_config(name)`` run loops through this view.

        Args:
            name: the backend's name.
            make_default: use it where none is named, too.

        Raises:
            ImportError: joblib is not installed.
        """
        from ipyfleet_client.joblib_backend import register_joblib_backend

        register_joblib_backend(name, make_default, view=self)


_AFTER: DependencyFlag = vars(LoadBalancedView)["after"]
_FOLLOW: DependencyFlag = vars(LoadBalancedView)["follow"]


@functools.lru_cache(maxsize=256)
def _plain_spec(method: Method, targets: tuple[int, ...] | None, retries: int, label: str) -> Spec:
    return Spec(method, "balanced", targets, retries=retries, label=label)


_PLACEMENT = frozenset({"after", "follow", "priority", "resources", "timeout"})

_CHECKS: dict[str, Callable[[Any], Any]] = {
    "priority": check_priority,
    "resources": check_resources,
    "retries": check_retries,
    "timeout": check_timeout,
}


def _count(sequences: tuple[Any, ...]) -> int | None:
    """Return how many items a map has, or None if that cannot be told before."""
    counts = []
    for sequence in sequences:
        try:
            counts.append(len(sequence))
        except TypeError:
            return None
    return min(counts)
