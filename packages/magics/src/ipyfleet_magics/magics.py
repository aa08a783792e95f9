"""`ParallelMagics`: the magics of one view.

What lives here: what each magic does. What must not: the flags (`options`), how targets are written
(`targets`), how waiting works and what is shown meanwhile (`waiting`), the redirection of cells
(`autopx`).
"""

from __future__ import annotations

import ast
import os
import signal
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.core.magic import Magics, magics_class, no_var_expand
from traitlets import Bool, Float, Int, Unicode

from ipyfleet_protocol.errors import AlreadyDisplayedError, IPythonError, RemoteError

from .autopx import CellRedirection
from .options import (
    RunOptions,
    cell_flags,
    execution_flags,
    output_flags,
    parse_line,
    takes_arguments,
)
from .targets import describe_targets, select_view
from .waiting import wait_and_show

_TOLD_BY_MESSAGE = (IPythonError, KeyboardInterrupt, TimeoutError)
"""Errors that are the user's or the engines' matter, wherever in here they were raised."""

_USER_FRAME = 3
"""Frames from `_expand`, through `px` and `run_line_magic`, to the caller's."""


@magics_class
class ParallelMagics(Magics):
    """The magics of one view, with one suffix.

    Attributes:
        view: the view that the code runs on; None when there is none yet.
        suffix: of the names of the magics.
        last_result: the AsyncResult of the last execution, or None.
    """

    verbose = Bool(False, help="Say on which engines code runs.").tag(config=True)
    stream = Bool(help="Show output while code runs.").tag(config=True)
    progress_after_s = Float(2.0, help="When to show a progress bar; negative: never.").tag(
        config=True
    )
    signum = Int(int(signal.SIGINT), help="What Ctrl-C sends to the engines.").tag(config=True)
    groupby = Unicode("type", help="How output is grouped.").tag(config=True)

    def __init__(self, shell: InteractiveShell, view: Any, suffix: str = "") -> None:
        super().__init__(shell=shell)
        # Without a person looking on there is nobody to stream for.
        self.stream = not os.environ.get("IPP_NONINTERACTIVE")
        self.view = view
        self.suffix = suffix
        self.last_result: Any = None
        self._redirection = CellRedirection(shell, suffix)

    def by_kind(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """Return the magics: by kind (line, cell) and by name."""
        line = {
            f"px{self.suffix}": self.px,
            f"pxresult{self.suffix}": self.pxresult,
            f"pxconfig{self.suffix}": self.pxconfig,
            f"autopx{self.suffix}": self.autopx,
        }
        if not self.suffix:
            line["result"] = self.pxresult
        return {"line": line, "cell": {f"px{self.suffix}": self.px_cell}}

    def engine_ids(self) -> list[int]:
        """Return the ids of the engines that there are, for completions."""
        return [] if self.view is None else list(self.view.client.ids)

    @no_var_expand
    def px(self, line: str) -> Any:
        """Run a line of code on the engines of the active view.

        In a line that is not Python, such as a magic, ``{expression}`` and ``$name`` are expanded
        here first; Python is sent as it is, so f-strings and dictionaries mean what they say.

        Examples::

            %px import numpy as np
            %px np.random.rand()
            %px cd {os.getcwd()}

        With a view that does not block, ``%px`` returns an AsyncResult.

        ``%%px`` runs a whole cell and takes flags: see ``%%px?``. ``%pxconfig`` sets what holds
        for both.
        """
        __tracebackhide__ = True
        return self._run(self._expand(line), self._settings())

    @takes_arguments("%px")
    @execution_flags()
    @output_flags()
    @cell_flags()
    def px_cell(self, line: str, cell: str) -> Any:
        """Run a cell on the engines of the active view.

        Flags hold for this cell only; ``%pxconfig`` sets them for all that follow. A cell that does
        not block returns an AsyncResult.

        Examples::

            %%px --targets ::2 --noblock
            import time
            time.sleep(1)
            time.time()
        """
        __tracebackhide__ = True
        args = parse_line(self.px_cell, line)
        options = self._settings()
        options.targets = args.targets
        options.out = args.out
        options.local = args.local
        options.timeout_s = args.timeout
        if args.block is not None:
            options.block = args.block
        if args.verbose is not None:
            options.verbose = args.verbose
        if args.groupby is not None:
            # Grouping needs all of the output.
            options.groupby, options.stream = args.groupby, False
        if args.stream is not None:
            options.stream = args.stream
        if args.progress_after is not None:
            options.progress_after_s = args.progress_after
        if args.signal_on_interrupt is not None:
            options.signum = args.signal_on_interrupt
        return self._run(cell, options)

    @takes_arguments()
    @output_flags()
    def pxresult(self, line: str) -> None:
        """Wait for the last result of ``%px``, and show its output.

        Examples::

            %pxresult
            %pxresult --group-outputs=engine
            %pxresult -o ar
        """
        args = parse_line(self.pxresult, line)
        if self.last_result is None:
            raise UsageError(
                f"there is no result yet: %px{self.suffix} or %%px{self.suffix} makes one"
            )
        if args.out:
            self._store(args.out, self.last_result)
            return
        options = self._settings()
        options.stream = False
        options.groupby = args.groupby or self.groupby
        wait_and_show(self.last_result, self._active_view(), options)

    @takes_arguments()
    @execution_flags()
    def pxconfig(self, line: str) -> None:
        """Set what ``%px`` and ``%%px`` do when they are not told.

        Examples::

            %pxconfig --noblock
            %pxconfig --targets ::2 --verbose
        """
        args = parse_line(self.pxconfig, line)
        view = self._active_view()
        if args.targets is not None:
            view.targets = select_view(view, args.targets).targets
        if args.block is not None:
            view.block = args.block
        if args.verbose is not None:
            self.verbose = args.verbose
        if args.stream is not None:
            self.stream = args.stream
        if args.progress_after is not None:
            self.progress_after_s = args.progress_after
        if args.signal_on_interrupt is not None:
            self.signum = args.signal_on_interrupt

    def autopx(self, line: str) -> None:
        """Switch between running cells here and running them on the engines.

        While it is on, every cell runs on the engines, as if it began with ``%%px``; the magics of
        ipyfleet themselves run here. ``%autopx`` inside a cell ends it for what follows.
        """
        if self._redirection.is_on:
            self._redirection.stop()
            print(f"%autopx{self.suffix} disabled")
        else:
            self._active_view()
            self._redirection.start()
            print(f"%autopx{self.suffix} enabled")

    def _settings(self) -> RunOptions:
        return RunOptions(
            block=bool(self._active_view().block),
            verbose=self.verbose,
            stream=self.stream,
            groupby=self.groupby,
            progress_after_s=self.progress_after_s,
            signum=self.signum,
        )

    def _active_view(self) -> Any:
        if self.view is None:
            raise UsageError(
                "no view is active: connect with `rc = ipf.Client()`, which activates one, or "
                "call `view.activate()`"
            )
        return self.view

    def _expand(self, line: str) -> str:
        try:
            ast.parse(line)
        except (SyntaxError, ValueError):
            return str(self.shell.var_expand(line, depth=_USER_FRAME))  # type: ignore[union-attr]
        return line

    def _run(self, code: str, options: RunOptions) -> Any:
        """Run code; return the AsyncResult if it does not block.

        Raises:
            AlreadyDisplayedError: it failed, and the errors have been shown.
            CompositeError: it failed, and this is how the errors are to be shown.
            TimeoutError: it was not done in time.
            KeyboardInterrupt: the user does not want to wait any longer.
        """
        try:
            return self._execute(code, options)
        except _TOLD_BY_MESSAGE as error:
            raise error.with_traceback(None) from None

    def _execute(self, code: str, options: RunOptions) -> Any:
        view = select_view(self._active_view(), options.targets)
        if options.verbose:
            mode = "Parallel" if options.block else "Async parallel"
            print(f"{mode} execution on engine(s): {describe_targets(view.targets)}")
        result = view.execute(code, silent=False, block=False)
        self.last_result = result
        if options.out:
            self._store(options.out, result)
        local_error = self._run_here(code) if options.local else None
        if options.block:
            wait_and_show(result, view, options)
        if local_error is not None:
            kind = type(local_error).__name__
            raise AlreadyDisplayedError(RemoteError(kind, str(local_error), []))
        return None if options.block else result

    def _run_here(self, code: str) -> BaseException | None:
        """Run code in this shell; return the error, which the shell has shown."""
        shell: Any = self.shell
        outcome: ExecutionResult = shell.run_cell(code)
        return outcome.error_before_exec or outcome.error_in_exec

    def _store(self, name: str, result: Any) -> None:
        if not name.isidentifier():
            raise UsageError(f"--out: {name!r} is not a variable's name")
        self.shell.user_ns[name] = result  # type: ignore[union-attr]
