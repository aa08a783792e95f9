"""Work whose client is gone goes on, also in the controller that follows one that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ipyfleet as ipf
from ipyfleet_testing.waiting import wait_until

TIMEOUT_S = 60
N_TASKS = 20

SUBMIT = """
import sys
import ipyfleet as ipf

profile, cluster_id, go = sys.argv[1:]

def wait_and_square(number, go=go):
    import pathlib
    import time

    print(f"task {number}")
    while not pathlib.Path(go).exists():
        time.sleep(0.01)
    return number * number

rc = ipf.Client(profile_dir=profile, cluster_id=cluster_id)
result = rc.load_balanced_view().map_async(wait_and_square, range(20), chunksize=1)
print(rc.detach(), *result.msg_ids)
"""


def test_detached_work_needs_neither_its_client_nor_its_controller(tmp_path: Path) -> None:
    """A program submits, detaches and ends; the controller is killed and started again; another
    client has all results, and each task's output.
    """
    profile, go = tmp_path / "profile", tmp_path / "go"
    with ipf.Cluster(n=2, profile_dir=os.fspath(profile)) as rc:
        cluster_id = rc.session.info.cluster_id
        done = subprocess.run(
            [sys.executable, "-c", SUBMIT, os.fspath(profile), cluster_id, os.fspath(go)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        count, *msg_ids = done.stdout.split()
        assert int(count) == N_TASKS
        assert len(msg_ids) == N_TASKS
        old = rc.metrics()["process"]["pid"]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: rc.metrics()["process"]["pid"] != old, TIMEOUT_S)
        go.touch()
        result = rc.get_result(msg_ids)
        assert result.get(TIMEOUT_S) == [number * number for number in range(N_TASKS)]
        records = rc.db_query({"msg_id": {"$in": msg_ids}}, keys=["seq", "status"])
        assert [record["status"] for record in records] == ["ok"] * N_TASKS
