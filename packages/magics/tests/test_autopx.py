import pytest


def test_cells_go_to_the_engines_until_switched_off(shell, view, client, capsys):
    """Between two %autopx every cell runs on the engines as typed, and nothing runs here."""
    cells = [
        "%autopx",
        "x = 1",
        "for i in range(3):\n    print(i, 'it''s', \"q\")\n",
        "%%time\ny = {'a': 1}\n",
        "%autopx",
        "z = 2",
    ]
    for cell in cells:
        shell.run_cell(cell).raise_error()
    assert [code.rstrip("\n") for _, code in client.executed] == [
        cell.rstrip("\n") for cell in cells[1:4]
    ]
    assert "x" not in shell.user_ns
    assert shell.user_ns["z"] == 2
    assert capsys.readouterr().out.splitlines() == ["%autopx enabled", "%autopx disabled"]


def test_toggle_inside_a_cell_ends_it_there(shell, view, client):
    """In a cell with %autopx in it, what is above runs on the engines, what is below here."""
    shell.run_cell("%autopx")
    shell.run_cell("x = 1\n%autopx\ny = 2\n").raise_error()
    assert client.executed == [("all", "x = 1\n")]
    assert shell.user_ns["y"] == 2
    assert "x" not in shell.user_ns


def test_own_magics_run_here(shell, view, client):
    """%px, %%px, %pxconfig and %pxresult mean the same while %autopx is on."""
    shell.run_cell("%autopx")
    shell.run_cell("%pxconfig --targets 1").raise_error()
    shell.run_cell("%%px -t ::2\nx = 1").raise_error()
    shell.run_cell("%pxresult").raise_error()
    shell.run_cell("y = 1").raise_error()
    assert client.executed == [([0, 2], "x = 1\n"), (1, "y = 1\n")]


def test_history_keeps_what_was_typed(shell, view, client):
    """What IPython remembers of a redirected cell is what the user typed."""
    shell.run_cell("%autopx")
    typed = shell.transform_cell("x = 1\n")
    assert typed.startswith("get_ipython().run_cell_magic('px'")
    assert shell.check_complete("for i in range(3):")[0] == "incomplete"
    assert shell.check_complete("x = 1")[0] == "complete"


def test_suffixes_toggle_by_themselves(shell, view, client):
    """Each suffix has a switch of its own; %autopx of one does not end that of another."""
    from ipyfleet_magics import activate

    activate(client[::2], "_even")
    shell.run_cell("%autopx_even")
    shell.run_cell("x = 1").raise_error()
    shell.run_cell("%autopx_even")
    shell.run_cell("y = 1").raise_error()
    assert client.executed == [([0, 2], "x = 1\n")]


def test_the_view_that_was_switched_on_last_takes_the_cells(shell, view, client):
    """With two switched on the later one has the cells, and after it the earlier one again."""
    from ipyfleet_magics import activate

    activate(client[::2], "_even")
    for cell in ("%autopx_even", "%autopx", "x = 1", "%autopx", "y = 1", "%autopx_even", "z = 1"):
        shell.run_cell(cell).raise_error()
    assert client.executed == [("all", "x = 1\n"), ([0, 2], "y = 1\n")]
    assert shell.user_ns["z"] == 1


@pytest.mark.parametrize("cell", ["exit", "quit()", " exit ( )\n"])
def test_leaving_is_about_this_session(shell, view, client, capsys, cell):
    """A cell of nothing but exit ends a terminal; in a kernel it ends nothing, and says so."""
    left = []
    shell.user_ns["exit"] = shell.user_ns["quit"] = lambda: left.append(cell)
    shell.run_cell("%autopx")
    shell.run_cell(cell if "(" in cell else f"{cell}()").raise_error()
    assert left == [cell]
    shell.run_cell("if True:\n    exit()\n").raise_error()
    assert client.executed == [("all", "if True:\n    exit()\n")]
    shell.kernel = object()
    capsys.readouterr()
    shell.run_cell(cell).raise_error()
    assert "%autopx ends the redirection" in capsys.readouterr().out
    assert len(left) == len(client.executed) == 1


def test_exit_ends_a_terminal(shell, view, client):
    """So does a mere word, as ever in IPython."""
    shell.run_cell("%autopx")
    asked = []
    shell.ask_exit = lambda: asked.append(1)
    shell.run_cell("exit").raise_error()
    assert asked and not client.executed
