"""Controllers that die while somebody looks after them; they are stand-ins."""

import asyncio
import gc
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from ipyfleet_cluster import Cluster
from ipyfleet_cluster.leftovers import remove_all_leftovers
from ipyfleet_cluster.processes import ProcessRef
from ipyfleet_protocol.connection import load_connection_file
from ipyfleet_testing.waiting import wait_until

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_guarded(make_cluster: MakeCluster) -> MakeCluster:
    """Make clusters whose controller is started again; they run."""

    def make(**kwargs: Any) -> Cluster:
        cluster = make_cluster(n=1, cluster_id="c", restart_controller=True, **kwargs)
        return cluster.start_cluster_sync()

    return make


def kill(cluster: Cluster) -> int:
    """Kill the controller; return which it was."""
    assert cluster.controller is not None
    pid = cluster.controller.to_dict()["pid"]
    cluster.controller.signal(signal.SIGKILL)
    return int(pid)


def wait_restart(cluster: Cluster, number: int) -> None:
    """Wait until the controller has been started again so many times, and is ready."""

    def is_ready() -> bool:
        controller = cluster.controller
        return (
            cluster.restarts == number
            and controller is not None
            and load_connection_file(cluster.client_connection_file).pid
            == controller.to_dict()["pid"]
        )

    wait_until(is_ready, message=f"restart {number}")


def test_a_killed_controller_is_started_again(
    make_guarded: MakeCluster, caplog: pytest.LogCaptureFixture
):
    """It resumes where it was, the engines' agent stays, and all is told in log, file and list."""
    caplog.set_level(logging.WARNING, "ipyfleet.cluster")
    cluster = make_guarded(log=logging.getLogger("ipyfleet.cluster"))
    before = load_connection_file(cluster.client_connection_file)
    agent = cluster.engine_set
    assert cluster.find_ended() is None
    kill(cluster)
    wait_restart(cluster, 1)
    after = load_connection_file(cluster.client_connection_file)
    assert after.instance == before.instance
    assert after.pid != before.pid
    assert cluster.engine_set is agent
    assert agent is not None
    assert agent.is_running
    assert cluster.controller is not None
    assert "--resume" in cluster.controller.command()
    assert "--recover=30" in cluster.controller.command()
    assert "killed by signal 9" in caplog.text
    assert "Starting the controller again" in caplog.text
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "ipyfleet_cluster", "list", "-o", "json"),
            f"--profile-dir={cluster.profile_dir}",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    (row,) = json.loads(listed.stdout)
    assert (row["running"], row["restarts"]) == (True, 1)
    kill(cluster)
    wait_restart(cluster, 2)


def test_a_controller_that_cannot_be_started_again(
    make_guarded: MakeCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """After a few attempts it is given up, and the rest of the cluster is stopped."""
    monkeypatch.setattr("ipyfleet_cluster.restarting.FIRST_DELAY_S", 0.001)
    cluster = make_guarded(
        controller_args=["--fail-again"], log=logging.getLogger("ipyfleet.cluster")
    )
    agent = cluster.engine_set
    assert agent is not None
    kill(cluster)
    ended = cluster.wait_ended_sync()
    assert ended.exit_status == 4
    wait_until(lambda: not agent.is_running)
    assert "too often" in caplog.text
    assert cluster.find_ended() is ended
    # Clients see by that that it does not come back.
    security = Path(cluster.profile_dir) / "security"
    wait_until(lambda: list(security.glob("*-client.json")) == [])


def test_a_controller_that_was_asked_to_end_stays_so(make_guarded: MakeCluster):
    """One that ends by SIGTERM, as after a client's shutdown, is not started again."""
    cluster = make_guarded()
    controller = cluster.controller
    assert controller is not None
    controller.signal(signal.SIGTERM)
    assert cluster.wait_ended_sync() is controller
    assert controller.exit_status == 0
    assert cluster.restarts == 0


def test_a_cluster_that_is_dropped_is_stopped(tmp_path: Path, stand_in_config: Config):
    """Looking after its controller does not keep a cluster alive that nobody holds any more."""
    cluster = Cluster(
        n=1, cluster_id="c", profile_dir=str(tmp_path / "profile"), config=stand_in_config
    )
    cluster.start_cluster_sync()
    assert cluster.is_guarded
    assert cluster.controller is not None
    kill(cluster)
    wait_restart(cluster, 1)
    process = ProcessRef.of(cluster.controller.to_dict()["pid"])
    del cluster

    def is_gone() -> bool:
        gc.collect()
        return not process.is_alive()

    wait_until(is_gone)


def test_stopping_ends_the_guard(make_guarded: MakeCluster):
    """A cluster that is stopped, also while its controller is down, is stopped for good."""
    cluster = make_guarded()
    kill(cluster)
    cluster.stop_cluster_sync()
    assert not cluster.is_running
    assert list((Path(cluster.profile_dir) / "security").iterdir()) == []
    assert not any("guard" in thread.name for thread in threading.enumerate())


def test_at_the_end_of_the_interpreter(tmp_path: Path, stand_in_config: Config):
    """A cluster that nobody has stopped is stopped when its process ends, without a complaint."""
    profile = tmp_path / "profile"
    code = f"""
from ipyfleet_cluster import Cluster
from traitlets.config import Config

config = Config({json.dumps(stand_in_config)})
cluster = Cluster(n=1, cluster_id="c", profile_dir={str(profile)!r}, config=config)
cluster.start_cluster_sync()
assert cluster.is_guarded
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Traceback" not in done.stderr
    assert list((profile / "security").iterdir()) == []


def test_stopped_by_another_process(make_guarded: MakeCluster, stand_in_config: Config):
    """Who finds a cluster through its file can stop the controller there is now, for good."""
    cluster = make_guarded(controller_args=["--stubborn"])
    stand_in_config.LocalControllerLauncher.stop_seconds_until_kill = 0.2
    found = Cluster.from_file(
        profile_dir=cluster.profile_dir, cluster_id="c", config=stand_in_config
    )
    assert found.is_guarded
    kill(cluster)
    wait_restart(cluster, 1)
    found.stop_cluster_sync()
    wait_until(lambda: not cluster.is_running)
    ended = cluster.wait_ended_sync()
    assert ended is cluster.controller
    assert cluster.restarts == 1


def test_unguarded_controllers_stay_dead(make_cluster: MakeCluster):
    """Without restart_controller, or where the owner may end first, the end is the end."""
    cluster = make_cluster(n=1, restart_controller=False)
    cluster.start_cluster_sync()
    assert cluster.controller is not None
    assert not any("--recover" in arg for arg in cluster.controller.command())
    kill(cluster)
    assert cluster.wait_ended_sync() is cluster.controller
    assert cluster.find_ended() is cluster.controller
    lasting = make_cluster(n=1, cluster_id="d", restart_controller=True, shutdown_atexit=False)
    lasting.start_cluster_sync()
    assert not lasting.is_guarded


def test_files_that_are_needed_again_are_left_alone(
    make_guarded: MakeCluster, monkeypatch: pytest.MonkeyPatch
):
    """While a controller is down and awaited, other starts in the profile keep its files."""
    monkeypatch.setattr("ipyfleet_cluster.restarting.FIRST_DELAY_S", 1.0)
    cluster = make_guarded()
    controller = cluster.controller
    kill(cluster)
    assert controller is not None
    assert asyncio.run(controller.wait_stopped(10))
    assert remove_all_leftovers(Path(cluster.profile_dir)) == []
    wait_restart(cluster, 1)
