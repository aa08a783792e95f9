"""A controller that is killed and started again: nobody loses anything, nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipyfleet as ipf
from ipyfleet.error import EngineError, KernelError, TaskAborted
from ipyfleet_cluster.processes import ProcessRef
from ipyfleet_protocol.connection import ConnectionInfo, load_connection_file
from ipyfleet_testing.chaos import RESPAWN_ARGS, EngineKiller, RunLog, value_of
from ipyfleet_testing.cluster import ClusterFactory
from ipyfleet_testing.waiting import wait_until

PATIENCE_S = 60.0
TASKS = 20_000
TASK_S = 0.0002


def kill_controller(cluster: ipf.Cluster) -> None:
    """Kill -9 of the controller that runs now, and wait until another one runs."""
    controller, before = cluster.controller, cluster.restarts
    assert controller is not None
    controller.signal(signal.SIGKILL)
    wait_until(lambda: cluster.restarts > before, message="the controller to be started again")


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    """Count what runs."""
    (tmp_path / "runs").mkdir()
    return RunLog(tmp_path / "runs")


@pytest.fixture
def cluster(cluster_factory: ClusterFactory) -> ipf.Cluster:
    """Start four engines, and a controller that is started again."""
    return cluster_factory(n=4)


@pytest.fixture
def rc(cluster: ipf.Cluster) -> Iterator[ipf.Client]:
    """Connect a client."""
    with contextlib.closing(cluster.connect_client_sync()) as client:
        client.wait_for_engines(4, timeout=PATIENCE_S, interactive=False)
        yield client


@pytest.mark.parametrize("kills", [1, 2])
def test_a_controller_killed_in_the_middle_of_a_map(
    cluster: ipf.Cluster, rc: ipf.Client, log: RunLog, kills: int
) -> None:
    """The map completes with each result once and each task run once; all else is as before."""
    with contextlib.closing(cluster.connect_client_sync()) as other:
        ids, pids = rc.ids, rc[:].apply_sync(os.getpid)
        everywhere = other[:]
        everywhere["kept"] = kills
        old = other.load_balanced_view().apply_async(pow, 2, 10)
        assert old.get(PATIENCE_S) == 1024
        asked = rc.load_balanced_view().apply_async(pow, 2, 11)
        assert asked.get(PATIENCE_S) == 2048
        with log.holding(TASKS - 1, TASK_S) as function:
            result = rc.load_balanced_view().map_async(function, range(TASKS), chunksize=1)
            for number in range(kills):
                wait_until(lambda mark=(number + 1) * TASKS // (kills + 2): log.total > mark)
                kill_controller(cluster)
            assert not result.ready()
        assert result.get(PATIENCE_S) == [value_of(number) for number in range(TASKS)]
        assert result._work.arrived == TASKS
        assert log.count() == Counter(range(TASKS))
        assert rc.ids == other.ids == ids
        assert everywhere.apply_sync(os.getpid) == pids
        assert everywhere["kept"] == [kills] * 4
        assert other.get_result(old.msg_id).get(PATIENCE_S) == 1024
        assert other.get_result(asked.msg_id).get(PATIENCE_S) == 2048
        assert "reconnecting" not in repr(rc)


@pytest.mark.timeout(240)
def test_engines_and_controller_killed(cluster_factory: ClusterFactory, log: RunLog) -> None:
    """Engines that are killed all the while, the controller twice: every result is right."""
    cluster, count, kills = cluster_factory(n=4, engine_args=RESPAWN_ARGS), 20_000, 20
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        engines = rc.session.link.engines

        def find_pids() -> list[int]:
            return [engines.known[engine].pid for engine in engines.ids]

        def is_due(killed: int) -> bool:
            return len(engines.ids) >= 3 and log.total > (killed + 1) * count // (kills + 2)

        with EngineKiller(find_pids, is_due, kills) as killer:
            with log.holding(count - 1) as function:
                result = rc.load_balanced_view(retries=kills).map_async(
                    function, range(count), chunksize=1
                )
                for part in (1, 2):
                    wait_until(lambda mark=part * count // 3: log.total > mark, PATIENCE_S)
                    kill_controller(cluster)
                killer.wait(PATIENCE_S)
            values = result.get(PATIENCE_S)
        assert values == [value_of(number) for number in range(count)]
        assert killer.kills == kills


def test_calls_while_the_controller_is_away(cluster: ipf.Cluster, rc: ipf.Client) -> None:
    """What is called meanwhile is done later; what has a time limit keeps it."""
    assert cluster.controller is not None
    before = cluster.restarts
    # Both come to it when it goes on, the death at once.
    cluster.controller.signal(signal.SIGSTOP)
    view = rc.load_balanced_view()
    stopped = view.apply_async(pow, 2, 3)
    cluster.controller.signal(signal.SIGKILL)
    wait_until(lambda: rc.session.reconnecting)
    away = [view.apply_async(pow, 2, k) for k in range(100)]
    with pytest.raises(TimeoutError):
        rc[0].apply_async(pow, 2, 4).get(0.0)
    direct = rc[:].apply_async(os.getpid)
    assert stopped.get(PATIENCE_S) == 8
    assert [ar.get(PATIENCE_S) for ar in away] == [2**k for k in range(100)]
    assert len(set(direct.get(PATIENCE_S))) == 4
    wait_until(lambda: cluster.restarts > before)


def test_a_long_task_goes_on(cluster: ipf.Cluster, rc: ipf.Client, tmp_path: Path) -> None:
    """A task that runs when the controller dies is not disturbed; its result arrives."""
    begun, end = tmp_path / "begun", tmp_path / "end"

    def work(begun: str, end: str) -> int:
        import pathlib
        import time

        pathlib.Path(begun).touch()
        while not pathlib.Path(end).exists():
            time.sleep(0.01)
        print("done")
        return 5

    result = rc[1].apply_async(work, str(begun), str(end))
    wait_until(begun.exists)
    kill_controller(cluster)
    wait_until(lambda: not rc.session.reconnecting)
    assert rc[0].apply_sync(os.getpid) > 0
    assert not result.ready()
    end.touch()
    assert result.get(PATIENCE_S) == 5
    assert result.wait_for_output(PATIENCE_S)
    assert result.stdout == "done\n"


def test_an_engine_that_dies_meanwhile(cluster_factory: ClusterFactory, tmp_path: Path) -> None:
    """Tasks of an engine that is gone when the controller is back fail, or are done elsewhere."""
    cluster = cluster_factory(n=2)
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        pids = rc[:].apply_sync(os.getpid)
        ids = rc.ids
        go = tmp_path / "go"

        def wait(path: str) -> int:
            import pathlib
            import time

            while not pathlib.Path(path).exists():
                time.sleep(0.01)
            return os.getpid()

        fixed = [rc[engine].apply_async(wait, str(go)) for engine in ids]
        free = rc.load_balanced_view(retries=1).map_async(abs, range(50), chunksize=1)
        assert cluster.controller is not None
        before = cluster.restarts
        cluster.controller.signal(signal.SIGSTOP)
        os.kill(pids[0], signal.SIGKILL)
        cluster.controller.signal(signal.SIGKILL)
        wait_until(lambda: cluster.restarts > before)
        go.touch()
        with pytest.raises(EngineError):
            fixed[0].get(PATIENCE_S)
        assert fixed[1].get(PATIENCE_S) == pids[1]
        assert free.get(PATIENCE_S) == list(range(50))
        wait_until(lambda: rc.ids == ids[1:])


def test_aborted_tasks_stay_aborted(cluster: ipf.Cluster, rc: ipf.Client, tmp_path: Path) -> None:
    """What was cancelled before the controller died does not run after it."""
    go = tmp_path / "go"

    def wait(path: str) -> None:
        import pathlib
        import time

        while not pathlib.Path(path).exists():
            time.sleep(0.01)

    blocking = rc[0].apply_async(wait, str(go))
    behind = rc[0].apply_async(abs, -1)
    assert cluster.controller is not None
    cluster.controller.signal(signal.SIGSTOP)
    behind.abort()
    before = cluster.restarts
    cluster.controller.signal(signal.SIGKILL)
    wait_until(lambda: cluster.restarts > before)
    with pytest.raises(TaskAborted):
        behind.get(PATIENCE_S)
    go.touch()
    blocking.get(PATIENCE_S)


def test_what_failed_before_has_failed(cluster_factory: ClusterFactory) -> None:
    """A task after one that failed does not run, though nobody but the client knows of that."""
    cluster = cluster_factory(n=1, controller_args=["--nodb"])
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        view = rc.load_balanced_view()
        results = view.map_async(divmod, [1, 1], [1, 0], chunksize=1)
        assert results.wait(PATIENCE_S)
        good, bad = results.split()
        assert cluster.controller is not None
        before = cluster.restarts
        cluster.controller.signal(signal.SIGSTOP)
        with view.temp_flags(after=bad):
            never = view.apply_async(abs, -1)
        with view.temp_flags(after=good):
            later = view.apply_async(abs, -2)
        rc.session.submit.flush()
        cluster.controller.signal(signal.SIGKILL)
        assert later.get(PATIENCE_S) == 2
        with pytest.raises(ipf.ImpossibleDependency):
            never.get(PATIENCE_S)
        assert cluster.restarts > before


def test_large_arguments_and_results(cluster: ipf.Cluster, rc: ipf.Client) -> None:
    """Shared memory outlives the controller: buffers under way arrive."""
    data = [bytes([k]) * 1_000_000 for k in range(30)]
    result = rc.load_balanced_view().map_async(lambda b: b[:1] + b, data, chunksize=1)
    kill_controller(cluster)
    values = result.get(PATIENCE_S)
    assert [len(value) for value in values] == [1_000_001] * 30
    assert [value[0] for value in values] == list(range(30))


def test_another_client_can_ask(cluster: ipf.Cluster, rc: ipf.Client) -> None:
    """What was recorded before is there for a client that comes after the restart."""
    msg_id = rc.load_balanced_view().apply_async(pow, 3, 3).msg_id
    rc.wait(timeout=PATIENCE_S)
    # The last moments' records are lost with the controller; the database has what it tells.
    wait_until(lambda: rc.db_query({"msg_id": msg_id, "completed": {"$ne": None}}))
    kill_controller(cluster)
    with contextlib.closing(cluster.connect_client_sync()) as later:
        later.wait_for_engines(4, timeout=PATIENCE_S, interactive=False)
        assert later.get_result(msg_id).get(PATIENCE_S) == 27
        assert later[:].apply_sync(abs, -1) == [1] * 4


def test_engines_started_later(cluster_factory: ClusterFactory) -> None:
    """Ids are not used again: engines that come after the restart get new ones."""
    cluster = cluster_factory(n=2)
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        assert rc.ids == [0, 1]
        first = cluster.engine_set
        assert first is not None
        kill_controller(cluster)
        cluster.start_engines_sync(1)
        wait_until(lambda: len(rc.ids) == 3)
        assert rc.ids == [0, 1, 2]


def test_nobody_restarts_it(cluster_factory: ClusterFactory) -> None:
    """Without an owner that restarts it, the death of the controller is an error at once."""
    cluster = cluster_factory(n=1, restart_controller=False)
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        result = rc[0].apply_async(time.sleep, 60)
        assert cluster.controller is not None
        cluster.controller.signal(signal.SIGKILL)
        with pytest.raises(KernelError, match="has died"):
            result.get(PATIENCE_S)


def test_a_controller_that_is_given_up(
    cluster_factory: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a controller that dies too often is told at once, and nothing is left."""
    monkeypatch.setattr("ipyfleet_cluster.restarting.RESTARTS_MAX", 1)
    cluster = cluster_factory(n=2)
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        pids = rc[:].apply_sync(os.getpid)
        result = rc[0].apply_async(time.sleep, 60)
        kill_controller(cluster)
        wait_until(lambda: not rc.session.reconnecting)
        assert cluster.controller is not None
        cluster.controller.signal(signal.SIGKILL)
        with pytest.raises(KernelError, match="its cluster was stopped"):
            result.get(PATIENCE_S)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        wait_until(lambda: not _find_traces(rc.session.info))


def test_a_cluster_that_is_stopped_while_its_controller_is_dead(
    cluster_factory: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients do not go on waiting for a controller that nobody will start any more."""
    monkeypatch.setattr("ipyfleet_cluster.restarting.FIRST_DELAY_S", 60.0)
    cluster = cluster_factory(n=1)
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        result = rc[0].apply_async(time.sleep, 60)
        assert cluster.controller is not None
        cluster.controller.signal(signal.SIGKILL)
        wait_until(lambda: rc.session.reconnecting)
        cluster.stop_cluster_sync()
        with pytest.raises(KernelError, match="its cluster was stopped"):
            result.get(PATIENCE_S)
        assert _find_traces(rc.session.info) == []


def test_controller_and_owner_are_killed(tmp_path: Path) -> None:
    """Nobody is left to start the controller again: engines end, and remove what is left of it."""
    profile = tmp_path / "profile"
    code = f"""
import signal
from ipyfleet import Cluster

cluster = Cluster(n=1, cluster_id="c", profile_dir={str(profile)!r})
rc = cluster.start_and_connect_sync()
print("up", flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        info = load_connection_file(profile / "security" / "ipyfleet-c-client.json")
        with ipf.Client(profile_dir=profile, cluster_id="c") as rc:
            result = rc[0].apply_async(time.sleep, 60)
            pid = info.pid
            owner.send_signal(signal.SIGSTOP)
            ProcessRef.of(pid).signal(signal.SIGKILL)
            wait_until(lambda: rc.session.reconnecting)
            owner.kill()
            with pytest.raises((KernelError, EngineError)):
                result.get(PATIENCE_S)
    wait_until(lambda: not _find_traces(info))
    wait_until(lambda: list((profile / "security").iterdir()) == [])


def _find_traces(info: ConnectionInfo) -> list[Path]:
    """Return what there is of a controller's files outside of its profile."""
    sockets = Path(info.urls[0].removeprefix("unix://")).parent
    return [path for path in (sockets, Path(info.blob_dir)) if path.exists()]


def test_a_client_that_does_not_want_to_wait(cluster_factory: ClusterFactory) -> None:
    """reconnect_timeout bounds what a client waits for a controller that is not back."""
    cluster = cluster_factory(n=1)
    with contextlib.closing(cluster.connect_client_sync(reconnect_timeout=0)) as rc:
        result = rc[0].apply_async(time.sleep, 60)
        assert cluster.controller is not None
        cluster.controller.signal(signal.SIGKILL)
        with pytest.raises(KernelError, match="has died"):
            result.get(PATIENCE_S)


def test_ipcluster_restarts_it(tmp_path: Path) -> None:
    """`ipcluster start` starts a killed controller again, and `ipcluster list` shows it."""
    profile = f"--profile-dir={tmp_path / 'profile'}"

    def run(*args: str) -> str:
        command = [sys.executable, "-m", "ipyfleet_cluster", *args, profile]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        return done.stdout

    run("start", "-n", "2", "--daemonize")
    try:
        with ipf.Client(profile_dir=tmp_path / "profile") as rc:
            view = rc[:]
            view["kept"] = 3
            file = tmp_path / "profile" / "security" / "ipyfleet-client.json"
            before = load_connection_file(file)
            ProcessRef.of(before.pid).signal(signal.SIGKILL)
            assert view.apply_async(abs, -2).get(PATIENCE_S) == [2, 2]
            assert view["kept"] == [3, 3]
            after = load_connection_file(file)
            assert after.pid != before.pid
            assert after.instance == before.instance
            row = run("list").splitlines()[1].split()
            assert row[-4:] == ["True", "1", "2", "local"]
    finally:
        run("stop")
