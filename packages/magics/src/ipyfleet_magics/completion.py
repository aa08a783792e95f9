"""Completion of the magics' flags and their values.

What lives here: the matcher that IPython's completer asks for lines that begin with one of the
magics. What must not: the flags themselves (`options`); their parsers say what there is.
"""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Callable
from typing import Any

from IPython.core import completer as _untyped
from IPython.core.interactiveshell import InteractiveShell

_ipython: Any = _untyped

_VALUE = re.compile(r"(?:^|\s)(?P<flag>--?[\w-]+)[=\s]\s*(?P<value>\S*)$")


def install_completer(
    shell: InteractiveShell,
    command: str,
    parser: argparse.ArgumentParser,
    engines: Callable[[], list[int]],
) -> None:
    """Complete the flags of a magic, and what may follow them.

    Args:
        shell: whose completer is to do so.
        command: what the line begins with, such as ``%%px``.
        parser: of the magic.
        engines: returns the ids that ``--targets`` may name.
    """
    completer: Any = shell.Completer

    @_ipython.context_matcher(identifier=f"ipyfleet {command}")  # type: ignore[untyped-decorator]
    def match(context: Any) -> Any:
        line = context.line_with_cursor
        before = context.text_until_cursor
        offered = []
        if line.split(maxsplit=1)[:1] == [command] and before != command:
            offered = _offers(parser, before, context.token, engines)
        found = [text for text in offered if text.startswith(context.token)]
        return {
            "completions": [_ipython.SimpleCompletion(text=text, type="param") for text in found],
            "suppress": bool(found),
            "ordered": True,
        }

    completer.custom_matchers.append(match)


def _offers(
    parser: argparse.ArgumentParser, before: str, token: str, engines: Callable[[], list[int]]
) -> list[str]:
    """Return what may stand at the end of `before`, whose last word is `token`."""
    actions = [action for action in parser._actions if action.option_strings]
    matched = _VALUE.search(before)
    for action in actions:
        if matched and action.nargs is None and matched["flag"] in action.option_strings:
            return _values(action, engines)
    flags = [flag for action in actions for flag in action.option_strings]
    return sorted(flag for flag in flags if flag.startswith("--") or token)


def _values(action: argparse.Action, engines: Callable[[], list[int]]) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest == "targets":
        return ["all", "::2", "1::2", *(str(engine) for engine in engines())]
    if action.dest == "signal_on_interrupt":
        return [name.name for name in signal.Signals]
    return []
