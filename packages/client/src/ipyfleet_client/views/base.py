"""What all views have in common.

What lives here: `View`: flags, the apply and map families' argument handling, what views ask of
    their
client. What must not: how calls are placed (`direct.py`, `balanced.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import msgspec

from ipyfleet_client.asyncresult import AsyncResult
from ipyfleet_client.pending import Work
from ipyfleet_client.submission import History, Spec
from ipyfleet_protocol.namespace import Reference
from ipyfleet_protocol.serialize import Packed, PackedFunction, PrePickled, pack_function

if TYPE_CHECKING:
    from ipyfleet_client.client import Client
    from ipyfleet_client.executor import ViewExecutor
    from ipyfleet_client.session import Session

T = TypeVar("T")


class Flag(Generic[T]):
    """A setting of a view: an attribute that `View.temp_flags` can override in one thread."""

    def __init__(self, default: T) -> None:
        self.default = default
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, view: View | None, owner: type | None = None) -> T:
        if view is None:
            return self.default
        overrides = view._overrides.__dict__
        if self.name in overrides:
            value: T = overrides[self.name]
            return value
        kept: T = view._flags.get(self.name, self.default)
        return kept

    def __set__(self, view: View, value: T) -> None:
        value = view._check_flag(self.name, value)
        if self.name in view._overrides.__dict__:
            view._overrides.__dict__[self.name] = value
        else:
            view._flags[self.name] = value


class PreparedCall(msgspec.Struct, eq=False):
    """A call that is packed and not sent.

    Attributes:
        work: its tasks.
        spec: how they are placed.
        function: what is called.
        payload: the arguments.
        targets: engines of a direct call; None for a balanced one.
        single: the value is that of one engine, not a list.
    """

    work: Work
    spec: Spec
    function: PackedFunction
    payload: Packed
    targets: list[int] | None
    single: bool


class View:
    """Base of the views. Made by a `Client`; thread-safe.

    Attributes:
        client: whose view it is.
        block: whether `apply`, `map` and their like wait for the result.
        targets: the engines; see the subclasses.
        label: a name for the work, kept in the task database.
        track: accepted for compatibility; arguments may always be changed after a call.
    """

    flag_names: ClassVar[frozenset[str]] = frozenset({"block", "targets", "label", "track"})

    block = Flag[bool](False)
    label = Flag[str]("")
    track = Flag[bool](False)
    targets = Flag[Any](None)

    def __init__(self, client: Client, targets: Any = None, **flags: Any) -> None:
        self.client = client
        self._flags: dict[str, Any] = {"block": client.block}
        self._overrides = threading.local()
        self._history = History()
        self._executor: ViewExecutor | None = None
        self._flags["targets"] = targets
        self.set_flags(**flags)

    def __len__(self) -> int:
        """How many engines the view has now."""
        raise NotImplementedError

    # -- flags --------------------------------------------------------------------------------

    def set_flags(self, **flags: Any) -> Self:
        """Set flags; return the view.

        Raises:
            KeyError: there is no such flag.
        """
        self._check_names(flags)
        for name, value in flags.items():
            setattr(self, name, value)
        return self

    @contextmanager
    def temp_flags(self, **flags: Any) -> Iterator[Self]:
        """Set flags while the block runs, for this thread only.

        Raises:
            KeyError: there is no such flag.
        """
        self._check_names(flags)
        overrides = self._overrides.__dict__
        before = dict(overrides)
        for name, value in flags.items():
            overrides[name] = self._check_flag(name, value)
        try:
            yield self
        finally:
            overrides.clear()
            overrides.update(before)

    def _check_names(self, flags: dict[str, Any]) -> None:
        for name in flags:
            if name not in self.flag_names:
                known = ", ".join(sorted(self.flag_names))
                raise KeyError(f"{type(self).__name__} has no flag {name!r}; it has {known}")

    def _check_flag(self, name: str, value: Any) -> Any:
        """Return the value as it shall be kept; subclasses check theirs."""
        if name in ("block", "track"):
            return bool(value)
        if name == "label":
            return "" if value is None else str(value)
        return value

    # -- calls --------------------------------------------------------------------------------

    def apply(self, f: Callable[..., Any] | Reference, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``f(*args, **kwargs)`` remotely; wait for the value if ``view.block``.

        Returns:
            The value or values if the view blocks, else an `AsyncResult`.
        """
        return self.apply_sync(f, *args, **kwargs) if self.block else self._apply(f, args, kwargs)

    def apply_async(
        self, f: Callable[..., Any] | Reference, /, *args: Any, **kwargs: Any
    ) -> AsyncResult:
        """Call ``f(*args, **kwargs)`` remotely and return an `AsyncResult` at once."""
        return self._apply(f, args, kwargs)

    def apply_sync(self, f: Callable[..., Any] | Reference, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``f(*args, **kwargs)`` remotely and return the value or values."""
        call = self._prepare(f, args, kwargs)
        result = AsyncResult(self.client, call.work, single=call.single)
        if call.payload.buffers:
            # Placing them may take long, and is to be interrupted by Ctrl-C.
            self._send(call)
        else:
            try:
                self.client.session.wait_until(result.ready, ask=lambda: self._send(call))
            except KeyboardInterrupt:
                self.client._keep(result)
                raise
        return self._finish(result, True)

    def map(self, f: Callable[..., Any] | Reference, /, *sequences: Any, **options: Any) -> Any:
        """Map ``f`` over sequences as the builtin does, in parallel; see the subclass."""
        raise NotImplementedError

    def map_async(
        self, f: Callable[..., Any] | Reference, /, *sequences: Any, **options: Any
    ) -> Any:
        """As `map`, and return an `AsyncMapResult` at once.

        Raises:
            TypeError: `block` was given.
        """
        if "block" in options:
            raise TypeError("map_async() takes no block argument: it never blocks; use map()")
        return self.map(f, *sequences, block=False, **options)

    def map_sync(
        self, f: Callable[..., Any] | Reference, /, *sequences: Any, **options: Any
    ) -> Any:
        """As `map`, and return the list of values.

        Raises:
            TypeError: `block` was given.
        """
        if "block" in options:
            raise TypeError("map_sync() takes no block argument: it always blocks; use map()")
        return self.map(f, *sequences, block=True, **options)

    def _apply(
        self, f: Callable[..., Any] | Reference, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncResult:
        raise NotImplementedError

    def _prepare(
        self, f: Callable[..., Any] | Reference, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> PreparedCall:
        """Pack a call with the view's flags as they are now; `_send` sends it."""
        raise NotImplementedError

    def _send(self, call: PreparedCall) -> None:
        self.client.session.submit.submit(
            call.work,
            call.spec,
            call.function,
            call.payload,
            targets=call.targets,
            history=self._history,
        )

    def _finish(self, result: AsyncResult, block: bool | None) -> Any:
        """Return the result, or its value if the caller wants to block."""
        if block is None:
            block = self.block
        if not block:
            return result
        try:
            return result.get()
        except KeyboardInterrupt:
            # The user has no other name for it: rc.get_result(rc.history[-1]).
            self.client._keep(result)
            raise

    def remote(self, block: bool | None = None, **flags: Any) -> Callable[..., Any]:
        """Decorate a function so that calls of it run through this view."""
        from ipyfleet_client.decorators import remote

        return remote(self, block=block, **flags)

    def parallel(
        self, dist: str = "b", block: bool | None = None, **flags: Any
    ) -> Callable[..., Any]:
        """Decorate a function so that it takes sequences and runs on parts of them in parallel."""
        from ipyfleet_client.decorators import parallel

        return parallel(self, dist=dist, block=block, **flags)

    @property
    def executor(self) -> ViewExecutor:
        """A `concurrent.futures` executor on this view; the same until that is shut down."""
        from ipyfleet_client.executor import ViewExecutor

        if self._executor is None or self._executor.closed:
            self._executor = ViewExecutor(self)
        return self._executor

    # -- tasks of this view -------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        return self.client.session

    @property
    def history(self) -> list[str]:
        """The msg_ids of all tasks of this view, in the order of their calls."""
        submit = self._session.submit
        submit.flush()
        return [
            submit.msg_id(seq)
            for first, count in list(self._history.ranges)
            for seq in range(first, first + count)
        ]

    @property
    def outstanding(self) -> set[str]:
        """The msg_ids of this view's tasks that have not ended."""
        return self.client.outstanding.intersection(self.history)

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for results; for all of this view's if `jobs` is None. See `Client.wait`."""
        return self.client.wait(list(self.outstanding) if jobs is None else jobs, timeout)

    def abort(
        self,
        jobs: Any = None,
        targets: Any = None,
        block: bool | None = None,
        *,
        force: bool = False,
        grace: float = 1.0,
    ) -> None:
        """End tasks; all of this view's if `jobs` is None. See `Client.abort`."""
        jobs = list(self.outstanding) if jobs is None else jobs
        self.client.abort(jobs, targets, block, force=force, grace=grace)

    def get_result(
        self, indices_or_msg_ids: Any = -1, block: bool | None = None, owner: bool = True
    ) -> Any:
        """Return the result of tasks; an int is an index of this view's history.

        See `Client.get_result`.
        """
        wanted = indices_or_msg_ids
        if isinstance(wanted, list | tuple):
            wanted = [self._own_msg_id(one) for one in wanted]
        return self.client.get_result(self._own_msg_id(wanted), block=block, owner=owner)

    def _own_msg_id(self, wanted: Any) -> Any:
        """Return the msg_id for an index of this view's history, anything else as it is."""
        if isinstance(wanted, bool) or not isinstance(wanted, int):
            return wanted
        history = self.history
        try:
            return history[wanted]
        except IndexError:
            raise IndexError(
                f"no task {wanted} in the history of this view: there are {len(history)}"
            ) from None

    def spin(self) -> None:
        """Do nothing: what arrives is taken at once. Deprecated."""
        self.client.spin()

    def queue_status(self, targets: Any = None, verbose: bool = False) -> Any:
        """Return how many tasks wait at, and have ended on, this view's engines."""
        return self.client.queue_status(self._own_targets(targets), verbose)

    def purge_results(self, jobs: Any = None, targets: Any = None) -> None:
        """Forget results; those of this view's engines if nothing is given.

        See `Client.purge_results`.
        """
        if jobs is None and targets is None:
            targets = self._own_targets(None)
        self.client.purge_results(jobs, targets)

    def shutdown(
        self,
        targets: Any = None,
        restart: bool = False,
        hub: bool = False,
        block: bool | None = None,
    ) -> None:
        """Stop this view's engines. See `Client.shutdown`."""
        self.client.shutdown(self._own_targets(targets), restart, hub, block)

    def _own_targets(self, targets: Any) -> Any:
        if targets is None:
            targets = self.targets
        return "all" if targets is None else targets

    # -- for subclasses -----------------------------------------------------------------------

    def _flags_now(self) -> dict[str, Any]:
        """Return the flags that have been set, in this thread; for several at once."""
        overrides = self._overrides.__dict__
        return {**self._flags, **overrides} if overrides else self._flags

    def _pack_function(self, f: Any) -> PackedFunction:
        if type(f) is not FunctionType:
            if isinstance(f, PrePickled):
                return f.function
            check_callable(f)
        return pack_function(f)

    def _new_work(
        self,
        total: int,
        method: str,
        name: str,
        targets: list[int] | None = None,
        *,
        closed: bool = True,
    ) -> Work:
        return Work(
            total,
            method=method,
            name=name,
            submitted=time.time(),
            label=self.label,
            targets=targets,
            closed=closed,
        )


def check_callable(f: Any) -> None:
    """Raise TypeError if a thing cannot run remotely."""
    if not callable(f) and not isinstance(f, Reference | PrePickled):
        raise TypeError(
            "what runs remotely must be callable, a Reference or a PrePickled, not "
            f"{type(f).__name__}"
        )


def check_sequences(sequences: tuple[Any, ...]) -> None:
    """Raise TypeError if there is nothing to map over."""
    if not sequences:
        raise TypeError("map() needs at least one sequence besides the function")
