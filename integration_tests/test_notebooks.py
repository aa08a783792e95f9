"""Real notebooks, executed in a real kernel against a real cluster, outputs compared.

A code cell may carry ``metadata.expect``: ``text`` is a regular expression that the cell's text
outputs must match, ``error`` one for its error (the cell must then fail), ``images`` the number of
PNGs. All other cells must succeed; the notebooks assert on values themselves. A notebook's
``metadata.requires`` names modules without which it is skipped.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from ipyfleet_testing.outputs import in_engine_order

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))
PATIENCE = """
from ipyfleet_client import streaming
streaming.GATHER_FIRST_S = streaming.ERRORS_S = streaming.VALUES_S = 60.0
"""
"""Run before a notebook: on a busy machine engines that say something together may be apart. They
are waited for, so that they are shown together; where they are not apart this takes no time."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _texts(cell: dict[str, Any]) -> str:
    """Return all text that a cell shows, colours removed, errors' tracebacks included."""
    parts = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            parts.append(output["text"])
        elif output["output_type"] == "error":
            parts.append("\n".join(output["traceback"]) + "\n")
        else:
            parts.append(output["data"].get("text/plain", "") + "\n")
    return _ANSI.sub("", "".join(parts))


def _check(cell: dict[str, Any]) -> None:
    expect = cell["metadata"].get("expect", {})
    errors = [out for out in cell["outputs"] if out["output_type"] == "error"]
    shown = _texts(cell)
    context = f"cell:\n{cell['source']}\n\nshows:\n{shown}"
    if "error" in expect:
        assert errors, f"no error, but one was expected\n{context}"
        text = _ANSI.sub("", errors[-1]["ename"] + ": " + errors[-1]["evalue"])
        assert re.search(expect["error"], text), f"{text!r} does not match\n{context}"
    if "text" in expect:
        # On a busy machine what engines print at once may arrive apart, and in another order.
        either = (shown, in_engine_order(shown))
        matches = [text for text in either if re.search(expect["text"], text)]
        assert matches, f"no match for {expect['text']!r}\n{context}"
    if "images" in expect:
        images = [out for out in cell["outputs"] if "image/png" in out.get("data", {})]
        assert len(images) == expect["images"], f"{len(images)} images\n{context}"


@pytest.mark.timeout(240)
@pytest.mark.may_leak("socket", reason="nbclient keeps an event loop for the next notebook")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, ipcluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of the notebook does what it says, with `ipcluster start -n 4` running."""
    monkeypatch.setenv("IPYTHONDIR", os.fspath(ipcluster))
    notebook = nbformat.read(path, as_version=4)
    for module in notebook.metadata.get("requires", ()):
        pytest.importorskip(module, reason=f"needs {module}", exc_type=Exception)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(PATIENCE))
    runner = NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=False)
    runner.execute(cwd=os.fspath(path.parent))
    for cell in notebook.cells:
        if cell["cell_type"] == "code":
            _check(cell)
