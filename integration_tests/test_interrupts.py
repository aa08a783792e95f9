"""Ctrl-C, as a real SIGINT, in each call that can wait."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ipyfleet as ipf

TIMEOUT_S = 30
LONG_S = 60.0


def nap(seconds: float) -> float:
    """Sleep in short steps, and return for how long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return seconds


class Endless(Iterator[int]):
    """Numbers, slowly; unlike a generator it goes on after an exception."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __next__(self) -> int:
        time.sleep(0.001)
        return next(self._numbers)


def interrupt(call: Callable[[], object], condition: Callable[[], object] = lambda: True) -> None:
    """Call something that is to raise KeyboardInterrupt, and send SIGINT to this process once a
    condition holds and has held for a moment.
    """

    def run() -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        # The waiting call is to be inside of its wait by then; nothing depends on that.
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)

    def begin() -> None:
        # Not before: the machine may let others run until the signal comes.
        thread.start()
        call()

    with pytest.raises(KeyboardInterrupt):
        begin()
    thread.join()


def _repeat(call: Callable[[], object], first: Callable[[], object] = lambda: None) -> None:
    first()
    while True:
        call()


@pytest.fixture
def rc(client: ipf.Client) -> Iterator[ipf.Client]:
    """A client whose engines know `nap`; what tests leave running is ended."""
    client[:].push({"nap": nap, "time": time}, block=True)
    yield client
    client.abort()
    assert client.wait(timeout=TIMEOUT_S)


CALLS: dict[str, Callable[[ipf.Client], Any]] = {
    "apply": lambda rc: rc[:].apply_sync(nap, LONG_S),
    "apply on one": lambda rc: rc[0].apply_sync(nap, LONG_S),
    "a blocking view": lambda rc: rc.direct_view(block=True).apply(nap, LONG_S),
    "balanced apply": lambda rc: rc.load_balanced_view().apply_sync(nap, LONG_S),
    "direct map": lambda rc: rc[:].map_sync(nap, [LONG_S] * 4),
    "balanced map": lambda rc: rc.load_balanced_view().map_sync(nap, [LONG_S] * 4),
    "map in chunks": lambda rc: rc.load_balanced_view().map_sync(nap, [LONG_S] * 4, chunksize=2),
    "execute": lambda rc: rc[:].execute(f"nap({LONG_S})", block=True),
    "pull": lambda rc: rc[0].pull(f"nap({LONG_S})", block=True),
    "gather": lambda rc: rc[:].gather(f"nap({LONG_S})", block=True),
    "remote function": lambda rc: rc[:].remote(block=True)(nap)(LONG_S),
    "parallel function": lambda rc: rc[:].parallel(block=True)(nap).map([LONG_S] * 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_blocking_call(rc: ipf.Client, name: str) -> None:
    """It ends at once with KeyboardInterrupt; the tasks go on, and their result can be had."""
    before = rc.session.submit.next_seq
    interrupt(lambda: CALLS[name](rc), lambda: rc.session.submit.next_seq > before)
    result = rc.get_result(rc.history[-1])
    assert isinstance(result, ipf.AsyncResult)
    assert not isinstance(result, ipf.AsyncHubResult)
    assert not result.ready()
    whole = rc.get_result(-1)
    assert rc.history[-1] in whole.msg_ids
    # Nobody has told the engines.
    assert not result.wait(0.1)
    whole.abort()
    with pytest.raises(ipf.TaskAborted):
        result.get(TIMEOUT_S)
    assert rc[:].apply_async(abs, -1).get(TIMEOUT_S) == [1] * len(rc)


WAITS: dict[str, Callable[[ipf.Client, Any], Any]] = {
    "get": lambda rc, ar: ar.get(),
    "get with a limit": lambda rc, ar: ar.get(LONG_S),
    "result": lambda rc, ar: ar.result(),
    "exception": lambda rc, ar: ar.exception(),
    "wait": lambda rc, ar: ar.wait(),
    "wait for the first": lambda rc, ar: ar.wait(return_when="FIRST_COMPLETED"),
    "wait with a bar": lambda rc, ar: ar.wait_interactive(),
    "wait for output": lambda rc, ar: ar.wait_for_output(),
    "iteration": lambda rc, ar: list(ar),
    "values by engine": lambda rc, ar: ar.get_dict(),
    "the client's wait": lambda rc, ar: rc.wait(),
    "the client's wait with a bar": lambda rc, ar: rc.wait_interactive(),
    "more engines": lambda rc, ar: rc.wait_for_engines(99),
    "more engines, with a bar": lambda rc, ar: rc.wait_for_engines(99, interactive=True),
    "streaming": lambda rc, ar: _stream(ar),
    "concurrent.futures": lambda rc, ar: __import__("concurrent.futures").futures.wait([ar]),
    "a view's wait": lambda rc, ar: rc[:].wait(ar),
}


def _stream(ar: Any) -> None:
    with ar.stream_output():
        ar.get()


@pytest.mark.parametrize("name", WAITS)
def test_a_wait(rc: ipf.Client, name: str) -> None:
    """It ends at once with KeyboardInterrupt, and can be taken up again."""
    ar = rc[:].apply_async(nap, LONG_S)
    ar.msg_ids  # noqa: B018 - sends it
    interrupt(lambda: WAITS[name](rc, ar))
    assert not ar.ready()
    ar.abort()
    assert ar.wait(TIMEOUT_S)


def test_a_lazy_map(rc: ipf.Client) -> None:
    """A lazy map that was interrupted goes on where it was, with no value lost or twice."""
    stream = rc.load_balanced_view().imap(lambda x: (nap(0.005), x)[1], Endless())
    taken: list[int] = []
    for _ in range(3):
        interrupt(lambda: _repeat(lambda: taken.append(next(stream))))
    taken += itertools.islice(stream, 20)
    # What was on its way from `next` to the list when the interrupt came is Python's loss.
    assert taken == sorted(set(taken))
    assert taken[-1] - len(taken) < 3
    stream.cancel()


def test_the_packing_of_a_long_map(rc: ipf.Client) -> None:
    """A map that is interrupted before all of it was sent is taken back."""
    began: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1_000_000):
            began.append(number)
            time.sleep(0.0005)
            yield number

    view = rc.load_balanced_view()
    interrupt(lambda: view.map_sync(abs, items()), lambda: len(began) > 200)
    assert rc.wait(timeout=TIMEOUT_S)
    assert rc.outstanding == set()
    assert rc.load_balanced_view().map_sync(abs, range(-5, 0)) == [5, 4, 3, 2, 1]


def test_questions_to_the_controller(rc: ipf.Client) -> None:
    """A question whose answer was not waited for does no harm to the next."""
    for question in (rc.queue_status, rc.hub_history, lambda: rc.db_query({"status": "ok"})):
        for delay_s in (0.0, 0.0005, 0.002):
            timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                _repeat(question, timer.start)
            timer.join()
            assert question() is not None
