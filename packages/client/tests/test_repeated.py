"""Arrays that loops pass again and again."""

from __future__ import annotations

import pytest

from ipyfleet_client.repeated import RepeatedBuffers
from ipyfleet_protocol.messages import BlobHandle

np = pytest.importorskip("numpy")


class _Store:
    """Counts what is put and released."""

    def __init__(self) -> None:
        self.put_names: list[str] = []
        self.released: list[str] = []

    def put(self, view: memoryview) -> BlobHandle | None:
        self.put_names.append(f"blob{len(self.put_names)}")
        return BlobHandle(self.put_names[-1], view.nbytes)

    def release(self, handle: BlobHandle) -> None:
        self.released.append(handle.name)


def test_what_comes_twice_is_put_once_and_freed_with_the_last_loop() -> None:
    """From the second time on an array has one blob, which stays until no loop runs."""
    store, repeated, array = _Store(), RepeatedBuffers(), np.zeros(100)
    assert repeated.find(memoryview(array), store.put) is None
    repeated.begin()
    repeated.begin()
    found = [repeated.find(memoryview(array), store.put) for _ in range(4)]
    assert found[0] is None
    assert [handle and handle.name for handle in found[1:]] == ["blob0"] * 3
    repeated.end(store.release)
    assert not store.released
    repeated.end(store.release)
    assert store.released == store.put_names == ["blob0"]
    assert repeated.find(memoryview(array), store.put) is None


def test_what_comes_once_is_not_kept() -> None:
    """Parts of an array, bytes, and other arrays at the address of dead ones are not repeated."""
    store, repeated, array = _Store(), RepeatedBuffers(), np.zeros(100)
    repeated.begin()
    for part in (array[:50], array[50:], array[:60]):
        assert repeated.find(memoryview(part), store.put) is None
    for _ in range(5):
        assert repeated.find(memoryview(np.zeros(1000)), store.put) is None
        assert repeated.find(memoryview(b"x" * 1000), store.put) is None
    assert repeated.find(memoryview(array[:50]), store.put) is not None
    repeated.end(store.release)
    assert store.released == ["blob0"]
