import subprocess
import sys

import pytest

import ipyfleet_magics
from ipyfleet_magics import activate
from ipyfleet_protocol.errors import CompositeError


def test_suffix_makes_a_second_set(shell, view, client):
    """With a suffix another view gets magics of its own; the first ones stay."""
    even = client[::2]
    activate(even, "_even")
    shell.run_line_magic("px_even", "pass")
    shell.run_cell_magic("px_even", "-t 1", "pass")
    shell.run_line_magic("px", "pass")
    assert [run[0] for run in client.executed] == [[0, 2], 1, "all"]
    shell.run_line_magic("pxconfig_even", "--noblock")
    assert (view.block, even.block) == (True, False)
    assert shell.find_line_magic("autopx_even")
    assert shell.find_line_magic("pxresult_even")
    assert shell.find_line_magic("result_even") is None
    assert shell.find_line_magic("result")


def test_activating_again_replaces_the_view(shell, view, client):
    """The view that was activated last is the one that runs; settings stay."""
    shell.run_line_magic("pxconfig", "--verbose")
    activate(client[1:])
    shell.run_line_magic("px", "pass")
    assert client.executed == [([1, 2, 3], "pass")]
    assert shell.find_line_magic("px").__self__.verbose


def test_suffix_must_fit_into_a_name(shell, view):
    """A suffix that cannot be part of a magic's name is refused."""
    with pytest.raises(ValueError, match="not a suffix"):
        activate(view, "-even")


def test_load_ext(shell, client):
    """%load_ext registers the magics, and keeps a view that is active already."""
    shell.run_line_magic("load_ext", "ipyfleet_magics")
    assert shell.find_line_magic("px").__self__.view is None
    view = client[:]
    activate(view)
    ipyfleet_magics.load_ipython_extension(shell)
    assert shell.find_line_magic("px").__self__.view is view


def test_outside_ipython_nothing_happens():
    """Where no IPython runs, activating a view does nothing."""
    code = "import ipyfleet_magics; ipyfleet_magics.activate(object())"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_remote_errors_are_shown_as_the_engines_rendered_them(shell, view, capsys):
    """A composite error shows the remote tracebacks and nothing of the client's own stack."""
    info = {"engine_id": 0, "engine_uuid": "", "method": "execute"}
    errors = [("E", "v", ["the remote lines"], info), ("F", "w", ["others"], info)]
    shell.user_ns["error"] = CompositeError("one or more exceptions raised in: f", errors)
    outcome = shell.run_cell("raise error")
    assert outcome.error_in_exec is shell.user_ns["error"]
    shown = "".join(capsys.readouterr())
    assert "the remote lines" in shown
    assert "others" in shown
    assert "Traceback" not in shown


def test_own_handler_of_errors_stays(shell, client):
    """A handler that the user has set is not replaced."""
    shell.set_custom_exc((KeyError,), lambda *args, **kwargs: ["mine"])
    activate(client[:])
    assert shell.custom_exceptions == (KeyError,)
