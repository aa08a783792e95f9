"""Broadcast views: what scripts do with them, and what used to fail."""

from __future__ import annotations

import operator
import os
from pathlib import Path

import numpy as np
import pytest

import ipyfleet as ipf

TIMEOUT_S = 30


@pytest.fixture(params=[False, True], ids=["each", "coalescing"])
def view(client: ipf.Client, request: pytest.FixtureRequest) -> ipf.BroadcastView:
    """A view of all engines, of either kind."""
    return client.broadcast_view(is_coalescing=request.param)


def test_apply(view: ipf.BroadcastView, client: ipf.Client) -> None:
    """A call runs on every engine; values are in the order of the targets, as their ids are."""
    result = view.apply_async(os.getpid)
    assert result.get(TIMEOUT_S) == client[:].apply_sync(os.getpid)
    assert result.engine_id == client.ids
    assert view.apply_sync(operator.add, 1, 2) == [3, 3]


def test_names(view: ipf.BroadcastView) -> None:
    """Names are pushed to and pulled from all engines, large arrays included."""
    array = np.arange(100_000)
    view.push({"big": array, "small": 1}, block=True)
    for there in view.pull("big", block=True):
        np.testing.assert_array_equal(there, array)
    view["small"] = 2
    assert view["small"] == [2, 2]
    assert view.pull(["small", "small + 1"], block=True) == [[2, 3]] * 2


def test_execute_and_run(view: ipf.BroadcastView, tmp_path: Path) -> None:
    """Code and files run on all engines, with a label; a blocking `run` was a TypeError once."""
    view.execute("a = 5", block=True)
    script = tmp_path / "script.py"
    script.write_text("b = a + 1")
    result = view.run(script, block=True, label="script")
    assert view["b"] == [6, 6]
    assert result.metadata[0]["label"] == "script"


@pytest.mark.parametrize("block", [False, True])
def test_map(view: ipf.BroadcastView, block: bool) -> None:
    """`map` works whether the view blocks or not."""
    view.block = block
    values = view.map(operator.mul, range(7), range(7))
    assert list(values) == [k * k for k in range(7)]
    assert view.map_sync(abs, [-1]) == [1]


def test_scatter_and_gather(view: ipf.BroadcastView) -> None:
    """What was scattered is what is gathered."""
    view.scatter("part", range(9), block=True)
    assert view.gather("part", block=True) == list(range(9))


def test_labels_and_records(view: ipf.BroadcastView, client: ipf.Client) -> None:
    """Calls have their label, and stand in the history of client and hub, one id per engine."""
    with view.temp_flags(label="mine"):
        result = view.apply_async(abs, -1)
    pushed = view.push({"x": 1}, block=False, label="pushed")
    assert result.get(TIMEOUT_S) == [1, 1]
    pushed.get(TIMEOUT_S)
    assert [m["label"] for m in result.metadata] == ["mine", "mine"]
    assert [m["label"] for m in pushed.metadata] == ["pushed", "pushed"]
    assert len(set(result.msg_ids)) == 2
    assert set(result.msg_ids) <= set(client.history) & set(view.history)
    assert set(result.msg_ids) <= set(client.hub_history())


def test_errors(view: ipf.BroadcastView) -> None:
    """An error on every engine is a CompositeError of as many."""
    with pytest.raises(ipf.CompositeError) as caught:
        view.apply_sync(operator.truediv, 1, 0)
    assert len(caught.value.exceptions) == 2


def test_flags_and_targets(client: ipf.Client) -> None:
    """Targets are chosen as for a direct view; flags are set at once, unknown ones refused."""
    view = client.broadcast_view([1], block=True)
    assert view.apply(os.getpid) == [client[1].apply_sync(os.getpid)]
    assert len(client.broadcast_view()) == 2
    assert client.broadcast_view(is_coalescing=True).is_coalescing is True
    assert repr(view) == "<BroadcastView [1]>"
    with pytest.raises(KeyError):
        client.broadcast_view(coalescing=True)
    with pytest.raises(IndexError):
        client.broadcast_view([99])
