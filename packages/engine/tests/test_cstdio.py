"""C's `stdout` as the engine sees it."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import ctypes
from ipyfleet_engine.cstdio import CStdout

out, libc = CStdout(), ctypes.CDLL(None)
seen = [out.ends[1] - out.ends[0]]
libc.printf(b"a line\\n")
seen.append(out.ends[1] - out.ends[0])
libc.printf(b"no line")
seen.append(out.ends[1] - out.ends[0])
out.flush()
seen.append(out.ends[1] - out.ends[0])
print(seen, flush=True)
"""


def test_what_is_left_in_the_buffer_is_seen() -> None:
    """Lines leave by themselves; the rest of a line is seen, and leaves when flushed."""
    command = [sys.executable, "-c", SCRIPT]
    # With this variable Python makes C's stdout unbuffered, and there is nothing to see.
    environ = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "a line\nno line[0, 0, 7, 0]\n"
