"""A view of engines that do the same, each on its own.

What lives here: `DirectView`.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.mapresult import AsyncMapResult, JoinedResult
from ipyfleet_client.partition import Dist, as_sequence, check_dist, partition, sizes
from ipyfleet_client.pending import Work
from ipyfleet_client.submission import Spec
from ipyfleet_client.views.base import PreparedCall, View, check_sequences
from ipyfleet_protocol import serialize
from ipyfleet_protocol.messages import ClearNamespace
from ipyfleet_protocol.namespace import Reference, pull_names, push_names
from ipyfleet_protocol.serialize import Packed, pack_call

if TYPE_CHECKING:
    from ipyfleet_client.imports import SyncImports


class DirectView(View):
    """Engines by name: what is called runs on every one of the targets.

    Results are lists in the order of the targets; with an int as target they are that engine's. A
    view is
    a mapping, too: ``view["a"] = 1`` and ``view["a"]`` push and pull.

    Attributes:
        targets: an engine id, a list of them, or "all": whichever there are at the time of each
            call.

    Example:
        >>> view = rc[:]  # doctest: +SKIP
        >>> view.apply_sync(os.getpid)  # doctest: +SKIP
        [18993, 18994]
    """

    def _check_flag(self, name: str, value: Any) -> Any:
        if name == "targets":
            if value is None or (isinstance(value, str) and value == "all"):
                return "all"
            return self._session.link.engines.choose(value)
        return super()._check_flag(name, value)

    def _resolve(self, targets: Any) -> tuple[list[int], bool]:
        """Return the engine ids, and whether the result is that of a single one."""
        if targets is None:
            targets = self.targets
        directory = self.client.session.link.engines
        if type(targets) is int and targets in directory.ids:
            return [targets], True  # as below, in a tenth of the time
        chosen = directory.targets(targets)
        if isinstance(chosen, int):
            return [chosen], True
        if not chosen:
            raise IndexError(f"{self!r} has no engines: its slice or list was empty")
        return chosen, False

    def __len__(self) -> int:
        targets = self.targets
        if isinstance(targets, str):
            return len(self.client.ids)
        return 1 if isinstance(targets, int) else len(targets)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.targets}>"

    # -- apply --------------------------------------------------------------------------------

    def _apply(
        self,
        f: Callable[..., Any] | Reference,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: Any = None,
    ) -> AsyncResult:
        call = self._prepare(f, args, kwargs, targets)
        result = AsyncResult(self.client, call.work, single=call.single)
        self._send(call)
        return result

    def _prepare(
        self,
        f: Callable[..., Any] | Reference,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: Any = None,
    ) -> PreparedCall:
        function = self._pack_function(f)
        flags = self._flags_now()
        label = flags.get("label", "")
        engines, single = self._resolve(flags["targets"] if targets is None else targets)
        payload = pack_call(args, kwargs)
        work = Work(
            len(engines),
            method="apply",
            name=function.function.name,
            submitted=time.time(),
            label=label,
            targets=engines,
        )
        spec = _apply_spec(len(engines) > 1, label)
        return PreparedCall(work, spec, function, payload, engines, single)

    # -- map ----------------------------------------------------------------------------------

    def map(
        self,
        f: Callable[..., Any] | Reference,
        /,
        *sequences: Any,
        block: bool | None = None,
        track: bool | None = None,
        return_exceptions: bool = False,
        label: str | None = None,
        dist: str = "b",
    ) -> Any:
        """Map ``f`` over sequences as the builtin does: one part of them, and one task, per engine.

        Args:
            f: called with one item of each sequence.
            *sequences: as many as `f` takes arguments; the shortest ends the map.
            block: whether to wait; None for ``view.block``.
            track: accepted for compatibility.
            return_exceptions: give errors as values instead of raising them.
            label: a name for this work; None for the view's.
            dist: "b" only: results are in the order of the items.

        Returns:
            The list of values if it blocks, else an `AsyncMapResult`.
        """
        check_sequences(sequences)
        check_dist(dist)
        function = self._pack_function(f)
        engines, _ = self._resolve(None)
        # A part of a range is a range: half of the CPU time that a long map took here was lists.
        lists: list[Any] = [s if isinstance(s, range) else as_sequence(s) for s in sequences]
        count = min(len(sequence) for sequence in lists)
        parts = min(count, len(engines))
        chunks = sizes(count, parts) if parts else []
        engines = engines[:parts]
        name = function.function.name
        work = self._new_work(parts, "map", name, targets=engines)
        if label is not None:
            work.label = label
        result = AsyncMapResult(
            self.client, work, chunks=chunks, return_exceptions=return_exceptions
        )
        if parts:
            cut = [
                partition(part if len(part) == count else part[:count], parts)
                for part in (s.to_numpy() if hasattr(s, "iloc") else s for s in lists)
            ]
            calls = [pack_call(args, {}) for args in zip(*cut, strict=True)]
            spec = Spec("map", "direct", label=work.label)
            self._session.submit.submit_each(
                work, spec, function, calls, targets=engines, history=self._history
            )
        return self._finish(result, block)

    def _apply_parts(
        self, f: Callable[..., Any] | Reference, sequences: tuple[Any, ...], dist: Dist
    ) -> AsyncMapResult:
        """Call ``f`` on each engine with its parts of the sequences."""
        function = self._pack_function(f)
        engines, _ = self._resolve(None)
        count = len(sequences[0])
        parts = min(count, len(engines))
        engines = engines[:parts]
        work = self._new_work(parts, "apply", function.function.name, targets=engines)
        result = JoinedResult(self.client, work, dist=dist)
        if parts:
            cut = [partition(sequence, parts, dist) for sequence in sequences]
            calls = [pack_call(args, {}) for args in zip(*cut, strict=True)]
            self._session.submit.submit_each(
                work,
                Spec("apply", "direct", label=self.label),
                function,
                calls,
                targets=engines,
                history=self._history,
            )
        return result

    # -- code ---------------------------------------------------------------------------------

    def execute(
        self,
        code: str,
        silent: bool = True,
        targets: Any = None,
        block: bool | None = None,
        label: str | None = None,
    ) -> AsyncResult:
        """Run IPython code on the engines.

        Args:
            code: statements, magics, whatever a cell may hold.
            silent: publish neither the code nor its value, and keep no history there.
            targets: instead of the view's.
            block: whether to wait, for the result and its output; None for ``view.block``.
            label: a name for this work; None for the view's.

        Returns:
            The `AsyncResult`, also if it blocks.

        Raises:
            RemoteError, CompositeError: it blocks, and the code failed.
        """
        if not isinstance(code, str):
            raise TypeError(f"code to execute must be a str, not {type(code).__name__}")
        engines, single = self._resolve(targets)
        work = self._new_work(len(engines), "execute", "execute", targets=engines)
        work.code = code
        if label is not None:
            work.label = label
        result = AsyncResult(self.client, work, single=single)
        spec = Spec("execute", "direct", shared=len(engines) > 1, silent=silent, label=work.label)
        self._session.submit.submit(
            work,
            spec,
            None,
            Packed(code.encode(), []),
            targets=engines,
            history=self._history,
        )
        if block is None:
            block = self.block
        if block:
            self._finish(result, True)
            result.wait_for_output(2.0)
        return result

    def run(
        self,
        filename: str | os.PathLike[str],
        targets: Any = None,
        block: bool | None = None,
        label: str | None = None,
    ) -> AsyncResult:
        """Run a file of this machine on the engines; as `execute` with its content."""
        code = Path(filename).read_text(encoding="utf-8")
        return self.execute(code + "\n", targets=targets, block=block, label=label)

    # -- names --------------------------------------------------------------------------------

    def push(
        self,
        ns: Mapping[str, Any],
        targets: Any = None,
        block: bool | None = None,
        track: bool | None = None,
        label: str | None = None,
    ) -> Any:
        """Assign values to names on the engines.

        Args:
            ns: names, or targets of assignments such as ``"a.b"``, and their values.
            targets: instead of the view's.
            block: whether to wait; None for ``view.block``.
            track: accepted for compatibility.
            label: a name for this work.
        """
        if not isinstance(ns, Mapping):
            raise TypeError(
                f"push() takes a dictionary of names and values, not {type(ns).__name__}"
            )
        for key in ns:
            if not isinstance(key, str):
                raise TypeError(f"push() takes names (str) as keys, not {type(key).__name__}")
        with self._labelled(label):
            return self._finish(self._apply(push_names, (dict(ns),), {}, targets), block)

    def update(self, ns: Mapping[str, Any]) -> Any:
        """Assign values to names on the engines, as a dictionary's `update`."""
        return self.push(ns, block=self.block)

    def pull(
        self,
        names: str | Iterable[str],
        targets: Any = None,
        block: bool | None = None,
        label: str | None = None,
    ) -> Any:
        """Get the values of names, or of any expressions.

        Args:
            names: a string: its value; a list or tuple of strings: the list of their values.
            targets: instead of the view's.
            block: whether to wait; None for ``view.block``.
            label: a name for this work.
        """
        if not isinstance(names, str):
            names = tuple(names) if isinstance(names, Iterable) else (names,)
            for name in names:
                _check_name("pull", name)
        with self._labelled(label):
            return self._finish(self._apply(pull_names, (names,), {}, targets), block)

    def get(self, names: str | Iterable[str]) -> Any:
        """Get the values of names; always waits."""
        return self.pull(names, block=True)

    def __getitem__(self, names: str | Iterable[str]) -> Any:
        return self.pull(names, block=True)

    def _labelled(self, label: str | None) -> AbstractContextManager[object]:
        return nullcontext() if label is None else self.temp_flags(label=label)

    def __setitem__(self, name: str, value: Any) -> None:
        self.push({name: value}, block=True)

    def scatter(
        self,
        key: str,
        seq: Any,
        dist: str = "b",
        flatten: bool = False,
        targets: Any = None,
        block: bool | None = None,
        track: bool | None = None,
        label: str | None = None,
    ) -> AsyncResult | None:
        """Cut a sequence into parts, one for each engine.

        Args:
            key: the name of the part on its engine.
            seq: a list, tuple, array, range, string, … or anything that can be iterated.
            dist: "b" for contiguous blocks, "r" for round robin.
            flatten: an engine that gets one item gets the item, not a sequence of it.
            targets: instead of the view's.
            block: whether to wait; None for ``view.block``.
            track: accepted for compatibility.
            label: a name for this work.

        Returns:
            None if it blocks, else an `AsyncResult`.
        """
        _check_name("scatter", key)
        engines, _ = self._resolve(targets)
        parts = partition(as_sequence(seq), len(engines), check_dist(dist))
        if flatten:
            parts = [next(iter(part)) if len(part) == 1 else part for part in parts]
        function = self._pack_function(push_names)
        calls = [pack_call(({key: part},), {}) for part in parts]
        work = self._new_work(len(engines), "apply", "scatter", targets=engines)
        result = AsyncResult(self.client, work, single=False)
        self._session.submit.submit_each(
            work,
            Spec("apply", "direct", label=label or self.label),
            function,
            calls,
            targets=engines,
            history=self._history,
        )
        if self.block if block is None else block:
            self._finish(result, True)
            return None
        return result

    def gather(
        self,
        key: str,
        dist: str = "b",
        targets: Any = None,
        block: bool | None = None,
        track: bool | None = None,
        label: str | None = None,
    ) -> Any:
        """Join the parts of a sequence that the engines have under a name.

        Arrays are concatenated, lists chained; what is no sequence is listed.

        Args:
            key: the name, or an expression.
            dist: how it was scattered.
            targets: instead of the view's.
            block: whether to wait; None for ``view.block``.
            track: accepted for compatibility.
            label: a name for this work.

        Returns:
            The sequence if it blocks, else an `AsyncMapResult`.
        """
        _check_name("gather", key)
        engines, _ = self._resolve(targets)
        function = self._pack_function(pull_names)
        work = self._new_work(len(engines), "apply", "gather", targets=engines)
        result = JoinedResult(self.client, work, dist=check_dist(dist))
        self._session.submit.submit(
            work,
            Spec("apply", "direct", shared=len(engines) > 1, label=label or self.label),
            function,
            pack_call((key,), {}),
            targets=engines,
            history=self._history,
        )
        return self._finish(result, block)

    # -- the rest -----------------------------------------------------------------------------

    def sync_imports(self, local: bool = True, quiet: bool = False) -> SyncImports:
        """Import on the engines, too, what the block imports here.

        Args:
            local: must be true: the imports run here, as always.
            quiet: do not tell what is imported.

        Example:
            >>> with view.sync_imports():  # doctest: +SKIP
            ...     import numpy
            importing numpy on engine(s)
        """
        from ipyfleet_client.imports import SyncImports

        if not local:
            raise NotImplementedError("sync_imports(local=False): use view.execute('import …')")
        return SyncImports(self, quiet=quiet)

    @property
    def importer(self) -> SyncImports:
        """`sync_imports` with its defaults."""
        return self.sync_imports()

    def clear(self, targets: Any = None, block: bool = True) -> Any:
        """Reset the namespace of the engines.

        Waits whatever `self.block` says: it does not queue behind tasks, so what is submitted next
        could otherwise be cleared, too. If `block` is false, a future is returned.
        """
        return self._control(ClearNamespace(), targets, block)

    def _control(self, action: Any, targets: Any, block: bool | None) -> Any:
        engines, _ = self._resolve(targets)
        return self.client._control(action, engines, self.block if block is None else block)

    def activate(self, suffix: str = "") -> None:
        """Make ``%px`` and its like run on this view; with a suffix, ``%px<suffix>``."""
        self.client._activate_view(self, suffix)

    def use_dill(self) -> Any:
        """Pickle with dill what plain pickle cannot, here and on the engines."""
        return self._use("use_dill")

    def use_cloudpickle(self) -> Any:
        """Have functions bring the globals that they refer to, as cloudpickle has it."""
        return self._use("use_cloudpickle")

    def use_pickle(self) -> Any:
        """Go back to the default, here and there: functions see the namespace of where they run."""
        return self._use("use_pickle")

    def _use(self, name: str) -> Any:
        switch = getattr(serialize, name)
        switch()
        return self.apply_sync(switch)


@functools.lru_cache(maxsize=256)
def _apply_spec(shared: bool, label: str) -> Spec:
    return Spec("apply", "direct", shared=shared, label=label)


def _check_name(method: str, name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{method}() takes names (str), not {type(name).__name__}")
