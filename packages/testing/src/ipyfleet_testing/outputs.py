"""What engines print, made comparable.

What lives here: `in_engine_order`. What must not: clusters, notebooks.
"""

from __future__ import annotations

import re
from itertools import groupby

_PREFIX = re.compile(r"\[(?:stdout|stderr|output):(\d+)\] ")


def in_engine_order(text: str) -> str:
    """Sort neighbouring lines that begin with an engine's prefix, such as ``[stdout:3] ``.

    Only what arrives together is shown in the order of engines, and on a busy machine lines of one
    cell may arrive apart.
    """
    lines: list[str] = []
    for is_prefixed, run in groupby(text.splitlines(), lambda line: bool(_PREFIX.match(line))):
        block = list(run)
        lines += sorted(block, key=_engine) if is_prefixed else block
    return "\n".join(lines)


def _engine(line: str) -> int:
    match = _PREFIX.match(line)
    return int(match[1]) if match else -1
