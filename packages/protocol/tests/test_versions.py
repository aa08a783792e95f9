"""Versions are found without imports, and compared by what matters."""

from __future__ import annotations

import subprocess
import sys

import cloudpickle

from ipyfleet_protocol.versions import misfits, package_versions, python_version, same_release


def test_versions_are_found_without_importing_the_packages() -> None:
    """A process that has imported neither package tells the versions that are installed."""
    code = (
        "import sys; from ipyfleet_protocol.versions import package_versions as f; print(f());"
        "assert not {'numpy', 'cloudpickle', 'importlib.metadata'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert f"'cloudpickle': '{cloudpickle.__version__}'" in done.stdout
    assert package_versions()["cloudpickle"] == cloudpickle.__version__
    assert sys.version.startswith(f"{python_version()}.")


def test_packages_differ_where_their_promise_ends() -> None:
    """numpy's last number does not matter, cloudpickle's does; what one side lacks never does."""
    mine = {"numpy": "2.1.0", "cloudpickle": "3.1.0"}
    assert misfits(mine, {"numpy": "2.1.3", "cloudpickle": "3.1.0"}) == []
    assert misfits(mine, {"numpy": "1.26.4", "cloudpickle": "3.1.1"}) == ["numpy", "cloudpickle"]
    assert misfits(mine, {}) == misfits({}, mine) == []


def test_releases_differ_by_their_first_two_numbers() -> None:
    """Two releases fit when only the last number differs."""
    assert same_release("0.1.0", "0.1.7")
    assert not same_release("0.1.0", "0.2.0")
    assert not same_release("0.1.0", "1.1.0")
