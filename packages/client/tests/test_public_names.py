import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ipyfleet_client


@pytest.mark.parametrize("name", ipyfleet_client.__all__)
def test_each_public_name_is_there(name):
    """What `__all__` promises can be had as an attribute, and stands there once."""
    assert getattr(ipyfleet_client, name) is not None
    assert ipyfleet_client.__all__.count(name) == 1
    assert name in dir(ipyfleet_client)


def test_type_checkers_see_the_same_names():
    """The imports for type checkers name exactly what is found when it is first used."""
    tree = ast.parse(Path(inspect.getfile(ipyfleet_client)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = [
        alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted([*imported, "__version__"]) == sorted(ipyfleet_client.__all__)


def test_unknown_names_are_refused():
    """A name that is not public raises AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Klient'"):
        _ = ipyfleet_client.Klient


def test_a_client_costs_no_library_that_it_may_not_need():
    """Importing `Client` loads no event loop, no ssl, no processes, no zmq."""
    code = "import sys; from ipyfleet_client import Client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    heavy = {"asyncio", "html", "shutil", "ssl", "subprocess", "tempfile", "tqdm", "zmq"}
    assert heavy.isdisjoint(done.stdout.split())
