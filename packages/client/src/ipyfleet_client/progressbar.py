"""A progress bar while waiting.

What lives here: the choice between tqdm's bar for terminals and its notebook widget, and the loop.
"""

from __future__ import annotations

import importlib.util
import os
import time
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
    return quiet_class(total=total, desc=description, unit=unit, disable=hidden)


def _in_kernel() -> bool:
    import sys

    shell = sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None


def wait_with_bar(
    result: AsyncResult, interval_s: float, timeout_s: float | None, widget: bool | None
) -> None:
    """Wait for a result and show how many of its items are there."""
    if result.ready():
        return
    deadline = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
    work = result._work
    total = work.total if not hasattr(result, "_ends") else len(result)
    with make_bar(total, work.name, "tasks", widget) as bar:
        while True:
            left = interval_s
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            done = result.wait(max(0.0, left))
            bar.update(result.progress - bar.n)
            if done or (deadline is not None and time.monotonic() >= deadline):
                return
