"""The objects behind `sys.stdout` and `sys.stderr` of an engine.

What lives here: `TaskStream` and `install_streams`. What must not: file descriptors (`capture`).
"""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any, TextIO

from ipyfleet_protocol.messages import OutputKind

from .output import OutputCollector


class TaskStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of an engine: what is written belongs to the running task.

    Before the first task text goes to the engine's log. In processes that user code forks it goes
    to the process's own stdout or stderr, which are captured.
    """

    def __init__(
        self,
        collector: OutputCollector,
        kind: OutputKind,
        real: TextIO,
        log: TextIO | None = None,
    ) -> None:
        """Make a stream.

        Args:
            collector: where text goes.
            kind: "stdout" or "stderr".
            real: the process's own stream; its `fileno` is this stream's.
            log: where text goes before the first task; default `real`.
        """
        super().__init__()
        self._collector = collector
        self._kind = kind
        self._real = real
        self._log = real if log is None else log
        self._bytes = _TaskStreamBytes(self)

    @property
    def name(self) -> str:
        """As of the real stream: ``<stdout>``."""
        return f"<{self._kind}>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """Lone surrogates are written as escapes."""
        return "backslashreplace"

    @property
    def buffer(self) -> io.BufferedIOBase:
        """A binary stream that decodes UTF-8 into this one."""
        return self._bytes

    def write(self, text: str) -> int:
        """Add text to the running task's output."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        collector = self._collector
        collector.settle_before_text()
        if not collector.write(self._kind, text):
            (self._real if collector.is_detached else self._log).write(text)
        return len(text)

    def flush(self) -> None:
        """Nothing to do: text leaves by itself within some ten milliseconds."""
        if self._collector.task is None:
            target = self._real if self._collector.is_detached else self._log
            # Python flushes what it drops at its end, when the log is closed.
            if not target.closed:
                target.flush()

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """No."""
        return False

    def fileno(self) -> int:
        """The process's file descriptor 1 or 2; what is written there is captured, too."""
        return self._real.fileno()


class _TaskStreamBytes(io.BufferedIOBase):
    """`TaskStream.buffer`."""

    def __init__(self, stream: TaskStream) -> None:
        super().__init__()
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._stream.write(self._decoder.decode(view.tobytes()))
        return view.nbytes

    def flush(self) -> None:
        self._stream.flush()

    def writable(self) -> bool:
        return True


def install_streams(collector: OutputCollector, log: TextIO) -> None:
    """Make `sys.stdout` and `sys.stderr` write to the collector, and to `log` before any task."""
    assert sys.__stdout__ is not None and sys.__stderr__ is not None
    for real in (sys.__stdout__, sys.__stderr__):
        # Forked processes write there; their output is to be live.
        real.reconfigure(line_buffering=True)
    sys.stdout = TaskStream(collector, "stdout", sys.__stdout__, log)
    sys.stderr = TaskStream(collector, "stderr", sys.__stderr__, log)
