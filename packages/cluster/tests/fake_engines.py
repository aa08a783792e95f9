"""A stand-in for ipengine, run as a process: an agent with n children, one per engine.

A child appends the numbers of the signals that it gets to <profile>/signals.
"""

import argparse
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("-n", type=int, default=1)
parser.add_argument("--profile-dir", type=Path)
parser.add_argument("--lease-fd", type=int, default=-1)
parser.add_argument("--fail", default="")
options, _ = parser.parse_known_args()

if options.fail:
    print(options.fail, file=sys.stderr)
    sys.exit(4)


agent = os.getpid()


def run_engine() -> None:
    """Be an engine: die with the agent, note signals."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != agent:
        # It has died before.
        os._exit(0)

    def note(signum: int, frame: object) -> None:
        with (options.profile_dir / "signals").open("a") as file:
            file.write(f"{signum}\n")

    signal.signal(signal.SIGUSR1, note)
    (options.profile_dir / f"engine-{os.getpid()}").touch()
    while True:
        time.sleep(60)


def stop(*_: object) -> None:
    """Exit; the children die of it."""
    os._exit(0)


for _ in range(options.n):
    if os.fork() == 0:
        run_engine()
signal.signal(signal.SIGTERM, stop)
if options.lease_fd >= 0:
    select.select([options.lease_fd], [], [], 60)
else:
    time.sleep(60)
