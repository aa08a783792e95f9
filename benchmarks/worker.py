"""The process in which one peer is started, measured once for each figure, and stopped.

Run by :mod:`benchmarks.driver` as ``python -m benchmarks.worker SPEC``; it reports on a pipe, one
JSON object per line (:class:`Reporter`). Its imports are few until the peer has given its first
result: what is imported here already is not on the peer's clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from benchmarks.peers import load_peer
from benchmarks.peers.base import NotOffered, Peer
from benchmarks.processes import TOKEN_VARIABLE
from benchmarks.sizes import Sizes

if TYPE_CHECKING:
    from benchmarks.figures.base import Figure


class Reporter:
    """Writes the lines that the driver reads.

    ``{"not started": detail}`` when the peer could not give a first result, and nothing else;
    ``{"begin": key}`` before each figure (the driver's timeout counts from line to line);
    ``{"end": key, "status": …, …}`` after it, with ``value`` and ``count``, or ``detail``;
    ``{"stopped": true}`` when the peer has been shut down.
    """

    def __init__(self, pipe: int) -> None:
        """Take over the file descriptor ``pipe``."""
        # The peer's processes must not keep the driver's pipe open.
        os.set_inheritable(pipe, False)
        self._file = os.fdopen(pipe, "w", buffering=1)

    def not_started(self, error: Exception) -> None:
        """The peer raised before its first result."""
        self._write({"not started": self._explain(error)})

    def begin(self, key: str) -> None:
        """A figure is being measured."""
        self._write({"begin": key})

    def value(self, key: str, value: float, count: int | None) -> None:
        """A figure has been measured."""
        self._write({"end": key, "status": "ok", "value": value, "count": count})

    def not_offered(self, key: str) -> None:
        """The peer has no such notion."""
        self._write({"end": key, "status": "not offered"})

    def failed(self, key: str, error: Exception) -> None:
        """The peer raised, or returned something wrong."""
        self._write({"end": key, "status": "failed", "detail": self._explain(error)})

    def stopped(self) -> None:
        """All is done."""
        self._write({"stopped": True})

    def _explain(self, error: Exception) -> str:
        """Return one line; the traceback goes to the log."""
        traceback.print_exception(error)
        return f"{type(error).__name__}: {error}".splitlines()[0]

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def main() -> int:
    """Measure what the specification in ``argv[1]`` says; return an exit code."""
    spec = json.loads(sys.argv[1])
    sizes = Sizes(**spec["sizes"])
    report = Reporter(spec["pipe"])
    peer_class = load_peer(spec["peer"])

    start = time.perf_counter()
    peer = peer_class()
    try:
        peer.start(sizes.workers)
        peer.call()
    except Exception as error:  # noqa: BLE001 - whatever the peer raises is its result
        report.not_started(error)
        return 1
    first_result_s = time.perf_counter() - start

    measure_all(peer, spec["peer"], spec["figures"], sizes, first_result_s, report)
    peer.stop()
    report.stopped()
    return 0


def is_asked(figure: Figure, name: str, peer: Peer) -> bool:
    """Return whether a peer of this name is measured for a figure."""
    if figure.only and name not in figure.only:
        return False
    return peer.figures is None or figure.key in peer.figures


def measure_all(
    peer: Peer, name: str, keys: list[str], sizes: Sizes, first_result_s: float, report: Reporter
) -> None:
    """Measure the figures ``keys`` one after the other; one that fails leaves the others be."""
    from benchmarks.figures import BY_KEY
    from benchmarks.figures.base import Session

    session = Session(peer, sizes, os.environ[TOKEN_VARIABLE], first_result_s)
    for key in keys:
        report.begin(key)
        figure = BY_KEY[key]
        try:
            if not is_asked(figure, name, peer):
                raise NotOffered
            sample = figure.measure(session)
        except NotOffered:
            report.not_offered(key)
        except Exception as error:  # noqa: BLE001 - whatever the peer raises is its result
            report.failed(key, error)
        else:
            report.value(key, sample.value, sample.count)


if __name__ == "__main__":
    raise SystemExit(main())
