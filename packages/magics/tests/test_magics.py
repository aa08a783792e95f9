import signal
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from ipyfleet_magics.activation import register
from ipyfleet_protocol.errors import AlreadyDisplayedError, RemoteError


def _magics(shell: InteractiveShell, suffix: str = "") -> Any:
    return shell.magics_manager.magics["line"][f"px{suffix}"].__self__


def _settings(shell: InteractiveShell, view: Any) -> tuple[Any, ...]:
    magics = _magics(shell)
    return (
        view.block,
        view.targets,
        magics.verbose,
        magics.stream,
        magics.groupby,
        magics.progress_after_s,
        magics.signum,
    )


def test_line_and_cell_run_on_the_view(shell, view, client):
    """%px and %%px run their code on the view's targets, streamed, and return nothing."""
    assert shell.run_line_magic("px", "a = 1") is None
    assert shell.run_cell_magic("px", "", "b = 2\nb\n") is None
    assert client.executed == [("all", "a = 1"), ("all", "b = 2\nb\n")]
    assert [result.names() for result in client.results] == [["stream"], ["stream"]]


@pytest.mark.parametrize(
    ("flags", "targets"),
    [
        ("--targets ::2", [0, 2]),
        ("-t 1", 1),
        ("-t -1", 3),
        ("--targets=1,3", [1, 3]),
        ("--targets '[0, 3]'", [0, 3]),
        ("-t all", "all"),
        ("-t -2:", [2, 3]),
        ("--targets -1,-2", [3, 2]),
    ],
)
def test_targets_of_one_cell(shell, view, client, flags: str, targets: object):
    """--targets chooses engines for this cell only."""
    shell.run_cell_magic("px", flags, "pass")
    shell.run_cell_magic("px", "", "pass")
    assert [run[0] for run in client.executed] == [targets, "all"]


@pytest.mark.parametrize("targets", ["9", "0,9", "7:"])
def test_engines_that_are_not_there(shell, view, client, targets: str):
    """A wrong --targets is told in a line, as other wrong flags are."""
    with pytest.raises(UsageError, match=r"^--targets: "):
        shell.run_cell_magic("px", f"--targets {targets}", "pass")
    with pytest.raises(UsageError, match=r"^--targets: "):
        shell.run_line_magic("pxconfig", f"--targets {targets}")
    assert client.executed == []


def test_flags_never_change_the_settings(shell, view, client):
    """No flag of %%px outlives its cell, also when the cell fails or the line is wrong."""
    before = _settings(shell, view)
    everything = (
        "-a -t ::2 --verbose --no-stream -e --progress-after -1 --signal-on-interrupt TERM -o x"
    )
    shell.run_cell_magic("px", everything, "pass")
    client.prepare = lambda result: setattr(result, "error", RemoteError("E", "v"))
    with pytest.raises(RemoteError):
        shell.run_cell_magic("px", everything.replace("-a ", "-b "), "pass")
    with pytest.raises(UsageError):
        shell.run_cell_magic("px", "-a --no-such-flag", "pass")
    assert _settings(shell, view) == before


def test_noblock_returns_the_result(shell, view, client):
    """Without blocking the AsyncResult is returned at once, neither awaited nor shown."""
    result = shell.run_cell_magic("px", "--noblock", "pass")
    assert result is client.results[0]
    assert result.calls == []
    view.block = False
    assert shell.run_line_magic("px", "pass") is client.results[1]
    assert shell.run_cell_magic("px", "--block", "pass") is None


@pytest.mark.parametrize(
    ("flags", "calls"),
    [
        ("", ["stream"]),
        ("--no-stream", [("display", "type")]),
        ("-e", [("display", "engine")]),
        ("-r", [("display", "order")]),
        ("--group-outputs=engine", [("display", "engine")]),
        ("--group-outputs type", [("display", "type")]),
        ("-e --stream", ["stream"]),
    ],
)
def test_how_output_is_shown(shell, view, client, flags: str, calls: list[Any]):
    """Output is streamed unless grouping or --no-stream asks for it at the end."""
    shell.run_cell_magic("px", flags, "pass")
    assert client.results[0].names() == calls


def test_out_stores_the_result(shell, view, client):
    """-o stores the AsyncResult in the user's namespace; a name that is none is refused."""
    shell.run_cell_magic("px", "-o ar", "pass")
    assert shell.user_ns["ar"] is client.results[0]
    with pytest.raises(UsageError, match="not a variable's name"):
        shell.run_cell_magic("px", "-o 1x", "pass")


def test_verbose_says_where(shell, view, client, capsys):
    """--verbose announces the engines, the word Async included when it does not block."""
    shell.run_cell_magic("px", "--verbose", "pass")
    shell.run_cell_magic("px", "--verbose -a -t ::2", "pass")
    shell.run_cell_magic("px", "--no-verbose", "pass")
    assert capsys.readouterr().out.splitlines() == [
        "Parallel execution on engine(s): all",
        "Async parallel execution on engine(s): [0, 2]",
    ]


def test_local_runs_here_too(shell, view, client):
    """--local runs the cell in this shell as well; that it fails here hides nothing of there."""
    shell.run_cell_magic("px", "--local", "here = 5")
    assert shell.user_ns["here"] == 5
    with pytest.raises(AlreadyDisplayedError) as caught:
        shell.run_cell_magic("px", "--local --no-stream", "1/0")
    assert (caught.value.ename, caught.value.render_traceback()) == (
        "ZeroDivisionError",
        ["1 error"],
    )
    assert client.results[1].names() == [("display", "type")]


def test_shown_errors_are_not_repeated(shell, view, client):
    """After streaming, a failure is an AlreadyDisplayedError, which shows no traceback again."""
    client.prepare = lambda result: setattr(result, "error", RemoteError("E", "v", ["the lines"]))
    with pytest.raises(AlreadyDisplayedError) as caught:
        shell.run_line_magic("px", "pass")
    assert caught.value.render_traceback() == ["1 error"]
    with pytest.raises(RemoteError) as caught:
        shell.run_cell_magic("px", "-e", "pass")
    assert "the lines" in caught.value.render_traceback()
    assert client.results[1].names() == [("display", "engine")]


def test_line_that_is_not_python_is_expanded(shell, view, client):
    """{expression} and $name are expanded in magics and shell lines, seen from the caller."""
    shell.user_ns["where"] = "/data"
    shell.run_line_magic("px", "cd {where}")
    shell.run_line_magic("px", "ls $where")
    shell.run_cell(
        "def f(place):\n    get_ipython().run_line_magic('px', 'cd {place}')\nf('/tmp')\n"
    )
    assert [run[1] for run in client.executed] == ["cd /data", "ls /data", "cd /tmp"]


@pytest.mark.parametrize("line", ["d = {'a': 1}", "print(f'{x}')", "s = {x}", "'{x}'"])
def test_python_is_sent_as_it_is(shell, view, client, line: str):
    """Braces that are Python's are left alone, whatever the names mean here."""
    shell.user_ns["x"] = "here"
    shell.run_cell(f"%px {line}").raise_error()
    assert client.executed == [("all", line)]


def test_cells_are_not_expanded(shell, view, client):
    """The body of a cell goes as it is; its line is expanded."""
    shell.user_ns["which"] = "1"
    shell.run_cell("%%px -t {which}\n!echo {which} $which\n").raise_error()
    assert client.executed == [(1, "!echo {which} $which\n")]


def test_pxresult_shows_the_last_result(shell, view, client):
    """%pxresult waits for and shows the last result, grouped as asked; -o stores it instead."""
    with pytest.raises(UsageError, match="no result yet"):
        shell.run_line_magic("pxresult", "")
    shell.run_cell_magic("px", "-a", "pass")
    shell.run_line_magic("pxresult", "")
    shell.run_line_magic("pxresult", "-e")
    shell.run_line_magic("pxresult", "-o ar")
    assert client.results[0].names() == [("display", "type"), ("display", "engine")]
    assert shell.user_ns["ar"] is client.results[0]


def test_pxconfig_persists(shell, view, client):
    """%pxconfig sets targets and blocking of the view and the other defaults of the magics."""
    shell.run_line_magic("pxconfig", "--noblock --targets ::2 --verbose --no-stream")
    shell.run_line_magic("pxconfig", "--progress-after 7 --signal-on-interrupt TERM")
    assert _settings(shell, view) == (False, [0, 2], True, False, "type", 7.0, signal.SIGTERM)
    assert shell.run_line_magic("px", "pass") is client.results[0]


def test_interrupt_goes_to_the_engines_at_work(shell, view, client, capsys):
    """Ctrl-C sends the signal to the engines that are not done, says so, and waits on."""

    def prepare(result):
        result.status = ["ok", None, "ok", None]
        result.waits = [KeyboardInterrupt()]

    client.prepare = prepare
    shell.run_line_magic("px", "pass")
    assert client.signals == [(signal.SIGINT, [1, 3])]
    assert "sending SIGINT to engine(s) [1, 3]" in capsys.readouterr().out
    assert client.results[0].calls[-1][0] == "wait"


def test_second_interrupt_leaves(shell, view, client, capsys):
    """A second Ctrl-C ends the waiting and says that work may go on."""

    def prepare(result):
        result.status = [None] * 4
        result.waits = [KeyboardInterrupt(), KeyboardInterrupt()]

    client.prepare = prepare
    with pytest.raises(KeyboardInterrupt) as caught:
        shell.run_line_magic("px", "pass")
    assert "Interrupted again" in capsys.readouterr().out
    assert caught.value.__suppress_context__
    assert caught.traceback[-1].name == "_run"
    assert len(client.signals) == 1


def test_interrupt_without_a_signal(shell, view, client, capsys):
    """With signal 0 Ctrl-C only stops the waiting."""

    def prepare(result):
        result.status = [None] * 4
        result.waits = [KeyboardInterrupt()]

    client.prepare = prepare
    shell.run_cell_magic("px", "--signal-on-interrupt 0", "pass")
    assert client.signals == []
    assert "the work goes on" in capsys.readouterr().out


def test_timeout(shell, view, client):
    """--timeout ends the waiting with an error that names the engines still at work."""

    def prepare(result):
        result.status = ["ok", "ok", None, "ok"]
        result.waits = [False, False]

    client.prepare = prepare
    with pytest.raises(TimeoutError, match=r"0\.5 s on engine\(s\) \[2\].*%pxresult"):
        shell.run_cell_magic("px", "--timeout 0.5", "pass")


def test_progress_bar_comes_late(shell, view, client):
    """The bar is shown after its time, at once with 0, and never with -1."""

    def prepare(result):
        result.status = [None] * 4
        result.waits = [False, True]

    client.prepare = prepare
    shell.run_cell_magic("px", "--progress-after 0.1", "pass")
    assert [call[0] for call in client.results[0].calls[1:]] == ["wait", "bar", "wait"]
    client.prepare = lambda result: None
    shell.run_cell_magic("px", "--progress-after -1", "pass")
    assert client.results[1].calls[1:] == [("wait", -1)]


def test_help_is_useful(shell, view):
    """Each magic has a docstring; those with flags list them."""
    for name in ("px", "pxresult", "pxconfig", "autopx"):
        assert len(shell.find_line_magic(name).__doc__) > 80
    cell = shell.find_cell_magic("px").__doc__
    for flag in ("--targets", "--noblock", "--group-outputs", "--out", "--local", "--timeout"):
        assert flag in cell


def test_without_a_view(shell):
    """Magics without a view say how to get one."""
    register(shell, None)
    for name in ("px", "pxconfig", "autopx"):
        with pytest.raises(UsageError, match=r"no view is active.*Client"):
            shell.run_line_magic(name, "--block" if name == "pxconfig" else "")
