"""Runs the worker processes, one at a time, and cleans up behind each.

A run is one worker process for each peer, in an order that rotates from run to run, so that no
peer always comes first or after the same neighbour. Every worker process begins from nothing: each
run is also one measurement of the start.

What hangs is killed after a timeout; what a peer leaves behind is given a moment to end, then
counted and killed. The worker has a scratch directory for whatever it writes.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import wait_quiet
from benchmarks.processes import TOKEN_VARIABLE, end_processes
from benchmarks.records import Record, Results, Status
from benchmarks.sizes import Sizes

ROOT = Path(__file__).resolve().parent.parent
"""The root of the repository: where ``benchmarks`` is importable from."""

_LOG_TAIL_LINES = 12


class Driver:
    """Fills a :class:`~benchmarks.records.Results`.

    Args:
        results: Says what to run, and receives what comes of it.
        timeout_s: How long one figure, or the peer's shutdown, may take.
        settle_s: How long to wait, before each worker process, for the machine to be quiet.
        grace_s: How long processes may outlive their worker process, and that one its last word,
            before they count as left behind.
        say: Receives one line of progress at a time.
    """

    def __init__(
        self,
        results: Results,
        *,
        timeout_s: float,
        settle_s: float,
        grace_s: float = 5.0,
        say: Callable[[str], None],
    ) -> None:
        self._results = results
        self._timeout_s = timeout_s
        self._settle_s = settle_s
        self._grace_s = grace_s
        self._say = say

    def run_all(self) -> None:
        """Do all runs."""
        peers = self._results.peers
        for run in range(self._results.runs):
            first = run % len(peers)
            for peer in peers[first:] + peers[:first]:
                self._run_peer(peer, run)

    def _run_peer(self, peer: str, run: int) -> None:
        """Measure one peer once for each figure.

        After a figure that hung or took the worker process with it, the figures that are left are
        measured in a new one.
        """
        busy = wait_quiet(self._settle_s)
        self._results.busiest = max(self._results.busiest, busy)
        start = time.monotonic()
        left = list(self._results.figures)
        failed = 0
        while left:
            records = list(self._run_worker(peer, run, left))
            self._results.records.extend(records)
            failed += sum(record.status in ("failed", "timeout") for record in records)
            done = {record.figure for record in records}
            left = [key for key in left if key not in done]
        self._say(
            f"run {run + 1}/{self._results.runs}  {peer:<22}{time.monotonic() - start:6.1f} s"
            + (f"  {failed} failed" if failed else "")
            + (f"  (others used {busy:.0%} of the CPUs)" if busy > 0.2 else "")
        )

    def _run_worker(self, peer: str, run: int, keys: list[str]) -> Iterator[Record]:
        """Run one worker process; yield a record for at least the first of ``keys``."""
        token = secrets.token_hex(8)
        with _scratch_directory() as scratch:
            log = scratch / "log"
            pipe_read, pipe_write = os.pipe()
            process = _start_worker(
                peer, keys, self._results.sizes, token, scratch, log, pipe_write
            )
            os.close(pipe_write)
            try:
                yield from self._collect(peer, run, keys, _Lines(pipe_read, self._timeout_s), log)
            finally:
                os.close(pipe_read)
                self._end(process, peer, token)

    def _collect(
        self, peer: str, run: int, keys: list[str], lines: _Lines, log: Path
    ) -> Iterator[Record]:
        """Turn a worker's lines into records until it has stopped, hangs or is gone."""
        doing = "start"
        while (line := lines.next_line()) is not None:
            if "begin" in line:
                doing = line["begin"]
            elif "end" in line:
                doing = "stop"
                yield Record(peer, line.pop("end"), run, **line)
                if line["status"] == "failed":
                    self._say(
                        f"  {peer}: failed: {line['detail']}; the end of its log:\n{_tail(log)}"
                    )
            elif "not started" in line:
                detail = line["not started"]
                self._say(f"  {peer}: no first result: {detail}; the end of its log:\n{_tail(log)}")
                yield from (Record(peer, key, run, "failed", detail=detail) for key in keys)
                return
            elif "stopped" in line:
                return
        status: Status = "timeout" if lines.timed_out else "failed"
        detail = f"{'hung' if lines.timed_out else 'died'} in {doing}"
        self._say(f"  {peer}: {detail}; the end of its log:\n{_tail(log)}")
        # A peer that does not start fails in everything; one that does not stop has measured all.
        unmeasured = {"start": keys, "stop": []}.get(doing, [doing])
        yield from (Record(peer, key, run, status, detail=detail) for key in unmeasured)

    def _end(self, process: subprocess.Popen[bytes], peer: str, token: str) -> None:
        """See the worker process out and kill what it leaves behind."""
        try:
            process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        killed = end_processes(token, grace_s=self._grace_s)
        if killed:
            commands = sorted({leftover.command[:120] for leftover in killed})
            self._results.killed.setdefault(peer, []).extend(commands)
            self._say(f"  {peer}: left {len(killed)} processes behind, killed: {commands}")


class _Lines:
    """Reads JSON lines from a pipe, with a timeout from line to line."""

    def __init__(self, pipe: int, timeout_s: float) -> None:
        self._pipe = pipe
        self._timeout_s = timeout_s
        self._buffer = b""
        self.timed_out = False

    def next_line(self) -> dict[str, Any] | None:
        """Return the next line; None at the end of the pipe and when the time is up."""
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._buffer:
            wait_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._pipe], [], [], wait_s)[0]:
                self.timed_out = True
                return None
            chunk = os.read(self._pipe, 65536)
            if not chunk:
                return None
            self._buffer += chunk
        raw, _, self._buffer = self._buffer.partition(b"\n")
        line: dict[str, Any] = json.loads(raw)
        return line


def _start_worker(
    peer: str, keys: list[str], sizes: Sizes, token: str, scratch: Path, log: Path, pipe: int
) -> subprocess.Popen[bytes]:
    spec = {"peer": peer, "figures": keys, "sizes": asdict(sizes), "pipe": pipe}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env=_environment(token, scratch),
            pass_fds=[pipe],
            start_new_session=True,
        )


def _environment(token: str, scratch: Path) -> dict[str, str]:
    """Return the worker's environment: nothing of a peer's is read from or written to the home."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        TOKEN_VARIABLE: token,
        "PYTHONPATH": path,
        "TMPDIR": str(scratch),
        "IPYTHONDIR": str(scratch / "ipython"),
        "DASK_TEMPORARY_DIRECTORY": str(scratch / "dask"),
        "RAY_TMPDIR": str(scratch),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise Ray's workers are started through uv wherever uv has started us.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    """Make a directory with a short name (Ray puts Unix sockets deep inside) and remove it."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (empty)"
