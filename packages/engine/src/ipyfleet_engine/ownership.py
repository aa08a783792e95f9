"""Which task the running code belongs to, in whatever thread it runs.

What lives here: `claim` and `owner`, and the hooks that make threads remember who started them.
What must not: output itself.

Theory of operation
-------------------
A context variable holds the task. The engine sets it when a task begins, so coroutines and
callbacks that user code leaves behind keep it: asyncio copies the context. Threads start with an
empty context; `install_thread_hooks` makes `threading.Thread.start` note the starter's task on the
thread, and `ThreadPoolExecutor.submit` hand the submitter's task over to the worker, because a pool
made by one task may work for the next.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .output import TaskOutput

_owner: ContextVar[TaskOutput | None] = ContextVar("ipyfleet_owner", default=None)

_STARTER = "_ipyfleet_starter"

claim: Callable[[TaskOutput | None], Any] = _owner.set
"""Have what runs in this context from now on belong to a task."""


def owner() -> TaskOutput | None:
    """Return the task that the calling code belongs to; None if nobody knows."""
    task = _owner.get()
    if task is None:
        task = getattr(threading.current_thread(), _STARTER, None)
        if task is not None:
            _owner.set(task)
    return task


def _run_for(task: TaskOutput | None, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """Call a function in a pool's thread, on behalf of the task that submitted it."""
    token = _owner.set(task)
    try:
        return function(*args, **kw)
    finally:
        _owner.reset(token)


def install_thread_hooks() -> None:
    """Have threads and pools' work items belong to the task that starts them; once per process."""
    if hasattr(threading.Thread.start, "__wrapped__"):
        return
    start = threading.Thread.start
    submit: Callable[..., Future[Any]] = ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_for_owner(self: threading.Thread) -> None:
        setattr(self, _STARTER, owner())
        start(self)

    @functools.wraps(submit)
    def submit_for_owner(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        return submit(self, _run_for, owner(), fn, *args, **kwargs)

    threading.Thread.start = start_for_owner  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_for_owner  # type: ignore[assignment]
