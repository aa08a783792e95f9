import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from traitlets.config import Config

from ipyfleet_cluster import Cluster, ClusterRunning, LauncherError, NoClusterFile
from ipyfleet_cluster.processes import ProcessRef
from ipyfleet_protocol import paths
from ipyfleet_testing.waiting import wait_until

MakeCluster = Callable[..., Cluster]


def _engines(cluster: Cluster) -> list[Path]:
    return list(Path(cluster.profile_dir).glob("engine-*"))


def _wait_engines(cluster: Cluster, n: int) -> None:
    wait_until(lambda: len(_engines(cluster)) == n, message=f"{n} engines")


def _files(cluster: Cluster) -> set[str]:
    return {path.name for path in (Path(cluster.profile_dir) / "security").iterdir()}


def test_start_and_stop(make_cluster: MakeCluster):
    """Starting leaves processes and files that a later stop removes to the last."""
    cluster = make_cluster(n=2, cluster_id="c")
    assert cluster.start_cluster_sync() is cluster
    controller, agent = cluster.controller, cluster.engine_set
    assert controller is not None
    assert agent is not None
    assert controller.is_running
    assert agent.is_running
    assert _files(cluster) == {
        "ipyfleet-c-client.json",
        "ipyfleet-c-engine.json",
        "ipyfleet-cluster-c.json",
    }
    assert "controller=<running>" in repr(cluster)
    assert "engine_sets=['1']" in repr(cluster)
    cluster.stop_cluster_sync()
    assert not controller.is_running
    assert not agent.is_running
    assert cluster.controller is None
    assert cluster.engines == {}
    assert _files(cluster) == set()
    assert list(paths.log_dir(Path(cluster.profile_dir)).iterdir()) == []


def test_a_cluster_that_is_not_running_is_not_waited_for(make_cluster: MakeCluster):
    """Connecting to a cluster before its start, or after its stop, says at once that it is off."""
    cluster = make_cluster(n=0, cluster_id="c", controller_timeout=1e6)
    with pytest.raises(LauncherError, match=r"'c'.* is not running.*start_cluster\(\) starts it"):
        cluster.connect_client_sync()
    cluster.start_cluster_sync()
    cluster.stop_cluster_sync()
    with pytest.raises(LauncherError, match="is not running"):
        cluster.connect_client_sync()


def test_no_engines_at_first(make_cluster: MakeCluster):
    """A cluster of 0 engines is a controller; engines can be added."""
    cluster = make_cluster(n=0).start_cluster_sync()
    assert cluster.engines == {}
    cluster.start_engines_sync(1)
    _wait_engines(cluster, 1)


def test_second_cluster_with_the_same_id_is_refused(make_cluster: MakeCluster):
    """One cluster id, one cluster; the refusal disturbs neither the running one nor its file."""
    first = make_cluster(n=1, cluster_id="c")
    first.start_cluster_sync()
    with pytest.raises(ClusterRunning, match="'c' is already running"):
        make_cluster(n=1, cluster_id="c").start_cluster_sync()
    with pytest.raises(ClusterRunning, match="already started"):
        first.start_controller_sync()
    assert first.is_running
    assert Cluster.from_file(profile_dir=first.profile_dir, cluster_id="c").is_running


def test_controller_that_dies_at_start_is_quoted(make_cluster: MakeCluster):
    """When the controller ends at once, the error quotes its log, and nothing is left running."""
    cluster = make_cluster(n=1, controller_args=["--fail=no room on the bus"])
    with pytest.raises(LauncherError, match=r"exited with code 3(.|\n)*no room on the bus"):
        cluster.start_cluster_sync()
    assert not cluster.is_running
    assert _files(cluster) == set()


def test_command_that_is_not_there(make_cluster: MakeCluster):
    """A command that cannot be run is named by the error."""
    config = Config()
    config.LocalControllerLauncher.controller_cmd = ["/no/such/command"]
    cluster = make_cluster(config=config)
    with pytest.raises(LauncherError, match=r"cannot start the controller.*/no/such/command"):
        cluster.start_cluster_sync()
    assert _files(cluster) == set()


def test_process_that_ignores_sigterm_is_killed(make_cluster: MakeCluster, stand_in_config: Config):
    """A controller that does not stop is killed, and what it leaves is removed for it."""
    stand_in_config.LocalControllerLauncher.stop_seconds_until_kill = 0.1
    cluster = make_cluster(n=1, config=stand_in_config, controller_args=["--stubborn"])
    cluster.start_cluster_sync()
    controller = cluster.controller
    assert controller is not None
    cluster.stop_cluster_sync()
    assert controller.exit_status == -signal.SIGKILL
    assert _files(cluster) == set()


def test_engine_sets_come_and_go(make_cluster: MakeCluster):
    """Engine sets are started, restarted under their id, signalled and stopped one by one."""
    cluster = make_cluster(n=1)
    cluster.start_controller_sync()
    assert cluster.start_engines_sync(2) == "1"
    assert cluster.start_engines_sync(1, engine_set_id="b") == "b"
    _wait_engines(cluster, 3)
    cluster.signal_engines_sync(signal.SIGUSR1, "1")
    signals = Path(cluster.profile_dir) / "signals"
    wait_until(lambda: signals.exists() and len(signals.read_text().split()) == 2)
    before = cluster.engines["b"]
    cluster.restart_engines_sync("b")
    assert not before.is_running
    assert cluster.engines["b"].is_running
    assert cluster.engines["b"].n == 1
    cluster.stop_engines_sync("1")
    assert list(cluster.engines) == ["b"]
    with pytest.raises(KeyError, match="no engine set '1'"):
        cluster.stop_engines_sync("1")
    with pytest.raises(ValueError, match="'b' already"):
        cluster.start_engines_sync(1, engine_set_id="b")


def test_found_through_its_file(make_cluster: MakeCluster):
    """A cluster is found by another object through its file, shown the same, and stopped by it."""
    cluster = make_cluster(n=2, cluster_id="c")
    cluster.start_cluster_sync()
    found = Cluster.from_file(profile_dir=cluster.profile_dir, cluster_id="c")
    assert found.controller is not None
    assert cluster.controller is not None
    assert found.controller.to_dict() == cluster.controller.to_dict()
    assert found.engines["1"].n == 2
    assert not found.shutdown_atexit
    found.stop_cluster_sync()
    assert not cluster.is_running
    with pytest.raises(NoClusterFile, match="ipcluster start"):
        Cluster.from_file(profile_dir=cluster.profile_dir, cluster_id="c")


def test_files_of_a_killed_controller_are_replaced(make_cluster: MakeCluster):
    """What a killed controller left does not keep the next one from starting."""
    first = make_cluster(n=1, cluster_id="c", restart_controller=False)
    first.start_cluster_sync()
    controller = first.controller
    assert controller is not None
    controller.signal(signal.SIGKILL)
    wait_until(lambda: not controller.is_running)
    first.engines["1"].signal(signal.SIGKILL)
    asyncio.run(first.engines["1"].stop())
    old = first.client_connection_file.read_bytes()
    second = make_cluster(n=1, cluster_id="c")
    second.start_cluster_sync()
    assert second.client_connection_file.read_bytes() != old
    assert len(list(Path(os.environ["XDG_RUNTIME_DIR"]).glob("ipyfleet-*"))) == 1


def test_unusable_connection_file_is_not_taken_for_the_new_one(make_cluster: MakeCluster):
    """A file that another release left is waited past until the new controller replaces it."""
    cluster = make_cluster(n=1, cluster_id="c")
    path = cluster.client_connection_file
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 99, "protocol": 99}')
    cluster.start_cluster_sync()
    assert json.loads(path.read_text())["format"] != 99


def test_leftovers_of_other_ids_are_removed_at_the_next_start(make_cluster: MakeCluster):
    """What a killed cluster left under its generated id is removed by any start in the profile."""
    first = make_cluster(n=1, cluster_id="old", restart_controller=False)
    first.start_cluster_sync()
    for launcher in (first.controller, *first.engines.values()):
        assert launcher is not None
        os.kill(launcher.to_dict()["pid"], signal.SIGKILL)
        assert asyncio.run(launcher.wait_stopped(10))
    assert "ipyfleet-old-client.json" in _files(first)
    second = make_cluster(n=1, cluster_id="new")
    second.start_cluster_sync()
    assert not any("old" in name for name in _files(second))


def test_killed_owner_takes_everything_along(tmp_path: Path, stand_in_config: Config):
    """When the owner is killed with SIGKILL, its controller, agent and engines end too."""
    script = textwrap.dedent(
        """
        import json, sys, time
        from traitlets.config import Config
        from ipyfleet_cluster import Cluster
        cluster = Cluster(n=2, profile_dir=sys.argv[1], config=Config(json.loads(sys.argv[2])))
        cluster.start_cluster_sync()
        parts = [cluster.controller, cluster.engine_set]
        print(json.dumps([part.to_dict() for part in parts]), flush=True)
        time.sleep(60)
        """
    )
    arguments = [str(tmp_path / "profile"), json.dumps(stand_in_config)]
    owner = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout:
        children = [ProcessRef.from_dict(state) for state in json.loads(owner.stdout.readline())]
    wait_until(lambda: len(children[1].children()) == 2)
    everybody = [*children, *children[1].children()]
    assert all(process.is_alive() for process in everybody)
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(process.is_alive() for process in everybody))


def test_forked_copy_leaves_the_cluster_alone(make_cluster: MakeCluster):
    """A process forked from the owner does not stop the owner's cluster when it exits."""
    cluster = make_cluster(n=1)
    cluster.start_cluster_sync()
    pid = os.fork()
    if pid == 0:
        try:
            cluster.stop_at_exit()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert cluster.controller is not None
    assert cluster.controller.is_running
    assert cluster.engines["1"].is_running


def test_exit_stops_only_what_this_process_added(
    make_cluster: MakeCluster, stand_in_config: Config
):
    """Of a cluster found through its file, exiting stops the engines added here and no others."""
    cluster = make_cluster(n=1, cluster_id="c")
    cluster.start_cluster_sync()
    found = Cluster.from_file(
        profile_dir=cluster.profile_dir, cluster_id="c", config=stand_in_config
    )
    found.shutdown_atexit = True
    set_id = found.start_engines_sync(1)
    added = found.engines[set_id]
    found.stop_at_exit()
    assert not added.is_running
    assert cluster.controller is not None
    assert cluster.controller.is_running
    assert cluster.engines["1"].is_running


def test_cluster_that_shall_live_on(tmp_path: Path, stand_in_config: Config):
    """With shutdown_atexit off the processes have no lease and outlive the object."""
    cluster = Cluster(
        n=1,
        profile_dir=str(tmp_path / "profile"),
        cluster_id="c",
        config=stand_in_config,
        shutdown_atexit=False,
    )
    cluster.start_cluster_sync()
    launchers = [cluster.controller, *cluster.engines.values()]
    try:
        assert all(launcher._lease is None for launcher in launchers)
        cluster.stop_at_exit()
        cluster.__del__()
        assert cluster.is_running
    finally:
        Cluster.from_file(profile_dir=cluster.profile_dir, cluster_id="c").stop_cluster_sync()
        cluster.stop_cluster_sync()


def test_arguments_reach_the_processes(make_cluster: MakeCluster, tmp_path: Path):
    """What the user sets ends up on the command lines."""
    cluster = make_cluster(
        n=3,
        cluster_id="c",
        controller_ip="10.0.0.5",
        controller_location="head",
        controller_args=["--hwm=1"],
        engine_args=["--startup-command=1"],
        log_level="DEBUG",
    )
    cluster.start_cluster_sync()
    assert cluster.controller is not None
    place = [f"--profile-dir={tmp_path / 'profile'}", "--cluster-id=c"]
    assert cluster.controller.command()[2:] == [
        *place,
        "--log-level=DEBUG",
        "--ip=10.0.0.5",
        "--location=head",
        "--recover=30",
        "--hwm=1",
    ]
    engine = cluster.engines["1"].command()
    assert engine[2:4] == ["-n", "3"]
    assert {*place, "--timeout=60", "--log-level=DEBUG", "--startup-command=1"} <= set(engine)


def test_aliases_and_unknown_arguments(tmp_path: Path):
    """engines= and controller= name launcher classes; two names for one, or a wrong one, fail."""
    cluster = Cluster(profile_dir=str(tmp_path), engines="local", controller="local")
    assert cluster.engine_launcher_class == "local"
    with pytest.raises(TypeError, match="two names of one option"):
        Cluster(engines="local", engine_launcher_class="local")
    with pytest.raises(TypeError, match="unexpected argument 'engine_number'"):
        Cluster(engine_number=3)


def test_defaults_of_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Profile and id default to the default profile and a fresh id; paths are absolute."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    first, second = Cluster(), Cluster(profile="p")
    assert first.profile_dir == str(tmp_path / "profile_default")
    assert second.profile_dir == str(tmp_path / "profile_p")
    assert first.cluster_id != second.cluster_id
    monkeypatch.chdir(tmp_path)
    assert Cluster(profile_dir="here").profile_dir == str(tmp_path / "here")


def test_profile_config_is_read(tmp_path: Path):
    """ipcluster_config files of the profile apply; what is said in the call wins over them."""
    (tmp_path / "ipcluster_config.py").write_text(
        "c = get_config()\nc.Cluster.n = 7\nc.Cluster.engine_timeout = 5\n"
    )
    (tmp_path / "ipcluster_config.json").write_text('{"Cluster": {"engine_timeout": 6}}')
    cluster = Cluster(profile_dir=str(tmp_path))
    assert (cluster.n, cluster.engine_timeout) == (7, 6)
    assert Cluster(n=2, profile_dir=str(tmp_path)).n == 2
    config = Config()
    config.Cluster.n = 3
    assert Cluster(profile_dir=str(tmp_path), config=config).n == 3
    assert Cluster(profile_dir=str(tmp_path), load_profile=False).n is None


def test_async_methods(make_cluster: MakeCluster):
    """Everything that has a blocking twin works inside a running loop too."""

    async def run() -> bool:
        cluster = make_cluster(n=1)
        await cluster.start_cluster()
        was_running = cluster.is_running
        await cluster.stop_cluster()
        return was_running and not cluster.is_running

    assert asyncio.run(run())
