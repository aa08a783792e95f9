"""What another engine may have: tasks that an engine turns down."""

from __future__ import annotations

from typing import Any

import pytest

from ipyfleet_protocol import messages as m

UNMET = """
    from ipyfleet_protocol.errors import UnmetDependency
    print("dropped with the attempt")
    raise UnmetDependency(text)
"""
# Of `__main__`, so that engines get them by value.
NAMES: dict[str, Any] = {"__name__": "__main__"}
exec(f"def raise_unmet(text):{UNMET}async def raise_unmet_later(text):{UNMET}", NAMES)


@pytest.mark.parametrize("function", [NAMES["raise_unmet"], NAMES["raise_unmet_later"]])
def test_balanced_tasks_are_turned_down(shared: Any, function: Any) -> None:
    """A balanced task that raises UnmetDependency ends as unmet, and what it printed is dropped."""
    seqs = shared.run(shared.engine, "apply", [(("no gpu",), {})], function, balanced=True)
    seqs += shared.run(shared.engine, "apply", [((-1,), {})], abs, balanced=True)
    unmet, other = shared.results(seqs)
    assert (unmet.status, other.status) == (m.UNMET, m.OK)
    info = unmet.error
    assert (info.ename, info.evalue, info.own) == ("UnmetDependency", "no gpu", True)
    assert unmet.n_outputs == 0
    assert seqs[0] not in shared.outputs


def test_direct_tasks_fail_with_what_is_unmet(shared: Any) -> None:
    """A direct task that raises UnmetDependency fails with it, and keeps its output."""
    ended = shared.apply(shared.engine, NAMES["raise_unmet"], "no gpu")
    assert ended.status == m.FAILED
    info = ended.error
    assert (info.ename, info.own) == ("UnmetDependency", True)
    assert "raise_unmet" in "".join(info.traceback)
    assert shared.text(ended.seq) == "dropped with the attempt\n"


def test_large_arguments_that_are_on_another_host(shared: Any) -> None:
    """A balanced task whose arguments are in another host's shared memory is one for others."""
    call = ((b"x" * (1 << 20),), {})
    elsewhere = {"host": "0" * 32, "blobs": True}
    [unmet] = shared.results(
        shared.run(shared.engine, "apply", [call], len, balanced=True, **elsewhere)
    )
    assert unmet.status == m.UNMET
    [failed] = shared.results(shared.run(shared.engine, "apply", [call], len, **elsewhere))
    assert failed.status == m.FAILED
    assert failed.error.ename == "UnmetDependency"
    assert "another host" in failed.error.evalue
