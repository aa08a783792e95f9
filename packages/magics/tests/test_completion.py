import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

from ipyfleet_magics import activate


def _complete(shell: InteractiveShell, text: str) -> list[str]:
    """What a frontend offers with the cursor at the end of the text."""
    with provisionalcompleter():
        return [match.text for match in shell.Completer.completions(text, len(text))]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("%%px --no", ["--no-stream", "--no-verbose", "--noblock"]),
        ("%%px -b --sig", ["--signal-on-interrupt"]),
        ("%%px --group-outputs=", ["engine", "order", "type"]),
        ("%%px --group-outputs e", ["engine"]),
        ("%%px --targets ", ["all", "::2", "1::2", "0", "1", "2", "3"]),
        ("%%px -t a", ["all"]),
        ("%%px --signal-on-interrupt SIGTE", ["SIGTERM"]),
        ("%pxconfig --pro", ["--progress-after"]),
        ("%pxresult --o", ["--out"]),
    ],
)
def test_flags_and_values(shell, view, text: str, offered: list[str]):
    """Flags and what may follow them are completed."""
    assert _complete(shell, text) == offered


def test_all_flags_are_offered(shell, view):
    """After the name of the magic alone the long flags are offered."""
    offered = _complete(shell, "%%px ")
    assert {"--targets", "--noblock", "--timeout", "--local", "--out"} <= set(offered)
    assert "-t" not in offered


def test_code_of_a_cell_is_completed_as_code(shell, view):
    """In the lines below %%px names are completed as everywhere."""
    shell.user_ns["some_long_name"] = 1
    assert _complete(shell, "%%px\nsome_lo") == ["some_long_name"]


def test_suffixes(shell, view, client):
    """The names of magics with a suffix are completed, and so are their flags."""
    activate(client[::2], "_even")
    assert {"%px_even", "%pxresult_even", "%pxconfig_even"} <= set(_complete(shell, "%px"))
    assert "%autopx_even" in _complete(shell, "%auto")
    assert _complete(shell, "%%px_even --verb") == ["--verbose"]


def test_without_a_view_no_engines_are_offered(shell):
    """Before a client is there, targets are offered that need no engine."""
    shell.run_line_magic("load_ext", "ipyfleet_magics")
    assert _complete(shell, "%%px --targets ") == ["all", "::2", "1::2"]
