from ipyfleet_protocol.errors import RemoteError
from ipyfleet_protocol.errors.alike import group_alike

PLAIN = [
    "Traceback (most recent call last):",
    '  File "/a/b.py", line 6, in f',
    "    1 / 0",
    "E: x",
]
RICH = ["\x1b[31m-----\x1b[39m", "File \x1b[32m/a/b.py:6\x1b[39m, in f()\n----> 6  1 / 0", "E: x"]


def error(engine: int, traceback: list[str]) -> RemoteError:
    """Return an error of an engine."""
    return RemoteError("E", "x", traceback, {"engine_id": engine, "method": "apply"})


def test_one_line_in_two_renderings_is_one_kind() -> None:
    """Tracebacks of one error are alike in both manners, those of another line are not."""
    other = [line.replace("line 6", "line 7") for line in PLAIN]
    kinds = group_alike([error(0, PLAIN), error(1, RICH), error(2, other)])
    assert [len(kind.errors) for kind in kinds] == [2, 1]
