"""A real `ipcontroller` process: how it starts, what it leaves, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _left(process: Any, info: Any) -> list[str]:
    paths = [*(process.profile / "security").glob("*.json"), Path(info.blob_dir)]
    paths.append(Path(info.urls[0].removeprefix("unix://")).parent)
    return [str(path) for path in paths if path.exists()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_files_are_private_and_gone_after_a_signal(start: Any, number: int) -> None:
    """Connection files have rights 0600 in a directory 0700; a signal ends the process with code
    0.
    """
    process = start()
    info = process.info()
    security = process.profile / "security"
    process.info("engine")
    assert stat.S_IMODE(security.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in security.glob("*.json")] == [0o600] * 2
    runtime = Path(info.urls[0].removeprefix("unix://")).parent
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    process.popen.send_signal(number)
    code, stderr = process.stop()
    assert (code, stderr) == (0, "")
    assert _left(process, info) == []


def test_it_ends_when_its_lease_does(start: Any) -> None:
    """When the other end of the lease's pipe is closed, the controller ends cleanly."""
    read_fd, write_fd = os.pipe()
    try:
        process = start(f"--lease-fd={read_fd}", pass_fds=[read_fd])
        info = process.info()
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert process.popen.wait(timeout=30) == 0
    assert _left(process, info) == []


def test_a_second_controller_at_the_same_files_is_refused(start: Any) -> None:
    """A controller does not take the files of one that lives; one line says so, code 1."""
    first = start()
    info = first.info()
    second = start()
    assert second.popen.wait(timeout=30) == 1
    _, stderr = second.stop()
    assert stderr.count("\n") == 1
    assert f"pid {info.pid}" in stderr
    assert first.info() == info
    third = start("--cluster-id=blue")
    assert third.info(cluster_id="blue").cluster_id == "blue"


def test_what_a_killed_controller_left_is_cleaned_up_by_the_next(start: Any) -> None:
    """Files of a controller that was killed are replaced, its socket and shared memory removed."""
    first = start()
    stale = first.info()
    Path(stale.blob_dir).mkdir(mode=0o700, exist_ok=True)
    first.popen.kill()
    first.popen.wait(timeout=30)
    second = start()
    fresh = second.info()
    assert fresh.instance != stale.instance
    assert not Path(stale.blob_dir).exists()
    assert not Path(stale.urls[0].removeprefix("unix://")).parent.exists()
    second.stop()


def test_a_port_in_use_is_told_in_one_line(start: Any) -> None:
    """A port that another process has ends the controller with code 1 and one line that says
    what to do.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start("--ip=127.0.0.1", f"--port={taken.getsockname()[1]}")
        assert process.popen.wait(timeout=30) == 1
    _, stderr = process.stop()
    assert stderr.count("\n") == 1
    assert "the port is in use" in stderr
    assert not list(process.profile.glob("security/*.json"))


def test_the_log_goes_to_a_file_if_asked(start: Any) -> None:
    """With --log-to-file the log is in the profile and stderr stays empty."""
    process = start("--log-to-file", "--log-level=INFO")
    process.info()
    assert process.stop() == (0, "")
    [log] = (process.profile / "log").glob("ipcontroller-*.log")
    assert "SIGTERM" in log.read_text()


def test_the_profile_can_configure_it_and_the_command_line_wins(start: Any, tmp_path: Path) -> None:
    """`ipcontroller_config.py` is read; flags go before it."""
    profile = tmp_path / "profile_default"
    profile.mkdir()
    (profile / "ipcontroller_config.py").write_text(
        "c.IPController.ip = '127.0.0.1'\nc.IPController.cluster_id = 'from-file'\n"
    )
    info = start("--cluster-id=flag").info(cluster_id="flag")
    assert info.urls[-1].startswith("tcp://127.0.0.1:")


def test_starting_imports_nothing_heavy() -> None:
    """The modules that take long to import, and those that unpickle, stay out of the controller."""
    code = (
        "import sys, ipyfleet_controller.app, ipyfleet_controller.router\n"
        "import ipyfleet_controller.endpoints, ipyfleet_controller.database.memory\n"
        "heavy = {'asyncio', 'cloudpickle', 'numpy', 'ssl', 'IPython', 'tornado', 'zmq'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "[]\n"


def test_a_scheme_is_chosen_on_the_command_line_or_in_the_configuration(start: Any) -> None:
    """`--scheme`, `--hwm` and `c.TaskScheduler` are understood; an unknown scheme is one line."""
    process = start("--scheme=weighted", "--hwm=3")
    process.info()
    assert process.stop() == (0, "")
    config = process.profile / "ipcontroller_config.py"
    config.write_text("c.TaskScheduler.scheme_name = 'fastest'\nc.TaskScheduler.hwm = 2\n")
    refused = start()
    assert refused.popen.wait(timeout=30) == 1
    assert "there is no scheduling scheme 'fastest'; there are leastload" in refused.stop()[1]
