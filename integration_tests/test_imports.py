"""Who may import whom, read from the source without running it."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[1] / "packages"

MAY_IMPORT = {
    "protocol": set[str](),
    "controller": {"protocol"},
    "engine": {"protocol"},
    "client": {"protocol"},
    "magics": {"client", "protocol"},
    "cluster": {"client", "protocol"},
    "ipyfleet": {"protocol", "controller", "engine", "client", "magics", "cluster"},
    "testing": {"protocol", "controller", "engine", "client", "magics", "cluster", "ipyfleet"},
}

PURE = {
    "controller/src/ipyfleet_controller/scheduler",
    "controller/src/ipyfleet_controller/hub",
}
"""State machines: no clock, socket, thread or randomness."""

NOT_IN_A_PURE_CORE = {
    "asyncio",
    "os",
    "random",
    "secrets",
    "select",
    "selectors",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uuid",
    "zmq",
}

NOT_IN_THE_PROTOCOL = {"asyncio", "selectors", "ssl", "tornado", "zmq", "IPython", "ipykernel"}
"""What would bring a loop or threads along; plain sockets are for its package `local`."""


PICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
OUR_PICKLERS = ("ipyfleet_protocol.serialize", "ipyfleet_protocol.namespace")


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield node.lineno, first.value


def imports_of(folder: Path) -> list[tuple[str, str]]:
    """Return "file:line" and the top-level name of each import under a folder."""
    files = sorted(folder.rglob("*.py"))
    assert files, f"no source under {folder}: is the path right?"
    return [
        (f"{file.relative_to(PACKAGES)}:{line}", name.partition(".")[0])
        for file in files
        for line, name in imported_modules(file)
    ]


def package_of(name: str) -> str | None:
    """Return the folder of the package that an import name is of, None if it is not ours."""
    folder = name.removeprefix("ipyfleet_")
    return folder if folder in MAY_IMPORT and name.startswith("ipyfleet") else None


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    """A package imports only those of ours that are below it."""
    wrong = []
    for place, name in imports_of(PACKAGES / package / "src"):
        other = package_of(name)
        if other not in {None, package, *MAY_IMPORT[package]}:
            wrong.append(f"{place} imports {name}")
    assert not wrong


def test_the_three_processes_do_not_import_one_another() -> None:
    """The table itself keeps controller, engine and client apart."""
    apart = {"controller", "engine", "client"}
    assert all(not MAY_IMPORT[package] & apart for package in apart)


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if name != "testing"])
def test_what_is_imported_of_ours_is_declared(package: str) -> None:
    """A sibling that a package imports is among its dependencies."""
    text = (PACKAGES / package / "pyproject.toml").read_text()
    declared = " ".join(tomllib.loads(text)["project"]["dependencies"])
    used = {package_of(name) for _, name in imports_of(PACKAGES / package / "src")}
    missing = {other for other in used - {None, package} if f"ipyfleet-{other}==" not in declared}
    assert not missing


@pytest.mark.parametrize("core", sorted(PURE))
def test_the_cores_are_pure(core: str) -> None:
    """Scheduler and hub import no clock, socket, thread or randomness."""
    found = imports_of(PACKAGES / core)
    assert not [f"{place} imports {name}" for place, name in found if name in NOT_IN_A_PURE_CORE]


def test_the_protocol_imports_no_event_loop() -> None:
    """The protocol imports nothing of zmq, of IPython, or of an event loop."""
    found = imports_of(PACKAGES / "protocol" / "src")
    assert not [f"{place} imports {name}" for place, name in found if name in NOT_IN_THE_PROTOCOL]


def test_importing_the_protocol_is_light() -> None:
    """`import ipyfleet_protocol` loads no pickler, no numpy, no event loop."""
    code = "import sys, ipyfleet_protocol; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert not set(done.stdout.split()) & {"cloudpickle", "numpy", "ssl", "asyncio", "zmq"}


def test_the_controller_cannot_unpickle() -> None:
    """The controller imports no pickler: whatever a payload holds, nothing in it is executed."""
    found = []
    for file in sorted((PACKAGES / "controller" / "src").rglob("*.py")):
        for line, name in imported_modules(file):
            if name.partition(".")[0] in PICKLERS or name.startswith(OUR_PICKLERS):
                found.append(f"{file.relative_to(PACKAGES)}:{line} imports {name}")
    assert not found
