import ast
import builtins
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ipyfleet
import ipyfleet.error


@pytest.mark.parametrize("name", ipyfleet.__all__)
def test_each_public_name_is_there(name: str) -> None:
    """What `__all__` promises can be had as an attribute."""
    assert getattr(ipyfleet, name) is not None


def test_each_name_is_exported_once() -> None:
    """No name stands twice in `__all__`, here or in the error module."""
    assert len(set(ipyfleet.__all__)) == len(ipyfleet.__all__)
    assert len(set(ipyfleet.error.__all__)) == len(ipyfleet.error.__all__)


def test_every_error_is_a_public_name_of_both_modules() -> None:
    """Each name of `ipyfleet.error` is the same object as a top-level name."""
    for name in ipyfleet.error.__all__:
        assert getattr(ipyfleet, name) is getattr(ipyfleet.error, name)
    assert ipyfleet.error.TimeoutError is builtins.TimeoutError


def test_type_checkers_see_the_same_names() -> None:
    """The imports for type checkers name exactly what is found when it is first used."""
    tree = ast.parse(Path(inspect.getfile(ipyfleet)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = [
        alias.asname or alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    here = {"__version__", "version_info", "load_ipython_extension"}
    assert sorted([*imported, *here]) == sorted(ipyfleet.__all__)


def test_unknown_names_are_refused() -> None:
    """A name that is not public raises AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Klient'"):
        _ = ipyfleet.Klient  # type: ignore[attr-defined]


def test_dir_lists_the_public_names() -> None:
    """Completion offers what is public, before any of it was used."""
    assert set(dir(ipyfleet)) == set(ipyfleet.__all__)


def test_the_version_is_a_tuple_too() -> None:
    """`version_info` compares as numbers."""
    assert ".".join(map(str, ipyfleet.version_info)) == ipyfleet.__version__


def test_importing_loads_nothing_heavy() -> None:
    """`import ipyfleet` loads none of our packages and none of the libraries below them."""
    code = (
        "import sys; before = set(sys.modules); import ipyfleet; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "ipyfleet" in loaded
    ours = {name for name in loaded if name.startswith("ipyfleet_")}
    assert not ours
    assert not loaded & {"zmq", "msgspec", "IPython", "traitlets", "asyncio", "numpy", "psutil"}


def test_catching_an_error_loads_no_sockets() -> None:
    """The errors can be had without a socket library or IPython."""
    code = "import sys, ipyfleet.error; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert not set(done.stdout.split()) & {"zmq", "IPython", "traitlets"}
