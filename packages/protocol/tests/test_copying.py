"""Large copies: how they are cut, run together, interrupted, and what goes through files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ipyfleet_protocol import copying
from ipyfleet_protocol.copying import cut, read_file, run_together, threads_for, write_file


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 20_000, 1 << 20, (1 << 20) + 1])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_pieces_cover_the_buffer(size: int, parts: int) -> None:
    """Pieces follow one another from the first byte to the last, and begin at multiples."""
    pieces = cut(size, parts, 4096)
    assert len(pieces) == parts
    assert pieces[0][0] == 0 and pieces[-1][1] == size
    assert all(end == start for (_, end), (start, _) in pairwise(pieces))
    assert not any(start % 4096 for start, end in pieces if start < end)


def test_small_copies_get_one_thread() -> None:
    """A thread more is for a copy that is worth it, and there are never more than a few."""
    assert threads_for(copying.SHARE_MIN_BYTES) == 1
    assert 1 <= threads_for(1 << 40) <= copying.THREADS_MAX


def test_jobs_run_at_the_same_time() -> None:
    """Each job has a thread, the first the caller's, and all have ended when it is over."""
    meeting = threading.Barrier(3)
    ended: list[str] = []

    def job() -> Iterator[int]:
        yield meeting.wait(10)
        ended.append(threading.current_thread().name)

    run_together([job(), job(), job()])
    assert sorted(ended)[1:] == ["ipyfleet-copy", "ipyfleet-copy"]
    assert threading.current_thread().name in ended


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_failure_ends_the_others(failing: int, error: BaseException) -> None:
    """What one raises ends the others after their step, and then is raised in the caller."""
    has_failed = threading.Event()
    steps: list[int] = []

    def fail() -> Iterator[None]:
        yield None
        has_failed.set()
        raise error

    def go_on() -> Iterator[None]:
        while True:
            has_failed.wait(10)
            steps.append(1)
            yield None

    jobs: list[Iterator[None]] = [go_on(), go_on()]
    jobs[failing] = fail()
    with pytest.raises(type(error)):
        run_together(jobs)
    assert steps
    assert not [t for t in threading.enumerate() if t.name == "ipyfleet-copy"]


def test_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the caller's does it all."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    run_together([iter([done.append(k)]) for k in range(3)])
    assert done == [0, 1, 2]


def test_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written in steps is read in steps, from any place on."""
    monkeypatch.setattr(copying, "STEP_BYTES", 1000)
    content = os.urandom(4321)
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        assert list(write_file(file.fileno(), memoryview(content)))[-1] == len(content)
        target = bytearray(321)
        run_together([read_file(file.fileno(), memoryview(target), 4000)])
        assert bytes(target) == content[4000:]
        with pytest.raises(EOFError):
            run_together([read_file(file.fileno(), memoryview(target), 4001)])
