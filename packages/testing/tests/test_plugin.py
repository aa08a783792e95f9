"""Each test runs pytest in a process of its own on a small test module."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

pytest_plugins = ["pytester"]

RunModule: TypeAlias = Callable[..., pytest.RunResult]

PROLOGUE = """
import os, pathlib, socket, subprocess, sys, threading
import pytest

def child():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> RunModule:
    """Run pytest on the source of a test module; return its result."""

    def run_module(source: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(PROLOGUE + source)
        options = ("-p", "no:cacheprovider", "--leak-grace=0.5", *args)
        return pytester.runpytest_subprocess(*options, timeout=50)

    return run_module


LEAKS = {
    "process": (
        """
def test_process():
    kept.append(child())
""",
        "process *import time; time.sleep(60)*",
    ),
    "detached": (
        """
def test_detached():
    code = "import subprocess, sys, pathlib; " \\
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], " \\
        "start_new_session=True); pathlib.Path('pid').write_text(str(p.pid)); " \\
        "import os; os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
""",
        "process *import time; time.sleep(60)*",
    ),
    "thread": (
        """
release = threading.Event()

@pytest.fixture(scope="session", autouse=True)
def release_at_the_end():
    yield
    release.set()

def test_thread():
    threading.Thread(target=release.wait, name="forgotten").start()
""",
        "thread 'forgotten'",
    ),
    "socket": (
        """
def test_socket():
    kept.append(socket.socketpair())
""",
        "socket:*file descriptor*",
    ),
    "pipe": (
        """
def test_pipe():
    os.pipe()
""",
        "pipe:*file descriptor*",
    ),
    "files": (
        """
def test_files():
    kept.extend(open(os.devnull) for _ in range(30))
""",
        "/dev/null*file descriptor*",
    ),
    "socket_directory": (
        """
def test_socket_directory():
    pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "ipyfleet-abc").mkdir()
""",
        "*/run/ipyfleet-abc",
    ),
    "shared_memory": (
        """
def test_shared_memory():
    folder = pathlib.Path(os.environ["IPYFLEET_SHM_DIR"], "ipyfleet-0-abc")
    folder.mkdir()
    (folder / "blob").write_bytes(b"x")
""",
        "*/ipyfleet-0-abc",
    ),
}


def test_a_leak_fails_the_test_that_leaked(run: RunModule, pytester: pytest.Pytester) -> None:
    """Each test that leaked fails by name with what it left, and no other does."""
    tests = [
        f"{source}\ndef test_after_{kind}():\n    pass\n" for kind, (source, _) in LEAKS.items()
    ]
    result = run("kept = []\n" + "".join(tests))
    result.assert_outcomes(passed=2 * len(LEAKS), errors=len(LEAKS))
    for kind, (_, expected) in LEAKS.items():
        result.stdout.fnmatch_lines([f"*::test_{kind} left behind:", f"*{expected}*"])

    # What is left of a leaked process after the run: nothing that runs.
    pid = int(Path(pytester.path, "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_is_closed_in_time_is_no_leak(run: RunModule) -> None:
    """A process, thread and socket that end with the test, or within moments after, pass."""
    result = run(
        """
def test_closes():
    process = child()
    process.kill()
    process.wait()
    for end in socket.socketpair():
        end.close()
    threading.Timer(0.2, int).start()
""",
        "--leak-grace=30",
    )
    result.assert_outcomes(passed=1)


def test_what_a_wider_fixture_makes_is_its_own(run: RunModule) -> None:
    """What a module's fixture holds is no leak of any test while the fixture lives."""
    result = run("""
@pytest.fixture(scope="module")
def server():
    process = child()
    yield process
    process.kill()
    process.wait()

def test_first(server):
    pass

def test_second(server):
    assert server.poll() is None

def test_third():
    pass
""")
    result.assert_outcomes(passed=3)


def test_a_wider_fixture_that_leaks_is_named(run: RunModule) -> None:
    """What a module's fixture leaves behind is reported at its end with the fixture's name."""
    result = run("""
@pytest.fixture(scope="module")
def server():
    return child()

def test_first(server):
    pass

def test_last(server):
    pass
""")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_last*"])
    result.stdout.fnmatch_lines(["the module's fixture 'server' left behind:", "*process *"])


def test_a_test_can_be_excused(run: RunModule) -> None:
    """A marked test may leave the named kinds, and only those."""
    result = run("""
@pytest.mark.may_leak("pipe", reason="on purpose")
def test_excused():
    os.pipe()

@pytest.mark.may_leak("thread", reason="not what it leaks")
def test_not_excused():
    os.pipe()
""")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*::test_not_excused left behind:"])


def test_skips_are_listed_with_their_reasons(run: RunModule) -> None:
    """The summary names each skipped test and says why."""
    result = run("""
@pytest.mark.skip(reason="no such database here")
def test_marked():
    pass

def test_inside():
    pytest.skip("not on a Tuesday")
""")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        [
            "*skipped, and why*",
            "*::test_marked: no such database here",
            "*::test_inside: not on a Tuesday",
        ]
    )


def test_the_run_has_surroundings_of_its_own(run: RunModule) -> None:
    """A run sees private directories, not those around it, and removes them at its end."""
    result = run(
        """
def test_surroundings():
    for name in ("IPYTHONDIR", "XDG_RUNTIME_DIR", "IPYFLEET_SHM_DIR"):
        print(name, os.environ[name])
    assert os.stat(os.environ["XDG_RUNTIME_DIR"]).st_mode & 0o777 == 0o700
""",
        "-s",
    )
    result.assert_outcomes(passed=1)
    seen = dict(line.split(" ", 1) for line in result.outlines if line.startswith(("IPY", "XDG")))
    assert len(seen) >= 2
    for name, value in seen.items():
        assert value != os.environ[name]
        assert not Path(value).exists()


def test_a_background_job_can_be_interrupted(run: RunModule) -> None:
    """Where the tests were started with SIGINT ignored it interrupts all the same."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = run(
            """
import signal

def test_interrupt():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
"""
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    result.assert_outcomes(passed=1)
