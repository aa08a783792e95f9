"""The main job: a local cluster does real work on real data, and shows it.

Run by ``make demo``. It starts a cluster with an engine per core, and

1. bootstraps confidence intervals for a regression through a load-balanced view, with a progress
   bar, and does the same work serially to say what the cluster gained;
2. executes `abc.ipynb`, an approximate Bayesian computation through ``%%px`` with an inline plot
   from each engine, in a real notebook kernel connected to the same cluster.

Figure, plots and executed notebook are left in ``demo-output/``. The cluster is stopped whatever
happens, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Engines run numpy on one thread each; so does the serial run, or the comparison would not be fair.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import bootstrap  # noqa: E402 - numpy reads the number of threads when it is imported
import numpy as np  # noqa: E402

import ipyfleet as ipf  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).parent
NAMES = ("age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu")


def run_bootstrap(client: ipf.Client, n_tasks: int) -> NDArray[np.float64]:
    """Run the bootstrap on the engines and here; print both times and return all coefficients."""
    view = client.load_balanced_view()
    engines = client[:]
    # The engines need the module that the tasks come from; imports stay out of the timing.
    engines.execute(f"import sys; sys.path.append({str(HERE)!r})", block=True)
    engines.apply_sync(bootstrap.fit_resamples, 0)
    bootstrap.fit_resamples(0)

    started = time.perf_counter()
    result = view.map_async(bootstrap.fit_resamples, range(n_tasks))
    result.wait_interactive()
    parallel = result.get()
    parallel_s = time.perf_counter() - started

    print("the same work serially …")
    started = time.perf_counter()
    serial = [bootstrap.fit_resamples(seed) for seed in range(n_tasks)]
    serial_s = time.perf_counter() - started

    if not np.array_equal(np.concatenate(parallel), np.concatenate(serial)):
        raise SystemExit("the cluster's numbers differ from the serial ones; this is a bug")
    print(
        f"{n_tasks * bootstrap.FITS_PER_TASK} fits: {serial_s:.1f} s serially, {parallel_s:.1f} s "
        f"on {len(client)} engines, {serial_s / parallel_s:.2f} times as fast; all equal"
    )
    return np.concatenate(parallel)


def draw_intervals(intervals: NDArray[np.float64], path: Path) -> None:
    """Draw the coefficients with their intervals into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    low, middle, high = intervals
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.errorbar(range(len(NAMES)), middle, [middle - low, high - middle], fmt="o", capsize=4)
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xticks(range(len(NAMES)), NAMES)
    axes.set_ylabel("coefficient, 95 % interval")
    axes.set_title("Huber regression of diabetes progression, bootstrapped")
    figure.savefig(path, dpi=120)


def run_notebook(cluster_id: str, output: Path, n_engines: int) -> None:
    """Execute the notebook against the running cluster; keep it and the engines' plots."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(HERE / "abc.ipynb", as_version=4)
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")
    runner = NotebookClient(notebook, timeout=300, km=kernel)
    os.environ["DEMO_CLUSTER_ID"] = cluster_id  # read by the notebook's first cell
    executed = output / "abc.executed.ipynb"
    try:
        runner.execute()
    finally:
        nbformat.write(notebook, executed)
    plots = [data for cell in notebook.cells for data in find_images(cell)]
    if len(plots) < n_engines:
        raise SystemExit(f"{n_engines} engines, but {len(plots)} plots in {executed}")
    for number, data in enumerate(plots):
        (output / f"abc-engine-{number}.png").write_bytes(base64.b64decode(data))
    for cell in notebook.cells:
        if "summary" in cell.metadata.get("tags", ()):
            print("".join(out.get("text", "") for out in cell.outputs).rstrip())
    print(f"executed notebook: {executed}, with a plot from each of {len(plots)} engines")


def find_images(cell: dict[str, Any]) -> list[str]:
    """Return the PNG images in a cell's outputs, base64."""
    return [
        out["data"]["image/png"]
        for out in cell.get("outputs", ())
        if "image/png" in out.get("data", {})
    ]


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description="ipyfleet's main job on a local cluster")
    parser.add_argument("-n", type=int, default=max(2, os.cpu_count() or 2), help="engines")
    parser.add_argument("--tasks", type=int, default=150, help="tasks of the bootstrap")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    cluster = ipf.Cluster(n=options.n)
    try:
        with cluster as client:
            print(f"{len(client)} engines ready after {time.perf_counter() - started:.2f} s")
            coefficients = run_bootstrap(client, options.tasks)
            intervals = bootstrap.confidence_intervals(coefficients)
            for name, low, middle, high in zip(NAMES, *intervals, strict=True):
                print(f"  {name:>4} {middle:8.1f}   95 % in [{low:8.1f}, {high:8.1f}]")
            figure = options.output / "bootstrap.png"
            draw_intervals(intervals, figure)
            print(f"figure: {figure}")
            run_notebook(cluster.cluster_id, options.output, len(client))
    except KeyboardInterrupt:
        print("interrupted; the cluster is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
