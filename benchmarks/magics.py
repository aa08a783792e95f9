"""The magics of ipyfleet beside ipyparallel's, in real kernels: latency, and a flood of lines.

    python -m benchmarks.magics
    python -m benchmarks.magics --runs 5 --ipyparallel /path/to/another/bin/python

Each peer runs in a Jupyter kernel of its own with two engines; the peers take turns. A latency is
measured inside the kernel, around the call of the magic, with its output going to the frontend;
beside it the CPU time of the kernel, the controller and the engines, and how often their threads
woke up, which say the same on a machine that does other things, too. The
flood is measured by the frontend: one engine prints 100,000 lines, and what counts is when the last
one is there, how large the cell's outputs are as a notebook stores them, and by how much the
kernel's memory has grown at its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

PEERS = ("ipyfleet", "ipyparallel")
LINES = 100_000
CALLS = 200
TIMEOUT_S = 180.0

_LATENCY = """
import json, os, pathlib, psutil, statistics, time
from IPython import get_ipython

def spent():
    # Of this process and all that it has started: CPU seconds, and how often a thread woke up.
    cpu_s = wakeups = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        times = process.cpu_times()
        cpu_s += times.user + times.system
        for thread in pathlib.Path(f"/proc/{{process.pid}}/task").iterdir():
            for line in (thread / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    wakeups += int(line.split()[1])
    return cpu_s, wakeups

def measure(name, call):
    for _ in range(5):
        call()
    taken = []
    before = spent()
    for _ in range({calls}):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    cpu_s, wakeups = (after - was for after, was in zip(spent(), before))
    return {{
        name: 1000 * statistics.median(taken),
        name + ": CPU time": 1000 * cpu_s / {calls},
        name + ": wake-ups": wakeups / {calls},
    }}

ip = get_ipython()
figures = {{
    **measure("%px pass", lambda: ip.run_line_magic("px", "pass")),
    **measure("%%px print", lambda: ip.run_cell_magic("px", "", "print('hi')\\n")),
}}
"""

_FIGURES = {
    "%px pass": "ms",
    "%px pass: CPU time": "ms",
    "%px pass: wake-ups": "threads",
    "%%px print": "ms",
    "%%px print: CPU time": "ms",
    "%%px print: wake-ups": "threads",
    "flood: last line": "s",
    "flood: notebook": "MB",
    "flood: client memory": "MB",
}


class Page:
    """The outputs of a cell as a notebook keeps them."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.text_at = 0.0
        self.text = ""

    def take(self, message: dict[str, Any]) -> None:
        """Apply one message of the kernel."""
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            last = self.outputs[-1] if self.outputs else {}
            if last.get("name") == content["name"]:
                last["text"] += content["text"]
            else:
                self.outputs.append(dict(content))
            self.text = content["text"][-200:]
        elif kind in ("display_data", "execute_result"):
            self.outputs.append(dict(content))
            self.text = str(content["data"].get("text/plain", ""))[-200:]
        elif kind == "update_display_data":
            wanted = content["transient"]["display_id"]
            for output in self.outputs:
                if output.get("transient", {}).get("display_id") == wanted:
                    output["data"] = content["data"]
            self.text = str(content["data"].get("text/plain", ""))[-200:]
        if f"line {LINES - 1}" in self.text and not self.text_at:
            self.text_at = time.perf_counter()

    @property
    def megabytes(self) -> float:
        """The size of the outputs in a file."""
        kept = [{k: v for k, v in out.items() if k != "transient"} for out in self.outputs]
        return len(json.dumps(kept)) / 1e6


class Kernel:
    """A kernel with a cluster of two engines."""

    def __init__(self, client: Any, pid: int) -> None:
        self._client = client
        self.pid = pid

    def run(self, code: str, page: Page | None = None) -> Page:
        """Run a cell; raise if it fails."""
        page = page or Page()
        reply = self._client.execute_interactive(
            code, timeout=TIMEOUT_S, output_hook=page.take, allow_stdin=False
        )
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{reply['content'].get('ename')}: {reply['content'].get('evalue')}")
        return page

    def memory_mb(self, name: str) -> float:
        """A figure of the kernel's memory: VmRSS, or VmHWM, its peak."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"no {name} of process {self.pid}")


@contextmanager
def kernel_of(peer: str, python: str) -> Iterator[Kernel]:
    """Start a kernel, and in it a cluster; stop both."""
    with tempfile.TemporaryDirectory(prefix="bench-magics-") as folder:
        manager = KernelManager()
        manager.kernel_spec.argv[0] = python
        environment = {**os.environ, "IPYTHONDIR": folder}
        manager.start_kernel(env=environment, cwd=folder)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            kernel = Kernel(client, manager.provisioner.pid)
            kernel.run(
                f"import {peer} as ipp\ncluster = ipp.Cluster(n=2)\n"
                "rc = cluster.start_and_connect_sync()\nrc.wait_for_engines(2, timeout=60)"
            )
            yield kernel
            kernel.run("rc.close()\ncluster.stop_cluster_sync()")
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()


def measure(peer: str, python: str) -> dict[str, float]:
    """Measure one peer once."""
    with kernel_of(peer, python) as kernel:
        figures = {}
        kernel.run(_LATENCY.format(calls=CALLS))
        kernel.run("with open('figures', 'w') as f: json.dump(figures, f)")
        figures = json.loads((Path(f"/proc/{kernel.pid}/cwd") / "figures").read_text())
        before = kernel.memory_mb("VmRSS")
        Path(f"/proc/{kernel.pid}/clear_refs").write_text("5")
        start = time.perf_counter()
        page = kernel.run(f"%%px --targets [0]\nfor i in range({LINES}): print('line', i)")
        if not page.text_at:
            raise RuntimeError(f"the last line did not show: {page.text!r}")
        figures["flood: last line"] = page.text_at - start
        figures["flood: notebook"] = page.megabytes
        figures["flood: client memory"] = kernel.memory_mb("VmHWM") - before
        return figures


def main() -> int:
    """Measure all peers in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="how often each peer is measured")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", default=sys.executable, help=f"Python that has {peer}")
    options = vars(parser.parse_args())
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    for run in range(options["runs"]):
        for peer in PEERS if run % 2 == 0 else PEERS[::-1]:
            print(f"run {run + 1}: {peer}", file=sys.stderr, flush=True)
            found[peer].append(measure(peer, options[peer]))
    print("| figure | ipyfleet | ipyparallel | ratio |\n|---|---|---|---|")
    for figure, unit in _FIGURES.items():
        ours, theirs = (statistics.median(run[figure] for run in found[peer]) for peer in PEERS)
        print(f"| {figure} ({unit}) | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
