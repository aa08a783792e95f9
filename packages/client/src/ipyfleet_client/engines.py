"""Which engines there are, as far as this client has been told.

What lives here: the directory of live engines, the ones that were lost and why, and the choice of
engines by index. What must not: sockets, views.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipyfleet_protocol.errors import NoEnginesRegistered
from ipyfleet_protocol.messages import EngineInfo, EngineLost


class EngineDirectory:
    """The live engines of the cluster, and those that are gone.

    Changed by the receiving thread only; readers see one consistent list because `ids` is
    replaced, never changed.

    Attributes:
        ids: the live engines' ids, ascending.
        known: what is known of every engine ever seen, live or lost.
        lost: the engines that are gone, and why.
    """

    def __init__(self) -> None:
        self.ids: tuple[int, ...] = ()
        self.known: dict[int, EngineInfo] = {}
        self.lost: dict[int, EngineLost] = {}

    def reset(self, engines: Iterable[EngineInfo]) -> None:
        """Take the list that a `Welcome` carries."""
        live = {engine.engine_id: engine for engine in engines}
        self.known.update(live)
        self.ids = tuple(sorted(live))

    def change(self, joined: Iterable[EngineInfo], lost: Iterable[EngineLost]) -> None:
        """Apply an `EnginesChanged`."""
        live = set(self.ids)
        for engine in joined:
            self.known[engine.engine_id] = engine
            live.add(engine.engine_id)
        for gone in lost:
            self.lost[gone.engine_id] = gone
            live.discard(gone.engine_id)
        self.ids = tuple(sorted(live))

    def uuid(self, engine_id: int | None) -> str | None:
        """Return an engine's peer id in hex, or None if it was never seen."""
        info = self.known.get(-1 if engine_id is None else engine_id)
        return info.peer.hex() if info else None

    def are_on_host(self, host: str, targets: Iterable[int] | None) -> bool:
        """Whether all targets (None: all engines there are) run on one host."""
        chosen = self.ids if targets is None else targets
        known = self.known
        return bool(chosen) and all(i in known and known[i].host == host for i in chosen)

    def require_some(self) -> None:
        """Raise `NoEnginesRegistered` if there is no engine at all."""
        if not self.ids:
            raise NoEnginesRegistered()

    def choose(self, key: Any) -> int | list[int]:
        """Return the engine id or ids that an index of a client means.

        A non-negative int is an engine id; a negative one and a slice index the list of ids.

        Raises:
            IndexError: there is no such engine; the message names those there are.
            TypeError: the key is none of int, slice, or an iterable of ints.
        """
        if isinstance(key, bool):
            raise TypeError("an engine is chosen by int, slice or list of ints, not by a bool")
        if isinstance(key, slice):
            return list(self.ids[key])
        if hasattr(key, "__index__"):
            return self._one(key.__index__())
        if isinstance(key, list | tuple | range | set | frozenset):
            return [self._member(item) for item in key]
        raise TypeError(
            f"an engine is chosen by int, slice or list of ints, not by {type(key).__name__} "
            f"({key!r}); the engines are {self._names()}"
        )

    def targets(self, targets: Any) -> int | list[int]:
        """Return the engine id or ids that a ``targets`` argument means now.

        As `choose`; also None and "all" for all engines.

        Raises:
            IndexError: there is no such engine.
            TypeError: it is nothing that targets can be.
            NoEnginesRegistered: there is no engine at all.
        """
        self.require_some()
        if targets is None or (isinstance(targets, str) and targets == "all"):
            return list(self.ids)
        return self.choose(targets)

    def _member(self, item: Any) -> int:
        if isinstance(item, bool) or not hasattr(item, "__index__"):
            raise TypeError(
                f"an engine id is an int, not {type(item).__name__} ({item!r}); "
                f"the engines are {self._names()}"
            )
        return self._one(item.__index__())

    def _one(self, index: int) -> int:
        if index < 0:
            try:
                return self.ids[index]
            except IndexError:
                raise IndexError(f"no engine {index}: {self._existing()}") from None
        if index not in self.ids:
            gone = self.lost.get(index)
            why = f" (it is gone: {gone.reason})" if gone else ""
            raise IndexError(f"no engine {index}{why}: {self._existing()}")
        return index

    def _existing(self) -> str:
        if not self.ids:
            return "no engines are registered; start some, or rc.wait_for_engines(n)"
        return f"the engines are {self._names()}"

    def _names(self) -> str:
        ids = self.ids
        if len(ids) > 20:
            return f"[{', '.join(map(str, ids[:20]))}, …] ({len(ids)} in all)"
        return str(list(ids))
