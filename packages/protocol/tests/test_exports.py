"""What the package exports, and that importing it is cheap."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ipyfleet_protocol

ROOT = Path(ipyfleet_protocol.__path__[0])
FILES = sorted(ROOT.rglob("*.py"))
PACKAGES = [
    "ipyfleet_protocol",
    *[
        found.name
        for found in pkgutil.walk_packages(ipyfleet_protocol.__path__, "ipyfleet_protocol.")
        if found.ispkg
    ],
]


@pytest.mark.parametrize("name", PACKAGES)
def test_names_are_exported_once(name: str) -> None:
    """Each name in a package's `__all__` exists, once; so does each public name beside it."""
    package = importlib.import_module(name)
    exported = package.__all__
    assert len(exported) == len(set(exported))
    assert all(hasattr(package, item) for item in exported)
    public = {item for item in vars(package) if not item.startswith("_")}
    submodules = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert public - submodules - {"annotations"} <= set(exported)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_they_hold(path: Path) -> None:
    """Every module has a docstring of more than a few words."""
    # Read, not imported: an optional back end's module needs what is not installed.
    assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 40


def test_version() -> None:
    """The version in the code is that of the distribution."""
    assert ipyfleet_protocol.__version__ == importlib.metadata.version("ipyfleet-protocol")


def test_import_is_light() -> None:
    """Importing the package, its messages and its codec loads none of the heavy modules."""
    code = """
import sys
import ipyfleet_protocol, ipyfleet_protocol.codec, ipyfleet_protocol.table
import ipyfleet_protocol.connection, ipyfleet_protocol.blobs, ipyfleet_protocol.paths
heavy = {"cloudpickle", "numpy", "ssl", "asyncio", "IPython", "zmq", "pandas", "multiprocessing"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


def test_imports_nothing_of_ours() -> None:
    """No module of the protocol imports another of our packages: they all build on it."""
    pattern = re.compile(r"^\s*(?:import|from)\s+(ipyfleet\w*)", re.MULTILINE)
    for path in FILES:
        assert set(pattern.findall(path.read_text())) <= {"ipyfleet_protocol"}, path


def test_readme_example() -> None:
    """The example in the README does what it says there."""
    readme = Path(__file__).parents[1] / "README.md"
    (block,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=30)
    expected = [line.partition("  # ")[2] for line in block.splitlines() if "  # " in line]
    assert done.stdout.splitlines() == expected, done.stderr
