"""How the programs write their logs: lines for people, or JSON for programs.

What lives here: the formats and the handler that `ipcontroller`, `ipengine` and `ipcluster` share.
What must not: what is logged.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

MAX_BYTES = 10 * 1024 * 1024
"""Size of a log file at which it is renamed to ``….log.1``, which takes the place of an older."""

TEXT = "%(asctime)s.%(msecs)03d [{program} %(process)d] %(levelname)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Keys: ``time`` (UTC, ISO 8601), ``level``, ``program``, ``pid``, ``logger``, ``message``,
    ``event`` (the message before its values were filled in, the same each time) and ``values``;
    with an exception ``traceback``.
    """

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON, on one line."""
        content: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "program": self._program,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            "event": str(record.msg),
            "values": list(record.args) if isinstance(record.args, tuple) else [],
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str, ensure_ascii=False)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return when it was logged."""
        from datetime import UTC, datetime

        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def log_path(directory: Path, program: str, cluster_id: str) -> Path:
    """Return the log file of this process in a log directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    name = "-".join(filter(None, (program, cluster_id, str(os.getpid()))))
    return directory / f"{name}.log"


def log_handler(program: str, path: Path | None, *, as_json: bool = False) -> logging.Handler:
    """Return what writes a program's log.

    Args:
        program: its name.
        path: the file, kept below `MAX_BYTES`; None for stderr.
        as_json: write JSON.
    """
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        from logging.handlers import RotatingFileHandler

        handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8")
    if as_json:
        handler.setFormatter(JsonFormatter(program))
    else:
        handler.setFormatter(logging.Formatter(TEXT.format(program=program), "%Y-%m-%d %H:%M:%S"))
    return handler


__all__ = ["MAX_BYTES", "JsonFormatter", "log_handler", "log_path"]
