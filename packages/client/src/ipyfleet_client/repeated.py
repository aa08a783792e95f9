"""Large arrays that many tasks of one loop have as an argument, written to shared memory once.

What lives here: `RepeatedBuffers`. What must not: which loops those are (`joblib_backend.py`).

Theory of operation. A buffer of an array that comes a second time while the array is alive is put
into a blob that stays until the loop ends; all tasks from then on refer to it. What comes once,
such as the pieces of an array, is freed with its task as ever. As with joblib's own processes, an
array that is changed while the loop runs does not arrive changed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from ipyfleet_protocol.messages import BlobHandle

_Key = tuple[int, int]


class RepeatedBuffers:
    """The buffers of the loops that run now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_loops = 0
        self._seen: dict[_Key, weakref.ref[Any]] = {}
        # Who owns the memory is kept alive, or other data might come to be at its address.
        self._kept: dict[_Key, tuple[Any, BlobHandle]] = {}

    def begin(self) -> None:
        """A loop begins."""
        with self._lock:
            self._n_loops += 1

    def end(self, release: Callable[[BlobHandle], object]) -> None:
        """A loop has ended; with the last one, blobs are freed by `release`."""
        with self._lock:
            self._n_loops -= 1
            if self._n_loops:
                return
            kept, self._kept = self._kept, {}
            self._seen.clear()
        for _, handle in kept.values():
            release(handle)

    def find(
        self, view: memoryview, put: Callable[[memoryview], BlobHandle | None]
    ) -> BlobHandle | None:
        """Return the blob of a buffer, put there now if this is the second time; or None."""
        if not self._n_loops:
            return None
        array: Any = view.obj
        interface = getattr(array, "__array_interface__", None)
        if interface is None:
            return None
        key = (interface["data"][0], view.nbytes)
        owner: Any = array
        while getattr(owner, "base", None) is not None:
            owner = owner.base
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                return found[1]
            seen = self._seen.get(key)
            if seen is None or seen() is not owner:
                try:
                    self._seen[key] = weakref.ref(owner)
                except TypeError:
                    return None  # of mmap and the like there are no weak references
                return None
            handle = put(view) if self._n_loops else None
            if handle is not None:
                self._kept[key] = (owner, handle)
            return handle


__all__ = ["RepeatedBuffers"]
