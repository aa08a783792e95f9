"""The other side of the by-value tests: a fresh interpreter that unpacks and calls.

Not a test module. Reads pickled requests from stdin, answers on stdout, ends at end of file.
It does with a function what an engine does, in a namespace of its own.
"""

import asyncio
import inspect
import pickle
import sys
import textwrap
from typing import Any

from ipyfleet_protocol.namespace import set_namespace
from ipyfleet_protocol.serialize import pack, unpack_call, unpack_function

NAMESPACE: dict[str, Any] = {}


def reset() -> None:
    """Start again with an empty namespace."""
    NAMESPACE.clear()
    NAMESPACE["__name__"] = "__main__"


def execute(source: str) -> None:
    """Run code in the namespace."""
    exec(textwrap.dedent(source), NAMESPACE)


def names() -> list[str]:
    """List what is in the namespace, but for what Python puts there."""
    return sorted(name for name in NAMESPACE if not name.startswith("__"))


def call(frames: list[bytes], self_name: str, payload: bytes, buffers: list[bytes]) -> Any:
    """Run one task; gives back the frames of its result."""
    f = unpack_function(frames)
    args, kwargs = unpack_call(payload, [memoryview(bytearray(b)) for b in buffers])
    planted = bool(self_name) and self_name not in NAMESPACE
    if planted:
        NAMESPACE[self_name] = f
    try:
        result = f(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        elif inspect.isgenerator(result):
            result = list(result)
    finally:
        if planted:
            del NAMESPACE[self_name]
    packed = pack(result, what="result")
    return packed.pickle, [bytes(buffer) for buffer in packed.buffers]


def main() -> None:
    """Answer requests until stdin ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    set_namespace(NAMESPACE)
    reset()
    while True:
        try:
            name, args = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = True, globals()[name](*args)
        except Exception as error:  # noqa: BLE001 - all of them are the sender's to judge
            answer = False, (type(error).__name__, str(error), repr(error.__cause__))
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
