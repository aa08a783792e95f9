"""Who wants to be told when tasks end that somebody else submitted, or that were forgotten.

What lives here: `ResultWatches`, a pure structure. What must not: results; whoever is told gets
them from the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from ipyfleet_protocol.ids import PeerId, parse_msg_id
from ipyfleet_protocol.messages import ResultSlice

Asked = tuple[PeerId, int]
"""A client and the number of its request."""

WATCHES_MAX = 1_048_576
"""A client can wait for so many tasks of others at a time."""


class ResultWatches:
    """Requests that wait for tasks.

    Attributes:
        watched: per owner and task, who waits for it.
        due: per request the msg_ids of tasks that have ended since it was told last.
    """

    def __init__(self, is_live: Callable[[PeerId, int], bool]) -> None:
        """Take a function that says whether a task of a client has yet to end."""
        self._is_live = is_live
        self.watched: dict[PeerId, dict[int, list[Asked]]] = {}
        self._counts: Counter[PeerId] = Counter()
        self.due: dict[Asked, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.watched.values()))

    def add(self, client: PeerId, request: int, msg_ids: Collection[str]) -> bool:
        """Have a request told when those of the tasks end that have not ended.

        Returns:
            Whether the client may wait for so many; if not, it is told of none of them.
        """
        if self._counts[client] + len(msg_ids) > WATCHES_MAX:
            return False
        for msg_id in msg_ids:
            try:
                owner, seq = parse_msg_id(msg_id)
            except ValueError:
                continue  # the records do not know it either, and the answer says so
            if self._is_live(owner, seq):
                self.watched.setdefault(owner, {}).setdefault(seq, []).append((client, request))
                self._counts[client] += 1
        return True

    def note(self, client: PeerId, pieces: Iterable[ResultSlice]) -> None:
        """Take in that tasks of a client have ended."""
        watched = self.watched.get(client)
        if watched is None:
            return
        for piece in pieces:
            seqs = range(piece.first, piece.first + piece.count)
            ended = [seq for seq in watched if seq in seqs] if len(watched) < len(seqs) else seqs
            for seq in ended:
                for asked in watched.pop(seq, ()):
                    self.due.setdefault(asked, []).append(f"{client.hex()}_{seq}")
                    self._counts[asked[0]] -= 1
        if not watched:
            del self.watched[client]

    def forget(self, client: PeerId) -> None:
        """Drop the requests of a client that is gone."""
        del self._counts[client]
        for owner, watched in list(self.watched.items()):
            for seq, asked in list(watched.items()):
                asked[:] = [entry for entry in asked if entry[0] != client]
                if not asked:
                    del watched[seq]
            if not watched:
                del self.watched[owner]
        for entry in [entry for entry in self.due if entry[0] == client]:
            del self.due[entry]


__all__ = ["ResultWatches"]
