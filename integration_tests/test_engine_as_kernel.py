"""Engines as kernels: programs, terminals and windows that connect to a live engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes.util import find_library
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from jupyter_core.utils import ensure_event_loop

# Made once for all by the first blocking call of a kernel client, and kept: not a test's leak.
ensure_event_loop()

TIMEOUT_S = 60.0
SCREENSHOT = Path(__file__).parents[1] / "build" / "screenshots" / "engine-qtconsole.png"

_GRAB = """
import sys
from PySide6.QtGui import QGuiApplication
app = QGuiApplication([])
assert app.primaryScreen().grabWindow(0).save(sys.argv[1])
"""


def _missing(*programs: str, modules: tuple[str, ...] = ()) -> str:
    """Return what is not installed of some programs and modules, as a reason to skip.

    `make services` and the integration environment have all of it.
    """
    missing = [name for name in programs if shutil.which(name) is None]
    missing += [name for name in modules if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition that nothing tells of; return whether it holds."""
    deadline = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    return holds


class Notebook:
    """A kernel as a notebook has one, with a cluster of two engines in it.

    Attributes:
        environment: of the kernel and so of the engines.
        files: connection files of the engines, in engine order.
    """

    def __init__(self, client: Any, environment: dict[str, str]) -> None:
        self._client = client
        self.environment = environment
        self.files: list[Path] = []

    def run(self, source: str) -> str:
        """Run a cell; return the text it has shown."""
        parts: list[str] = []

        def take(message: dict[str, Any]) -> None:
            content = message["content"]
            parts.append(content.get("text", ""))
            if "text/plain" in content.get("data", {}):
                parts.append(content["data"]["text/plain"] + "\n")
            parts.extend(content.get("traceback", ()))

        reply = self._client.execute_interactive(
            source, timeout=TIMEOUT_S, output_hook=take, allow_stdin=False
        )
        text = "".join(parts)
        assert reply["content"]["status"] == "ok", text
        return text

    def value(self, expression: str) -> Any:
        """Return what an expression is in the notebook, by way of JSON."""
        text = self.run(f"import json; print('<<' + json.dumps({expression}) + '>>')")
        return json.loads(text.partition("<<")[2].partition(">>")[0])


@contextmanager
def _notebook(folder: Path, **extra: str) -> Iterator[Notebook]:
    environment = {
        **os.environ,
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        **extra,
    }
    manager, client = start_new_kernel(kernel_name="python3", env=environment, cwd=str(folder))
    try:
        notebook = Notebook(client, environment)
        notebook.run(
            "import ipyfleet as ipf\n"
            "cluster = ipf.Cluster(n=2)\n"
            "rc = cluster.start_and_connect_sync()"
        )
        yield notebook
        notebook.run("rc.close(); cluster.stop_cluster_sync()")
        assert list((folder / "runtime").glob("kernel-*.json")) == []
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """A notebook whose engines are bound as the manual says."""
    folder = tmp_path_factory.mktemp("notebook")
    with _notebook(folder) as notebook:
        notebook.run("%px from ipyfleet import bind_kernel; bind_kernel()")
        pids = notebook.value("rc[:].apply_sync(__import__('os').getpid)")
        notebook.files = [folder / "runtime" / f"kernel-{pid}.json" for pid in pids]
        yield notebook


@pytest.fixture
def frontend(notebook: Notebook) -> Iterator[BlockingKernelClient]:
    """A program that is connected to engine 0."""
    client = BlockingKernelClient(connection_file=str(notebook.files[0]))
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(timeout=TIMEOUT_S)
    yield client
    client.stop_channels()
    client.context.term()


def test_connect_info_as_in_the_manual(notebook: Notebook):
    """After `bind_kernel`, ``%px %connect_info`` prints each engine's info and the commands."""
    text = notebook.run("%px %connect_info")
    for number, file in enumerate(notebook.files):
        part = text.partition(f"[stdout:{number}]")[2].partition("[stdout:")[0]
        assert json.loads(part[: part.index("}") + 1]) == json.loads(file.read_text())
        assert "Paste the above JSON into a file, and connect with:" in part
        assert f"--existing {file.name}\n" in part


def test_binding_off_an_engine_is_an_error(notebook: Notebook):
    """In the notebook itself `bind_kernel` says where it belongs."""
    text = notebook.run(
        "try:\n    ipf.bind_kernel()\nexcept RuntimeError as error:\n    print(error)"
    )
    assert "engines only" in text


def test_a_program_works_beside_px(notebook: Notebook, frontend: BlockingKernelClient):
    """Cells of a BlockingKernelClient and %px share names, and neither sees the other's output."""
    notebook.run("%px shared = 1")
    shown: list[str] = []

    def take(message: dict[str, Any]) -> None:
        shown.append(message["content"].get("text", ""))

    def work() -> None:
        try:
            for number in range(20):
                reply = frontend.execute_interactive(
                    f"shared += 1; print('cell {number}')", timeout=TIMEOUT_S, output_hook=take
                )
                assert reply["content"]["status"] == "ok"
        finally:
            # Blocking calls of a kernel client make one for each thread, and leave it.
            ensure_event_loop().close()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        texts = [notebook.run(f"%px shared += 1; print('task {n}')") for n in range(20)]
        working.result(TIMEOUT_S)
    assert notebook.value("rc[:]['shared']") == [41, 21]
    assert "".join(shown) == "".join(f"cell {number}\n" for number in range(20))
    for number, text in enumerate(texts):
        assert text.splitlines() == [f"[stdout:{n}] task {number}" for n in (0, 1)]


@pytest.mark.timeout(240)
def test_a_terminal_console(notebook: Notebook):
    """``jupyter console --existing`` in a terminal: cells, completion, errors, leaving."""
    if reason := _missing(modules=("jupyter_console", "pexpect")):
        pytest.skip(reason)
    pexpect: Any = import_module("pexpect")
    notebook.run("%px from_client = 20")
    # Terminals that cannot tell where their cursor is are asked, and waited for, otherwise.
    environment = {**notebook.environment, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    console = pexpect.spawn(
        sys.executable,
        ["-m", "jupyter_console", "--existing", notebook.files[1].name],
        env=environment,
        timeout=TIMEOUT_S,
        dimensions=(40, 120),
        encoding="utf-8",
    )
    try:
        console.expect("In ")
        console.send("from_console = from_client + 1\r")
        console.send("print('the sum', 'is', from_console)\r")
        console.expect("the sum is 21")
        console.send("1/0\r")
        console.expect("ZeroDivisionError")
        console.send("raw = input('your name? ')\r")
        console.expect("your name\\? ")
        console.send("fleet\r")
        console.send("print(raw.upper())\r")
        console.expect("FLEET")
        console.send("\x04")
        console.expect("Do you really want to exit|want to exit")
        console.send("y\r")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    assert notebook.value("rc[1]['from_console']") == 21
    assert notebook.value("rc[0].apply_sync(lambda: 'from_console' in globals())") is False


@pytest.fixture
def display() -> Iterator[str]:
    """A screen that nobody sees."""
    if reason := _missing("Xvfb", "xdotool", modules=("qtconsole", "PySide6")):
        pytest.skip(reason)
    for library in ("xcb-cursor", "xcb-icccm", "xcb-keysyms"):
        if find_library(library) is None:
            pytest.skip(f"not installed: lib{library}, which Qt needs")
    read_end, write_end = os.pipe()
    server = subprocess.Popen(
        [
            *("Xvfb", "-displayfd", str(write_end), "-screen", "0", "620x420x24"),
            *("-nolisten", "tcp", "-noreset"),
        ],
        pass_fds=[write_end],
        stderr=subprocess.DEVNULL,
    )
    os.close(write_end)
    try:
        with os.fdopen(read_end) as pipe:
            yield f":{pipe.readline().strip()}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.timeout(240)
def test_a_qtconsole_on_an_engine(display: str, tmp_path: Path):
    """``%qtconsole`` opens a window, a cell typed there sets a name on the engine; both end."""
    extra = {"DISPLAY": display, "QT_QPA_PLATFORM": "xcb"}

    def xdotool(*arguments: str) -> str:
        command = ["xdotool", *arguments]
        result = subprocess.run(
            command,
            env={**os.environ, **extra},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        return result.stdout.strip()

    with _notebook(tmp_path, **extra) as notebook:
        text = notebook.run("%%px --targets 0\n%qtconsole --ConsoleWidget.font_size=14")
        found = re.search(r"as process (\d+)", text)
        assert found, text
        window = xdotool("search", "--sync", "--onlyvisible", "--name", "QtConsole").split()[-1]
        notebook.run("%px from_client = 20")
        xdotool("windowfocus", "--sync", window)

        def is_typed() -> bool:
            return bool(notebook.value("rc[0].apply_sync(lambda: 'typed' in globals())"))

        # The window is there before its prompt is, and what is typed too early may be lost.
        for _ in range(6):
            xdotool("mousemove", "300", "300", "click", "1")
            xdotool("type", "--delay", "20", "typed = from_client * 2 + 1; print('sum', typed)")
            xdotool("key", "Return")
            if _wait_until(is_typed, 5.0):
                break
        assert notebook.value("rc[0]['typed']") == 41
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-c", _GRAB, str(SCREENSHOT)],
            env={**os.environ, **extra},
            timeout=TIMEOUT_S,
            check=True,
        )
        assert SCREENSHOT.stat().st_size > 5_000
    # The engine has told it that it leaves.
    console = Path("/proc", found[1])
    assert _wait_until(lambda: not console.exists(), TIMEOUT_S)
