"""Tests of `ipyfleet_testing.outputs`."""

from ipyfleet_testing.outputs import in_engine_order


def test_neighbours_are_sorted_by_engine():
    """Lines of engines that stand together are put in the engines' order, all else stays."""
    text = "[stdout:10] a\n[stdout:2] b\n[stdout:2] a\nhere\n[stderr:1] x\n[stderr:0] y\n"
    assert in_engine_order(text).splitlines() == [
        "[stdout:2] b",
        "[stdout:2] a",
        "[stdout:10] a",
        "here",
        "[stderr:0] y",
        "[stderr:1] x",
    ]
