"""Shell escapes (``!command``) of an engine.

What lives here: `run_command`. What must not: IPython.

IPython's own way keeps all that a command prints in memory and searches through it again and again:
200 MB take minutes. This one hands on what comes and forgets it. The command has a pseudo-terminal,
so that its output is live, and nobody at its keyboard: reading from it ends at once.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable

READ_BYTES = 64 * 1024
INTERRUPT_GRACE_S = 1.0
_LOOK_MS = 100


def run_command(command: str, write: Callable[[str], object]) -> int:
    """Run a command in a shell and wait for its end.

    Args:
        command: for ``sh -c``.
        write: called with the text that the command prints, as it comes.

    Returns:
        Its exit code, or minus a signal's number.

    Raises:
        KeyboardInterrupt: and the command with all its children has been interrupted, if need be
            killed.
    """
    master, slave = pty.openpty()
    try:
        _make_plain(slave)
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # With a controlling terminal the command ends, by SIGHUP, when the engine dies.
            preexec_fn=_take_terminal,
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    try:
        _pass_on(master, process, write)
    except BaseException:
        _end(process)
        raise
    finally:
        os.close(master)
    code = process.wait()
    # A shell says 128 + n of a command that a signal has ended.
    return 128 - code if code > 128 else code


def _make_plain(terminal: int) -> None:
    """Have a terminal neither turn line ends into CR LF nor echo."""
    mode = termios.tcgetattr(terminal)
    mode[1] &= ~termios.OPOST
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, mode)


def _take_terminal() -> None:
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)


def _pass_on(master: int, process: subprocess.Popen[bytes], write: Callable[[str], object]) -> None:
    """Hand on what is printed, until the command has ended and nothing is left."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    poller = select.poll()
    poller.register(master, select.POLLIN)
    while True:
        ended = process.poll() is not None
        # What it has left in the background may hold the terminal for ever.
        if not poller.poll(0 if ended else _LOOK_MS):
            if ended:
                break
            continue
        try:
            data = os.read(master, READ_BYTES)
        except OSError:
            # Linux says EIO when nobody has the other end any more.
            process.wait()
            break
        if not data:
            break
        write(decoder.decode(data))
    write(decoder.decode(b"", final=True))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and its children as Ctrl-C in a terminal would; then less kindly."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        deadline = time.monotonic() + INTERRUPT_GRACE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                return
