"""Networks that break, processes that stand still, engines that are killed: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import ipyfleet as ipf
from ipyfleet_protocol.connection import load_connection_file, save_connection_file
from ipyfleet_protocol.paths import connection_file
from ipyfleet_testing.chaos import RESPAWN_ARGS, RunLog, kill_engines, value_of
from ipyfleet_testing.cluster import ClusterFactory
from ipyfleet_testing.proxy import TcpProxy
from ipyfleet_testing.waiting import wait_until

CUT_S = 5.0
KILLS = int(os.environ.get("IPYFLEET_TEST_KILLS", "100"))

PATIENCE_S = 60.0


def _wait_for_cut_to_last(seconds: float) -> None:
    """Let a time pass, since how long a network is cut is what is tested."""
    threading.Event().wait(seconds)


def _once(count: int) -> Counter[int]:
    return Counter(range(count))


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    """Count what runs."""
    (tmp_path / "runs").mkdir()
    return RunLog(tmp_path / "runs")


class Remote:
    """A cluster whose engines and client reach the controller through a network.

    Attributes:
        proxy: the network.
        rc: the client.
    """

    def __init__(self, cluster: ipf.Cluster, folder: Path, proxy: TcpProxy, n: int) -> None:
        self.proxy = proxy
        profile = Path(cluster.profile_dir)
        files = {}
        for role in ("engine", "client"):
            info = load_connection_file(connection_file(profile, cluster.cluster_id, role))
            # To nobody's knowledge on this host.
            info.host = "elsewhere"
            info.urls = [f"tcp://127.0.0.1:{proxy.port}"]
            files[role] = folder / f"{role}.json"
            save_connection_file(files[role], info)
        cluster.engine_args = [*cluster.engine_args, f"--file={files['engine']}"]
        cluster.start_engines_sync(n)
        self.rc = ipf.Client(files["client"], timeout=PATIENCE_S)
        self.rc.wait_for_engines(n, timeout=PATIENCE_S, interactive=False)


@pytest.fixture
def remote(cluster_factory: ClusterFactory, tmp_path: Path) -> Iterator[Remote]:
    """Start two engines and a client that are connected over TCP."""
    cluster = cluster_factory(n=0, controller_ip="127.0.0.1")
    info = load_connection_file(cluster.client_connection_file)
    port = int(info.urls[-1].rpartition(":")[2])
    with TcpProxy(port) as proxy:
        made = Remote(cluster, tmp_path, proxy, 2)
        with contextlib.closing(made.rc):
            yield made
        cluster.stop_engines_sync()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_network_that_is_cut_for_seconds(remote: Remote, log: RunLog, how: str) -> None:
    """Everything under way when the network goes is done when it is back, each task once."""
    rc, count = remote.rc, 4000
    namespace = rc[:]
    namespace["kept"] = 17
    ids = rc.ids
    view = rc.load_balanced_view()
    with log.holding(count // 2, 0.001) as function:
        result = view.map_async(function, range(count), chunksize=1)
        wait_until(lambda: log.total > count // 10)
        if how == "killed":
            remote.proxy.kill()
            wait_until(lambda: rc.session.reconnecting)
            assert "reconnecting" in repr(rc)
        else:
            remote.proxy.freeze()
    during = view.apply_async(value_of, 5)
    _wait_for_cut_to_last(CUT_S)
    assert log.total < count
    assert not result.ready()
    if how == "killed":
        remote.proxy.start()
    else:
        remote.proxy.thaw()
    assert result.get(PATIENCE_S) == [value_of(number) for number in range(count)]
    assert during.get(PATIENCE_S) == value_of(5)
    assert log.count() == _once(count)
    assert rc.ids == ids
    assert namespace["kept"] == [17, 17]


@pytest.mark.parametrize("who", ["controller", "engine", "client"])
def test_a_process_that_stands_still(
    cluster_factory: ClusterFactory, log: RunLog, who: str
) -> None:
    """A process that is stopped and goes on costs time, and nothing else."""
    cluster = cluster_factory(n=2)
    count = 20_000
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        pids = rc[:].apply_sync(os.getpid)
        assert cluster.controller is not None
        stopped = {
            "controller": cluster.controller.to_dict()["pid"],
            "engine": pids[0],
            "client": os.getpid(),
        }[who]
        with log.holding(count // 2) as function:
            result = rc.load_balanced_view().map_async(function, range(count), chunksize=1)
            wait_until(lambda: log.total > count // 10)
            assert not result.ready()
            _stand_still(stopped, 2.0, log.release)
        assert result.get(PATIENCE_S) == [value_of(number) for number in range(count)]
        assert rc[:].apply_sync(os.getpid) == pids
    assert log.count() == _once(count)


def _stand_still(pid: int, seconds: float, meanwhile: Callable[[], None]) -> None:
    """Stop a process, which may be this one, for some time; do something when it is stopped."""
    if pid != os.getpid():
        os.kill(pid, signal.SIGSTOP)
        try:
            meanwhile()
            _wait_for_cut_to_last(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
        return
    waker = os.fork()
    if waker == 0:
        # A stopped process cannot wake itself.
        try:
            wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
            meanwhile()
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
            os._exit(0)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(waker, 0)


@pytest.mark.timeout(360)
def test_engines_killed_at_random(cluster_factory: ClusterFactory, log: RunLog) -> None:
    """With retries and respawn every task of a map has its right result, whatever is killed."""
    cluster = cluster_factory(n=4, engine_args=RESPAWN_ARGS)
    counts = kill_engines(cluster, log, kills=KILLS, tasks=50_000)
    assert (counts.kills, counts.lost, counts.duplicated) == (KILLS, 0, 0)
    # What ran again was running when its engine died, or its result had not been sent.
    assert counts.run_again < 100 * KILLS
