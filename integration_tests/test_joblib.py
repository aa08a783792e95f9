"""joblib's loops, and scikit-learn's above them, on engines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ipyfleet as ipf

joblib = pytest.importorskip("joblib", reason="needs joblib")

NAME = "ipyfleet-test"
FACTOR = 10


@pytest.fixture
def backend(client: ipf.Client) -> Iterator[str]:
    """The name of a backend on two engines."""
    client.load_balanced_view().register_joblib_backend(NAME)
    with joblib.parallel_config(NAME):
        yield NAME
    del joblib.parallel.BACKENDS[NAME]


def test_a_loop(backend: str) -> None:
    """A loop's values are in order, and its calls run on the engines."""
    calls = (joblib.delayed(pow)(k, 2) for k in range(1000))
    assert joblib.Parallel()(calls) == [k**2 for k in range(1000)]
    pids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(50))
    assert os.getpid() not in pids and len(set(pids)) <= 2


def test_functions_bring_their_globals(backend: str) -> None:
    """As with joblib's own processes, a function sees the globals of where it was defined."""
    factor = FACTOR
    values = joblib.Parallel()(joblib.delayed(lambda x: x * factor)(k) for k in range(3))
    assert values == [0, 10, 20]


def test_njobs(backend: str) -> None:
    """`n_jobs` counts engines, negative numbers from the last; 0 is refused."""
    assert joblib.effective_n_jobs(-1) == 2
    assert joblib.effective_n_jobs(-2) == 1
    assert joblib.effective_n_jobs(1) == 1
    assert joblib.effective_n_jobs(8) == 2
    with pytest.raises(ValueError, match="n_jobs"):
        joblib.effective_n_jobs(0)


def test_an_error_ends_the_loop(backend: str, client: ipf.Client) -> None:
    """A job's exception is raised as it was, and what has not started is taken back."""
    with pytest.raises(ZeroDivisionError) as caught:
        joblib.Parallel()(joblib.delayed(lambda x: 1 // x)(5 - k) for k in range(1000))
    assert isinstance(caught.value.__cause__, ipf.RemoteError)
    assert client.wait(timeout=30)
    assert joblib.Parallel()(joblib.delayed(abs)(-k) for k in range(3)) == [0, 1, 2]


def test_generators_and_timeouts(backend: str) -> None:
    """`return_as="generator"` and `timeout=` work as with joblib's own processes."""
    values = joblib.Parallel(return_as="generator")(joblib.delayed(abs)(-k) for k in range(9))
    assert list(values) == list(range(9))


def test_an_array_of_all_calls_is_written_once(backend: str, client: ipf.Client) -> None:
    """An array that all calls have is in shared memory once while a loop runs, and then no more;
    what a call writes into its argument no other sees.
    """
    blobs = client.session.submit.blobs
    assert blobs is not None
    data = np.zeros(1 << 18)

    def add(array: np.ndarray, number: int) -> float:
        array[0] += number
        return float(array[0])

    before, most = blobs.held_bytes, []

    def calls() -> Iterator[object]:
        for number in range(100):
            most.append(blobs.held_bytes - before)
            yield joblib.delayed(add)(data, number)

    # Each call in a batch of its own: within a batch there is one array.
    values = joblib.Parallel(batch_size=1, pre_dispatch="all")(calls())
    assert values == [float(number) for number in range(100)]
    assert max(most) <= 2 * data.nbytes
    assert blobs.held_bytes == before


def test_grid_search(backend: str) -> None:
    """`GridSearchCV(n_jobs=-1)` finds on the engines what it finds in this process."""
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    from sklearn.datasets import make_classification
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    data, labels = make_classification(200, 8, random_state=0)
    grid = {"C": [0.1, 1.0, 10.0], "gamma": [0.03, 0.1]}
    alone = GridSearchCV(SVC(), grid, n_jobs=None)
    with joblib.parallel_config("sequential"):
        alone.fit(data, labels)
    shared = GridSearchCV(SVC(), grid, n_jobs=-1).fit(data, labels)
    assert shared.best_params_ == alone.best_params_
    scores = [search.cv_results_["mean_test_score"] for search in (shared, alone)]
    np.testing.assert_array_equal(*scores)


def test_a_cluster_is_started_where_none_runs(tmp_path: Path) -> None:
    """`ipf.register_joblib_backend()` brings engines of its own, and ends them with the process."""
    code = """
import os, joblib, ipyfleet as ipf
ipf.register_joblib_backend()
with joblib.parallel_config("ipyfleet"):
    pids = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(8))
assert os.getpid() not in pids or joblib.effective_n_jobs(-1) == 1
print(sorted(set(pids)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "IPYTHONDIR": os.fspath(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for pid in done.stdout.splitlines()[-1].strip("[]").split(", "):
        assert not Path(f"/proc/{pid}").exists()
