"""The fallback pickler of `use_dill`. Importing this module needs dill."""

from __future__ import annotations

import pickle
from pickle import PickleBuffer
from typing import Any

import dill  # type: ignore[import-not-found,import-untyped,unused-ignore]

from .frames import BufferPickler, Packed, dump_with


class _DillPickle:
    """A pickle by dill inside of ours: it has to be loaded by dill, not by pickle."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return load_dill, (PickleBuffer(self._data),)


def dump_with_dill(obj: Any) -> Packed:
    """Pickle with dill; all of it travels as one buffer."""
    data = dill.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
    return dump_with(BufferPickler, _DillPickle(data))


def load_dill(data: Any) -> Any:
    """Load a pickle made by dill; pickles name this function."""
    return dill.loads(bytes(data))
