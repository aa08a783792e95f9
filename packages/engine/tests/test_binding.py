"""A Jupyter frontend beside the cluster: the same namespace, one thing at a time."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_core.utils import ensure_event_loop

from ipyfleet_engine import bind_kernel
from ipyfleet_protocol.ids import PeerId

# Made once for all by the first blocking call of a kernel client, and kept: not a test's leak.
ensure_event_loop()

TIMEOUT_S = 60.0
BIND = "from ipyfleet_engine import bind_kernel; bind_kernel()"
RUNTIME_FILES = "kernel-*.json"


class Ran(NamedTuple):
    """What a cell has led to.

    Attributes:
        reply: the content of its reply.
        messages: (type, content) of its iopub messages, status left out.
        states: the states that were published for it.
    """

    reply: dict[str, Any]
    messages: list[tuple[str, dict[str, Any]]]
    states: list[str]

    @property
    def text(self) -> str:
        return "".join(c["text"] for kind, c in self.messages if kind == "stream")


class Frontend:
    """A frontend as a program has it."""

    def __init__(self, file: Path) -> None:
        self.client = BlockingKernelClient(connection_file=str(file))
        self.client.load_connection_file()
        self.client.start_channels()

    def close(self) -> None:
        self.client.stop_channels()
        self.client.context.term()

    def run(self, code: str, **options: Any) -> Ran:
        return self.collect(self.client.execute(code, **options))

    def collect(self, msg_id: str) -> Ran:
        """Wait for a request's reply and all of its output."""
        reply = self.reply(msg_id)
        messages, states = [], []
        while not states or states[-1] != "idle":
            message = self.client.get_iopub_msg(timeout=TIMEOUT_S)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            if message["msg_type"] == "status":
                states.append(message["content"]["execution_state"])
            else:
                messages.append((message["msg_type"], message["content"]))
        return Ran(reply, messages, states)

    def reply(self, msg_id: str, channel: str = "shell") -> dict[str, Any]:
        while True:
            message = getattr(self.client, f"get_{channel}_msg")(timeout=TIMEOUT_S)
            if message["parent_header"]["msg_id"] == msg_id:
                content: dict[str, Any] = message["content"]
                return content

    def foreign(self) -> list[dict[str, Any]]:
        """What has been published by now that no own request led to."""
        found = []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                return found
            if message["parent_header"].get("session") != self.client.session.session:
                found.append(message)


@pytest.fixture(scope="module")
def runtime(shared: Any) -> Path:
    """Jupyter's runtime directory of the module's engine."""
    return shared.directory / "runtime"


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A controller with one engine whose kernel is bound."""
    controllers = request.getfixturevalue("make_controller")()
    for controller in controllers:
        controller.start("-n=1", env={"JUPYTER_RUNTIME_DIR": str(controller.directory / "runtime")})
        [controller.engine] = controller.wait_engines(1)
        controller.execute(controller.engine, BIND)
        yield controller


@pytest.fixture
def frontend(shared: Any, runtime: Path) -> Iterator[Frontend]:
    """A frontend that is connected."""
    [file] = runtime.glob(RUNTIME_FILES)
    frontend = Frontend(file)
    frontend.client.wait_for_ready(timeout=TIMEOUT_S)
    yield frontend
    frontend.close()


def test_off_an_engine_binding_is_a_clear_error() -> None:
    """A process that is no engine is told where to call it."""
    with pytest.raises(RuntimeError, match="works on engines only"):
        bind_kernel()


def test_the_connection_file_is_private_and_names_this_host_only(
    shared: Any, runtime: Path
) -> None:
    """The file is called as Jupyter's own, is 0600, and its ports are 127.0.0.1's."""
    pid = int(
        shared.execute(shared.engine, "import os; print(os.getpid())")
        and shared.text(shared._next_seq - 1)
    )
    file = runtime / f"kernel-{pid}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    info = json.loads(file.read_text())
    assert info["ip"] == "127.0.0.1" and len(info["key"]) >= 32
    assert info["signature_scheme"] == "hmac-sha256"
    for name in ("shell", "control", "iopub", "stdin", "hb"):
        with socket.create_connection(("127.0.0.1", info[f"{name}_port"]), timeout=5):
            pass


def test_binding_again_changes_nothing(shared: Any, runtime: Path) -> None:
    """A second call neither opens ports nor writes a file."""
    [file] = runtime.glob(RUNTIME_FILES)
    before = file.read_text()
    assert shared.execute(shared.engine, BIND).status == 0
    assert [f.read_text() for f in runtime.glob(RUNTIME_FILES)] == [before]


def test_cells_and_tasks_have_one_namespace(shared: Any, frontend: Frontend) -> None:
    """A frontend sees what a task has set, and a task what a frontend has set."""
    shared.execute(shared.engine, "from_task = 20")
    ran = frontend.run("from_cell = from_task + 1; from_cell")
    assert ran.states == ["busy", "idle"]
    assert [kind for kind, _ in ran.messages] == ["execute_input", "execute_result"]
    assert ran.messages[1][1]["data"]["text/plain"] == "21"
    count = ran.reply["execution_count"]
    assert [c["execution_count"] for _, c in ran.messages] == [count, count]
    shared.execute(shared.engine, "print(from_cell * 2)")
    assert shared.text(shared._next_seq - 1) == "42\n"


def test_output_goes_to_whoever_asked(shared: Any, frontend: Frontend) -> None:
    """What a cell shows reaches frontends only, what a task shows its client only."""
    outputs = {seq: len(items) for seq, items in shared.outputs.items()}
    ran = frontend.run(
        "import sys, os\nprint('cell')\nprint('err', file=sys.stderr)\nos.system('echo fd')"
    )
    shared.ping(shared.engine)
    assert {seq: len(items) for seq, items in shared.outputs.items()} == outputs
    assert "cell\n" in ran.text and "err\n" in ran.text and "fd\n" in ran.text
    [seq] = shared.run(shared.engine, "execute", ["print('task'); 5"])
    shared.results([seq])
    assert shared.text(seq) == "task\n"
    assert frontend.foreign() == []


def test_rich_output_and_errors_look_as_in_any_kernel(frontend: Frontend) -> None:
    """Display data arrive encoded, an error with its traceback and an error reply."""
    ran = frontend.run("from IPython.display import HTML, display; display(HTML('<b>x</b>'))")
    assert ran.messages[-1][1]["data"]["text/html"] == "<b>x</b>"
    ran = frontend.run("1/0")
    assert ran.reply["status"] == "error" and ran.reply["ename"] == "ZeroDivisionError"
    assert ran.messages[-1][0] == "error"
    assert ran.messages[-1][1]["traceback"] == ran.reply["traceback"]


def wait_for(gate: Path) -> str:
    """Return code that waits for a file."""
    return f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.002)\n"


def test_cells_behind_a_failing_one_are_aborted(frontend: Frontend, tmp_path: Path) -> None:
    """Those that the same frontend has sent, and no later ones."""
    gate = tmp_path / "gate"
    first = frontend.client.execute(f"{wait_for(gate)}1/0")
    second = frontend.client.execute("never = 1")
    # What is answered at once came after the second.
    frontend.reply(frontend.client.kernel_info())
    gate.touch()
    assert frontend.reply(first)["status"] == "error"
    assert frontend.reply(second)["status"] == "aborted"
    assert frontend.run("'never' in globals()").messages[-1][1]["data"]["text/plain"] == "False"


def test_top_level_await_keeps_tasks_waiting(shared: Any, frontend: Frontend) -> None:
    """No task begins while a cell is awaited."""
    cell = frontend.client.execute(
        "import asyncio, time\nlog = ['begin']\nawait asyncio.sleep(0.5)\nlog.append('end')"
    )
    while frontend.client.get_iopub_msg(timeout=TIMEOUT_S)["msg_type"] != "execute_input":
        pass
    ended = shared.execute(shared.engine, "log.append('task')")
    assert ended.status == 0
    assert frontend.reply(cell)["status"] == "ok"
    ran = frontend.run("log")
    assert ran.messages[-1][1]["data"]["text/plain"] == "['begin', 'end', 'task']"


def test_a_cell_waits_for_the_running_task_and_not_for_the_queue(
    shared: Any, frontend: Frontend, tmp_path: Path
) -> None:
    """A cell runs between two tasks; who we are is answered even while one runs."""
    gate = tmp_path / "gate"
    slow = shared.run(shared.engine, "execute", [f"{wait_for(gate)}order = ['task']"])
    more = shared.run(shared.engine, "execute", ["order.append('later')"] * 3)
    shared.until(lambda: shared.ping(shared.engine))
    cell = frontend.client.execute("order.append('cell')")
    info = frontend.client.kernel_info()
    assert frontend.reply(info)["implementation"] == "ipython"
    assert slow[0] not in shared.ended
    gate.touch()
    shared.results([*slow, *more])
    assert frontend.reply(cell)["status"] == "ok"
    ran = frontend.run("order[:2]")
    assert ran.messages[-1][1]["data"]["text/plain"] == "['task', 'cell']"


def test_the_other_requests_of_consoles_are_answered(frontend: Frontend) -> None:
    """Completion, inspection, history, is_complete and comm_info work."""
    client = frontend.client
    frontend.run("known_name = 3")
    reply = frontend.collect(client.complete("known_na", 8)).reply
    assert "known_name" in reply["matches"]
    reply = frontend.collect(client.inspect("known_name", 3)).reply
    assert reply["found"] and "int" in reply["data"]["text/plain"]
    reply = frontend.collect(client.history(hist_access_type="tail", n=1)).reply
    assert [code for _, _, code in reply["history"]] == ["known_name = 3"]
    search = client.history(hist_access_type="search", pattern="known*", n=5, unique=True)
    assert frontend.collect(search).reply["history"][-1][2] == "known_name = 3"
    assert frontend.collect(client.is_complete("for i in x:")).reply["status"] == "incomplete"
    assert frontend.collect(client.comm_info()).reply == {"status": "ok", "comms": {}}


def test_input_is_asked_of_the_frontend(shared: Any, frontend: Frontend) -> None:
    """`input()` of a cell asks its frontend; that of a task is still refused."""
    cell = frontend.client.execute("answer = input('name? ')", allow_stdin=True)
    question = frontend.client.get_stdin_msg(timeout=TIMEOUT_S)
    assert question["content"] == {"prompt": "name? ", "password": False}
    assert question["parent_header"]["msg_id"] == cell
    frontend.client.input("fleet")
    assert frontend.reply(cell)["status"] == "ok"
    assert frontend.run("answer").messages[-1][1]["data"]["text/plain"] == "'fleet'"
    ended = shared.execute(shared.engine, "input()")
    assert ended.error.ename == "StdinNotImplementedError"


def test_an_interrupt_ends_a_question(frontend: Frontend) -> None:
    """Nobody has to answer `input()`; a late answer is not taken for that of the next question."""
    cell = frontend.client.execute("input('first? ')", allow_stdin=True)
    frontend.client.get_stdin_msg(timeout=TIMEOUT_S)
    request = frontend.client.session.msg("interrupt_request", {})
    frontend.client.control_channel.send(request)
    assert frontend.reply(cell)["ename"] == "KeyboardInterrupt"
    frontend.client.input("late")
    cell = frontend.client.execute("import time; time.sleep(0.1); input('second? ')")
    frontend.client.get_stdin_msg(timeout=TIMEOUT_S)
    frontend.client.input("fresh")
    ran = frontend.collect(cell)
    assert ran.messages[-1][1]["data"]["text/plain"] == "'fresh'"


def test_an_interrupt_ends_the_cell(frontend: Frontend) -> None:
    """``interrupt_request`` on the control port raises KeyboardInterrupt, awaited or not."""
    for code in ("import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)"):
        cell = frontend.client.execute(code)
        while frontend.client.get_iopub_msg(timeout=TIMEOUT_S)["msg_type"] != "execute_input":
            pass
        time_left = time.monotonic() + TIMEOUT_S
        while frontend.client.shell_channel.msg_ready() is False:
            # The first may come before the cell has begun, when there is nothing to interrupt.
            request = frontend.client.session.msg("interrupt_request", {})
            frontend.client.control_channel.send(request)
            reply = frontend.reply(request["header"]["msg_id"], "control")
            assert reply["status"] == "ok" and time.monotonic() < time_left
        reply = frontend.reply(cell)
        assert reply["status"] == "error"
        assert reply["ename"] in ("KeyboardInterrupt", "CancelledError")


def test_a_frontend_cannot_shut_the_engine_down(shared: Any, frontend: Frontend) -> None:
    """The request is refused in words, and the engine works on."""
    request = frontend.client.shutdown()
    reply = frontend.reply(request, "control")
    assert reply["status"] == "error" and "engine of a cluster" in reply["evalue"]
    frontend.run("exit")
    assert frontend.run("40 + 2").messages[-1][1]["data"]["text/plain"] == "42"
    assert shared.execute(shared.engine, "1").status == 0


def test_messages_of_strangers_are_dropped(shared: Any, runtime: Path, frontend: Frontend) -> None:
    """Who does not know the key gets no answer and does no harm."""
    [file] = runtime.glob(RUNTIME_FILES)
    info = json.loads(file.read_text())
    stranger = BlockingKernelClient()
    stranger.load_connection_info({**info, "key": "0" * 64})
    stranger.start_channels()
    stranger.execute("intruded = True")
    assert frontend.run("'intruded' in globals()").messages[-1][1]["data"]["text/plain"] == "False"
    with pytest.raises(queue.Empty):
        stranger.get_shell_msg(timeout=0.2)
    stranger.stop_channels()
    stranger.context.term()


def test_the_heartbeat_beats_while_c_code_holds_the_gil(
    shared: Any, frontend: Frontend, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    """A frontend does not take a busy engine for a dead one."""
    fifo, begun = tmp_path / "fifo", tmp_path / "begun"
    os.mkfifo(fifo)
    code = (
        f"import ctypes, os\nfd = os.open({str(fifo)!r}, os.O_RDWR)\n"
        "read, byte = ctypes.PyDLL(None).read, ctypes.create_string_buffer(1)\n"
        f"open({str(begun)!r}, 'w').close()\n"
        "while read(fd, byte, 1) != 1: pass\nos.close(fd)"
    )
    seqs = shared.run(shared.engine, "execute", [code])
    wait(begun.exists)
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as beat:
        beat.linger = 0
        beat.connect(f"tcp://127.0.0.1:{frontend.client.hb_port}")
        for _ in range(3):
            beat.send(b"ping")
            assert beat.poll(1000 * TIMEOUT_S) and beat.recv() == b"ping"
    fifo.write_bytes(b"x")
    shared.results(seqs)


def test_connect_info_tells_how_to_connect(shared: Any, runtime: Path) -> None:
    """``%connect_info`` prints the file's content and the commands."""
    [seq] = shared.run(shared.engine, "execute", ["%connect_info"])
    shared.results([seq])
    [file] = runtime.glob(RUNTIME_FILES)
    text = shared.text(seq)
    assert json.loads(text[: text.index("}") + 1]) == json.loads(file.read_text())
    assert f"--existing {file.name}" in text


def test_ipykernels_functions_find_the_file(shared: Any, runtime: Path) -> None:
    """``ipykernel.get_connection_file()`` works as in any kernel."""
    code = "import ipykernel; print(ipykernel.get_connection_file())"
    [seq] = shared.run(shared.engine, "execute", [code])
    shared.results([seq])
    [file] = runtime.glob(RUNTIME_FILES)
    assert shared.text(seq).strip() == str(file)


@pytest.fixture
def engine(controller: Any) -> tuple[Any, PeerId, Path]:
    """A controller with an engine of its own, and the engine's runtime directory."""
    runtime = controller.directory / "runtime"
    controller.start("-n=1", env={"JUPYTER_RUNTIME_DIR": str(runtime), "DISPLAY": ""})
    [peer] = controller.wait_engines(1)
    return controller, peer, runtime


def test_without_binding_connect_info_says_what_to_do(engine: tuple[Any, PeerId, Path]) -> None:
    """``%connect_info`` names `bind_kernel`; ``%qtconsole`` names what is missing."""
    controller, peer, _ = engine
    ended = controller.execute(peer, "%connect_info")
    assert ended.error.ename == "UsageError" and "bind_kernel()" in ended.error.evalue
    ended = controller.execute(peer, "%qtconsole")
    assert ended.error.ename == "UsageError"
    assert "not installed" in ended.error.evalue or "no display" in ended.error.evalue


def test_an_engine_that_leaves_tells_its_frontends(engine: tuple[Any, PeerId, Path]) -> None:
    """The file is gone, and consoles hear that the kernel has shut down."""
    controller, peer, runtime = engine
    controller.execute(peer, BIND)
    [file] = runtime.glob(RUNTIME_FILES)
    frontend = Frontend(file)
    try:
        frontend.client.wait_for_ready(timeout=TIMEOUT_S)
        assert controller.stop(controller.processes[0]) == 0
        while frontend.client.get_iopub_msg(timeout=TIMEOUT_S)["msg_type"] != "shutdown_reply":
            continue
    finally:
        frontend.close()
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("fork", [True, False], ids=["forked", "spawned"])
def test_the_file_of_a_killed_engine_is_removed(controller: Any, fork: bool) -> None:
    """The agent removes what the engine could not."""
    runtime = controller.directory / "runtime"
    flags = ["-n=1"] if fork else ["-n=1", "--no-fork"]
    controller.start(*flags, env={"JUPYTER_RUNTIME_DIR": str(runtime)})
    [peer] = controller.wait_engines(1)
    controller.execute(peer, BIND)
    [file] = runtime.glob(RUNTIME_FILES)
    os.kill(int(file.stem.partition("-")[2]), signal.SIGKILL)
    controller.until(lambda: controller.exited)
    assert list(runtime.iterdir()) == []


def test_a_forked_process_of_user_code_is_no_engine(
    engine: tuple[Any, PeerId, Path], wait: Callable[..., Any]
) -> None:
    """In a child of multiprocessing the engine's ports and file are not touched."""
    controller, peer, runtime = engine
    code = (
        f"{BIND}\nimport os\npid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n        bind_kernel()\n        os._exit(1)\n"
        "    except RuntimeError:\n        os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    [seq] = controller.run(peer, "execute", [code])
    controller.results([seq])
    assert controller.text(seq) == "7\n"
    assert len(list(runtime.glob(RUNTIME_FILES))) == 1


def test_importing_the_package_loads_nothing_of_jupyter() -> None:
    """`bind_kernel` is loaded when it is first used."""
    code = (
        "import sys, ipyfleet_engine\n"
        "assert 'jupyter_client' not in sys.modules and 'zmq' not in sys.modules\n"
        "assert callable(ipyfleet_engine.bind_kernel)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
