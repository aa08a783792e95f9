"""Running a subcommand in the background: ``--daemonize``.

The command is run again as a process of its own, in a session of its own, with the write end of a
pipe through which it says when it is ready, or why it will not be. The process that the user
started waits for that, repeats it and exits with the code that it was told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ipyfleet_protocol import paths


def spawn_daemon(subcommand: str, argv: list[str], directory: Path, name: str) -> tuple[int, str]:
    """Run a subcommand in the background and wait until it reports.

    Args:
        subcommand: of ``ipcluster``.
        argv: its arguments.
        directory: the profile directory; the daemon's log goes there.
        name: of the log file.

    Returns:
        The exit code that it reports and what it has to say.
    """
    log_dir = paths.log_dir(directory)
    log_dir.mkdir(parents=True, exist_ok=True)
    log_path = log_dir / f"{name}-{os.getpid()}.log"
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "ipyfleet_cluster", subcommand]
    with open(read_fd, encoding="utf-8") as report, log_path.open("ab") as log:
        try:
            daemon = subprocess.Popen(
                [*command, f"--ForegroundCommand.ready_fd={write_fd}", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write_fd,),
                start_new_session=True,
            )
        finally:
            os.close(write_fd)
        text = report.read()
    if text:
        found = json.loads(text)
        return int(found["code"]), str(found["message"])
    code = daemon.wait()
    tail = log_path.read_text(encoding="utf-8", errors="replace")[-4000:].strip()
    return code or 1, f"the background process ended with code {code}:\n{tail}"


def report_ready(ready_fd: int, code: int, message: str) -> None:
    """Tell the process that waits in `spawn_daemon`, and close the pipe. Called once."""
    with open(ready_fd, "w", encoding="utf-8") as report:
        try:
            json.dump({"code": code, "message": message}, report)
            report.flush()
        except BrokenPipeError:
            # Whoever waited was killed; that is no reason to stop the cluster.
            return
