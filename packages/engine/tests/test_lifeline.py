"""News of a connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from ipyfleet_engine.lifeline import Lifeline


@pytest.fixture
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An address on this host."""
    path = tmp_path_factory.mktemp("x") / "s"
    yield f"ipc://{path}"
    Path(path).unlink(missing_ok=True)


def test_a_break_and_a_return_are_told(url: str, wait: Any) -> None:
    """The first connection is no news; a break starts the clock, a return stops it."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.RECONNECT_IVL, 10)
        dealer.linger = 0
        dealer.connect(url)
        lifeline = Lifeline(dealer, 5.0)
        first = context.socket(zmq.ROUTER)
        first.bind(url)
        dealer.send(b"hello")
        first.recv_multipart()
        assert not lifeline.read(1.0) and lifeline.gives_up_at is None
        first.close(0)
        wait(lambda: lifeline.read(10.0) or lifeline.gives_up_at is not None)
        assert lifeline.gives_up_at == 15.0
        with context.socket(zmq.ROUTER) as second:
            second.linger = 0
            wait(lambda: not _fails(lambda: second.bind(url)))
            wait(lambda: lifeline.read(12.0))
            assert lifeline.gives_up_at is None
        lifeline.close()


def _fails(action: Any) -> bool:
    try:
        action()
    except zmq.ZMQError:
        return True
    return False
