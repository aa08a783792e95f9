"""Keys for traffic that leaves the host: who may connect over TCP.

What lives here: `KeyRing` (the cluster's three key pairs) and `Doorkeeper` (answers the socket
library's questions about connecting keys, in the router's own loop). A connection over TCP is
encrypted and mutually authenticated with CURVE (http://curvezmq.org); the question and its answer
are ZAP, https://rfc.zeromq.org/spec/27/. Only two public keys are admitted, and a connection's
key decides for ever whether it is a client's or an engine's.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

import zmq
from zmq.utils import z85

from ipyfleet_protocol.paths import FileRole


class KeyPair(NamedTuple):
    """A CURVE key pair in z85."""

    public: bytes
    secret: bytes


class KeyRing(NamedTuple):
    """The keys of one cluster; made anew for each run."""

    server: KeyPair
    client: KeyPair
    engine: KeyPair

    @classmethod
    def make(cls) -> KeyRing:
        """Return fresh keys."""
        return cls(*(KeyPair(*zmq.curve_keypair()) for _ in range(3)))

    def of(self, role: FileRole) -> KeyPair:
        """Return the pair that a role's connection file carries."""
        return self.client if role == "client" else self.engine


class Doorkeeper:
    """Admits the clients' and the engines' public key, and nobody else."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: KeyRing) -> None:
        """Bind the socket at which the library asks; before any endpoint that needs it is bound."""
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._admitted = [
            (z85.decode(keys.client.public), b"client"),
            (z85.decode(keys.engine.public), b"engine"),
        ]

    def answer(self) -> None:
        """Answer all questions that are there."""
        while True:
            try:
                question = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.socket.send_multipart(self._decide(question))

    def _decide(self, question: list[bytes]) -> list[bytes]:
        head = [b"1.0", question[1] if len(question) > 1 else b""]
        if len(question) == 7 and question[0] == b"1.0" and question[5] == b"CURVE":
            for public, role in self._admitted:
                if hmac.compare_digest(public, question[6]):
                    return [*head, b"200", b"OK", role, b""]
        return [*head, b"400", b"not a key of this cluster", b"", b""]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
