"""SIGINT reaches user code and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import signal
import time
from array import array
from types import FrameType
from typing import Any

import pytest

from ipyfleet_engine.interrupts import InterruptHandler, in_user_code, interruptible


@interruptible
def run_user_code(handler: InterruptHandler, depth: int = 0) -> None:
    """Stand for a task: be interrupted some frames below the border."""
    if depth:
        run_user_code(handler, depth - 1)
    else:
        handler(signal.SIGINT, inspect.currentframe())


@pytest.fixture
def loop() -> Any:
    """An event loop that nobody runs but the test."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def running() -> memoryview:
    """The mark: task 7 runs."""
    return memoryview(array("q", [7, 0]))


def test_user_code_gets_a_keyboard_interrupt(loop: Any, running: Any) -> None:
    """However deep in the stack the signal finds it."""
    handler = InterruptHandler(loop, running)
    for depth in (0, 5):
        with pytest.raises(KeyboardInterrupt):
            run_user_code(handler, depth)


def test_the_engines_own_code_is_not_interrupted(loop: Any, running: Any) -> None:
    """Outside of a task the signal does nothing."""
    handler = InterruptHandler(loop, running)
    frame: FrameType | None = inspect.currentframe()
    assert not in_user_code(frame)
    handler(signal.SIGINT, frame)
    handler(signal.SIGINT, None)
    assert not handler.cancelled


def test_what_is_awaited_is_cancelled(loop: Any, running: Any) -> None:
    """An asynchronous task that waits is cancelled, and known to be by SIGINT."""
    handler = InterruptHandler(loop, running)

    async def main() -> None:
        handler.awaiting = asyncio.ensure_future(asyncio.sleep(60))
        await asyncio.sleep(0)
        handler(signal.SIGINT, None)
        with pytest.raises(asyncio.CancelledError):
            await handler.awaiting

    loop.run_until_complete(asyncio.wait_for(main(), 10))
    assert handler.cancelled


@pytest.fixture
def aimed(loop: Any, running: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a handler whose signals to the main thread are counted in `handler.sent`."""
    handler: Any = InterruptHandler(loop, running)
    handler.sent = 0

    def count(thread: int, signum: int) -> None:
        handler.sent += 1

    monkeypatch.setattr(signal, "pthread_kill", count)
    return handler


def test_an_aimed_signal_hits_its_task_only(aimed: Any, running: Any) -> None:
    """If the next task runs by the time the handler does, that one goes on."""
    aimed.interrupt(7)
    running[0] = 8
    run_user_code(aimed)
    running[0] = 7
    with pytest.raises(KeyboardInterrupt):
        run_user_code(aimed)
    assert aimed.hit == 7
    run_user_code(aimed)


def test_a_task_that_has_not_begun_is_hit_when_it_has(aimed: Any, running: Any) -> None:
    """The signal is repeated until it finds user code; then the aim is given up."""
    running[0] = -1
    aimed.interrupt(7)
    aimed(signal.SIGINT, inspect.currentframe())
    aimed.follow_up(7)
    assert (aimed.sent, aimed.hit) == (2, -1)
    running[0] = 7
    with pytest.raises(KeyboardInterrupt):
        run_user_code(aimed)
    _wait_settled(aimed, 7)


def test_a_task_that_is_over_is_not_aimed_at_for_long(aimed: Any, running: Any) -> None:
    """Whether another was claimed since or the engine is idle, SIGINT means any task again."""
    for next_ordinal in (8, 7):
        running[0] = -1
        aimed.interrupt(7)
        _wait_settled(aimed, next_ordinal)
        running[0] = 9
        with pytest.raises(KeyboardInterrupt):
            run_user_code(aimed)
    assert aimed.hit == -1


def _wait_settled(handler: Any, last_claimed: int) -> None:
    deadline = time.monotonic() + 5
    while handler.aim >= 0:
        assert time.monotonic() < deadline
        handler.follow_up(last_claimed)
