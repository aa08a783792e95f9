"""What runs in an engine, as a user's notebook sees it: cells, output, errors of any kind."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import ipyfleet as ipf

if TYPE_CHECKING:
    from ipyfleet_client import AsyncResult, DirectView
    from ipyfleet_testing.cluster import ClusterFactory

CLUSTER_ENGINES = 1
TIMEOUT_S = 60


@pytest.fixture
def engine(client: ipf.Client) -> Iterator[DirectView]:
    """A view of the one engine; its namespace is empty, and it is alive afterwards."""
    view = client[0]
    yield view
    assert view.apply_async(lambda: "alive").get(TIMEOUT_S) == "alive"
    view.clear(block=True)


def run(engine: DirectView, code: str) -> AsyncResult:
    """Run a cell and wait for all of its output."""
    result = engine.execute(code, silent=False)
    result.get(TIMEOUT_S)
    result.wait_for_output(TIMEOUT_S)
    return result


def call(engine: DirectView, function: Callable[..., Any], *args: Any) -> AsyncResult:
    """Call a function and wait for all of its output."""
    result = engine.apply_async(function, *args)
    result.get(TIMEOUT_S)
    result.wait_for_output(TIMEOUT_S)
    return result


def value(result: AsyncResult) -> str:
    """Return what a cell's last line shows as plain text."""
    text: str = result.execute_result["data"]["text/plain"]
    return text


def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition that nothing tells of."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "not reached"
        time.sleep(0.01)
    return found


# -- cells ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("%timeit -n 10 -r 2 1 + 1", "per loop"),
        ("%%timeit -n 10 -r 2\nx = 1\nx + 1", "per loop"),
        ("%time sum(range(10))", "Wall time"),
        ("%cd /", "/"),
        ("!echo from a shell", "from a shell"),
        ("what = 'a name'\n!echo {what}", "a name"),
        ("%%bash\necho from bash", "from bash"),
        ("%who_ls\nprint('magics done')", "magics done"),
        ("%env ENGINE_TEST=5", "ENGINE_TEST=5"),
        ("%%capture held\nprint('held back')\n", ""),
    ],
)
def test_magics_print(engine: DirectView, code: str, printed: str) -> None:
    """Line magics, cell magics and shell escapes do on an engine what they do in a notebook."""
    here = os.getcwd()
    assert printed in run(engine, code).stdout
    engine.apply_sync(os.chdir, here)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("lines = !echo one; echo two\nlines", "['one', 'two']"),
        ("import asyncio\nawait asyncio.sleep(0.01)\n'awaited'", "'awaited'"),
        ("async def double(x):\n    return 2 * x\nawait double(4)", "8"),
        ("!exit 3\n_exit_code", "3"),
        ("%pylab inline\nint(arange(3).sum())", "3"),
    ],
)
def test_cells_have_values(engine: DirectView, code: str, shown: str) -> None:
    """What a cell's last line gives is its result."""
    assert value(run(engine, code)) == shown


def test_run_executes_a_file(engine: DirectView, tmp_path: Any) -> None:
    """%run leaves the file's names in the namespace."""
    (tmp_path / "script.py").write_text("print('in the file')\nfrom_file = 6 * 7\n")
    result = run(engine, f"%run {tmp_path / 'script.py'}\nfrom_file")
    assert (result.stdout, value(result)) == ("in the file\n", "42")


def test_extensions_can_be_loaded(engine: DirectView, tmp_path: Any) -> None:
    """%load_ext imports an extension on the engine and registers its magics."""
    (tmp_path / "shouting.py").write_text(
        "def load_ipython_extension(ip):\n"
        "    ip.register_magic_function(lambda line: print(line.upper()), 'line', 'shout')\n"
    )
    run(engine, f"import sys; sys.path.insert(0, {os.fspath(tmp_path)!r})\n%load_ext shouting")
    assert run(engine, "%shout quietly").stdout == "QUIETLY\n"


def test_matplotlib_shows_figures_before_the_value(engine: DirectView) -> None:
    """With %matplotlib inline a figure is displayed as png, and the cell has its value, too."""
    pytest.importorskip("matplotlib")
    run(engine, "%matplotlib inline\nimport matplotlib.pyplot as plt")
    result = run(engine, "_ = plt.plot([1, 2])\n'the value'")
    assert [sorted(shown["data"]) for shown in result.outputs] == [["image/png", "text/plain"]]
    assert result.outputs[0]["data"]["image/png"].startswith("iVBOR")
    assert value(result) == "'the value'"


def test_rich_display(engine: DirectView) -> None:
    """Displayed objects arrive with all their representations, in order."""
    result = run(
        engine,
        "from IPython.display import HTML, Latex, Markdown, display\n"
        "display(HTML('<b>bold</b>'), Latex('$x$'), Markdown('*m*'))",
    )
    data = [shown["data"] for shown in result.outputs]
    assert data[0]["text/html"] == "<b>bold</b>"
    assert data[1]["text/latex"] == "$x$"
    assert data[2]["text/markdown"] == "*m*"


def test_displays_can_be_updated(engine: DirectView) -> None:
    """An update with the same display_id takes the place of what was shown."""
    result = run(
        engine,
        "handle = display('first', display_id=True)\ndisplay('other')\nhandle.update('second')",
    )
    assert [d["data"]["text/plain"] for d in result.outputs] == ["'second'", "'other'"]


def test_help_is_displayed(engine: DirectView) -> None:
    """What a pager would show is displayed: an engine has no pager."""
    [shown] = run(engine, "len?").outputs
    assert "number of items" in shown["data"]["text/plain"]


@pytest.mark.parametrize("question", ["input('name?')", "__import__('getpass').getpass()"])
def test_questions_are_refused(engine: DirectView, question: str) -> None:
    """input() and getpass() fail at once and say what to do, in cells and in functions."""
    with pytest.raises(ipf.RemoteError, match="nobody to ask"):
        engine.execute(question).get(TIMEOUT_S)
    with pytest.raises(ipf.RemoteError, match="nobody to ask"):
        engine.apply_async(eval, question).get(TIMEOUT_S)


def test_cython_cells_are_compiled_on_the_engine(engine: DirectView) -> None:
    """%%cython makes a compiled function, which other cells and tasks can call."""
    pytest.importorskip("Cython")
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    run(engine, "%load_ext cython")
    run(engine, "%%cython\ndef triple(int x):\n    return 3 * x\n")
    assert value(run(engine, "triple(14)")) == "42"
    assert value(run(engine, "type(triple).__name__")) != "'function'"


def test_r_cells_run_on_the_engine(engine: DirectView) -> None:
    """%%R runs R where rpy2 is installed."""
    pytest.importorskip("rpy2", reason="%%R needs rpy2")
    run(engine, "%load_ext rpy2.ipython")
    assert "42" in run(engine, "%%R\nprint(6 * 7)").stdout


# -- output -----------------------------------------------------------------------------------


def test_everything_a_task_writes_is_its_output(engine: DirectView) -> None:
    """Python, file descriptors, subprocesses and C code: in the order in which it was written."""

    def write_in_many_ways() -> None:
        import ctypes
        import os
        import subprocess

        libc = ctypes.CDLL(None)
        for i in range(3):
            print("python", i)
            os.write(1, b"descriptor %d\n" % i)
            subprocess.run(["echo", "subprocess", str(i)], check=True)
            libc.printf(b"C %d\n", ctypes.c_int(i))
            os.system(f"echo shell {i} >&2")
        libc.printf(b"C without an end of line")

    result = call(engine, write_in_many_ways)
    ways = ("python", "descriptor", "subprocess", "C")
    lines = [f"{way} {i}" for i in range(3) for way in ways]
    assert result.stdout.split("\n") == [*lines, "C without an end of line"]
    assert result.stderr == "shell 0\nshell 1\nshell 2\n"


def test_output_of_subprocesses_is_live(engine: DirectView) -> None:
    """What a subprocess prints is there while the task runs."""
    result = engine.execute("!echo early; sleep 600")
    until(lambda: result.stdout)
    assert result.stdout == "early\n" and not result.ready()
    engine.client.send_signal(signal.SIGINT, block=True)
    with pytest.raises(ipf.RemoteError, match="KeyboardInterrupt"):
        result.get(TIMEOUT_S)


def test_forked_processes_print_too(engine: DirectView) -> None:
    """The output of a multiprocessing pool belongs to the task that made it."""
    code = (
        "import multiprocessing\n"
        "def work(i):\n"
        "    print('child', i)\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    pool.map(work, range(3))"
    )
    assert run(engine, code).stdout == "child 0\nchild 1\nchild 2\n"


def test_threads_belong_to_the_task_that_starts_them(engine: DirectView) -> None:
    """A thread or coroutine that goes on after its task prints into that task's output."""
    run(engine, "import asyncio, threading\ngo = threading.Event()")
    by_thread = run(
        engine, "threading.Thread(target=lambda: (go.wait(60), print('from the thread'))).start()"
    )
    by_coroutine = run(
        engine,
        "async def later():\n"
        "    while not go.is_set():\n"
        "        await asyncio.sleep(0.01)\n"
        "    print('from the coroutine')\n"
        "kept = asyncio.ensure_future(later())",
    )
    other = run(engine, "go.set()\nprint('from the other task')\nawait kept")
    assert until(lambda: by_thread.stdout) == "from the thread\n"
    assert until(lambda: by_coroutine.stdout) == "from the coroutine\n"
    assert other.stdout == "from the other task\n"


def test_progress_bars_are_one_line(engine: DirectView) -> None:
    """Carriage returns replace the line, as in a terminal."""

    def show_progress() -> None:
        import sys

        for percent in range(0, 101, 10):
            print(f"\r{percent} %", end="", file=sys.stderr)
        print(file=sys.stderr)

    assert call(engine, show_progress).stderr == "100 %\n"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nline = b'y' * 99 + b'\\n'\nfor _ in range(2000): os.write(1, line * 1000)",
        "import subprocess\n_ = subprocess.run('yes | head -c 200000000', shell=True)",
    ],
    ids=["descriptor", "subprocess"],
)
def test_200_megabytes_block_and_grow_nothing(engine: DirectView, code: str) -> None:
    """The engine stays small and quick; what was dropped is said in the output."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process(engine.apply_sync(os.getpid))
    before, spent = process.memory_info().rss, process.cpu_times()
    result = run(engine, code)
    # What it takes of the processor, which others on the machine do not change.
    assert sum(process.cpu_times()[:2]) - sum(spent[:2]) < 20
    assert process.memory_info().rss - before < 64e6
    text = result.stdout
    assert text.endswith("y\n")
    assert len(text) > 1e6
    if len(text) < 200e6:
        assert "bytes of output were dropped here]" in text


def test_data_arrives_while_the_task_runs(engine: DirectView) -> None:
    """publish_data fills ar.data before the task has ended; later values replace earlier ones."""

    def publish(published: Any) -> None:
        from ipyfleet import publish_data

        publish_data({"step": 1, "name": "first"})
        publish_data({"step": 2})
        published.wait(60)

    run(engine, "import threading\npublished = threading.Event()")
    result = engine.apply_async(publish, ipf.Reference("published"))
    assert until(lambda: result.data.get("step") == 2)
    assert result.data == {"step": 2, "name": "first"}
    assert not result.ready(), result.exception()
    engine.client.send_signal(signal.SIGINT, block=True)
    result.wait(TIMEOUT_S)


def test_publishing_elsewhere_is_an_error() -> None:
    """publish_data in the client's process says that it belongs on engines."""
    with pytest.raises(RuntimeError, match="on engines only"):
        ipf.publish_data({"a": 1})


# -- what user code throws --------------------------------------------------------------------


def raise_system_exit() -> None:
    """sys.exit() in a task."""
    raise SystemExit(3)


def raise_keyboard_interrupt() -> None:
    """As Ctrl-C would."""
    raise KeyboardInterrupt


def recurse() -> None:
    """Recurse without end."""
    recurse()


def run_out_of_memory() -> None:
    """Ask for more memory than there can be."""
    bytearray(1 << 60)


def raise_what_cannot_be_pickled() -> None:
    """Raise an exception that holds a generator."""

    class LocalError(Exception):
        def __init__(self) -> None:
            super().__init__(lambda: None)
            self.generator = (i for i in [])

    raise LocalError


def raise_what_cannot_be_shown() -> None:
    """Raise an exception whose text cannot be had."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    raise MuteError


def raise_a_base_exception() -> None:
    """Raise what is no Exception."""

    class OwnBase(BaseException):
        pass

    raise OwnBase("base")


def raise_a_group() -> None:
    """Raise several at once."""
    raise ExceptionGroup("several", [ValueError(1), TypeError(2)])


def return_a_generator() -> object:
    """Return what cannot be pickled."""
    return (i for i in range(3))


def return_deep_data() -> object:
    """Return what is nested too deeply for a pickle."""
    data: list[Any] = []
    for _ in range(100_000):
        data = [data]
    return data


def raise_generator_exit() -> None:
    """Raise what the interpreter treats specially in coroutines."""
    raise GeneratorExit


def raise_cancelled() -> None:
    """Raise what asyncio takes for a cancellation."""
    import asyncio

    raise asyncio.CancelledError


THROWN: dict[Callable[[], Any], str] = {
    raise_system_exit: "SystemExit",
    raise_keyboard_interrupt: "KeyboardInterrupt",
    recurse: "RecursionError",
    run_out_of_memory: "MemoryError",
    raise_what_cannot_be_pickled: "LocalError",
    raise_what_cannot_be_shown: "MuteError",
    raise_a_base_exception: "OwnBase",
    raise_a_group: "ExceptionGroup",
    return_a_generator: "PackError",
    return_deep_data: "PackError",
    raise_generator_exit: "GeneratorExit",
    raise_cancelled: "CancelledError",
}


@pytest.mark.parametrize(
    ("thrower", "how"),
    [
        pytest.param(thrower, how, id=f"{thrower.__name__}-{how}")
        for thrower in THROWN
        for how in ("apply", "execute", "async")
        # A cell's value is shown, not sent.
        if how != "execute" or not thrower.__name__.startswith("return")
    ],
)
def test_whatever_is_thrown_is_an_error_of_its_task(
    engine: DirectView, thrower: Callable[[], Any], how: str
) -> None:
    """The task fails with the name of what was thrown, and the next one runs in the same engine."""
    pid = engine.apply_sync(os.getpid)
    if how == "execute":
        engine.push({"thrower": thrower}, block=True)
        result = engine.execute("thrower()")
    elif how == "async":

        async def throw_later() -> Any:
            import asyncio

            await asyncio.sleep(0)
            return thrower()

        result = engine.apply_async(throw_later)
    else:
        result = engine.apply_async(thrower)
    with pytest.raises(ipf.RemoteError) as caught:
        result.get(TIMEOUT_S)
    assert caught.value.ename == THROWN[thrower]
    assert engine.apply_async(os.getpid).get(TIMEOUT_S) == pid


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("import os; os._exit(7)", "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
    ids=["exit", "kill", "segfault"],
)
def test_the_end_of_an_engine_is_explained(
    cluster_factory: ClusterFactory, ending: str, reason: str
) -> None:
    """EngineError names exit code or signal, peak memory and the last lines of the engine's log."""
    with cluster_factory(n=1).connect_client_sync() as client:
        engine = client[0]
        engine.execute(
            "import logging; logging.getLogger('ipyfleet').warning('the last words')"
        ).get(TIMEOUT_S)
        with pytest.raises(ipf.EngineError, match=reason) as caught:
            engine.execute(ending).get(TIMEOUT_S)
        text = str(caught.value)
        assert "peak memory" in text
        expected = "Fatal Python error" if reason == "SIGSEGV" else "the last words"
        assert expected in text


# -- start-up code ----------------------------------------------------------------------------


def test_startup_code(
    cluster_factory: ClusterFactory, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that a profile and the environment name runs before the first task, in order."""
    profile = tmp_path / "profile"
    profile.mkdir()
    (tmp_path / "first.py").write_text("order = ['PYTHONSTARTUP']\n")
    (tmp_path / "file.py").write_text("order.append('exec_files')\n")
    (tmp_path / "startup_extension.py").write_text(
        "def load_ipython_extension(ip):\n    ip.push({'extended': True})\n"
    )
    (tmp_path / "script.py").write_text("order.append('script')\nprint('startup was here')\n")
    (profile / "ipengine_config.py").write_text(
        "c.InteractiveShellApp.exec_lines = ["
        "'order.append(\"exec_lines\")', '1 / 0', 'import asyncio; await asyncio.sleep(0)']\n"
        f"c.InteractiveShellApp.exec_files = [{os.fspath(tmp_path / 'file.py')!r}]\n"
        "c.InteractiveShellApp.extensions = ['startup_extension', 'no_such_extension']\n"
        f"c.IPEngineApp.startup_script = {os.fspath(tmp_path / 'script.py')!r}\n"
        "c.IPEngineApp.startup_command = 'order.append(\"command\")'\n"
    )
    monkeypatch.setenv("PYTHONSTARTUP", os.fspath(tmp_path / "first.py"))
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))
    with ipf.Cluster(n=1, profile_dir=os.fspath(profile)) as client:
        names = ["PYTHONSTARTUP", "exec_lines", "exec_files", "script", "command"]
        assert client[0]["order"] == names
        assert client[0]["extended"] is True
    [log] = (profile / "log").glob("ipengine-*-0.log")
    text = log.read_text()
    assert "ZeroDivisionError" in text and "no_such_extension" in text
    assert "startup was here" in text
