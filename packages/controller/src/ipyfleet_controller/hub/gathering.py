"""What the hub does in a controller that takes the place of one that died.

What lives here: `Gathering`, which knows who is expected and when there has been enough waiting.
What must not: tasks.

Those that the journal names are on the list from the start, *missing* until they say Hello, and
then away for the limit like others whose connection broke. The hub **gathers** until engines have
said what they hold and clients have submitted again what had not ended; until then engines are not
answered, so they send no results, questions wait, and the scheduler places nothing. A peer
that is not heard of for `GATHER_S` is not waited for, but for engines of this host, whose
processes are known to live: what they run must not be run again elsewhere, so they have as long as
anybody who is away. Who comes later goes on all the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipyfleet_protocol.ids import PeerId

from .instructions import AnswerQuestion, HubInstruction
from .peers import Peer, Registry

GATHER_S = 3.0
"""How long peers are waited for that may not live any more."""


class Gathering:
    """Who is waited for.

    Attributes:
        deadline: when peers that may not live are not waited for any more.
        welcomes: of each engine what is to be done when all is gathered.
        questions: the same of clients' questions.
        wants_records: the records have not been read.
    """

    def __init__(self, expected: Iterable[Peer], host: str, now: float) -> None:
        """Wait for peers.

        Args:
            expected: engines and clients that were here.
            host: the host whose processes can be looked for.
            now: the time.
        """
        self.deadline = now + GATHER_S
        self.welcomes: dict[PeerId, list[HubInstruction]] = {}
        self.questions: list[AnswerQuestion] = []
        self.wants_records = True
        self._certain: set[PeerId] = set()
        self._others: set[PeerId] = set()
        for peer in expected:
            is_certain = peer.role == "engine" and peer.host == host
            (self._certain if is_certain else self._others).add(peer.peer)

    def expect(self, peer: PeerId) -> None:
        """Wait for one more."""
        self._others.add(peer)

    def note(self, peer: PeerId) -> None:
        """Take in that a peer has said what it had to say, or is gone."""
        self._certain.discard(peer)
        self._others.discard(peer)

    def note_gone(self, registry: Registry) -> None:
        """Wait no more for those that are gone."""
        for name in [*self._certain, *self._others]:
            peer = registry.peers.get(name)
            if peer is None or peer.leaving_at is not None:
                self.note(name)

    def is_over(self, now: float) -> bool:
        """Whether nobody is worth waiting for."""
        is_all = not self._others and not self.wants_records
        return not self._certain and (is_all or now >= self.deadline)


__all__ = ["GATHER_S", "Gathering"]
