"""Values that reach the client while a task runs."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_engine import publish_data
from ipyfleet_protocol.serialize import unpack


def test_values_are_published_as_items(shared: Any) -> None:
    """Each call is one item of kind `data` whose frames unpickle to the mapping."""

    def publish() -> None:
        import numpy

        from ipyfleet_engine import publish_data

        publish_data({"a": 1, "array": numpy.arange(10_000)})
        publish_data({"a": 2})

    pytest.importorskip("numpy")
    ended = shared.apply(shared.engine, publish)
    shared.output(ended.seq)
    found = [
        unpack(frames[0], [memoryview(bytearray(f)) for f in frames[1:]])
        for item, frames in sorted(shared.outputs[ended.seq], key=lambda pair: pair[0].index)
        if item.kind == "data"
    ]
    assert [values["a"] for values in found] == [1, 2]
    assert found[0]["array"].sum() == 49995000


def test_what_cannot_be_held_is_refused(shared: Any) -> None:
    """A value that would be dropped at once is an error instead."""

    def publish() -> None:
        from ipyfleet_engine import publish_data

        publish_data({"large": bytes(10_000_000)})

    assert "at most" in shared.apply(shared.engine, publish).error.evalue


def test_only_mappings_and_only_on_engines() -> None:
    """Both mistakes are said in plain words."""
    with pytest.raises(TypeError, match="takes a mapping, not int"):
        publish_data(5)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="on engines only"):
        publish_data({"a": 1})
