"""Classes that travel by value, once for many instances.

What lives here: `ClassTable`, which a sender fills while it packs the items of a map, and what the
receiver does with its content. What must not: how a class is pickled by value (`by_value`).

Theory of operation. Instances of a class of ``__main__`` carry the class by value, which takes a
hundred times as long as the instance. The items of one group carry only the class's digest; the
class itself travels with the group's function, as a part of its body, so that whoever has the
function has the class. The function's digest is one of all of it: other classes, another function.

A receiver keeps the classes for as long as it lives, as it does those of modules. The values of a
table hold for the one group: a class may be changed between two.

On the way back each value has the class's pickle, since anybody may ask for one value alone; but it
is made once and read once (`load_class`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pickle import PickleBuffer
from typing import Any
from weakref import WeakValueDictionary

from .. import messages
from .failures import UnpackError
from .frames import Packed, unpack

DIGEST_BYTES = 16

_classes: dict[bytes, type] = {}
_loaded: WeakValueDictionary[bytes, type] = WeakValueDictionary()


class ClassTable:
    """The classes that the items of one group refer to.

    Attributes:
        bodies: the pickles of the classes, by digest.
        digests: the digests of the classes.
    """

    def __init__(self) -> None:
        self.bodies: dict[bytes, Packed] = {}
        self.digests: dict[type, bytes] = {}

    def digest_of(self, cls: type, dump: Callable[[type], Packed]) -> bytes:
        """Return the digest of a class; the first time `dump` pickles it."""
        digest = self.digests.get(cls)
        if digest is None:
            body = dump(cls)
            digest = self.digests[cls] = digest_of_body(body)
            self.bodies[digest] = body
        return digest


def digest_of_body(body: Packed) -> bytes:
    """Return the digest of a class that was pickled."""
    state = blake2b(body.pickle, digest_size=DIGEST_BYTES)
    for buffer in body.buffers:
        state.update(buffer)
    return state.digest()


def find_class(digest: bytes) -> type:
    """Return a class that came with a function; pickles name this function."""
    try:
        return _classes[digest]
    except KeyError:
        raise UnpackError("an item refers to a class that did not come with its function") from None


def load_class(digest: bytes, body: bytes) -> type:
    """Return a class by its pickle, which is read the first time; pickles name this function."""
    cls: type | None = _loaded.get(digest)
    if cls is None:
        cls = _loaded[digest] = _load([body])
    return cls


def equip(n_frames: int, *frames: Any) -> Any:
    """Rebuild a function, and before it the classes of its arguments; pickles name this function.

    Args:
        n_frames: how many of the frames are the function's.
        frames: those; then for each class its digest, the number of its frames, and those.
    """
    at = n_frames
    while at < len(frames):
        digest, count = bytes(frames[at]), frames[at + 1]
        at += 2 + count
        if digest not in _classes:
            _classes[digest] = _load(frames[at - count : at])
    return _load(frames[:n_frames])


class Equipped:
    """A function's frames and classes, on their way through a pickler."""

    def __init__(self, frames: Sequence[Any], bodies: dict[bytes, Packed]) -> None:
        self._frames = frames
        self._bodies = bodies

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        parts: list[Any] = [bytes(self._frames[0]), *map(PickleBuffer, self._frames[1:])]
        for digest, (data, buffers) in sorted(self._bodies.items()):
            parts += [digest, 1 + len(buffers), data, *map(PickleBuffer, buffers)]
        return equip, (len(self._frames), *parts)


def equipped_digest(function: messages.Function, bodies: dict[bytes, Packed]) -> bytes:
    """Return the digest of a function with classes."""
    return blake2b(b"".join([function.digest, *sorted(bodies)]), digest_size=DIGEST_BYTES).digest()


def _load(frames: Sequence[Any]) -> Any:
    buffers = [memoryview(f) if type(f) is not bytes else memoryview(bytearray(f)) for f in frames]
    return unpack(frames[0], buffers[1:])
