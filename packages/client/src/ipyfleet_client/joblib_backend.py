"""joblib's parallel loops on the engines.

What lives here: `FleetBackend` and its registration. Needs joblib, which is imported with this
module; the rest of the package does not need it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from ipyfleet_client.executor import ViewExecutor
from ipyfleet_client.executor_future import ExecutorFuture
from ipyfleet_protocol.serialize.by_value import dump_capturing

try:
    from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend
except ImportError as error:
    raise ImportError(
        "the joblib backend needs joblib, here and on the engines: pip install joblib"
    ) from error

if TYPE_CHECKING:
    from ipyfleet_client.submission import Submitter
    from ipyfleet_client.views.balanced import LoadBalancedView


class FleetBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc,unused-ignore]
    """Runs the batches of a `joblib.Parallel` through a load-balanced view.

    As with joblib's own processes, functions bring the globals that they refer to.

    Attributes:
        view: the view; looked up when the first loop starts.
    """

    supports_retrieve_callback: ClassVar[bool] = True
    uses_threads: ClassVar[bool] = False
    supports_sharedmem: ClassVar[bool] = False
    default_n_jobs: ClassVar[int] = -1

    def __init__(
        self,
        view: LoadBalancedView | None = None,
        find_view: Callable[[], LoadBalancedView] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._view = view
        self._find_view = find_view
        self._executor: ViewExecutor | None = None
        self._loop_of: Submitter | None = None

    @property
    def view(self) -> LoadBalancedView:
        """The view that runs the batches."""
        if self._view is None:
            if self._find_view is None:
                raise ValueError("this backend has no view: view.register_joblib_backend()")
            self._view = self._find_view()
        return self._view

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many jobs run at a time: not more than there are engines."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        engines = len(self.view)
        if n_jobs is None:
            return 1
        return max(1, min(n_jobs, engines) if n_jobs > 0 else engines + 1 + n_jobs)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None
    ) -> ExecutorFuture:
        """Run a batch on an engine; joblib calls this, from its own and from our threads."""
        if self._executor is None:
            self._executor = ViewExecutor(self.view)
        call = self.view._prepare(operator.call, (), {})
        payload = dump_capturing(((func,), {}))
        call = msgspec.structs.replace(call, payload=payload)
        future = self._executor.submit_prepared(call)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    # Before joblib 1.5 the same was called so.
    apply_async = submit

    def retrieve_result_callback(self, out: ExecutorFuture) -> Any:
        """Return a batch's results, or raise what a job of it raised; joblib calls this."""
        return out.result()

    def start_call(self) -> None:
        """Have arrays that come again written once; joblib calls this when a loop begins."""
        self._loop_of = self.view.client.session.submit
        self._loop_of.repeated.begin()

    def stop_call(self) -> None:
        """Free them; joblib calls this when a loop has ended, however."""
        submit, self._loop_of = self._loop_of, None
        if submit is not None:
            blobs = submit.blobs
            submit.repeated.end(blobs.release if blobs is not None else lambda handle: None)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Take back what has not started: a job has failed."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    def terminate(self) -> None:
        """Forget the executor; the engines go on."""
        self.abort_everything(ensure_ready=False)


def register_joblib_backend(
    name: str = "ipyfleet",
    make_default: bool = False,
    *,
    view: LoadBalancedView | None = None,
    find_view: Callable[[], LoadBalancedView] | None = None,
) -> None:
    """Make ``joblib.parallel_config(name)`` run loops on the engines.

    Args:
        name: the backend's name.
        make_default: use it where none is named, too.
        view: whose engines run them.
        find_view: makes the view when the first loop starts, instead.

    Raises:
        ImportError: joblib is not installed.
    """
    factory = partial(FleetBackend, view=view, find_view=find_view)
    register_parallel_backend(name, factory, make_default=make_default)
