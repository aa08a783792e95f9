"""The cores are pure."""

from __future__ import annotations

import ast
import importlib
import operator
from pathlib import Path

import pytest

import ipyfleet_controller
from ipyfleet_protocol.table import TABLE

FORBIDDEN = {"zmq", "asyncio", "socket", "threading", "time", "random", "os", "secrets", "uuid"}
SOURCE = Path(ipyfleet_controller.__file__).parent
MODULES = sorted([*SOURCE.glob("scheduler/**/*.py"), *SOURCE.glob("hub/**/*.py")])


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_core_imports_nothing_that_could_make_it_impure(path: Path) -> None:
    """Scheduler and hub import no sockets, clocks, threads or randomness."""
    assert not _imports(path) & FORBIDDEN


def test_the_packages_other_than_protocol_are_not_imported() -> None:
    """The controller imports nothing of engine, client or what builds on them."""
    siblings = {f"ipyfleet_{name}" for name in ("engine", "client", "magics", "cluster")}
    for path in SOURCE.glob("**/*.py"):
        assert not _imports(path) & (siblings | {"ipyfleet"}), path


def test_the_handlers_that_the_table_names_exist() -> None:
    """Each handler of ours in the table of messages is a function of ours."""
    named = {handler for entry in TABLE for handler in entry.handlers}
    ours = sorted(name for name in named if name.startswith("ipyfleet_controller"))
    assert len(ours) == 4
    for name in ours:
        module, _, path = name.partition(":")
        assert callable(operator.attrgetter(path)(importlib.import_module(module)))
