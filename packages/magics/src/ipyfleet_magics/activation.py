"""Making the magics known to the running IPython."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell

from ipyfleet_protocol.errors import RemoteError

from .completion import install_completer
from .magics import ParallelMagics


def activate(view: Any, suffix: str = "") -> None:
    """Register the magics of a view in the running IPython; does nothing outside IPython.

    Activating another view with the same suffix replaces the first; its settings (`%pxconfig`)
    stay.

    Args:
        view: a `DirectView`.
        suffix: appended to the names of the magics: with "_even" they are ``%px_even`` and so on.

    Raises:
        ValueError: the suffix cannot be part of a magic's name.
    """
    shell = get_ipython()
    if shell is not None:
        register(shell, view, suffix)


def register(shell: InteractiveShell, view: Any, suffix: str = "") -> ParallelMagics:
    """Register the magics of a view in a shell; return them. See `activate`."""
    if suffix and not f"px{suffix}".isidentifier():
        raise ValueError(
            f"not a suffix for magics: {suffix!r}; it may have letters, digits and underscores"
        )
    found = shell.magics_manager.magics["line"].get(f"px{suffix}")
    magics = getattr(found, "__self__", None)
    if isinstance(magics, ParallelMagics):
        magics.view = view
        return magics
    magics = ParallelMagics(shell, view, suffix)
    show_remote_errors(shell)
    registry: Any = shell  # Its method is annotated for unbound functions only.
    for kind, functions in magics.by_kind().items():
        for name, function in functions.items():
            registry.register_magic_function(function, magic_kind=kind, magic_name=name)
            parser = getattr(function, "parser", None)
            if parser is not None:
                command = f"{'%%' if kind == 'cell' else '%'}{name}"
                install_completer(shell, command, parser, magics.engine_ids)
    return magics


def show_remote_errors(shell: InteractiveShell) -> None:
    """Let a shell show errors from engines as the engines rendered them.

    IPython asks an exception how it wants to be shown, but not one that is an exception group, as
    `CompositeError` is. A handler that somebody else has installed stays.
    """
    if not shell.custom_exceptions:
        untyped: Any = shell
        untyped.set_custom_exc((RemoteError,), _show_remote_error)


def _show_remote_error(
    shell: Any,
    kind: type[RemoteError],
    error: RemoteError,
    traceback: TracebackType,
    tb_offset: int | None = None,
) -> list[str]:
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, traceback
    lines = error.render_traceback()
    shell._showtraceback(kind, error, lines)
    return lines


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Called by ``%load_ext ipyfleet_magics``: the magics are there, and say what they need.

    A view that is active already stays active.
    """
    if "px" not in shell.magics_manager.magics["line"]:
        register(shell, None)
