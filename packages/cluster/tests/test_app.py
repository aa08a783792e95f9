import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipyfleet_cluster import Cluster
from ipyfleet_cluster.app import IPCluster
from ipyfleet_cluster.app.start import IPClusterStart
from ipyfleet_testing.waiting import wait_until

MakeCluster = Callable[..., Cluster]


def _ipcluster(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ipyfleet_cluster", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_command_line_becomes_a_cluster(tmp_path: Path):
    """Flags, aliases and arguments after -- end up in the Cluster that start makes."""
    app = IPClusterStart()
    app.initialize(
        [
            "-n",
            "3",
            f"--profile-dir={tmp_path}",
            "--cluster-id=night",
            "--ip=10.0.0.5",
            "--location=head",
            "--log-level=DEBUG",
            "--engine-timeout=7",
            "--",
            "--hwm=1",
        ]
    )
    cluster = app._make_cluster()
    assert cluster.n == 3
    assert cluster.profile_dir == str(tmp_path)
    assert cluster.cluster_id == "night"
    assert cluster.supervised
    assert cluster.controller_ip == "10.0.0.5"
    assert cluster.controller_location == "head"
    assert cluster.controller_args == ["--hwm=1"]
    assert cluster.engine_timeout == 7
    assert cluster._log_args() == ["--log-level=10"]


def test_start_without_options_is_the_default_cluster(tmp_path: Path):
    """Without options it is the default profile, the empty id, and no level for children."""
    app = IPClusterStart()
    app.initialize([f"--ipython-dir={tmp_path}"])
    cluster = app._make_cluster()
    assert cluster.profile_dir == str(tmp_path / "profile_default")
    assert cluster.cluster_id == ""
    assert cluster._log_args() == []


def test_command_line_wins_over_the_profiles_config(tmp_path: Path):
    """ipcluster_config.py sets defaults that flags override."""
    (tmp_path / "ipcluster_config.py").write_text("c.Cluster.n = 7\nc.Cluster.engine_timeout = 5\n")
    app = IPClusterStart()
    app.initialize(["-n", "2", f"--profile-dir={tmp_path}"])
    cluster = app._make_cluster()
    assert (cluster.n, cluster.engine_timeout) == (2, 5)


def test_every_subcommand_has_help():
    """Each subcommand can be made and prints its description and examples."""
    for name, (command, summary) in IPCluster.subcommands.items():
        text = "\n".join(command().emit_help())
        assert summary
        assert "--cluster-id" in text, name


def test_stop_without_a_cluster():
    """Stopping what is not there exits with 11 and says how to start one."""
    done = _ipcluster("stop", "--cluster-id=none")
    assert done.returncode == 11
    assert "ipcluster start" in done.stderr


def test_start_of_a_running_cluster(make_cluster: MakeCluster):
    """Starting what runs already exits with 10, in the foreground and in the background."""
    cluster = make_cluster(n=1, cluster_id="")
    cluster.start_cluster_sync()
    for more in ((), ("--daemonize",)):
        done = _ipcluster("start", "-n", "1", f"--profile-dir={cluster.profile_dir}", *more)
        assert done.returncode == 10
        assert "the default cluster is already running" in done.stderr
    assert cluster.is_running


def test_list_and_stop(make_cluster: MakeCluster):
    """List shows what runs, as a table and as JSON; stop by id ends it; list is empty then."""
    cluster = make_cluster(n=2, cluster_id="night")
    cluster.start_cluster_sync()
    place = f"--profile-dir={cluster.profile_dir}"
    table = _ipcluster("list", place).stdout.splitlines()
    assert table[0].split() == [
        *("PROFILE", "CLUSTER", "ID", "RUNNING", "RESTARTS", "ENGINES", "LAUNCHER")
    ]
    assert table[1].split() == ["profile", "night", "True", "0", "2", "local"]
    (row,) = json.loads(_ipcluster("list", place, "-o", "json").stdout)
    assert row["cluster_id"] == "night"
    assert row["engines"] == 2
    assert row["running"] is True
    done = _ipcluster("stop", place, "night")
    assert done.returncode == 0, done.stderr
    assert "Stopped" in done.stdout
    assert not cluster.is_running
    assert json.loads(_ipcluster("list", place, "-o", "json").stdout) == []


def test_stop_all(make_cluster: MakeCluster):
    """Stop --all ends every cluster of the profile."""
    clusters = [make_cluster(n=1, cluster_id=name) for name in ("a", "b")]
    for cluster in clusters:
        cluster.start_cluster_sync()
    done = _ipcluster("stop", "--all", f"--profile-dir={clusters[0].profile_dir}")
    assert done.returncode == 0
    assert not any(cluster.is_running for cluster in clusters)


def test_stop_of_a_dead_cluster(make_cluster: MakeCluster):
    """Stopping a cluster whose processes were killed cleans up after it and exits with 11."""
    cluster = make_cluster(n=1, cluster_id="c", restart_controller=False)
    cluster.start_cluster_sync()
    for launcher in (cluster.controller, cluster.engine_set):
        assert launcher is not None
        os.kill(launcher.to_dict()["pid"], 9)
    wait_until(lambda: not cluster.is_running)
    done = _ipcluster("stop", f"--profile-dir={cluster.profile_dir}", "--cluster-id=c")
    assert done.returncode == 11
    assert "has ended" in done.stderr
    assert list((Path(cluster.profile_dir) / "security").iterdir()) == []


def test_clean(make_cluster: MakeCluster):
    """Clean leaves running clusters alone unless forced, and removes everything of ended ones."""
    cluster = make_cluster(n=1, cluster_id="c")
    cluster.start_cluster_sync()
    place = f"--profile-dir={cluster.profile_dir}"
    refused = _ipcluster("clean", place)
    assert refused.returncode == 1
    assert "clusters are running" in refused.stderr
    assert cluster.client_connection_file.exists()
    log = Path(cluster.profile_dir) / "log" / "ipengine-c-1-0.log"
    log.write_text("old")
    cluster.stop_cluster_sync()
    assert _ipcluster("clean", place).returncode == 0
    assert not log.exists()


def test_daemon_that_fails_tells_why(tmp_path: Path):
    """--daemonize exits with the background process's code and repeats what it said."""
    config = (
        "c.LocalControllerLauncher.controller_cmd = "
        f"[{sys.executable!r}, '-c', 'import sys; sys.exit(\"no luck today\")']\n"
    )
    (tmp_path / "ipcluster_config.py").write_text(config)
    done = _ipcluster("start", "-n", "1", "--daemonize", f"--profile-dir={tmp_path}")
    assert done.returncode == 1
    assert "no luck today" in done.stderr


@pytest.mark.parametrize("arguments", [["-n", "many"], ["--no-such-flag"]])
def test_wrong_arguments(tmp_path: Path, arguments: list[str]):
    """A wrong argument ends the command with a message that names it; nothing is started."""
    done = _ipcluster("start", f"--profile-dir={tmp_path}", *arguments)
    assert done.returncode != 0
    assert arguments[-1].strip("-").replace("-", "") in done.stderr.replace("-", "").replace(
        "_", ""
    )
    assert not (tmp_path / "security").exists()
