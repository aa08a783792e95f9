"""`CellRedirection`: what ``%autopx`` switches on and off.

A cell is redirected before IPython parses it: an input transformer replaces its source by a call of
the cell magic with the source as argument. The transformer has side effects as far as IPython is
concerned, so it is
left out when a terminal asks whether a statement is complete: it judges what was typed.

A cell that is nothing but ``exit`` is about the session in which it is typed. A terminal ends; in a
notebook, where it may have been meant to end ``%autopx``, it would take the kernel along.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

_OWN_MAGIC = re.compile(r"\s*%{1,2}(?:px|pxresult|pxconfig|autopx|result)\w*(?=\s|$)")

_EXIT = re.compile(r"\s*(exit|quit)\s*(\(\s*\))?\s*")

_CALL = "get_ipython().run_cell_magic('px"
"""What a redirected cell begins with."""

_NO_EXIT = (
    "{0} does nothing on engines, and was not run here either, where it would end this kernel: "
    "%autopx{1} ends the redirection of cells, rc.shutdown() the engines"
)


class CellRedirection:
    """Sends the cells of a shell to the engines while it is on.

    Args:
        shell: the shell.
        suffix: of the magics through which the cells go.
    """

    def __init__(self, shell: InteractiveShell, suffix: str) -> None:
        self._shell = shell
        self._suffix = suffix
        self._toggle = re.compile(rf"\s*%autopx{re.escape(suffix)}\s*$")
        self._transform = self._make_transformer()

    @property
    def is_on(self) -> bool:
        """Whether cells are redirected."""
        return self._transform in self._shell.input_transformers_cleanup

    def start(self) -> None:
        """Redirect the cells that follow; before all others that do so, which find them taken."""
        transformers: list[Any] = self._shell.input_transformers_cleanup
        others = [k for k, other in enumerate(transformers) if hasattr(other, "redirects_to")]
        transformers.insert(min(others, default=len(transformers)), self._transform)

    def stop(self) -> None:
        """Let the cells that follow run here again."""
        self._shell.input_transformers_cleanup.remove(self._transform)

    def _make_transformer(self) -> Callable[[list[str]], list[str]]:
        def redirect(lines: list[str]) -> list[str]:
            return self._redirect(lines)

        marked: Any = redirect
        marked.has_side_effects = True
        marked.redirects_to = f"px{self._suffix}"
        return redirect

    def _redirect(self, lines: list[str]) -> list[str]:
        first = next((line for line in lines if line.strip()), "")
        if not first or _OWN_MAGIC.match(first) or first.startswith(_CALL):
            return lines
        leave = _EXIT.fullmatch("".join(lines))
        if leave and getattr(self._shell, "kernel", None) is not None:
            return [f"print({_NO_EXIT.format(leave[1], self._suffix)!r})\n"]
        if leave:
            return lines
        end = next((k for k, line in enumerate(lines) if self._toggle.match(line)), len(lines))
        code = "".join(lines[:end])
        call = f"{_CALL}{self._suffix}', '', {code!r})\n"
        return [call, *lines[end:]]
