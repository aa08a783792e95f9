"""The agent and its engines as processes: how they start, die and end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import Channel

FORK_OR_NOT = pytest.mark.parametrize("mode", [(), ("--no-fork",)], ids=["fork", "no-fork"])


def pids(controller: Any) -> list[int]:
    """Return the process ids of the engines that have said hello."""
    return [hello.pid for hello in controller.hellos.values() if hello.role == "engine"]


def gone(pid: int) -> bool:
    """Tell whether a process has ended."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def agent_of(controller: Any) -> Any:
    """Return the agent's peer id."""
    return next(h.peer for h in controller.hellos.values() if h.role == "agent")


@FORK_OR_NOT
def test_engines_join_and_end_with_the_agent(controller: Any, wait: Any, mode: Any) -> None:
    """All engines join under their agent's name; SIGTERM to the agent ends all in order."""
    agent = controller.start("-n=3", *mode)
    peers = controller.wait_engines(3)
    controller.until(lambda: len(controller.hellos) == 4)
    assert len(set(pids(controller))) == 3
    assert {controller.hellos[p].agent for p in peers} == {agent_of(controller)}
    assert controller.hellos[peers[0]].host == controller.host
    assert controller.stop(agent) == 0
    assert all(gone(pid) for pid in pids(controller))
    controller.until(lambda: len(controller.exited) == 3)
    assert [e.status for e in controller.exited] == [0, 0, 0]
    for peer in peers:
        controller.expect(m.Goodbye, peer)


@FORK_OR_NOT
def test_a_killed_engine_is_reported_at_once_with_the_reason(controller: Any, mode: Any) -> None:
    """The signal's name, the memory's peak and the log's last lines reach the controller."""
    controller.start("-n=4", *mode)
    *victims, other = controller.wait_engines(4)
    controller.until(lambda: len(controller.hellos) == 5)
    code = "import logging\nlogging.getLogger('ipyfleet').error('my last words')"
    took_s = []
    for victim in victims:
        controller.execute(victim, code)
        start = time.monotonic()
        os.kill(controller.hellos[victim].pid, signal.SIGKILL)
        exited = controller.expect(m.EngineExited)
        took_s.append(time.monotonic() - start)
        assert exited.peer == victim and exited.status == -signal.SIGKILL
        assert "SIGKILL" in exited.reason and "peak memory" in exited.reason
        assert exited.reason.endswith("my last words")
    # The best of three: the machine may let others run in between.
    assert min(took_s) < 0.5
    assert controller.apply(other, abs, -1).value == 1


@FORK_OR_NOT
def test_the_task_that_killed_its_engine_is_named(controller: Any, mode: Any) -> None:
    """The report has the ordinal of the task that ran, not of one whose result was on its way."""
    controller.start("-n=1", *mode)
    [engine] = controller.wait_engines(1)
    controller.until(lambda: len(controller.hellos) == 2)
    controller.run(engine, "apply", [((3,), {}) for _ in range(5)], abs)
    controller.run(engine, "apply", [((4,), {}), ((5,), {})], os._exit)
    assert controller.expect(m.EngineExited).running == 5


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("import os; os._exit(3)", 3, "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV, "Segmentation fault"),
    ],
)
def test_a_crash_is_explained(controller: Any, code: str, status: int, words: str) -> None:
    """os._exit gives its code; a segfault its signal, and the stack is in the log's last lines."""
    controller.start("-n=1")
    [engine] = controller.wait_engines(1)
    controller.run(engine, "execute", [code])
    exited = controller.expect(m.EngineExited)
    assert exited.status == status and words in exited.reason


@FORK_OR_NOT
def test_no_engine_outlives_a_killed_agent(controller: Any, wait: Any, mode: Any) -> None:
    """kill -9 of the agent ends its engines, busy or not."""
    agent = controller.start("-n=2", *mode)
    busy, _ = controller.wait_engines(2)
    controller.run(busy, "execute", ["while True: pass"])
    agent.kill()
    wait(lambda: all(gone(pid) for pid in pids(controller)))


@FORK_OR_NOT
def test_the_lease_ends_everything(controller: Any, wait: Any, mode: Any) -> None:
    """When the pipe's other end closes, however that came, agent and engines end."""
    read, write = os.pipe()
    try:
        agent = controller.start("-n=2", f"--lease-fd={read}", *mode, pass_fds=[read])
        os.close(read)
        controller.wait_engines(2)
    finally:
        os.close(write)
    assert agent.wait(10) == 0
    assert all(gone(pid) for pid in pids(controller))


def test_closing_ends_everything(controller: Any) -> None:
    """When the controller goes away for good, engines and agent exit by themselves."""
    agent = controller.start("-n=2")
    peers = controller.wait_engines(2)
    controller.until(lambda: len(controller.hellos) == 3)
    for peer in peers:
        controller.send(peer, Channel.CONTROL, m.Closing("done"))
    controller.send(agent_of(controller), Channel.AGENT, m.Closing("done"))
    assert agent.wait(10) == 0
    assert all(gone(pid) for pid in pids(controller))


def test_an_engine_can_be_stopped_alone(controller: Any, wait: Any) -> None:
    """StopEngine is answered, the engine says goodbye; the last one takes the agent along."""
    agent = controller.start("-n=2")
    first, second = controller.wait_engines(2)
    controller.until(lambda: len(controller.hellos) == 3)
    for number, peer in enumerate((first, second)):
        stop = m.EngineControl(controller.client, number, m.StopEngine())
        controller.send(peer, Channel.CONTROL, stop)
        assert controller.expect(m.ControlReply).request == number
        controller.expect(m.Goodbye, peer)
        exited = controller.expect(m.EngineExited)
        assert (exited.peer, exited.status) == (peer, 0)
    assert agent.wait(10) == 0


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import ctypes\nlibc = ctypes.CDLL(None)\nwhile libc.sleep(600) >= 0: pass",
        (
            "import time\nwhile True:\n"
            "    try:\n        time.sleep(60)\n    except BaseException:\n        pass"
        ),
    ],
    ids=["python", "c", "stubborn"],
)
def test_a_busy_engine_stops_too(controller: Any, code: str) -> None:
    """An engine in endless user code leaves the cluster when told, whatever the code does."""
    agent = controller.start("-n=1")
    [engine] = controller.wait_engines(1)
    controller.until(lambda: len(controller.hellos) == 2)
    [seq] = controller.run(engine, "execute", [f"print('up')\n{code}"])
    controller.until(lambda: any(i.kind == "stdout" for i, _ in controller.outputs.get(seq, ())))
    controller.send(engine, Channel.CONTROL, m.EngineControl(controller.client, 1, m.StopEngine()))
    controller.expect(m.Goodbye, engine)
    assert agent.wait(10) == 0


def test_an_engine_whose_results_nobody_reads_stops_too(controller: Any, wait: Any) -> None:
    """It waits to send them, but not when it is told to stop."""
    agent = controller.start("-n=1")
    [controller.engine] = controller.wait_engines(1)
    controller.until(lambda: len(controller.hellos) == 2)
    controller.run(controller.engine, "apply", [((8_000_000,), {})], bytes)
    identity = controller.addresses[controller.engine, Channel.TASK]
    wait(lambda: controller.wire.has_unread(identity))
    assert controller.stop(agent) == 0
    assert controller.expect(m.EngineExited).status == 0


@pytest.mark.parametrize("method", ["apply", "execute"])
def test_a_task_of_an_engine_that_is_stopped(controller: Any, method: Any, tmp_path: Path) -> None:
    """It ends with an EngineError that says so, not with what ends it inside of the engine."""
    agent = controller.start("-n=1")
    [engine] = controller.wait_engines(1)
    controller.until(lambda: len(controller.hellos) == 2)
    up = tmp_path / "up"

    def wait_long(up: str) -> None:
        import pathlib
        import time

        pathlib.Path(up).touch()
        time.sleep(60)

    if method == "apply":
        [seq] = controller.run(engine, "apply", [((str(up),), {})], wait_long)
    else:
        code = f"import pathlib, time\npathlib.Path({str(up)!r}).touch()\ntime.sleep(60)"
        [seq] = controller.run(engine, "execute", [code])
    controller.until(up.exists)
    assert controller.stop(agent) == 0
    [ended] = controller.results([seq])
    assert (ended.error.ename, ended.error.own) == ("EngineError", True)
    assert "told to stop" in ended.error.evalue


def test_zmq_has_no_thread_on_the_controllers_host(controller: Any) -> None:
    """The agent has its one thread; an engine has its main thread, the link and the capture."""
    agent = controller.start("-n=1")
    [engine] = controller.wait_engines(1)
    controller.until(lambda: len(controller.hellos) == 2)
    assert controller.apply(engine, abs, -1).value == 1
    assert psutil.Process(controller.hellos[engine].pid).num_threads() == 3
    if "--no-fork" not in os.environ.get("IPYFLEET_TEST_ENGINE_ARGS", ""):
        assert psutil.Process(agent.pid).num_threads() == 1


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_an_agent_that_forks_again(kind: str, request: pytest.FixtureRequest) -> None:
    """It keeps its link if that has no threads, else it makes another; what it says arrives."""
    controller = request.getfixturevalue("controller" if kind == "unix" else "remote")
    controller.incarnation = b"first---"
    controller.start("-n=1", "--respawn=on_failure")
    [first] = controller.wait_engines(1)
    controller.until(lambda: len(controller.hellos) == 2)
    agent = agent_of(controller)
    os.kill(controller.hellos[first].pid, signal.SIGKILL)
    assert controller.expect(m.EngineExited).peer == first
    second = controller.wait_engines(2)[1]
    assert controller.apply(second, abs, -1).value == 1
    os.kill(controller.hellos[second].pid, signal.SIGKILL)
    assert controller.expect(m.EngineExited).peer == second
    third = controller.wait_engines(3)[2]
    assert controller.apply(third, abs, -1).value == 1
    hellos = [r for r in controller.inbox if isinstance(r.message, m.Hello) and r.peer == agent]
    forks = "--no-fork" not in os.environ.get("IPYFLEET_TEST_ENGINE_ARGS", "")
    assert len(hellos) == 1 or (kind == "tcp" and forks)


def test_the_agent_relays_signals(controller: Any) -> None:
    """SignalEngines reaches the engines that it names."""
    controller.start("-n=2")
    first, second = controller.wait_engines(2)
    controller.until(lambda: len(controller.hellos) == 3)
    [seq] = controller.run(first, "execute", ["print('up')\nwhile True: pass"])
    controller.until(lambda: any(i.kind == "stdout" for i, _ in controller.outputs.get(seq, ())))
    peers = [first, second, b"?" * 16]
    controller.send(agent_of(controller), Channel.AGENT, m.SignalEngines(peers, signal.SIGINT))
    assert controller.results([seq])[0].error.ename == "KeyboardInterrupt"
    assert controller.apply(second, abs, -1).value == 1


def test_engines_differ_in_what_must_not_be_shared(controller: Any) -> None:
    """Forked engines draw different random numbers; each has its own pid and log."""
    controller.start("-n=2")
    peers = controller.wait_engines(2)
    code = "import random, os, uuid\n(random.random(), os.getpid(), uuid.uuid4().hex)"
    seen = []
    for peer in peers:
        ended = controller.execute(peer, code)
        items = controller.output(ended.seq)
        seen.append(next(i.content for i in items if i.kind == "execute_result"))
    assert seen[0] != seen[1]
    logs = sorted((controller.directory / "ipython/profile_default/log").glob("ipengine-*-?.log"))
    assert len(logs) == 2 and all(log.stat().st_mode & 0o077 == 0 for log in logs)


def test_startup_code_runs_first(controller: Any) -> None:
    """Script and command run in the namespace before any task."""
    script = controller.directory / "start.py"
    script.write_text("from_script = 1\n")
    controller.start(
        "-n=1", f"--startup-script={script}", "--startup-command=both = from_script + 1"
    )
    [engine] = controller.wait_engines(1)
    ended = controller.execute(engine, "print(both)")
    assert controller.text(ended.seq) == "2\n"


def run_to_end(controller: Any, *flags: str) -> tuple[int, str]:
    """Return exit code and messages of an ipengine that ends by itself."""
    process = controller.start(*flags, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


def test_a_controller_that_does_not_answer_is_named(controller: Any) -> None:
    """After the timeout: exit code 1 and one line that says what to do; no engine is left."""
    controller.welcome = False
    code, errors = run_to_end(controller, "-n=1", "--timeout=0.5")
    assert code == 1
    [line] = [x for x in errors.splitlines() if "CRITICAL" in x]
    assert "no answer from the controller" in line and "ipcluster start" in line


def test_a_missing_connection_file_is_an_error_that_helps(controller: Any) -> None:
    """Exit code 1 and one line with the way out."""
    controller.file.unlink()
    code, errors = run_to_end(controller, "-n=1", "--timeout=0.1")
    assert code == 1
    assert len(errors.splitlines()) == 1 and str(controller.file) in errors


def test_a_refused_agent_says_why(controller: Any) -> None:
    """The controller's reason is what is logged."""
    controller.welcome = False
    process = controller.start("-n=1", stderr=subprocess.PIPE, text=True)
    controller.until(lambda: len(controller.hellos) == 2)
    controller.send(agent_of(controller), Channel.AGENT, m.Refused("no room for you"))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1 and "no room for you" in errors


def test_a_refused_engine_says_why(controller: Any) -> None:
    """The engine exits with 1; its agent tells the reason."""
    controller.welcome = False
    process = controller.start("-n=1", stderr=subprocess.PIPE, text=True)
    controller.until(lambda: len(controller.hellos) == 2)
    agent = agent_of(controller)
    welcome = m.Welcome(bytes.fromhex(controller.instance))
    welcome.greeting = controller.hellos[agent].greeting
    controller.send(agent, Channel.AGENT, welcome)
    engine = next(p for p in controller.hellos if p != agent)
    controller.send(engine, Channel.CONTROL, m.Refused("another version"))
    exited = controller.expect(m.EngineExited)
    assert exited.status == 1 and "another version" in exited.reason
    process.communicate(timeout=10)
    assert process.returncode == 1


def test_native_threads_are_capped(controller: Any) -> None:
    """Engines see the cap in their environment."""
    controller.start("-n=1")
    [engine] = controller.wait_engines(1)
    expected = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    ended = controller.execute(engine, "import os\nprint(os.environ.get('OMP_NUM_THREADS'))")
    assert controller.text(ended.seq).strip() == expected
