"""Engines from start to end: work that is stopped, engines that die, come back, or stay alone."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import ipyfleet as ipf
from ipyfleet.error import EngineError, RemoteError, TaskAborted
from ipyfleet_cluster.processes import ProcessRef
from ipyfleet_testing.cluster import ClusterFactory, running_cluster
from ipyfleet_testing.waiting import wait_until

GRACE_S = 0.3
LONG_GRACE_S = 2.0
"""Enough for a task to heed a signal on a machine that stands still now and then."""

FREE_S = 20.0
"""Far less than the tasks take, the grace not counted; `benchmarks/engines.py` measures it."""

HOLD_S = 6
LIMIT_S = 2.0


@pytest.fixture(params=["fork", "no-fork"])
def mode(request: pytest.FixtureRequest) -> list[str]:
    """How the agent starts engines: the flags for it."""
    return [] if request.param == "fork" else ["--no-fork"]


@pytest.fixture(params=["fork", "no-fork"], scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ipf.Client]:
    """Start two engines for the tests that leave them alive."""
    flags = [] if request.param == "fork" else ["--no-fork"]
    folder = tmp_path_factory.mktemp("pair")
    with (
        running_cluster(folder, 2, engine_args=flags) as cluster,
        contextlib.closing(cluster.connect_client_sync()) as rc,
    ):
        yield rc


def _begin(path: str) -> None:
    Path(path).touch()


def sleep(begun: str) -> None:
    """Sleep until interrupted."""
    _begin(begun)
    time.sleep(600)


def spin(begun: str) -> None:
    """Compute until interrupted."""
    _begin(begun)
    while True:
        pass


async def wait_async(begun: str) -> None:
    """Await something that does not come."""
    _begin(begun)
    await asyncio.sleep(600)


def hold_gil(begun: str, seconds: int = 600) -> float:
    """Sleep in C code that does not let go of the GIL."""
    _begin(begun)
    start = time.monotonic()
    sleep_in_c = ctypes.PyDLL(None).sleep
    while seconds:
        seconds = sleep_in_c(seconds)  # A signal ends it early, and it tells what is left.
    return time.monotonic() - start


def hold_gil_until(begun: str, fifo: str) -> None:
    """Wait in C code that does not let go of the GIL until somebody writes to a pipe."""
    fd = os.open(fifo, os.O_RDWR)
    _begin(begun)
    read_in_c, byte = ctypes.PyDLL(None).read, ctypes.create_string_buffer(1)
    while read_in_c(fd, byte, 1) != 1:  # A signal ends it early.
        pass
    os.close(fd)


def shrug(begun: str) -> None:
    """Go on whatever is raised, as soon as it is said to have begun."""
    while True:
        with contextlib.suppress(BaseException):
            _begin(begun)
            time.sleep(600)


def start(view: Any, function: Callable[..., Any], tmp_path: Path, *args: Any) -> ipf.AsyncResult:
    """Start a task and return its result when it runs."""
    begun = tmp_path / f"begun-{function.__name__}-{time.monotonic_ns()}"
    result = view.apply_async(function, os.fspath(begun), *args)
    wait_until(begun.exists, message=f"{function.__name__} to begin")
    return result


# -- stopping work ----------------------------------------------------------------------------


@pytest.mark.parametrize("function", [sleep, spin, wait_async], ids=lambda f: f.__name__)
def test_abort_interrupts_the_running_task(pair: Any, tmp_path: Path, function: Any) -> None:
    """It ends as TaskAborted in no time; a task behind it and one beside it run."""
    result = start(pair[0], function, tmp_path)
    behind = pair[0].apply_async(abs, -1)
    dropped = pair[0].apply_async(abs, -2)
    beside = pair[1].apply_async(abs, -3)
    pair.abort([result, dropped])
    with pytest.raises(TaskAborted, match="while it ran"):
        result.get(timeout=FREE_S)
    with pytest.raises(TaskAborted, match="before it started"):
        dropped.get(timeout=FREE_S)
    assert (behind.get(timeout=FREE_S), beside.get(timeout=FREE_S)) == (1, 3)
    assert result.completed is not None and dropped.started is None
    assert len(pair) == 2


def test_abort_interrupts_a_cell(pair: Any, tmp_path: Path) -> None:
    """Code that is executed is interrupted, too, and the client's next cell runs."""
    begun = tmp_path / "begun"
    code = f"import time; open({str(begun)!r}, 'w').close()\ntime.sleep(600)"
    result = pair[0].execute(code, block=False)
    after = pair[0].execute("after = 1", block=False)
    wait_until(begun.exists)
    result.abort()
    with pytest.raises(TaskAborted):
        result.get(timeout=FREE_S)
    after.get(timeout=FREE_S)
    assert pair[0]["after"] == 1


def test_cancel_of_a_running_task(pair: Any, tmp_path: Path) -> None:
    """Cancel returns true, and get raises as a cancelled future does."""
    result = start(pair.load_balanced_view(), sleep, tmp_path)
    assert result.cancel() and result.cancelled()
    with pytest.raises(CancelledError):
        result.get(timeout=FREE_S)


def test_dropped_tasks_end_while_another_runs(pair: Any, tmp_path: Path) -> None:
    """A queued task does not wait for the engine to come to it."""
    running = start(pair[0], sleep, tmp_path)
    queued = [pair[0].apply_async(abs, i) for i in range(20)]
    pair.abort(queued)
    for result in queued:
        with pytest.raises(TaskAborted):
            result.get(timeout=FREE_S)
    assert not running.ready()
    running.abort()
    running.wait(FREE_S)


def test_cancelling_hits_the_right_task_only(pair: Any) -> None:
    """Of a stream of short tasks some are cancelled as they run: no other one notices."""
    view = pair[0]
    others, cancelled = [], []
    for number in range(60):
        cancelled.append(view.apply_async(time.sleep, 0.002))
        others.append(view.apply_async(lambda x: sum(range(20_000)) * 0 + x, number))
        if number % 3 == 2:
            wait_until(cancelled[-2].ready)
            if not cancelled[-1].ready():
                cancelled[-1].abort()
    assert [result.get(timeout=FREE_S) for result in others] == list(range(60))
    for result in cancelled:
        result.wait(FREE_S)
        assert result.status in ("ok", "aborted")


@pytest.mark.parametrize("function", [hold_gil, shrug], ids=lambda f: f.__name__)
def test_force_frees_the_engine(
    cluster_factory: ClusterFactory, mode: list[str], tmp_path: Path, function: Any
) -> None:
    """After the grace the engine is killed; another takes its place, and no other task is hurt."""
    cluster = cluster_factory(n=1, engine_args=[*mode, "--startup-command=started = 1"])
    with cluster.connect_client_sync() as rc:
        lb = rc.load_balanced_view()
        result = start(lb, function, tmp_path)
        behind = [lb.apply_async(abs, -i) for i in range(5)]
        begin = time.monotonic()
        result.abort(force=True, grace=GRACE_S)
        with pytest.raises(TaskAborted, match="cancelled"):
            result.get(timeout=FREE_S + GRACE_S)
        assert time.monotonic() - begin > GRACE_S
        assert [each.get(timeout=FREE_S) for each in behind] == list(range(5))
        wait_until(lambda: rc.ids == [1])
        assert rc[1]["started"] == 1


def test_force_of_what_can_be_interrupted_kills_nothing(pair: Any, tmp_path: Path) -> None:
    """A task that heeds SIGINT costs no engine its life."""
    ids = pair.ids
    result = start(pair[0], sleep, tmp_path)
    assert result.cancel(force=True, grace=LONG_GRACE_S)
    ended = time.monotonic()
    wait_until(lambda: time.monotonic() - ended > LONG_GRACE_S + GRACE_S)
    assert pair[0].apply_sync(abs, -1) == 1 and pair.ids == ids


def test_an_idle_engine_ignores_sigint(pair: Any) -> None:
    """Nothing runs, nothing happens."""
    pids = pair[:].apply_sync(os.getpid)
    for _ in range(3):
        pair.send_signal("SIGINT", block=True)
    assert pair[:].apply_sync(os.getpid) == pids


# -- while user code runs ---------------------------------------------------------------------


def test_a_busy_engine_answers(pair: Any, tmp_path: Path) -> None:
    """Stacks at once, a reset of the namespace after the task, a signal at once."""
    pair[0]["kept"] = 1
    result = start(pair[0], spin, tmp_path)
    # The file that says that it has begun is there a little before it spins.
    wait_until(lambda: "while True" in pair.engine_stacks(0)[0])
    stacks = pair.engine_stacks([0, 1])
    assert "in spin" in stacks[0] and "while True" in stacks[0]
    assert "MainThread" in stacks[1] and "spin" not in stacks[1]
    cleared = pair.clear(targets=0, block=False)
    assert not cleared.done()
    pair.send_signal("SIGINT", targets=0, block=True)
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        result.get(timeout=FREE_S)
    pair.session.answer(cleared, FREE_S)
    with pytest.raises(RemoteError, match="NameError"):
        pair[0].pull("kept", block=True)


def test_stacks_while_c_code_holds_the_gil(pair: Any, tmp_path: Path) -> None:
    """The agent has the process write them; the task goes on."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    result = start(pair[0], hold_gil_until, tmp_path, os.fspath(fifo))
    try:
        assert "in hold_gil_until" in pair.engine_stacks(0)[0]
        assert not result.ready()
    finally:
        fifo.write_bytes(b"x")
    assert result.get(timeout=FREE_S) is None


def test_native_threads_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores / engines, at least one; a user's own setting stands."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("VECLIB_MAXIMUM_THREADS", raising=False)
    cap = str(max(1, (os.cpu_count() or 1) // 2))
    with running_cluster(tmp_path / "a", 2) as cluster, cluster.connect_client_sync() as rc:
        assert rc[:].apply_sync(os.getenv, "OPENBLAS_NUM_THREADS") == [cap] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with running_cluster(tmp_path / "b", 2) as cluster, cluster.connect_client_sync() as rc:
        assert rc[:].apply_sync(os.getenv, "OMP_NUM_THREADS") == ["7"] * 2
        assert rc[:].apply_sync(os.getenv, "OPENBLAS_NUM_THREADS") == [None] * 2


# -- engines that come back -------------------------------------------------------------------


def test_respawn_on_failure(cluster_factory: ClusterFactory, mode: list[str]) -> None:
    """A killed engine is replaced, with a new id and all that it is to start with."""
    cluster = cluster_factory(
        n=2, engine_args=[*mode, "--respawn=on_failure", "--startup-command=started = 1"]
    )
    with cluster.connect_client_sync() as rc:

        @rc.on_engine_start
        def prepare() -> None:
            from IPython import get_ipython

            names = get_ipython().user_ns
            names["prepared"] = names["started"] + 1

        pids = rc[:].apply_sync(os.getpid)
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: rc.ids == [1, 2], message=lambda: f"another engine beside {rc.ids}")
        assert rc[2].pull(("started", "prepared"), block=True) == [1, 2]
        with pytest.raises(RemoteError, match="NameError"):
            rc[1].pull("prepared", block=True)
        # Told to stop is no failure, and clean ends are none either.
        rc.shutdown(targets=[2], block=True)
        wait_until(lambda: rc.ids == [1])
        rc.on_engine_start(None, name="prepare")
        os.kill(pids[1], signal.SIGSEGV)
        wait_until(lambda: rc.ids == [3])
        with pytest.raises(RemoteError, match="NameError"):
            rc[3].pull("prepared", block=True)


def test_respawn_always(cluster_factory: ClusterFactory) -> None:
    """An engine that exits with code 0 is replaced, one that is told to stop is not."""
    cluster = cluster_factory(n=2, engine_args=["--respawn=always"])
    with cluster.connect_client_sync() as rc:
        rc[0].apply_async(os._exit, 0)
        wait_until(lambda: rc.ids == [1, 2])
        rc.shutdown(targets=[1], block=True)
        wait_until(lambda: rc.ids == [2])
        assert rc[2].apply_sync(abs, -1) == 1 and rc.ids == [2]


def test_a_start_function_that_fails_is_logged(cluster_factory: ClusterFactory) -> None:
    """The engine works all the same; its log has the error."""
    cluster = cluster_factory(n=1, engine_args=["--respawn=on_failure"])
    with cluster.connect_client_sync() as rc:
        rc.on_engine_start(lambda: 1 / 0, name="divide")
        os.kill(rc[0].apply_sync(os.getpid), signal.SIGKILL)
        wait_until(lambda: rc.ids == [1])
        assert rc[1].apply_sync(abs, -1) == 1
    logs = (Path(cluster.profile_dir) / "log").glob("ipengine-*-1.log")
    assert any("divide failed" in log.read_text() for log in logs)


def test_dead_engines_are_not_replaced_unless_asked(cluster_factory: ClusterFactory) -> None:
    """Without a policy the place stays empty."""
    # It is the agent that tells of the death, and no heartbeat.
    cluster = cluster_factory(n=2, controller_args=["--heartbeat-limit=3600"])
    with cluster.connect_client_sync() as rc:
        os.kill(rc[0].apply_sync(os.getpid), signal.SIGKILL)
        wait_until(lambda: rc.ids == [1])
        assert rc[1].apply_sync(abs, -1) == 1 and rc.ids == [1]


def test_logs_are_bounded(cluster_factory: ClusterFactory) -> None:
    """A log that outgrows its bound is rotated; what comes afterwards is in the new one."""
    cluster = cluster_factory(n=1, engine_args=["--IPEngineApp.log_max_bytes=100000"])
    logs = Path(cluster.profile_dir) / "log"

    def write(count: int, text: str) -> None:
        import logging

        for _ in range(count):
            logging.getLogger("ipyfleet").error(text)

    with cluster.connect_client_sync() as rc:
        rc[0].apply_sync(write, 3000, "x" * 100)
        older = wait_until(lambda: list(logs.glob("ipengine-*-0.log.1")))
        assert older[0].stat().st_size <= 100_000
        rc[0].apply_sync(write, 1, "afterwards")
        [current] = logs.glob("ipengine-*-0.log")
        wait_until(lambda: "afterwards" in current.read_text())
        assert current.stat().st_size < 10_000


# -- nobody is left behind --------------------------------------------------------------------


def _directories() -> set[Path]:
    """What clusters have in the directories of sockets and of shared memory."""
    places = (Path(os.environ[name]) for name in ("IPYFLEET_SHM_DIR", "XDG_RUNTIME_DIR"))
    return {path for place in places for path in place.glob("ipyfleet-*")}


@pytest.fixture
def assert_nothing_is_left() -> Callable[[list[ProcessRef]], None]:
    """Check that processes end, and sockets and memory that were not there before go."""
    before = _directories()

    def check(processes: list[ProcessRef]) -> None:
        wait_until(lambda: not any(process.is_alive() for process in processes))
        wait_until(
            lambda: _directories() <= before,
            message=lambda: f"{_directories() - before} to go",
        )

    return check


def _occupy(rc: Any) -> list[ProcessRef]:
    """Have engines hold shared memory and be busy; return their processes."""
    rc[:].push({"data": bytes(1_000_000)}, block=True)
    pids = rc[:].apply_sync(os.getpid)
    rc[:].apply_async(time.sleep, 600)
    return [ProcessRef.of(pid) for pid in pids]


def test_killed_agent(
    cluster_factory: ClusterFactory, mode: list[str], assert_nothing_is_left: Any
) -> None:
    """Its engines die with it and clients are told; with the cluster its memory goes."""
    cluster = cluster_factory(n=2, engine_args=mode)
    with cluster.connect_client_sync() as rc:
        engines = _occupy(rc)
        assert cluster.engine_set is not None
        agent = ProcessRef.of(cluster.engine_set.to_dict()["pid"])
        agent.signal(signal.SIGKILL)
        wait_until(lambda: not any(engine.is_alive() for engine in engines))
        wait_until(lambda: rc.ids == [])
    cluster.stop_cluster_sync()
    assert_nothing_is_left([agent, *engines])


def test_killed_controller(
    cluster_factory: ClusterFactory, mode: list[str], assert_nothing_is_left: Any
) -> None:
    """Agent and engines wait for it as long as they are told, then end and clean up."""
    cluster = cluster_factory(
        n=2, engine_args=[*mode, "--controller-timeout=0.5"], restart_controller=False
    )
    assert cluster.engine_set is not None and cluster.controller is not None
    with cluster.connect_client_sync() as rc:
        processes = _occupy(rc)
        processes.append(ProcessRef.of(cluster.engine_set.to_dict()["pid"]))
        cluster.controller.signal(signal.SIGKILL)
        assert_nothing_is_left(processes)


_OWNER = """
import json, os, sys, time
import ipyfleet as ipf

cluster = ipf.Cluster(n=2, profile_dir=sys.argv[1], engine_args=sys.argv[2:])
rc = cluster.start_and_connect_sync()
rc[:].push({"data": bytes(1_000_000)}, block=True)
pids = rc[:].apply_sync(os.getpid)
rc[:].apply_async(time.sleep, 600)
pids += [part.to_dict()["pid"] for part in (cluster.controller, cluster.engine_set)]
print(json.dumps(pids), flush=True)
time.sleep(600)
"""


def test_killed_client_that_owns_the_cluster(
    tmp_path: Path, mode: list[str], assert_nothing_is_left: Any
) -> None:
    """All of the cluster ends, and its memory goes."""
    command = [sys.executable, "-c", _OWNER, str(tmp_path / "profile"), *mode]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        processes = [ProcessRef.of(pid) for pid in json.loads(owner.stdout.readline())]
    owner.kill()
    owner.wait()
    assert_nothing_is_left(processes)


def test_killed_ipcluster(tmp_path: Path, mode: list[str], assert_nothing_is_left: Any) -> None:
    """Killed with SIGKILL it takes all of its cluster along."""
    profile = str(tmp_path / "profile")
    program = os.fspath(Path(sys.executable).with_name("ipcluster"))
    flags = [f"--LocalEngineLauncher.engine_args={flag}" for flag in mode]
    command = [program, "start", "-n", "2", f"--profile-dir={profile}", *flags]
    with (tmp_path / "log").open("wb") as log:
        owner = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        with ipf.Client(profile_dir=profile, timeout=30) as rc:
            rc.wait_for_engines(2, timeout=30)
            processes = _occupy(rc)
            cluster = ipf.Cluster.from_file(profile_dir=profile)
            assert cluster.engine_set is not None and cluster.controller is not None
            for part in (cluster.engine_set, cluster.controller):
                processes.append(ProcessRef.of(part.to_dict()["pid"]))
    finally:
        owner.kill()
        owner.wait()
    assert_nothing_is_left(processes)


# -- engines without an agent -----------------------------------------------------------------


@contextlib.contextmanager
def running_controller(folder: Path, *flags: str) -> Iterator[ipf.Cluster]:
    """Start a cluster that has no engines; nobody starts its controller again."""
    cluster = ipf.Cluster(
        profile_dir=str(folder / "profile"), controller_args=list(flags), restart_controller=False
    )
    cluster.start_controller_sync()
    try:
        yield cluster
    finally:
        cluster.stop_cluster_sync()


@pytest.fixture
def controller_only(tmp_path: Path) -> Iterator[ipf.Cluster]:
    """Start a cluster that has no engines."""
    with running_controller(tmp_path) as cluster:
        yield cluster


@contextlib.contextmanager
def lone_engines(
    cluster: ipf.Cluster, environs: list[dict[str, str]], *flags: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start engines as a batch system would, one per environment."""
    command = [sys.executable, "-m", "ipyfleet_engine", f"--profile-dir={cluster.profile_dir}"]
    if cluster.cluster_id:
        command.append(f"--cluster-id={cluster.cluster_id}")
    processes = [
        subprocess.Popen([*command, *flags], env={**os.environ, **environ}) for environ in environs
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in processes:
            process.wait(FREE_S)


def test_mpi_ranks(controller_only: ipf.Cluster) -> None:
    """Each engine has its rank as its id where that is free, and rank and size as names."""
    cluster = controller_only
    environs = [
        {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "3"} for rank in (2, 0, 1)
    ]
    with cluster.connect_client_sync() as rc, lone_engines(cluster, environs, "--mpi"):
        wait_until(lambda: rc.ids == [0, 1, 2])
        ranks = rc[:].pull(("mpi_rank", "mpi_size"), block=True)
        assert ranks == [[0, 3], [1, 3], [2, 3]]
        rc.clear(block=True)
        assert rc[:].pull("mpi_rank", block=True) == [0, 1, 2]
    with cluster.connect_client_sync() as rc:
        wait_until(lambda: rc.ids == [])


def test_mpi_without_a_launcher_says_so(controller_only: ipf.Cluster) -> None:
    """Exit code 1 and what to do."""
    cluster = controller_only
    environ = {name: text for name, text in os.environ.items() if "RANK" not in name}
    command = [sys.executable, "-m", "ipyfleet_engine", "--mpi"]
    command += [f"--profile-dir={cluster.profile_dir}", f"--cluster-id={cluster.cluster_id}"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "mpiexec" in done.stderr


@pytest.fixture
def beating(tmp_path: Path) -> Iterator[ipf.Cluster]:
    """Start a cluster that takes a silent engine for dead after `LIMIT_S`, and waits for none to
    come back; it has none yet.
    """
    limits = f"--heartbeat-limit={LIMIT_S}", "--away-limit=0"
    with running_controller(tmp_path, *limits) as cluster:
        yield cluster


def test_a_gil_hold_is_no_death(beating: ipf.Cluster, tmp_path: Path) -> None:
    """An engine in C code for longer than the limit is busy; its result comes."""
    with beating.connect_client_sync() as rc, lone_engines(beating, [{}], "--single"):
        wait_until(lambda: rc.ids == [0])
        result = start(rc[0], hold_gil, tmp_path, HOLD_S)
        assert result.get(timeout=HOLD_S + 10) >= HOLD_S - 0.5
        assert rc.ids == [0]


def test_a_stopped_engine_is_dead_and_ends_when_continued(beating: ipf.Cluster) -> None:
    """Silence beyond the limit is the end of it; brought back, it leaves by itself."""
    with (
        beating.connect_client_sync() as rc,
        lone_engines(beating, [{}], "--single") as [process],
    ):
        wait_until(lambda: rc.ids == [0])
        result = rc[0].apply_async(time.sleep, 600)
        begin = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(EngineError):
            result.get(timeout=10 * LIMIT_S)
        assert LIMIT_S / 2 < time.monotonic() - begin < 5 * LIMIT_S
        wait_until(lambda: rc.ids == [])
        process.send_signal(signal.SIGCONT)
        assert process.wait(FREE_S) == 0


def test_a_short_stop_is_no_death(beating: ipf.Cluster) -> None:
    """An engine that stands still for less than the limit stays."""
    with (
        beating.connect_client_sync() as rc,
        lone_engines(beating, [{}], "--single") as [process],
    ):
        wait_until(lambda: rc.ids == [0])
        process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        wait_until(lambda: time.monotonic() - begin > LIMIT_S / 4)
        process.send_signal(signal.SIGCONT)
        assert rc[0].apply_sync(abs, -1) == 1
        wait_until(lambda: time.monotonic() - begin > 2 * LIMIT_S)
        assert rc.ids == [0]


def test_a_lone_engine_does_not_outlive_its_controller(tmp_path: Path) -> None:
    """Killed, the controller is waited for as long as was said; then the engine exits."""
    with running_controller(tmp_path) as cluster:
        flags = ("--single", "--controller-timeout=0.5")
        with (
            lone_engines(cluster, [{}], *flags) as [process],
            cluster.connect_client_sync() as rc,
        ):
            wait_until(lambda: rc.ids == [0])
            assert cluster.controller is not None
            cluster.controller.signal(signal.SIGKILL)
            assert process.wait(FREE_S) == 1


def test_force_without_an_agent(controller_only: ipf.Cluster, tmp_path: Path) -> None:
    """A task that shrugs off SIGINT ends with its engine, which nobody replaces."""
    cluster = controller_only
    with (
        cluster.connect_client_sync() as rc,
        lone_engines(cluster, [{}], "--single") as [process],
    ):
        wait_until(lambda: rc.ids == [0])
        result = start(rc[0], shrug, tmp_path)
        result.abort(force=True, grace=GRACE_S)
        with pytest.raises(TaskAborted):
            result.get(timeout=FREE_S + GRACE_S)
        assert process.wait(FREE_S) == -signal.SIGKILL
