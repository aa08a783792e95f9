"""ipcluster as a user runs it: real processes, real signals, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipyfleet as ipf
from ipyfleet_cluster.processes import ProcessRef
from ipyfleet_testing.waiting import wait_until

TIMEOUT_S = 30.0


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ipyfleet_cluster", *arguments]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@contextlib.contextmanager
def _foreground(
    *arguments: str, ready: str = "2 engines are ready"
) -> Iterator[subprocess.Popen[str]]:
    """Run a command, by default ``start -n 2``, until it is ready; kill it if it still runs."""
    process = subprocess.Popen(
        _command(*(arguments or ("start", "-n", "2"))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first.startswith(ready), first
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=TIMEOUT_S)


@pytest.fixture(autouse=True)
def _own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))


@pytest.fixture
def security(tmp_path: Path) -> Path:
    """The directory of the default profile's connection files."""
    return tmp_path / "profile_default" / "security"


def _processes() -> list[ProcessRef]:
    """The processes of the default cluster, engines included."""
    cluster = ipf.Cluster.from_file()
    with cluster.connect_client_sync() as rc:
        pids = rc[:].apply_sync(os.getpid)
    for part in (cluster.controller, cluster.engine_set):
        assert part is not None
        pids.append(part.to_dict()["pid"])
    return [ProcessRef.of(pid) for pid in pids]


def _assert_gone(processes: list[ProcessRef], security: Path) -> None:
    wait_until(lambda: not any(process.is_alive() for process in processes))
    wait_until(lambda: not list(security.iterdir()), message="the files to go")
    for name in ("XDG_RUNTIME_DIR", "IPYFLEET_SHM_DIR"):
        wait_until(lambda name=name: not list(Path(os.environ[name]).glob("ipyfleet-*")))


def test_start_list_connect_stop(security: Path):
    """A started cluster is listed, found by Client() without arguments, and stopped by stop."""
    with _foreground() as start:
        processes = _processes()
        with ipf.Client() as rc:
            assert rc[:].apply_sync(lambda: 1) == [1, 1]
        (row,) = json.loads(_run("list", "-o", "json").stdout)
        assert (row["profile"], row["cluster_id"], row["engines"]) == ("default", "", 2)
        again = _run("start", "-n", "2")
        assert again.returncode == 10
        assert "already running" in again.stderr
        stop = _run("stop")
        assert stop.returncode == 0, stop.stderr
        output, errors = start.communicate(timeout=TIMEOUT_S)
        assert start.returncode == 0, errors
        assert "Stopped." in output
    assert _run("stop").returncode == 11
    _assert_gone(processes, security)


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c(security: Path, presses: int):
    """Ctrl-C stops the cluster; pressing it again meanwhile neither orphans nor breaks anything."""
    with _foreground() as start:
        processes = _processes()
        for _ in range(presses):
            start.send_signal(signal.SIGINT)
        output, errors = start.communicate(timeout=TIMEOUT_S)
        assert start.returncode == 0, errors
        assert "Got SIGINT" in output
        assert "Traceback" not in errors
    _assert_gone(processes, security)


def test_killed_ipcluster_leaves_nothing(security: Path):
    """kill -9 of ipcluster takes the whole cluster along, files included."""
    with _foreground() as start:
        processes = _processes()
        start.kill()
    _assert_gone(processes, security)


def test_death_of_the_controller_is_told(security: Path):
    """A controller that dies and is not started again ends the engines, and ipcluster says so."""
    with _foreground("start", "-n", "2", "--no-restart-controller") as start:
        processes = _processes()
        controller = ipf.Cluster.from_file().controller
        assert controller is not None
        controller.signal(signal.SIGKILL)
        _, errors = start.communicate(timeout=TIMEOUT_S)
        assert start.returncode == 1
        assert "the controller was killed by signal 9" in errors
    _assert_gone(processes, security)


def test_shutdown_by_a_client_is_no_error(security: Path):
    """A client's shutdown(hub=True) ends ipcluster with code 0."""
    with _foreground() as start:
        processes = _processes()
        with ipf.Client() as rc:
            rc.shutdown(hub=True)
        output, errors = start.communicate(timeout=TIMEOUT_S)
        assert start.returncode == 0, errors
        assert "was shut down" in output
    _assert_gone(processes, security)


def test_daemonize(security: Path):
    """--daemonize returns when the engines are ready; the cluster lives on until stop."""
    done = _run("start", "-n", "2", "--daemonize", "--cluster-id=night")
    assert done.returncode == 0, done.stderr
    assert "2 engines are ready" in done.stdout
    assert "cluster_id='night'" in done.stdout
    with ipf.Client(cluster_id="night") as rc:
        assert rc.ids == [0, 1]
        assert rc[:].apply_sync(lambda: 2) == [2, 2]
        processes = [ProcessRef.of(pid) for pid in rc[:].apply_sync(os.getpid)]
    again = _run("start", "-n", "2", "--daemonize", "--cluster-id=night")
    assert again.returncode == 10
    assert _run("stop", "--cluster-id=night").returncode == 0
    _assert_gone(processes, security)


def test_more_engines(security: Path):
    """ipcluster engines adds engines to a running cluster, and takes them away on Ctrl-C."""
    with _foreground() as start, ipf.Client() as rc:
        with _foreground("engines", "-n", "1", ready="1 more engines are ready") as engines:
            assert rc.ids == [0, 1, 2]
            engines.send_signal(signal.SIGINT)
            assert engines.wait(TIMEOUT_S) == 0
        wait_until(lambda: rc.ids == [0, 1])
        start.send_signal(signal.SIGTERM)
        start.communicate(timeout=TIMEOUT_S)
        assert start.returncode == 0
    _assert_gone([], security)


def test_engines_that_fail_to_start(security: Path, tmp_path: Path):
    """When engines cannot start, start exits with an error that quotes them, and stops the rest."""
    config = "c.Cluster.engine_args = ['--no-such-option']\n"
    (tmp_path / "profile_default").mkdir()
    (tmp_path / "profile_default" / "ipcluster_config.py").write_text(config)
    done = _run("start", "-n", "1")
    assert done.returncode == 1
    assert "engines' agent exited" in done.stderr
    _assert_gone([], security)
