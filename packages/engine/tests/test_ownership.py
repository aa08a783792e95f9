"""Code belongs to the task that started it, in whatever thread it runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ipyfleet_engine import ownership
from ipyfleet_engine.output import TaskOutput
from ipyfleet_engine.ownership import claim, owner

ONE, TWO = TaskOutput(b"c" * 16, 1), TaskOutput(b"c" * 16, 2)


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    """Threads remember their starters, for one test."""
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    ownership.install_thread_hooks()
    yield
    threading.Thread.start = start  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
    claim(None)


def in_thread(action: Callable[[], object]) -> None:
    """Run something in a thread that is joined."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(10)


def test_a_thread_is_its_starters() -> None:
    """Also after the starter's task has ended, and for threads that the thread starts."""
    seen: list[TaskOutput | None] = []
    go = threading.Event()

    def work() -> None:
        go.wait(10)
        seen.append(owner())
        in_thread(lambda: seen.append(owner()))

    claim(ONE)
    thread = threading.Thread(target=work)
    thread.start()
    claim(TWO)
    go.set()
    thread.join(10)
    assert seen == [ONE, ONE]


def test_a_pools_work_is_its_submitters() -> None:
    """A pool that one task has made works for the next one, too."""
    with ThreadPoolExecutor(1) as pool:
        claim(ONE)
        first = pool.submit(owner).result(10)
        claim(TWO)
        second = pool.submit(lambda *a, **k: (owner(), a, k), 1, fn=2).result(10)
    assert (first, second) == (ONE, (TWO, (1,), {"fn": 2}))


def test_a_coroutine_is_its_creators() -> None:
    """asyncio copies the context when a task is created."""

    async def main() -> list[TaskOutput | None]:
        async def later() -> TaskOutput | None:
            await asyncio.sleep(0)
            return owner()

        claim(ONE)
        task = asyncio.create_task(later())
        claim(TWO)
        return [await task, owner()]

    assert asyncio.run(main()) == [ONE, TWO]


def test_nobody_is_told_as_nobody() -> None:
    """Before the first task, and in threads from then, there is no owner."""
    seen: list[object] = []
    contextvars.Context().run(lambda: in_thread(lambda: seen.append(owner())))
    assert seen == [None]


def test_hooks_are_installed_once() -> None:
    """A second call changes nothing."""
    before = threading.Thread.start
    ownership.install_thread_hooks()
    assert threading.Thread.start is before
