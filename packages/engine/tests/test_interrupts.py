"""SIGINT reaches user code and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import signal
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


def test_user_code_gets_a_keyboard_interrupt(loop: Any) -> None:
    """However deep in the stack the signal finds it."""
    handler = InterruptHandler(loop)
    for depth in (0, 5):
        with pytest.raises(KeyboardInterrupt):
            run_user_code(handler, depth)


def test_the_engines_own_code_is_not_interrupted(loop: Any) -> None:
    """Outside of a task the signal does nothing."""
    handler = InterruptHandler(loop)
    frame: FrameType | None = inspect.currentframe()
    assert not in_user_code(frame)
    handler(signal.SIGINT, frame)
    handler(signal.SIGINT, None)
    assert not handler.cancelled


def test_what_is_awaited_is_cancelled(loop: Any) -> None:
    """An asynchronous task that waits is cancelled, and known to be by SIGINT."""
    handler = InterruptHandler(loop)

    async def main() -> None:
        handler.awaiting = asyncio.ensure_future(asyncio.sleep(60))
        await asyncio.sleep(0)
        handler(signal.SIGINT, None)
        with pytest.raises(asyncio.CancelledError):
            await handler.awaiting

    loop.run_until_complete(asyncio.wait_for(main(), 10))
    assert handler.cancelled
