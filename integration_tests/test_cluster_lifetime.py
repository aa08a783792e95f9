"""Clusters made from Python: they start, they are found, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import ipyfleet as ipf
from ipyfleet_cluster import ClusterRunning, LauncherError
from ipyfleet_cluster.processes import ProcessRef
from ipyfleet_testing.waiting import wait_until

START_MAX_S = 60.0
"""A bound for a loaded machine; benchmarks measure the real figure."""


def _files(profile: Path) -> list[str]:
    return sorted(path.name for path in (profile / "security").iterdir())


def _folders(name: str) -> list[str]:
    """What clusters of this test run keep in their socket or shared memory directory."""
    folder = Path(os.environ[name])
    return [path.name for path in folder.glob("ipyfleet-*")]


def _assert_nothing_is_left(profile: Path) -> None:
    wait_until(lambda: _files(profile) == [], message=lambda: f"{_files(profile)} to go")
    wait_until(lambda: _folders("XDG_RUNTIME_DIR") == [], message="the socket directory to go")
    wait_until(lambda: _folders("IPYFLEET_SHM_DIR") == [], message="the shared memory to go")


def test_with_cluster(tmp_path: Path):
    """Inside the block n engines are ready; after it there are no processes and no files."""
    profile = tmp_path / "profile"
    with ipf.Cluster(n=2, profile_dir=str(profile)) as rc:
        assert rc.ids == [0, 1]
        assert isinstance(rc.cluster, ipf.Cluster)
        pids = rc[:].apply_sync(os.getpid)
        processes = [ProcessRef.of(pid) for pid in pids]
        assert len(_files(profile)) == 3
    assert not any(process.is_alive() for process in processes)
    _assert_nothing_is_left(profile)


def test_block_that_fails(tmp_path: Path):
    """When the block raises, that is what comes out, and the cluster is gone all the same."""
    with (
        pytest.raises(ZeroDivisionError),
        ipf.Cluster(n=1, profile_dir=str(tmp_path / "profile")),
    ):
        raise ZeroDivisionError
    _assert_nothing_is_left(tmp_path / "profile")


def test_what_waits_ends_with_the_controller(tmp_path: Path):
    """Stopping does not deal with tasks one by one: their result is that the controller closed."""
    cluster = ipf.Cluster(n=2, profile_dir=str(tmp_path / "profile"))
    with cluster.start_and_connect_sync() as rc:
        results = [rc[k % 2].apply_async(time.sleep, 60) for k in range(20)]
        assert rc.queue_status()
        cluster.stop_cluster_sync()
        for result in results:
            with pytest.raises(ipf.KernelError, match="the controller has closed"):
                result.get(10)
    assert cluster.engines == {}


def test_async_with_in_a_running_loop(tmp_path: Path):
    """async with, and the blocking methods too, work where a loop is running."""

    async def run() -> None:
        async with ipf.Cluster(n=1, profile_dir=str(tmp_path / "a")) as rc:
            assert await rc[:].apply_async(lambda: 5) == [5]
        with ipf.Cluster(n=1, profile_dir=str(tmp_path / "b")) as rc:
            assert rc[0].apply_sync(lambda: 6) == 6

    asyncio.run(run())
    _assert_nothing_is_left(tmp_path / "a")
    _assert_nothing_is_left(tmp_path / "b")


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_killed_owner_leaves_nothing(tmp_path: Path, when: str):
    """kill -9 of the owner, also in the middle of work, leaves no process, socket, memory, file."""
    profile = tmp_path / "profile"
    script = textwrap.dedent(
        """
        import json, os, sys, time
        import ipyfleet as ipf

        rc = ipf.Cluster(n=2, profile_dir=sys.argv[1]).start_and_connect_sync()
        engines = rc[:].apply_sync(os.getpid)
        rc[:].push({"data": bytes(1_000_000)}, block=True)
        if sys.argv[2] == "busy":
            rc[:].apply_async(time.sleep, 60)
        cluster = rc.cluster
        parts = [cluster.controller, cluster.engine_set]
        print(json.dumps(engines + [part.to_dict()["pid"] for part in parts]), flush=True)
        time.sleep(60)
        """
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(profile), when], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout:
        processes = [ProcessRef.of(pid) for pid in json.loads(owner.stdout.readline())]
    assert len(processes) == 4
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(process.is_alive() for process in processes))
    _assert_nothing_is_left(profile)


def test_killed_controller_is_cleaned_up_after(tmp_path: Path):
    """When the controller was killed, engines end by themselves, and stopping removes its files."""
    profile = tmp_path / "profile"
    cluster = ipf.Cluster(n=2, profile_dir=str(profile), restart_controller=False)
    cluster.start_cluster_sync()
    agent = cluster.engine_set
    assert agent is not None
    assert cluster.controller is not None
    cluster.controller.signal(signal.SIGKILL)
    wait_until(lambda: cluster.find_ended() is cluster.controller)
    cluster.stop_cluster_sync()
    assert not agent.is_running
    _assert_nothing_is_left(profile)


def test_next_start_replaces_what_a_killed_cluster_left(tmp_path: Path):
    """After everything was killed, the same cluster id can be started again, and works."""
    profile = tmp_path / "profile"
    first = ipf.Cluster(n=1, profile_dir=str(profile), cluster_id="c", restart_controller=False)
    first.start_cluster_sync()
    for launcher in (first.engine_set, first.controller):
        assert launcher is not None
        os.kill(launcher.to_dict()["pid"], signal.SIGKILL)
        asyncio.run(launcher.wait_stopped(10))
    assert _folders("XDG_RUNTIME_DIR")
    with ipf.Cluster(n=1, profile_dir=str(profile), cluster_id="c") as rc:
        assert rc[0].apply_sync(lambda: 7) == 7
    _assert_nothing_is_left(profile)
    first.stop_cluster_sync()


def test_found_by_another_process(tmp_path: Path):
    """from_file gives another process a client, more engines, and the means to stop."""
    profile = tmp_path / "profile"
    cluster = ipf.Cluster(n=1, profile_dir=str(profile), cluster_id="c", shutdown_atexit=False)
    cluster.start_cluster_sync()
    try:
        with pytest.raises(ClusterRunning, match="already running"):
            ipf.Cluster(n=1, profile_dir=str(profile), cluster_id="c").start_cluster_sync()
        found = ipf.Cluster.from_file(profile_dir=profile, cluster_id="c")
        with found.connect_client_sync() as rc:
            rc.wait_for_engines(1, timeout=START_MAX_S)
            assert rc[0].apply_sync(lambda: 8) == 8
            found.start_engines_sync(1)
            rc.wait_for_engines(2, timeout=START_MAX_S)
        again = ipf.Cluster.from_file(profile_dir=profile, cluster_id="c")
        assert sorted(again.engines) == ["1", "2"]
    finally:
        ipf.Cluster.from_file(profile_dir=profile, cluster_id="c").stop_cluster_sync()
        cluster.stop_cluster_sync()
    _assert_nothing_is_left(profile)


def test_engines_are_restarted_and_signalled(tmp_path: Path):
    """restart_engines gives fresh engines with new ids; signal_engines interrupts running work."""
    cluster = ipf.Cluster(n=2, profile_dir=str(tmp_path / "profile"))
    rc = cluster.start_and_connect_sync()
    try:
        cluster.restart_engines_sync()
        wait_until(lambda: rc.ids == [2, 3], message=lambda: f"new engines instead of {rc.ids}")
        running = rc[:].apply_async(_sleep_marked, str(tmp_path))
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
        cluster.signal_engines_sync(signal.SIGINT)
        with pytest.raises(ipf.CompositeError) as caught:
            running.get(timeout=10)
        assert len(caught.value.elist) == 2
        assert "KeyboardInterrupt" in str(caught.value)
        assert rc[:].apply_sync(lambda: 9) == [9, 9]
    finally:
        rc.close()
        cluster.stop_cluster_sync()


def _sleep_marked(folder: str) -> None:
    import os
    import time
    from pathlib import Path

    (Path(folder) / f"begun-{os.getpid()}").touch()
    time.sleep(60)


def test_controller_that_cannot_start_says_why(tmp_path: Path):
    """When the controller ends at once, the error quotes it; nothing is left running."""
    arguments: dict[str, Any] = {"controller_args": ["--no-such-option"]}
    cluster = ipf.Cluster(n=1, profile_dir=str(tmp_path / "profile"), **arguments)
    with pytest.raises(LauncherError, match=r"did not start: the controller exited(.|\n)*no.such"):
        cluster.start_and_connect_sync()
    _assert_nothing_is_left(tmp_path / "profile")


def test_engines_that_cannot_start_say_why(tmp_path: Path):
    """When the engines end at once, the error quotes their log; the controller is stopped."""
    arguments: dict[str, Any] = {"engine_args": ["--no-such-option"]}
    cluster = ipf.Cluster(n=1, profile_dir=str(tmp_path / "profile"), **arguments)
    with pytest.raises(LauncherError, match=r"engines' agent exited(.|\n)*no.such"):
        cluster.start_and_connect_sync()
    _assert_nothing_is_left(tmp_path / "profile")


def test_interrupted_start_leaves_nothing(tmp_path: Path):
    """Ctrl-C while a cluster starts stops what has been started already."""
    profile = tmp_path / "profile"
    script = textwrap.dedent(
        """
        import sys, time
        import ipyfleet as ipf
        try:
            with ipf.Cluster(n=8, profile_dir=sys.argv[1]):
                # So it was fast: the signal comes in here.
                time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(profile)], stdout=subprocess.PIPE, text=True
    )
    cluster_file = profile / "security"
    wait_until(lambda: cluster_file.is_dir() and any(cluster_file.glob("ipyfleet-cluster-*")))
    owner.send_signal(signal.SIGINT)
    output, _ = owner.communicate(timeout=30)
    assert "interrupted" in output
    _assert_nothing_is_left(profile)
