"""Waiting for a result in the foreground: output, progress, Ctrl-C, errors.

What lives here: `wait_and_show`. What must not: flags, magics, how output looks (the client's).
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

from ipyfleet_protocol.errors import AlreadyDisplayedError, RemoteError

from .options import RunOptions
from .targets import describe_targets


def wait_and_show(result: Any, view: Any, options: RunOptions) -> None:
    """Wait for a result and show its output; a failure is raised once everything is shown.

    Ctrl-C sends a signal to the engines that are still at work and waits on, so that what they
    still say is shown; a second Ctrl-C stops the waiting.

    Args:
        result: an AsyncResult.
        view: the view that it came from.
        options: see `RunOptions`.

    Raises:
        AlreadyDisplayedError: it failed; the tracebacks have been shown.
        CompositeError, RemoteError: it failed; the tracebacks are the exception's to show.
        TimeoutError: it was not done within ``options.timeout_s``.
        KeyboardInterrupt: the second Ctrl-C.
    """
    showing = result.stream_output(follow=True) if options.stream else contextlib.nullcontext()
    with showing:
        done = _wait_interruptibly(result, view, options)
    if not done:
        return
    if not options.stream:
        result.display_outputs(options.groupby)
    if result.successful():
        return
    error = _error_of(result)
    # Raised outside of any handler: an exception in its context would be shown, too.
    raise (
        AlreadyDisplayedError(error) if options.stream and isinstance(error, RemoteError) else error
    )


def _error_of(result: Any) -> BaseException:
    try:
        result.get()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        return error
    raise AssertionError(f"{result!r} failed without an error")


def _wait_interruptibly(result: Any, view: Any, options: RunOptions) -> bool:
    """Wait; return False if the user does not want to wait any longer."""
    deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
    try:
        _wait(result, options.progress_after_s, deadline)
    except KeyboardInterrupt:
        pending = _pending_engines(result)
        where = f"engine(s) {describe_targets(pending)}"
        if not options.signum:
            print(f"Interrupted: not waiting any longer; the work goes on on {where}.")
            return False
        print(f"Interrupted: sending {_name(options.signum)} to {where} …", flush=True)
        try:
            if pending:
                view.client.send_signal(options.signum, targets=pending, block=True)
            _wait(result, options.progress_after_s, deadline)
        except KeyboardInterrupt:
            print(f"Interrupted again: not waiting any longer; see what runs on {where}.")
            raise
    if not result.ready():
        raise TimeoutError(
            f"not done after {options.timeout_s:g} s on engine(s) "
            f"{describe_targets(_pending_engines(result))}; the work goes on, "
            "and %pxresult waits for it"
        )
    return True


def _wait(result: Any, progress_after_s: float, deadline: float | None) -> None:
    """Wait until the result or the deadline is there; from some time on with a progress bar."""
    if progress_after_s < 0:
        result.wait(_left(deadline))
        return
    first = progress_after_s
    if deadline is not None:
        first = min(first, _left(deadline))
    if not result.wait(first) and _left(deadline) != 0:
        result.wait_interactive(timeout=_left(deadline))


def _left(deadline: float | None) -> float:
    """Seconds until the deadline; -1, which `AsyncResult.wait` takes for "no limit", without
    one.
    """
    return -1 if deadline is None else max(0.0, deadline - time.monotonic())


def _pending_engines(result: Any) -> list[int]:
    """The engines that have not finished their part."""
    engines, status = result.engine_id, result.status
    if not isinstance(engines, list):
        engines, status = [engines], [status]
    return [e for e, s in zip(engines, status, strict=True) if s is None and e is not None]


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
