"""The ports of a bound kernel, by themselves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from ipyfleet_engine.ports import KernelPorts

_FILES = (KernelPorts.write.__code__.co_filename, threading.__file__)


@pytest.fixture
def ports() -> Iterator[KernelPorts]:
    """Open ports that nobody is connected to."""
    made = KernelPorts("kernel.test", lambda address: None)
    made.open({})
    yield made
    made.close()


class _Interruption:
    """Raises KeyboardInterrupt at one step of what runs.

    A step is where the interpreter looks for signals: a function begins, or a call has returned.
    """

    def __init__(self, step: int) -> None:
        self.steps_left = step

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "c_call" and frame.f_code.co_filename in _FILES:
            self.steps_left -= 1
            if self.steps_left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


def test_an_interrupt_at_any_step_leaves_the_lock_free(ports: KernelPorts) -> None:
    """Whenever KeyboardInterrupt comes to a thread that writes, others can go on."""
    parent = {"header": {"msg_id": "1"}}
    n_interrupted = 0
    with ThreadPoolExecutor(1) as other:
        for step in range(500):
            interruption = _Interruption(step)
            sys.setprofile(interruption)
            try:
                ports.write(parent, "stdout", "text")
                ports.publish(parent, "status", {"execution_state": "busy"})
            except KeyboardInterrupt:
                n_interrupted += 1
            finally:
                sys.setprofile(None)
            publishing = other.submit(ports.publish, parent, "status", {"execution_state": "idle"})
            publishing.result(10)
            if interruption.steps_left >= 0:
                break
    assert 20 < n_interrupted < 500
