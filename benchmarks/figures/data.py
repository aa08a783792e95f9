"""Moving large arrays.

Each is done once per run, after a small one that is not counted: what a user meets is the first
large transfer, with its page faults, not the tenth. A peer that maps shared memory is done when
the mapping is; nobody is made to read the pages.
"""

from __future__ import annotations

import time

from benchmarks.figures.base import Figure, Goal, Sample, Session, WrongResult
from benchmarks.workload import make_array

_WARM_UP_BYTES = 2**20


def _push(session: Session) -> Sample:
    size = session.sizes.transfer_mib * 2**20
    session.peer.warm_up_data()
    session.peer.push(make_array(_WARM_UP_BYTES))
    array = make_array(size)
    start = time.perf_counter()
    session.peer.push(array)
    taken = time.perf_counter() - start
    if session.peer.pushed_bytes() != size:
        raise WrongResult("the array that was pushed is not at the worker")
    return Sample(taken)


def _pull(session: Session) -> Sample:
    session.peer.prepare_pull(_WARM_UP_BYTES)
    session.peer.pull()
    size = session.sizes.transfer_mib * 2**20
    session.peer.prepare_pull(size)
    start = time.perf_counter()
    array = session.peer.pull()
    taken = time.perf_counter() - start
    if array.nbytes != size or array[-1] != len(array) - 1:
        raise WrongResult("the array that was pulled is not the one at the worker")
    return Sample(taken)


def _broadcast(session: Session) -> Sample:
    size = session.sizes.broadcast_mib * 2**20
    session.peer.broadcast(make_array(_WARM_UP_BYTES))
    array = make_array(size)
    start = time.perf_counter()
    session.peer.broadcast(array)
    taken = time.perf_counter() - start
    if session.peer.broadcast_bytes() != [size] * session.sizes.workers:
        raise WrongResult("the array is not at every worker")
    return Sample(taken)


def _scatter(session: Session) -> Sample:
    session.peer.scatter(make_array(_WARM_UP_BYTES))
    array = make_array(session.sizes.transfer_mib * 2**20)
    start = time.perf_counter()
    session.peer.scatter(array)
    return Sample(time.perf_counter() - start)


def _gather(session: Session) -> Sample:
    size = session.sizes.transfer_mib * 2**20
    session.peer.scatter(make_array(size))
    start = time.perf_counter()
    array = session.peer.gather()
    taken = time.perf_counter() - start
    if array.nbytes != size or array[-1] != len(array) - 1:
        raise WrongResult("the array that was gathered is not the one that was scattered")
    return Sample(taken)


_FOUR = (Goal(4, "ipyparallel"),)

FIGURES = (
    Figure(
        "push",
        "push {transfer_mib} MiB to one engine",
        "s",
        "lower",
        _push,
        (Goal(6, "ipyparallel"), Goal(2, "ray")),
    ),
    Figure("pull", "pull {transfer_mib} MiB from one engine", "s", "lower", _pull, _FOUR),
    Figure("scatter", "scatter {transfer_mib} MiB", "s", "lower", _scatter, _FOUR),
    Figure("gather", "gather {transfer_mib} MiB", "s", "lower", _gather, _FOUR),
    Figure(
        "broadcast",
        "push {broadcast_mib} MiB to all {workers} engines",
        "s",
        "lower",
        _broadcast,
        (Goal(6, "ipyparallel"),),
    ),
)
