import asyncio
import inspect

import pytest

from ipyfleet_cluster.async_first import AsyncFirst


class Thing(AsyncFirst):
    async def double(self, value: int) -> int:
        """Double a value."""
        await asyncio.sleep(0)
        return 2 * value

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise ValueError("as asked")

    def plain(self) -> None:
        pass


def test_twin_without_a_loop():
    """The blocking twin returns the coroutine's result and keeps its signature and doc."""
    thing = Thing()
    assert thing.double_sync(21) == 42
    assert str(inspect.signature(thing.double_sync)) == "(value: int) -> int"
    assert thing.double_sync.__doc__ == "Double a value."
    assert not inspect.iscoroutinefunction(thing.double_sync)


def test_twin_where_a_loop_is_running():
    """The blocking twin works inside a running loop, as in a notebook's cell."""

    async def cell() -> int:
        return Thing().double_sync(21)

    assert asyncio.run(cell()) == 42


@pytest.mark.parametrize("in_loop", [False, True])
def test_errors_come_through(in_loop: bool):
    """What the coroutine raises is raised by its twin."""

    async def cell() -> None:
        Thing().fail_sync()

    with pytest.raises(ValueError, match="as asked"):
        asyncio.run(cell()) if in_loop else Thing().fail_sync()


def test_only_coroutine_methods_have_twins():
    """A twin of what is no coroutine method, or is not there, is an AttributeError."""
    for name in ("plain_sync", "nothing_sync", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(Thing(), name)
    assert "double_sync" in dir(Thing())
    assert "plain_sync" not in dir(Thing())
