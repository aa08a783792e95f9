"""What holds for the repository as a whole: its packages, their metadata, its files."""

import importlib
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = [
    "protocol",
    "controller",
    "engine",
    "client",
    "magics",
    "cluster",
    "ipyfleet",
    "testing",
]
MENU = {"help", "demo", "test", "services", "lint", "types", "docs", "bench", "clean"}
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "docs",
    "integration_tests",
    "packages",
    "pyproject.toml",
    "tox.ini",
}
MOST_LINES = 700

# Put together from pieces, so that this file does not match itself.
FORBIDDEN = {
    "address of a registry": re.compile(
        "|".join(["pypi" + r"\.org", "python" + r"hosted\.", "/simple" + "/"])
    ),
    "option that names a registry": re.compile("--(extra-)?index" + "-url|extra-index" + "-url"),
    "path of somebody's machine": re.compile(
        "|".join(["/ho" + "me/[a-z]", "/Us" + "ers/[a-z]", "/ro" + r"ot/\w", "/wo" + r"rk/\w"])
    ),
}


def import_name(package: str) -> str:
    """Return the name under which a package is imported."""
    return package if package == "ipyfleet" else f"ipyfleet_{package}"


@cache
def read_metadata(package: str) -> dict[str, Any]:
    """Return the table "project" of a package's metadata."""
    text = (REPOSITORY / "packages" / package / "pyproject.toml").read_text()
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


@cache
def list_files() -> list[Path]:
    """Return the tracked files that still exist; all files where this is not a git checkout."""
    if not (REPOSITORY / ".git").exists():
        ignored = {".venv", ".tox", "build", "__pycache__", ".mypy_cache", ".ruff_cache"}
        found = [path for path in REPOSITORY.rglob("*") if not ignored & set(path.parts)]
    else:
        listed = subprocess.run(
            # Whoever runs the tests need not be who cloned the repository.
            ["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", "-z"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
        found = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    return [path for path in found if path.is_file()]


def test_the_list_of_packages_is_complete() -> None:
    """Every folder under packages/ is one of the eight."""
    assert {path.name for path in (REPOSITORY / "packages").iterdir()} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_whole(package: str) -> None:
    """A package has its metadata, README, license, type marker, source and tests."""
    folder = REPOSITORY / "packages" / package
    source = folder / "src" / import_name(package)
    assert (source / "__init__.py").is_file()
    assert (source / "py.typed").is_file()
    assert (folder / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()
    assert list((folder / "tests").glob("**/test_*.py")), "no tests"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_readme_says_what_it_must(package: str) -> None:
    """A package's README says what it is for, what it may import, and shows an example."""
    text = (REPOSITORY / "packages" / package / "README.md").read_text()
    assert text.startswith(f"# {read_metadata(package)['name']}\n")
    assert "\nMay import: " in text
    assert "\n```" in text, "no example"


def test_there_is_one_version() -> None:
    """All packages have the same version, in their metadata and in their code."""
    versions = {read_metadata(package)["version"] for package in PACKAGES}
    versions |= {importlib.import_module(import_name(package)).__version__ for package in PACKAGES}
    assert len(versions) == 1, versions


@pytest.mark.parametrize("package", PACKAGES)
def test_siblings_are_pinned(package: str) -> None:
    """A dependency on one of our packages names exactly this version."""
    metadata = read_metadata(package)
    ours = [text for text in metadata["dependencies"] if text.startswith("ipyfleet")]
    assert all(text.partition("==")[2] == metadata["version"] for text in ours), ours


@pytest.mark.parametrize("package", PACKAGES)
def test_metadata_are_alike(package: str) -> None:
    """Each package names its license and the oldest Python in the same way."""
    metadata = read_metadata(package)
    assert metadata["license"] == "BSD-3-Clause"
    assert metadata["requires-python"] == ">=3.11"
    assert metadata["readme"] == "README.md"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there_and_listed_once(package: str) -> None:
    """Each name of a package's `__all__` exists and stands there once."""
    module = importlib.import_module(import_name(package))
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing


def test_a_public_name_means_one_thing() -> None:
    """Packages that export the same name export the same object, so each has one definition."""
    known: dict[str, tuple[str, Any]] = {}
    for package in PACKAGES:
        module = importlib.import_module(import_name(package))
        for name in set(module.__all__) - {"__version__", "load_ipython_extension"}:
            other, value = known.setdefault(name, (package, getattr(module, name)))
            assert getattr(module, name) is value, f"{name} differs in {package} and {other}"


def test_the_top_level_is_as_agreed() -> None:
    """Nothing lies about at the top of the repository."""
    names = {path.relative_to(REPOSITORY).parts[0] for path in list_files()}
    assert names <= TOP_LEVEL, names - TOP_LEVEL


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names_a_registry_or_a_machine(what: str) -> None:
    """Where packages come from and where the checkout lies are the machine's business."""
    found = []
    for path in list_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # a picture
            continue
        for number, line in enumerate(lines, 1):
            if FORBIDDEN[what].search(line) or str(REPOSITORY) + "/" in line:
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_no_module_is_too_long() -> None:
    """A Python file of more than 700 lines is two files."""
    counts = {
        str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines())
        for path in list_files()
        if path.suffix == ".py"
    }
    assert not {name: count for name, count in counts.items() if count > MOST_LINES}


def test_tests_are_no_packages() -> None:
    """Folders of tests hold no `__init__.py`: equal names of test modules must not clash."""
    found = [path for path in list_files() if path.name == "__init__.py" and "tests" in path.parts]
    assert not found


def test_make_lists_the_menu() -> None:
    """`make help` names every target with a line of explanation."""
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    listed = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert {words[1] for words in listed} == MENU
    assert all(len(words) == 3 for words in listed)


def test_ci_can_be_run() -> None:
    """The script that has to pass before a change lands can be executed."""
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111
