"""What the machine takes for the least that has to be done: the physical limit where one is known.

- A round trip is a bare pyzmq ping-pong: a DEALER, a process with a ROUTER that forwards, a process
  with a DEALER that sends back what it gets. No Python beyond that.
- A push, a pull or a broadcast is one copy of the array into fresh shared memory, by a thread for
  each CPU, each with a file of its own.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers.base import NotOffered, Peer
from benchmarks.workload import make_array

_FORWARDER = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind(sys.argv[1])
while True:
    sender, receiver, *frames = socket.recv_multipart()
    socket.send_multipart([receiver, sender, *frames])
"""

_ECHO = """
import sys, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.identity = b"echo"
socket.connect(sys.argv[1])
socket.send_multipart([b"caller", b"ready"])
while True:
    socket.send_multipart(socket.recv_multipart())
"""


class FloorPeer(Peer):
    """No system at all."""

    title = "physical\nlimit"
    module = "zmq"
    distribution = None
    figures: ClassVar[frozenset[str] | None] = frozenset(
        ("call_one", "call", "push", "pull", "broadcast", "scatter", "gather")
    )

    def start(self, workers: int) -> None:
        """Start the two processes."""
        zmq: Any = importlib.import_module("zmq")
        self._folder = tempfile.TemporaryDirectory(dir="/tmp")
        url = f"ipc://{self._folder.name}/floor"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.identity = b"caller"
        self._socket.rcvtimeo = 200
        self._workers = workers
        self._processes = [
            subprocess.Popen([sys.executable, "-c", program, url])
            for program in (_FORWARDER, _ECHO)
        ]
        self._socket.connect(url)
        # What is sent to one whose connection is not there yet is dropped.
        for _ in range(100):
            try:
                self.call()
            except zmq.Again:
                continue
            return
        raise RuntimeError("the processes do not answer")

    def stop(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._context.destroy(linger=0)
        self._folder.cleanup()

    def call(self) -> int:
        """There and back."""
        self._socket.send_multipart([b"echo", b"h" * 150, b"p" * 40])
        while self._socket.recv_multipart()[-1] == b"ready":
            continue
        return 0

    def call_one(self) -> int:
        """The same."""
        return self.call()

    def map_single(self, count: int) -> list[int]:
        """There is nothing to compare with."""
        raise NotOffered

    def map_chunked(self, count: int) -> list[int]:
        """Likewise."""
        raise NotOffered

    def push(self, array: Any) -> None:
        """One copy."""
        view = memoryview(array).cast("B")
        count = os.cpu_count() or 1
        step = -(-view.nbytes // count)
        pieces = [view[start : start + step] for start in range(0, view.nbytes, step)]
        threads = [threading.Thread(target=_copy, args=(piece,)) for piece in pieces]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._size = array.nbytes

    def pushed_bytes(self) -> int:
        """Return the size of what was copied."""
        return int(self._size)

    def prepare_pull(self, size: int) -> None:
        """Have an array."""
        self._array = make_array(size)

    def pull(self) -> Any:
        """One copy."""
        self.push(self._array)
        return self._array

    def broadcast(self, array: Any) -> None:
        """One copy, whatever the number of workers."""
        self.push(array)

    def broadcast_bytes(self) -> list[int]:
        """Return the size of what was copied, for each worker."""
        return [int(self._size)] * self._workers

    def scatter(self, array: Any) -> None:
        """One copy."""
        self._array = array
        self.push(array)

    def gather(self) -> Any:
        """One copy."""
        return self.pull()


def _copy(view: memoryview) -> None:
    path = Path("/dev/shm") / f"bench-floor-{os.getpid()}-{threading.get_ident()}"
    with path.open("wb", buffering=0) as file:
        path.unlink()
        while view:
            view = view[file.write(view) :]


PEER = FloorPeer
