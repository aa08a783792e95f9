"""The table of messages against the code that sends and handles them."""

from __future__ import annotations

import ast
import importlib
from functools import reduce
from pathlib import Path

import pytest

from ipyfleet_protocol.table import TABLE, Entry

PACKAGES = Path(__file__).parent.parent / "packages"
FOLDERS = {"agent": "engine"}


def _source(party: str) -> list[ast.Module]:
    """Return the parsed modules of the package that a party's code is in."""
    files = (PACKAGES / FOLDERS.get(party, party) / "src").rglob("*.py")
    return [ast.parse(file.read_text()) for file in files]


def _constructed(modules: list[ast.Module]) -> set[str]:
    """Return the names of everything that is called in some modules."""
    calls = [node.func for module in modules for node in ast.walk(module) if type(node) is ast.Call]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    return names | {call.attr for call in calls if isinstance(call, ast.Attribute)}


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.message.__name__)
def test_handlers_exist(entry: Entry) -> None:
    """Every handler that the table names can be imported and called."""
    assert len(entry.handlers) >= 1 and entry.meaning
    for handler in entry.handlers:
        module, _, path = handler.partition(":")
        found = reduce(getattr, path.split("."), importlib.import_module(module))
        assert callable(found), handler


@pytest.mark.parametrize("party", ["client", "controller", "engine", "agent"])
def test_senders_send(party: str) -> None:
    """Every message is made in the package of each party that the table says sends it."""
    constructed = _constructed(_source(party))
    table = {entry.message.__name__ for entry in TABLE if party in entry.senders}
    assert not table - constructed
