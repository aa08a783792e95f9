"""Old imports: each in a process of its own, since they change what can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipyfleet.compat import SUBMODULES

INSTALL = "import ipyfleet.compat; ipyfleet.compat.install()\n"


def run(code: str, **env: str) -> str:
    """Run code in a new Python; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_old_names_are_ipyfleet() -> None:
    """`ipyparallel` and `IPython.parallel` have ipyfleet's classes, however they are imported."""
    run(
        INSTALL
        + """
import ipyparallel as ipp
import ipyparallel.error
from ipyparallel import Client, error
from ipyparallel.error import CompositeError
from IPython import parallel
from IPython.parallel import Client as OldClient, require
import IPython.parallel.util
import ipyfleet
assert ipp.Client is Client is OldClient is parallel.Client is ipyfleet.Client
assert CompositeError is error.CompositeError is ipp.CompositeError is ipyfleet.CompositeError
assert ipp.__version__ == ipyfleet.__version__
names = {}
exec("from ipyparallel import *", names)
assert names["Client"] is Client and "CompositeError" in names
"""
    )


@pytest.mark.parametrize("root", ["ipyparallel", "IPython.parallel"])
def test_submodules(root: str) -> None:
    """Every old submodule that has a counterpart can be imported, and all its names are there."""
    imports = "".join(f"import {root}.{name}\n" for name in SUBMODULES if name)
    run(
        f"""{INSTALL}
import sys
{imports}
for name, module in list(sys.modules.items()):
    if name.startswith("{root}"):
        assert dir(module), f"{{name}} is empty"
        for attribute in dir(module):
            getattr(module, attribute)
"""
    )


def test_names_of_submodules() -> None:
    """Names are where scripts look for them."""
    run(
        INSTALL
        + """
from ipyparallel.util import interactive, utcnow, utc, extract_dates
from ipyparallel.client.asyncresult import AsyncResult, AsyncMapResult
from ipyparallel.client.view import DirectView, LoadBalancedView, BroadcastView, ViewExecutor
from ipyparallel.client.client import Client, ExecuteReply
from ipyparallel.client.remotefunction import RemoteFunction, remote, parallel
from ipyparallel.controller.dependency import Dependency, depend, dependent, require
from ipyparallel import Dependency as same, depend as also
from ipyparallel.error import InvalidDependency, ImpossibleDependency, UnmetDependency
assert same is Dependency and also is depend and isinstance(depend(len)(abs), dependent)
assert Dependency(["a"], all=False).check({"a"}) and issubclass(Dependency, set)
from ipyparallel.cluster import Cluster, ClusterManager
from ipyparallel.joblib import register_joblib_backend
assert utcnow().tzinfo is utc
found = extract_dates({"a": ["2020-01-02T03:04:05.000006Z", "no date", 5]})["a"]
assert found[0].isoformat() == "2020-01-02T03:04:05.000006+00:00" and found[1:] == ["no date", 5]
"""
    )


def test_what_has_no_counterpart_says_so() -> None:
    """A submodule or name that ipyfleet lacks is refused with a sentence that names it."""
    printed = run(
        INSTALL
        + """
try:
    import ipyparallel.nbextension
except ModuleNotFoundError as error:
    print(error)
try:
    from ipyparallel import NoSuchThing
except ImportError as error:
    print(error)
"""
    )
    assert "ipyparallel.nbextension has no counterpart in ipyfleet" in printed
    assert "NoSuchThing" in printed


def test_refused_where_the_real_one_is_imported(tmp_path: Path) -> None:
    """Where another ipyparallel is imported, `install` raises and changes nothing."""
    (tmp_path / "ipyparallel.py").write_text("REAL = True\n")
    printed = run(
        """
import sys
import ipyparallel
import ipyfleet.compat
before = list(sys.meta_path)
try:
    ipyfleet.compat.install()
except ImportError as error:
    print(error)
assert sys.meta_path == before
import ipyparallel
assert ipyparallel.REAL
""",
        PYTHONPATH=os.fspath(tmp_path),
    )
    assert "ipyparallel is imported already, from" in printed
    assert "Restart Python" in printed


def test_an_installed_one_is_hidden_and_comes_back(tmp_path: Path) -> None:
    """`install` goes before what is installed; `uninstall` undoes it. Both may be repeated."""
    (tmp_path / "ipyparallel.py").write_text("REAL = True\n")
    run(
        INSTALL
        + """
ipyfleet.compat.install()
import ipyparallel
assert not hasattr(ipyparallel, "REAL")
from IPython import parallel
ipyfleet.compat.uninstall()
ipyfleet.compat.uninstall()
import ipyparallel, IPython
assert ipyparallel.REAL
assert not hasattr(IPython, "parallel")
""",
        PYTHONPATH=os.fspath(tmp_path),
    )


def test_an_old_notebook_runs_with_one_line(tmp_path: Path) -> None:
    """`%load_ext ipyfleet.compat` before an old script, and it runs."""
    printed = run(
        """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in [
    "%load_ext ipyfleet.compat",
    "import ipyparallel as ipp",
    "cluster = ipp.Cluster(n=2); rc = cluster.start_and_connect_sync()",
    "%px a = 5",
    "@rc.load_balanced_view().parallel(block=True)\\ndef double(x): return [2 * k for k in x]",
    "print(double([1, 2, 3]), rc[:]['a'])",
    "from ipyparallel.error import CompositeError\\n"
    "try:\\n    rc[:].execute('1 / 0', block=True)\\n"
    "except CompositeError as error:\\n    print(len(error.elist))",
    "rc.close(); cluster.stop_cluster_sync()",
    "%unload_ext ipyfleet.compat",
]:
    shell.run_cell(cell).raise_error()
""",
        IPYTHONDIR=os.fspath(tmp_path),
    )
    assert "[2, 4, 6] [5, 5]\n2\n" in printed
