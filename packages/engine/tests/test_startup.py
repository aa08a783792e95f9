"""Code that runs in an engine before its first task."""

from __future__ import annotations

import os
from typing import Any

import pytest


def log_of(controller: Any) -> str:
    """Return the text of the engine's log."""
    [log] = (controller.directory / "ipython/profile_default/log").glob("ipengine-*-0.log")
    return str(log.read_text())


@pytest.mark.parametrize("mode", [(), ("--no-fork",)], ids=["fork", "spawn"])
def test_script_and_command_have_short_names(controller: Any, mode: tuple[str, ...]) -> None:
    """-s runs a file, -c a line, both with magics; what they print is in the log."""
    script = controller.directory / "start.py"
    script.write_text("%env STARTED=yes\nimport os\nname = os.path.basename(__file__)\n")
    controller.start("-n=1", "-s", os.fspath(script), "-c", "print('said', name)", *mode)
    [engine] = controller.wait_engines(1)
    ended = controller.execute(engine, "print(os.environ['STARTED'], name)")
    assert controller.text(ended.seq) == "yes start.py\n"
    assert "said start.py" in log_of(controller)


@pytest.mark.parametrize(
    ("flags", "logged"),
    [
        (("-c", "1 / 0"), "ZeroDivisionError: division by zero"),
        (("-c", "import sys; sys.exit(5)"), "SystemExit: 5"),
        (("-s", "/no/such/file.py"), "there is no start-up script /no/such/file.py"),
    ],
)
def test_errors_are_logged_and_the_engine_lives(
    controller: Any, flags: tuple[str, ...], logged: str
) -> None:
    """An engine whose start-up code fails serves tasks, and its log tells what was wrong."""
    controller.start("-n=1", *flags)
    [engine] = controller.wait_engines(1)
    assert controller.apply(engine, lambda: "alive").value == "alive"
    assert logged in log_of(controller)


def test_the_profile_s_startup_directory_is_run(controller: Any) -> None:
    """Files of the profile's `startup` directory run in the order of their names."""
    startup = controller.directory / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "10-first.py").write_text("order = [1]\n")
    (startup / "20-second.ipy").write_text("order.append(2)\n%env SECOND=2\n")
    controller.start("-n=1")
    [engine] = controller.wait_engines(1)
    assert controller.text(controller.execute(engine, "print(order)").seq) == "[1, 2]\n"
