"""The flags of the magics, and what they mean together with the settings of a view's magics.

What lives here: one decorator per group of flags, and `RunOptions`, what one execution does. What
must not: executing anything.
"""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from IPython.core import magic_arguments as _untyped

from .targets import Targets, parse_targets

F = TypeVar("F", bound=Callable[..., Any])

_ipython: Any = _untyped
argument = _ipython.argument

# argparse takes what begins with "-" for a flag, unless it is a number.
_NEGATIVE_TARGETS = re.compile(r"(?:(?<=\s)|^)(-t|--targets)\s+(?=-\d)")

GROUPINGS = ("engine", "order", "type")


def takes_arguments(name: str | None = None) -> Callable[[F], F]:
    """Return the decorator that completes a magic whose flags are declared below it.

    Args:
        name: what its help calls it, without the first "%"; None for the function's name.
    """
    return cast("Callable[[F], F]", _ipython.magic_arguments(name))


def parse_line(magic: Callable[..., Any], line: str) -> argparse.Namespace:
    """Parse the line of a magic that `takes_arguments` has completed.

    Raises:
        UsageError: it does not fit the magic's flags.
    """
    joined = _NEGATIVE_TARGETS.sub(r"\1=", line)
    return cast("argparse.Namespace", _ipython.parse_argstring(magic, joined))


def parse_signal(text: str) -> int:
    """Parse a signal's name or number.

    Raises:
        argparse.ArgumentTypeError: there is no such signal.
    """
    try:
        if text.isdigit():
            return 0 if int(text) == 0 else int(signal.Signals(int(text)))
        name = text.upper()
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no signal's name or number") from None


@dataclass
class RunOptions:
    """What one execution does.

    Attributes:
        targets: None for those of the view.
        block: wait for the result and show it.
        verbose: say on which engines it runs.
        stream: show output as it comes, not at the end.
        groupby: how output is grouped when it is not streamed.
        out: a name under which to store the AsyncResult, or None.
        local: run the code here, too.
        progress_after_s: when to show a progress bar; negative for never.
        signum: what Ctrl-C sends to the engines; 0 for nothing.
        timeout_s: how long to wait; None for as long as it takes.
    """

    targets: Targets | None = None
    block: bool = True
    verbose: bool = False
    stream: bool = True
    groupby: str = "type"
    out: str | None = None
    local: bool = False
    progress_after_s: float = 2.0
    signum: int = signal.SIGINT
    timeout_s: float | None = None


def _apply(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        # Decorators apply bottom-up, and the help lists them in the order of application reversed.
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def execution_flags() -> Callable[[F], F]:
    """Return a decorator that adds the flags of %%px and %pxconfig."""
    return _apply(
        argument("-b", "--block", action="store_const", const=True, help="wait for the result"),
        argument(
            "-a",
            "--noblock",
            dest="block",
            action="store_const",
            const=False,
            help="do not wait; %%pxresult shows the result later",
        ),
        argument(
            "-t",
            "--targets",
            type=parse_targets,
            help="engines to run on: an id, a slice (::2), a list (0,2), or all",
        ),
        argument(
            "--verbose",
            action="store_const",
            const=True,
            help="say on which engines the code runs",
        ),
        argument("--no-verbose", dest="verbose", action="store_const", const=False, help="do not"),
        argument(
            "--stream",
            action="store_const",
            const=True,
            help="show output while the code runs (the default)",
        ),
        argument(
            "--no-stream",
            dest="stream",
            action="store_const",
            const=False,
            help="show output when all engines are done, grouped",
        ),
        argument(
            "--progress-after",
            type=float,
            metavar="SECONDS",
            help="show a progress bar after so many seconds; -1: never",
        ),
        argument(
            "--signal-on-interrupt",
            type=parse_signal,
            metavar="SIGNAL",
            help="what Ctrl-C sends to the engines: a name or a number; 0: nothing",
        ),
    )


def output_flags() -> Callable[[F], F]:
    """Return a decorator that adds the flags about output: %%px and %pxresult."""
    return _apply(
        argument(
            "-r",
            dest="groupby",
            action="store_const",
            const="order",
            help="the same as --group-outputs=order",
        ),
        argument(
            "-e",
            dest="groupby",
            action="store_const",
            const="engine",
            help="the same as --group-outputs=engine",
        ),
        argument(
            "--group-outputs",
            dest="groupby",
            choices=GROUPINGS,
            help="show all of one engine together (engine), all of one kind (type), or the first "
            "of each engine, then the second … (order)",
        ),
        argument("-o", "--out", metavar="NAME", help="store the AsyncResult under this name"),
    )


def cell_flags() -> Callable[[F], F]:
    """Return a decorator that adds the flags that only %%px has."""
    return _apply(
        argument("--local", action="store_true", help="run the cell here, too, before waiting"),
        argument(
            "--timeout",
            type=float,
            metavar="SECONDS",
            help="wait no longer than this; the engines go on",
        ),
    )
