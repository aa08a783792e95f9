"""File descriptors 1 and 2 of an engine: everything arrives, attributed, bounded."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from ipyfleet_engine.capture import _Readable
from ipyfleet_protocol import messages as m


def test_c_code_prints_into_its_task(shared: Any) -> None:
    """What is left in C's buffer at the end of a task is flushed into that task's output."""

    def print_from_c(text: bytes) -> None:
        import ctypes

        ctypes.CDLL(None).printf(text)

    first = shared.apply(shared.engine, print_from_c, b"no end of line")
    second = shared.apply(shared.engine, print_from_c, b"a line\n")
    assert shared.text(first.seq) == "no end of line"
    assert shared.text(second.seq) == "a line\n"


def test_both_descriptors_are_captured(shared: Any) -> None:
    """Descriptor 1 is stdout, 2 is stderr; `sys.stdout.fileno()` is one of them."""
    code = "import os, sys\n_ = os.write(1, b'out'), os.write(2, b'err')\n"
    code += "_ = os.write(sys.stdout.fileno(), b'more')"
    ended = shared.execute(shared.engine, code)
    assert (shared.text(ended.seq), shared.text(ended.seq, "stderr")) == ("outmore", "err")


def test_the_order_is_that_of_writing(shared: Any) -> None:
    """What a subprocess wrote before a print comes before it."""

    def alternate() -> None:
        import os

        for i in range(50):
            print(f"p{i}")
            os.write(1, b"d%d\n" % i)

    ended = shared.apply(shared.engine, alternate)
    assert shared.text(ended.seq).split() == [f"{kind}{i}" for i in range(50) for kind in "pd"]


def test_characters_cut_in_two_are_put_together(shared: Any) -> None:
    """UTF-8 is decoded across writes; what is no UTF-8 is replaced."""
    code = "import os, time\nfor b in 'ü€'.encode(): _ = os.write(1, bytes([b])); time.sleep(0.01)"
    assert shared.text(shared.execute(shared.engine, code).seq) == "ü€"


def test_closing_the_descriptors_hurts_nobody(shared: Any) -> None:
    """User code may close 1 and 2 and open them again; prints go on."""
    code = (
        "import os\nkept = os.dup(1)\nos.close(1)\nprint('while closed')\n"
        "_ = os.dup2(kept, 1)\nos.close(kept)\n_ = os.write(1, b'open again')"
    )
    assert shared.text(shared.execute(shared.engine, code).seq) == "while closed\nopen again"


def test_the_log_stays_the_log(controller: Any) -> None:
    """Log lines of the engine and the stack of a crash are in its log, not in any task's output."""
    controller.start("-n=1")
    [engine] = controller.wait_engines(1)
    ended = controller.execute(
        engine, "import logging; logging.getLogger('ipyfleet').error('for the log')"
    )
    assert controller.output(ended.seq) == []
    controller.run(engine, "execute", ["import ctypes; ctypes.string_at(0)"])
    exited = controller.expect(m.EngineExited)
    assert exited.status == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in exited.reason
    [log] = (controller.directory / "ipython/profile_default/log").glob("ipengine-*-0.log")
    assert "for the log" in log.read_text()


def test_log_handlers_move_back(controller: Any) -> None:
    """An engine that stops in order says so in its log, after the descriptors were given back."""
    agent = controller.start("-n=1", "--log-level=INFO")
    [engine] = controller.wait_engines(1)
    controller.execute(engine, "import os; _ = os.write(1, b'never in the log')")
    assert controller.stop(agent) == 0
    [log] = (controller.directory / "ipython/profile_default/log").glob("ipengine-*-0.log")
    assert "SIGTERM" in log.read_text() and "never in the log" not in log.read_text()


def test_a_flood_is_bounded_and_said(shared: Any) -> None:
    """A task that writes 100 MB to a descriptor ends soon; what was dropped is counted."""
    code = (
        "import os\nline = b'y' * 99 + b'\\n'\nfor _ in range(1000): _ = os.write(1, line * 1000)"
    )
    ended = shared.execute(shared.engine, code, silent=True)
    items = shared.output(ended.seq)
    assert sum(len(i.content) + i.dropped_bytes for i in items if i.kind == "stdout") == 100_000_000
    assert items[-1].content.endswith(b"y\n")


@pytest.mark.parametrize("has_epoll", [True, False])
def test_descriptors_are_watched_with_or_without_epoll(
    has_epoll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Linux has epoll."""
    if not has_epoll:
        monkeypatch.delattr("select.epoll", raising=False)
    first, second = os.pipe(), os.pipe()
    readable = _Readable([first[0], second[0]])
    assert not readable.ask(0, 1)
    os.write(second[1], b"x")
    assert len(readable.ask(0, 1)) == 1
    os.read(second[0], 1)
    assert not readable.ask(0, 1)
    readable.close()
    for fd in (*first, *second):
        os.close(fd)
