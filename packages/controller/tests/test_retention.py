"""Real controllers with little room: what is kept, what goes, and what a full disk does."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.ids import format_msg_id
from ipyfleet_testing.simulated import SimulatedClient, SimulatedEngine, SimulatedPeers

TIMEOUT_S = 30.0
RESULT_BYTES = 100_000


class Site:
    """A client, an engine that answers with the task's payload, and one that never answers."""

    def __init__(self, peers: SimulatedPeers) -> None:
        self.peers = peers
        self.engine: SimulatedEngine
        self.busy: SimulatedEngine
        self.engine, self.busy = peers.add_engines(2)
        self.busy.is_busy = True
        self.client: SimulatedClient
        [self.client] = peers.add_clients(1)
        peers.run_until(lambda: len(self.client.engines) == 2, TIMEOUT_S)

    def run(self, count: int) -> list[str]:
        """Have tasks end with results of `RESULT_BYTES`; return their msg_ids."""
        first = self.client.next_seq
        wanted = self.client.n_ended + count
        for _ in range(count):
            # What is sent is what comes back, and no two pages of it are alike.
            self.client.submit(
                1, os.urandom(RESULT_BYTES), placement="direct", targets=[self.engine.engine_id]
            )
        self.peers.run_until(lambda: self.client.n_ended == wanted, TIMEOUT_S)
        assert self.client.n_failed == 0
        return [format_msg_id(self.client.peer, first + index) for index in range(count)]

    def ask(self, question: m.Question) -> Any:
        """Ask the hub."""
        request = self.client.ask(question)
        self.peers.run_until(lambda: request in self.client.replies, TIMEOUT_S)
        reply = self.client.replies[request]
        assert reply.error is None, reply.error
        return msgspec.msgpack.decode(reply.content, strict=False)

    def database(self) -> dict[str, Any]:
        """Return what the metrics say of the database, all that came before being written."""
        self.ask(m.TaskHistory())
        return dict(self.ask(m.Metrics())["database"])


@contextmanager
def _site(info: Any) -> Iterator[Site]:
    with SimulatedPeers(info) as peers:
        yield Site(peers)


@contextmanager
def _limited(start: Any, *flags: str) -> Iterator[tuple[Site, str]]:
    """A site with a task that does not end, and that task's msg_id."""
    with _site(start(*flags).info()) as site:
        site.client.submit(1, placement="direct", targets=[site.busy.engine_id])
        yield site, format_msg_id(site.client.peer, 0)


@pytest.mark.parametrize("flag", ["--sqlitedb", "--dictdb"])
def test_the_oldest_results_go_when_the_bytes_are_used_up(start: Any, flag: str) -> None:
    """The bound holds, the newest are there, and what has not ended is never dropped."""
    with _limited(start, flag, "--IPController.db_max_bytes=1000000") as (site, live):
        ids = site.run(40)
        assert site.database()["bytes"] <= 1_000_000
        assert site.database()["culled"] >= 30
        left = site.ask(m.TaskHistory())
        assert left[0] == live
        assert left[1:] == ids[-len(left) + 1 :]
        assert len(left) >= 5


@pytest.mark.parametrize("flag", ["--sqlitedb", "--dictdb"])
def test_results_go_when_they_are_old(start: Any, flag: str) -> None:
    """What ended longer ago than the limit goes with the next that is written."""
    with _limited(start, flag, "--IPController.db_max_age_s=1.5") as (site, live):
        [old] = site.run(1)
        assert old in site.ask(m.TaskHistory())

        def is_gone() -> bool:
            site.run(1)
            return old not in site.ask(m.TaskHistory())

        site.peers.run_until(is_gone, TIMEOUT_S)
        assert live in site.ask(m.TaskHistory())


def test_a_disk_that_takes_no_more_ends_nothing(start: Any) -> None:
    """A file that cannot grow: tasks go on, questions are answered, the trouble is told."""
    limit = 1 << 20

    def limit_files() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    process = start(preexec_fn=limit_files)
    with _site(process.info()) as site:
        site.run(30)

        def is_told() -> bool:
            site.run(1)
            return bool(site.ask(m.QueueStatus()).get("database", {}).get("trouble"))

        site.peers.run_until(is_told, TIMEOUT_S)
        site.run(10)
    process.popen.send_signal(signal.SIGTERM)
    _, stderr = process.stop()
    assert "nothing is recorded for now" in stderr
    assert "records: " in stderr  # what was missed, at the end


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount file systems")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, timeout=10).returncode:
        pytest.skip("this system does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)


def test_what_a_full_file_system_did_not_take_is_written_when_there_is_room(
    start: Any, small_disk: Path
) -> None:
    """Tasks go on, the trouble is told, and results wait in memory for somebody to tidy up."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_500_000))
    process = start(f"--db-file={small_disk}/tasks.db")
    with _site(process.info()) as site:
        ids = site.run(5)

        def trouble() -> str:
            status = site.ask(m.QueueStatus())
            return str(status.get("database", {}).get("trouble", ""))

        def is_told() -> bool:
            ids.extend(site.run(1))
            return "full" in trouble()

        site.peers.run_until(is_told, TIMEOUT_S)
        ballast.unlink()

        def is_written() -> bool:
            found = site.ask(m.FetchResults(ids, status_only=True))
            return all(found[i] and found[i]["result"] == "kept" for i in ids)

        site.peers.run_until(is_written, TIMEOUT_S)
        assert not trouble()
