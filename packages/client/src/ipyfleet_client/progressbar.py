"""A progress bar while waiting.

What lives here: the choice between tqdm's bar for terminals and its notebook widget, and the loop.
What must not: any reason for a wait to fail; where no bar can be shown there is none.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipyfleet_client.outputs import in_ipython

if TYPE_CHECKING:
    from ipyfleet_client.asyncresult import AsyncResult


def make_bar(total: int, description: str, unit: str, widget: bool | None = None) -> Any:
    """Return a tqdm bar: a widget in a notebook that can show it, else text."""
    if widget is None:
        widget = (
            in_ipython() and _in_kernel() and importlib.util.find_spec("ipywidgets") is not None
        )
    bar_class: Any
    if widget:
        from tqdm.notebook import tqdm as bar_class
    else:
        from tqdm import tqdm as bar_class
    hidden = bool(os.environ.get("IPP_NONINTERACTIVE"))
    # tqdm's monitor would leave a thread behind; this bar is updated often anyway.
    quiet_class: Any = type("Bar", (bar_class,), {"monitor_interval": 0})
    # The remaining time by the mean since the start, as work that comes in batches has it.
    return quiet_class(total=total, desc=description, unit=unit, disable=hidden, smoothing=0)


def _in_kernel() -> bool:
    shell = sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None


class ProgressBar:
    """A bar that cannot fail: after its first exception it is gone, with a warning.

    Example:
        >>> bar = ProgressBar(2, "map", "tasks", widget=False)  # doctest: +SKIP
        >>> bar.show(1)  # doctest: +SKIP
    """

    def __init__(self, total: int, description: str, unit: str, widget: bool | None) -> None:
        self._bar: Any = None
        self._do(lambda: setattr(self, "_bar", make_bar(total, description, unit, widget)))
        if self._bar is None and widget is None:
            # A widget's frontend may be missing, or of another version: text will do.
            self._do(lambda: setattr(self, "_bar", make_bar(total, description, unit, False)))

    def show(self, done: int) -> None:
        """Show how much is done."""
        if self._bar is not None:
            self._do(lambda: self._bar.update(done - self._bar.n))

    def started(self, seconds_ago: float) -> None:
        """Say when the work began, which the remaining time is estimated by."""
        if self._bar is not None:
            # Hidden bars have no clock; none may start later than it was shown first.
            shown_at = getattr(self._bar, "start_t", 0.0)
            self._do(
                lambda: setattr(self._bar, "start_t", min(shown_at, time.time() - seconds_ago))
            )

    def step_aside(self, write: Callable[[], None]) -> None:
        """Take the bar off the screen while something else is written."""
        if self._bar is not None:
            self._do(lambda: self._bar.clear())
        write()
        if self._bar is not None:
            self._do(lambda: self._bar.refresh())

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._do(lambda: self._bar.close())

    def _do(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a bar must not break what it accompanies
            self._bar = None
            warnings.warn(f"no progress bar: {type(error).__name__}: {error}", stacklevel=4)


def wait_with_bar(
    result: AsyncResult, interval_s: float, timeout_s: float | None, widget: bool | None
) -> None:
    """Wait for a result and show how many of its items are there."""
    if result.ready():
        return
    if timeout_s is not None and not hasattr(timeout_s, "__float__"):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout_s).__name__}")
    deadline = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
    work = result._work
    bar = ProgressBar(result._n_items, work.name, "tasks", widget)
    bar.started(result.elapsed)
    streamer = result._streamer
    if streamer is not None:
        streamer.around = bar.step_aside
    try:
        while True:
            left = interval_s
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            done = result.wait(max(0.0, left))
            bar.show(result.progress)
            if done or (deadline is not None and time.monotonic() >= deadline):
                return
    finally:
        if streamer is not None:
            streamer.around = None
        bar.close()
