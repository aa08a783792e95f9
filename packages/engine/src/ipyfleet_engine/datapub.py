"""`publish_data`: values that reach the client while a task still runs.

What lives here: `publish_data`, for user code. What must not: anything an engine itself uses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ipyfleet_protocol.serialize import pack

if TYPE_CHECKING:
    from .output import OutputCollector

__all__ = ["publish_data"]


def publish_data(data: Mapping[str, Any]) -> None:
    """Send values to the client while the task runs; they appear in `AsyncResult.data`.

    ::

        def simulate(n):
            from ipyfleet import publish_data
            for step in range(n):
                ...
                publish_data({"step": step})

    A later value of the same name replaces an earlier one.

    Args:
        data: names and values. The values are pickled now: changing them afterwards changes nothing
            in the client.

    Raises:
        RuntimeError: not called on an engine, in the process that runs the task.
        TypeError: `data` is no mapping.
        PackError: a value cannot be pickled.
        ValueError: the values are larger than what an engine may hold back; return them instead.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"publish_data() takes a mapping, not {type(data).__name__}")
    collector = _collector()
    packed = pack(dict(data))
    frames: list[Any] = [packed.pickle, *packed.buffers]
    n_bytes = sum(memoryview(frame).nbytes for frame in frames)
    if n_bytes > collector.max_bytes // 2:
        raise ValueError(
            f"publish_data() got {n_bytes} bytes; at most {collector.max_bytes // 2} can be "
            "published at once. Return large values, or assign them and pull them"
        )
    collector.publish("data", None, frames)


def _collector() -> OutputCollector:
    # Not imported, so that calling this elsewhere does not load a kernel to say it is no engine.
    kernel_module = sys.modules.get("ipyfleet_engine.kernel")
    if kernel_module is not None and kernel_module.FleetKernel.initialized():
        collector: OutputCollector = kernel_module.FleetKernel.instance().collector
        if collector.task is not None:
            return collector
    raise RuntimeError(
        "publish_data() works on engines only, in the process of the engine, while it runs a task"
    )
