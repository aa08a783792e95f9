"""Everything of ipykernel and IPython that is used though it is not documented API.

The one module that may. Each use has a test of its own in ``tests/test_ipykernel_hooks.py`` that
says what it relies on, so that a release which breaks us breaks exactly that test. The uses:

* `without_debugger`: making an ``IPythonKernel`` imports debugpy if it can, which costs 0.2 s and
  20 MB, and builds a debugger that needs sockets; it takes a failing import as "no debugger".
* `MainThreadOnly`: ``do_execute`` asks ``kernel.shell_channel_thread.parent_thread`` whether it
  runs in the main thread when a cell has top-level await, and uses ``kernel.io_loop`` to cancel
  it on SIGINT.
* `FleetShell._showtraceback`: the one place through which IPython shows an error; it gets the
  exception object, which the reply of ``do_execute`` has not, and takes its text. Two it prints:
  wrong use of magics, by ``show_usage_error``, and exception groups, in ``showtraceback``.
* `leave_out_advice`: ``run_code`` warns at a SystemExit of how one leaves a terminal.
* `render_traceback`: ``shell.InteractiveTB.structured_traceback`` and ``_render_traceback_``, as
  ``shell.showtraceback`` uses them, for an exception that is not the current one; and the
  traceback that the former remembers (``InteractiveTB.tb``). In the mode ``Context`` all that it
  shows of an error is its place, and at the end its message (`known_places`).
* `FleetShell._tee` and ``_format_exception_for_storage``: through which ``run_cell`` keeps a copy
  of all that cells print, and of their errors.
* `FleetShell.system_piped`: what ``!command`` calls, by the name ``system``, and `var_expand`.
* `FleetShell.working_out_once` and `remember_signatures`: ``do_execute`` calls ``transform_cell``,
  ``should_run_async`` and ``inspect.signature(run_cell_async)`` for a cell, and then ``run_cell``,
  which calls the first two again, with the same string; that was half of what a short cell costs.
* `publish_pages`: ``do_execute`` puts what a pager would show (``len?``, ``%prun``) into the reply,
  as a payload of source ``page``.
* `present_as_kernel_app`: ``IPKernelApp._instance`` is what ``ipykernel.get_connection_file()``
  and its likes look at; without it they find our own application, which is another's sibling.
* `describe_kernel`: ``kernel.kernel_info`` is the content of a ``kernel_info_reply``; it announces
  subshells because a shell channel thread seems to be there.
* `refuse_input`: ``do_execute`` replaces ``builtins.input`` and ``getpass.getpass`` by
  ``kernel.raw_input`` and ``kernel.getpass`` while it runs, and puts back what it found.
"""

from __future__ import annotations

import builtins
import getpass
import inspect
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.interactiveshell import InteractiveShell

from .known_places import KnownPlaces, place_of
from .shell_command import run_command

if TYPE_CHECKING:
    from ipykernel.ipkernel import IPythonKernel

_RENDER_BUDGET_S = 1.0
"""Seconds of each ten that may go into tracebacks with colours and context; the rest are plain."""


@contextmanager
def without_debugger() -> Iterator[None]:
    """Make ipykernel find no debugger while it constructs a kernel."""
    absent = "debugpy" not in sys.modules
    if absent:
        sys.modules["debugpy"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["debugpy"]


class MainThreadOnly:
    """Stands in for ipykernel's shell channel thread: all cells run in the main thread."""

    def __init__(self) -> None:
        self.parent_thread = threading.main_thread()


class FleetShell(ZMQInteractiveShell):
    """The engine's shell: remembers the exception object of the last error that was shown."""

    last_shown: BaseException | None = None
    _cell: str | None = None
    _transformed: str | None = None
    _is_async: bool | None = None

    @contextmanager
    def working_out_once(self, cell: str) -> Iterator[None]:
        """Work out what is to be worked out for a cell once, however often that is asked for."""
        self._cell, self._transformed, self._is_async = cell, None, None
        try:
            yield
        finally:
            self._cell = None

    def transform_cell(self, raw_cell: str) -> str:
        """Transform a cell's magics."""
        # By identity: the same code in another place may mean something else.
        known = raw_cell is self._cell
        if known and self._transformed is not None:
            return self._transformed
        cell = str(super().transform_cell(raw_cell))  # type: ignore[no-untyped-call]
        if known:
            self._transformed = cell
        return cell

    def should_run_async(
        self, raw_cell: str, *, transformed_cell: Any = None, preprocessing_exc_tuple: Any = None
    ) -> bool:
        """Tell whether a cell has to be awaited."""
        known = raw_cell is self._cell and transformed_cell is self._transformed
        if known and self._is_async is not None:
            return self._is_async
        answer = super().should_run_async(
            raw_cell,
            transformed_cell=transformed_cell,
            preprocessing_exc_tuple=preprocessing_exc_tuple,
        )
        if known:
            self._is_async = answer
        return answer

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """Show an error, without the frame of the handler of SIGINT, and not thousands of frames.

        IPython prints exception groups to stderr, with its own frame; here they are errors as all.
        """
        error = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]
        if error is not None:
            cut_handler_frame(error)
            tb = error.__traceback__ if exc_tuple is None else exc_tuple[2]
            exc_tuple = (type(error), error, shorten_traceback(tb))
            if _is_or_came_of_group(error):
                kind, _, tb = self._get_exc_info(exc_tuple)  # type: ignore[no-untyped-call]
                inner = tb.tb_next if tb is not None and tb.tb_next is not None else tb
                self._showtraceback(kind, error, _render_plain(error, inner))
                return
        super().showtraceback(exc_tuple, *args, **kwargs)

    def show_usage_error(self, exc: Any) -> None:
        """Show the wrong use of a magic: as the cell's error, not on stderr as well."""
        self._showtraceback(type(exc), exc, [f"{type(exc).__name__}: {exc}"])

    def _showtraceback(self, etype: Any, evalue: Any, stb: Any) -> None:
        self.last_shown = evalue
        try:
            str(evalue)
        except Exception:  # noqa: BLE001 - the exception's own code runs here
            # ipykernel asks again, and would fail in the place of the cell.
            evalue = f"<the text of this {etype.__name__} cannot be shown>"
        super()._showtraceback(etype, evalue, stb)  # type: ignore[no-untyped-call]

    def _tee(self, channel: str) -> Any:
        # IPython keeps a copy of all that cells print in its history, for saving notebooks.
        return nullcontext()

    def _format_exception_for_storage(self, exception: Any, *args: Any, **kwargs: Any) -> Any:
        # For the same history: the traceback is rendered again, by whatever code the exception has.
        return {"ename": type(exception).__name__, "evalue": "", "traceback": []}

    def system_piped(self, cmd: str) -> None:
        """Run a shell escape (``!cmd``); its exit code is `_exit_code` in the namespace.

        Raises:
            OSError: the command is to run in the background.
            CalledProcessError: it failed and `system_raise_on_error` is set.
        """
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        # The depth counts the frames up to the one whose variables {braces} in the command mean.
        expanded = self.var_expand(cmd, depth=1)  # type: ignore[no-untyped-call]
        exit_code = run_command(expanded, sys.stdout.write)
        self.user_ns["_exit_code"] = exit_code
        if self.system_raise_on_error and exit_code != 0:
            raise subprocess.CalledProcessError(exit_code, cmd)

    system = system_piped


def publish_pages(kernel: IPythonKernel, reply: dict[str, Any]) -> None:
    """Display what a cell has shown in a pager, which nobody looks at here."""
    assert kernel.session is not None
    for payload in reply.get("payload") or ():
        if payload.get("source") == "page":
            content = {"data": payload.get("data", {}), "metadata": {}, "transient": {}}
            kernel.session.send(None, "display_data", content)


def present_as_kernel_app(kernel: IPythonKernel, connection_file: Path) -> None:
    """Have ipykernel's functions that ask for "this kernel's" connection file find it."""
    from ipykernel.kernelapp import IPKernelApp

    app: Any = IPKernelApp(  # type: ignore[no-untyped-call]
        kernel=kernel, connection_file=str(connection_file)
    )
    IPKernelApp._instance = app


def describe_kernel(kernel: IPythonKernel) -> dict[str, Any]:
    """Return the content of a ``kernel_info_reply``."""
    return {"status": "ok", **kernel.kernel_info, "supported_features": []}


def refuse_input(kernel: IPythonKernel) -> None:
    """Make `input` and `getpass` of every task the kernel's, which refuse."""
    builtins.input = kernel.raw_input
    getpass.getpass = kernel.getpass


def remember_signatures() -> None:
    """Have `inspect.signature` find that of ``run_cell_async``, which is asked for at each cell."""
    function: Any = InteractiveShell.run_cell_async
    function.__signature__ = inspect.signature(function)


def leave_out_advice() -> None:
    """Have no cell that raises SystemExit told what to type to leave a terminal."""
    warnings.filterwarnings("ignore", message="To exit: use ", category=UserWarning)


class TracebackRenderer:
    """Renders exceptions of tasks as IPython does, without the frames of the engine itself.

    IPython takes some ten milliseconds for one. A map of a hundred thousand items that all fail
    must not take an hour: when a second of the last ten went into it, the plain form of Python is
    used.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._window_start = 0.0
        self._spent_s = 0.0
        self._places = KnownPlaces()

    def render(self, exc: BaseException) -> list[str]:
        """Return the lines of the exception's traceback; whatever it is, without raising."""
        start = time.monotonic()
        if start - self._window_start > 10:
            self._window_start = start
            self._spent_s = 0.0
        cut_handler_frame(exc)
        tb = shorten_traceback(strip_own_frames(exc.__traceback__))
        lines = None
        if self._spent_s < _RENDER_BUDGET_S:
            lines = self._render_as_ipython(exc, tb)
            self._spent_s += time.monotonic() - start
        if lines is None:
            lines = _render_plain(exc, tb)
        return lines

    def _render_as_ipython(self, exc: BaseException, tb: TracebackType | None) -> list[str] | None:
        try:
            if hasattr(exc, "_render_traceback_"):
                lines = exc._render_traceback_()
            elif isinstance(exc, SyntaxError):
                lines = self._shell.SyntaxTB.structured_traceback(type(exc), exc, [])
            elif isinstance(exc, BaseExceptionGroup):
                return None
            else:
                return self._render_place(exc, tb)
            # It keeps the traceback, and so all that the frames of user code held.
            self._shell.InteractiveTB.tb = None
            return [str(line) for line in lines]
        except Exception:  # noqa: BLE001
            # User code takes part (__repr__, __str__, _render_traceback_), and deep recursion or
            # lack of memory shows here first; the plain form asks for less.
            return None

    def _render_place(self, exc: BaseException, tb: TracebackType | None) -> list[str]:
        renderer = self._shell.InteractiveTB
        # Other modes show values of variables.
        place = place_of(exc, tb) if renderer.mode == "Context" else None
        message = str(exc)
        look = (self._shell.colors, place)
        lines = None if place is None else self._places.find(look, message)
        if lines is None:
            lines = [str(line) for line in renderer.structured_traceback(type(exc), exc, tb)]
            # It keeps the traceback, and so all that the frames of user code held.
            renderer.tb = None
            if place is not None:
                self._places.note(look, message, lines)
        return lines


def _is_or_came_of_group(error: BaseException | None) -> bool:
    # Bounded: contexts that user code has set may go round in circles.
    for _ in range(100):
        if error is None or isinstance(error, BaseExceptionGroup):
            break
        error = error.__context__
    return isinstance(error, BaseExceptionGroup)


def _render_plain(exc: BaseException, tb: TracebackType | None) -> list[str]:
    try:
        lines = traceback.format_exception(type(exc), exc, tb, limit=-50)
    except Exception as error:  # noqa: BLE001 - the exception's own code runs here
        return [f"{type(exc).__name__}: <its traceback cannot be shown: {type(error).__name__}>"]
    return "".join(lines).splitlines()


def shorten_traceback(tb: TracebackType | None, depth: int = 30) -> TracebackType | None:
    """Return the outermost and innermost `depth` frames: IPython takes seconds for thousands."""
    entries = []
    while tb is not None:
        entries.append(tb)
        tb = tb.tb_next
    kept = entries if len(entries) <= 2 * depth else entries[:depth] + entries[-depth:]
    for entry in reversed(kept):
        tb = TracebackType(tb, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return tb


_HANDLER_MODULE = "ipyfleet_engine.interrupts"

_OWN_PACKAGES = ("ipyfleet_engine.", "ipyfleet_protocol.")


def strip_own_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame on that is not the engine's own machinery."""
    first = tb
    while tb is not None:
        if not is_own_frame(tb.tb_frame):
            return tb
        tb = tb.tb_next
    # Only our own frames (the arguments did not unpickle, say): better than nothing.
    return first


def cut_handler_frame(error: BaseException) -> None:
    """End the traceback of a KeyboardInterrupt where the user's code was, not in our handler.

    Also of one that `error` has come of.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        tb = cause.__traceback__ if isinstance(cause, KeyboardInterrupt) else None
        while tb is not None and tb.tb_next is not None:
            if tb.tb_next.tb_frame.f_globals.get("__name__") == _HANDLER_MODULE:
                tb.tb_next = None
            tb = tb.tb_next
        cause = cause.__cause__ or cause.__context__


def is_own_frame(frame: FrameType) -> bool:
    """Tell whether a frame runs code of the engine or of the protocol package."""
    return str(frame.f_globals.get("__name__", "")).startswith(_OWN_PACKAGES)


def warm_up(kernel: Any) -> None:
    """Run a cell and render an error, for the imports and caches that the first ones fill.

    The kernel is left as it was: no history, no execution count, no output.
    """
    import asyncio

    # What every engine imports before its first task, and what pickles a function by value.
    import IPython.extensions.storemagic  # noqa: F401
    import tornado.platform.asyncio  # noqa: F401

    import ipyfleet_protocol.serialize.by_value  # noqa: F401

    asyncio.run(kernel.do_execute("pass", True, False))
    try:
        raise ValueError("warm-up")
    except ValueError as error:
        TracebackRenderer(kernel.shell).render(error)
