"""Pickled functions that tasks call: sent by a client once, handed to each engine once.

What lives here: `FunctionStore`. What must not: unpickling, queues.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Function

KNOWN_PER_ENGINE = 2048
"""Functions that an engine is believed to hold; it holds at least 4096, so it never lacks one of
these.
"""

REMEMBERED_MAX_BYTES = 1 << 20
"""Larger functions are not kept by engines; they travel with every slice."""


class _Body:
    __slots__ = ("clients", "frames", "header", "n_bytes", "n_groups", "name")

    def __init__(self, header: Function, frames: Sequence[Frame]) -> None:
        self.header = header
        # The header for engines that have the body.
        self.name = Function(header.digest, header.name, header.reusable, header.self_name)
        self.frames = frames
        self.n_bytes = sum(map(len, frames))
        self.clients: set[PeerId] = set()
        self.n_groups = 0


class FunctionStore:
    """Function bodies by digest, and which engine has which.

    A body stays while a client that sent it is connected or a live group calls it.
    """

    __slots__ = ("_bodies", "_by_client", "_known")

    def __init__(self) -> None:
        self._bodies: dict[bytes, _Body] = {}
        self._by_client: dict[PeerId, set[bytes]] = {}
        self._known: dict[EngineId, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._bodies)

    def acquire(self, client: PeerId, function: Function, frames: Sequence[Frame]) -> bool:
        """Take in the function of a group; False if it came without a body and is not known."""
        body = self._bodies.get(function.digest)
        if body is None:
            if not frames:
                return False
            body = self._bodies[function.digest] = _Body(function, frames)
        if client not in body.clients and frames:
            body.clients.add(client)
            self._by_client.setdefault(client, set()).add(function.digest)
        body.n_groups += 1
        return True

    def release(self, function: Function) -> None:
        """Note that a group that called the function has ended."""
        body = self._bodies[function.digest]
        body.n_groups -= 1
        if not body.clients:
            self._drop_unused(function.digest, body)

    def body(self, digest: bytes) -> Sequence[Frame] | None:
        """Return the frames of a function, or None if it is not here."""
        found = self._bodies.get(digest)
        return None if found is None else found.frames

    def drop_client(self, client: PeerId) -> None:
        """Note that a client is gone."""
        for digest in self._by_client.pop(client, ()):
            body = self._bodies[digest]
            body.clients.discard(client)
            self._drop_unused(digest, body)

    def drop_engine(self, engine: EngineId) -> None:
        """Note that an engine is gone."""
        self._known.pop(engine, None)

    def attach(self, engine: EngineId, function: Function) -> tuple[Function, Sequence[Frame]]:
        """Return header and frames to send to an engine: with the body only if it lacks it."""
        body = self._bodies[function.digest]
        known = self._known.get(engine)
        if known is None:
            known = self._known[engine] = OrderedDict()
        if function.digest in known:
            known.move_to_end(function.digest)
            return body.name, ()
        if body.n_bytes <= REMEMBERED_MAX_BYTES:
            known[function.digest] = None
            if len(known) > KNOWN_PER_ENGINE:
                known.popitem(last=False)
        return body.header, body.frames

    def _drop_unused(self, digest: bytes, body: _Body) -> None:
        if not body.n_groups and not body.clients:
            del self._bodies[digest]
