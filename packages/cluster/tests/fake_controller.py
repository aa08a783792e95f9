"""A stand-in for ipcontroller, run as a process: writes connection files, obeys its lease."""

import argparse
import os
import select
import signal
import sys
import time
from pathlib import Path

from ipyfleet_protocol import paths
from ipyfleet_protocol.connection import (
    load_connection_file,
    new_connection_info,
    new_instance,
    save_connection_file,
)

parser = argparse.ArgumentParser()
parser.add_argument("--profile-dir", type=Path)
parser.add_argument("--cluster-id", default="")
parser.add_argument("--lease-fd", type=int, default=-1)
parser.add_argument("--fail", default="")
parser.add_argument("--stubborn", action="store_true")
parser.add_argument("--resume", action="store_true")
parser.add_argument("--fail-again", action="store_true")
options, _ = parser.parse_known_args()

if options.fail_again and options.resume:
    sys.exit(4)
if options.fail:
    print(options.fail, file=sys.stderr)
    sys.exit(3)


def stop(*_: object) -> None:
    """Exit through the clean-up below."""
    raise SystemExit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if options.stubborn else stop)
instance = new_instance()
if options.resume:
    path = paths.connection_file(options.profile_dir, options.cluster_id, "client")
    instance = load_connection_file(path).instance
runtime = paths.make_private_dir(paths.runtime_dir(instance))
files = []
for role in ("engine", "client"):
    info = new_connection_info(
        instance=instance,
        role=role,
        urls=[f"unix://{runtime}/router"],
        cluster_id=options.cluster_id,
    )
    files.append(paths.connection_file(options.profile_dir, options.cluster_id, role))
    save_connection_file(files[-1], info)
try:
    if options.lease_fd >= 0:
        select.select([options.lease_fd], [], [], 60)
        os.read(options.lease_fd, 1)
    else:
        time.sleep(60)
finally:
    for path in files:
        path.unlink()
    runtime.rmdir()
