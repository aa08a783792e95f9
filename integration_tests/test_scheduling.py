"""How tasks are placed, with real controllers and engines."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import ipyfleet as ipf
from ipyfleet_controller.scheduler.schemes import SCHEMES

TIMEOUT_S = 60


SCRIPT = """
def fail_on_some(x, bad):
    if number == bad:
        raise ValueError(f"engine {bad} cannot do {x}")
    return x * x

def where():
    return number
"""
"""Functions of a user's script: their globals are the engine's namespace."""


def meet(folder: str, number: int, count: int) -> int:
    """Return the number when so many calls have begun, which takes as many engines."""
    import os
    import time

    open(f"{folder}/{number}", "w").close()
    while len(os.listdir(folder)) < count:
        time.sleep(0.002)
    return number


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_does_all_that_a_view_promises(
    cluster_factory: Any, scheme: str, tmp_path: Path
) -> None:
    """Maps, targets, retries, dependencies and priorities work with each scheme, and all engines
    work.
    """
    cluster = cluster_factory(3, controller_args=[f"--scheme={scheme}"])
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, names)
    with contextlib.closing(cluster.connect_client_sync()) as rc:
        rc[:].scatter("number", rc.ids, flatten=True, block=True)
        view = rc.load_balanced_view()
        result = view.map_async(lambda x: x + 1, range(3000), chunksize=1)
        assert result.get(TIMEOUT_S) == list(range(1, 3001))
        met = view.map_async(meet, [str(tmp_path)] * 30, range(30), [3] * 30, chunksize=1)
        assert met.get(TIMEOUT_S) == list(range(30))
        assert len(Counter(met.engine_id)) == 3
        with view.temp_flags(retries=2):
            tried = view.map_async(names["fail_on_some"], range(200), [1] * 200, chunksize=1)
        assert tried.get(TIMEOUT_S) == [x * x for x in range(200)]
        assert 1 not in tried.engine_id
        with view.temp_flags(targets=[2]):
            first = view.apply_async(names["where"])
        with view.temp_flags(after=tried, follow=first, priority=3):
            second = view.apply_async(names["where"])
        assert (first.get(TIMEOUT_S), second.get(TIMEOUT_S)) == (2, 2)


def test_a_client_with_ten_tasks_is_done_beside_one_with_two_hundred_thousand(
    cluster: Any, client: ipf.Client
) -> None:
    """The small client's new function has its turn though the large one's tasks are known, short,
    and more than engines can ever take.
    """
    with contextlib.closing(cluster.connect_client_sync()) as other:
        many = client.load_balanced_view().map_async(abs, range(200_000), chunksize=1)
        few = other.load_balanced_view().map_async(lambda x: -x, range(10), chunksize=1)
        assert few.get(TIMEOUT_S) == [-x for x in range(10)]
        assert many.get(TIMEOUT_S)[-1] == 199_999
        # By the engines' clocks: this process may be slow to look.
        assert max(few.completed) < max(many.completed)


def test_an_unknown_scheme_is_one_line(cluster_factory: Any) -> None:
    """A controller with a scheme that is not there does not start, and says which there are."""
    with pytest.raises(Exception, match=r"no scheduling scheme 'best'; there are leastload"):
        cluster_factory(1, controller_args=["--scheme=best"])
