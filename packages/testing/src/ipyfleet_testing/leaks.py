"""What a test may leave behind, and how it is found.

What lives here: `LeakDetector`, which lists the processes, threads, sockets, pipes, other open
files and files of clusters that belong to this test run, and tells what was added since. What must
not: pytest.

Theory of operation: a resource has a key that is the same each time it is listed. A leak is a key
that was not there before and is not owned by something that still lives (a module's cluster).
Whatever is being torn down gets a few seconds to disappear, so only failing tests pay for waiting.

Processes are found even when they have detached themselves: the run puts a token into its
environment, which every process started from it inherits. A run beside this one has another token
and other directories, so the two do not see each other.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import threading
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from ipyfleet_testing.waiting import wait_until

OTHER_FILES_TOLERATED = 16
"""Open files that are neither sockets nor pipes (event counters of a zmq context, a history
database …) may grow by so many in one test; some are made once and kept for the process's life."""

_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Processes that Python starts once for all and ends with the process that started them."""

_OUR_PACKAGES = "ipyfleet"


class Resource(NamedTuple):
    """The key of something that can leak.

    `kind` is one of "process", "thread", "socket", "pipe", "file", "path"; `name` is the pid, the
    thread's address, the kernel's name of the open file, the path.
    """

    kind: str
    name: str


class LeakDetector:
    """Lists what belongs to this test run.

    Args:
        token_name, token: the environment variable that marks the processes of this run, and its
            value.
        folders: directories in which clusters of this run keep sockets and shared memory.
    """

    def __init__(self, token_name: str, token: str, folders: Iterable[Path]) -> None:
        self._token_name = token_name
        self._token = token
        self._folders = tuple(folders)
        # Whether a process is of this run, so that each is looked at once. A pid that is used again
        # between two listings would be taken for its predecessor; pids are not used again that
        # fast.
        self._is_ours: dict[int, bool] = {}

    def list_resources(self) -> dict[Resource, str]:
        """List what is there now: the key of each resource, and a description of it for people."""
        found: dict[Resource, str] = {}
        for pid in self._list_processes():
            found[Resource("process", str(pid))] = _describe_process(pid)
        for thread in threading.enumerate():
            if not thread.daemon or _is_our_thread(thread):
                text = f"thread {thread.name!r}" + (" (daemon)" if thread.daemon else "")
                found[Resource("thread", f"{id(thread):x}")] = text
        found.update(_list_open_files())
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(folder):
                    found[Resource("path", entry.path)] = entry.path
        return found

    def find_leaks(
        self, before: Container[Resource], owned: Container[Resource]
    ) -> dict[Resource, str]:
        """Return what is there now, was not there before, and is not owned by anything alive."""
        now = self.list_resources()
        leaks = {
            resource: text
            for resource, text in now.items()
            if resource not in before
            and resource not in owned
            and not (resource.kind == "process" and _has_ancestor(int(resource.name), owned))
        }
        # The directory for shared memory comes and goes while its cluster lives.
        alive = {cluster_of(resource) for resource in now if resource not in leaks}
        for resource in [key for key in leaks if key.kind == "path"]:
            if cluster_of(resource) in alive:
                del leaks[resource]
        files = [resource for resource in leaks if resource.kind == "file"]
        if len(files) <= OTHER_FILES_TOLERATED:
            for resource in files:
                del leaks[resource]
        return leaks

    def wait_leaks(
        self, before: Container[Resource], owned: Container[Resource], grace_s: float
    ) -> dict[Resource, str]:
        """Return what is still leaked after a grace period; at once when there is nothing."""
        leaks = self.find_leaks(before, owned)
        if not leaks:
            return leaks
        # What only garbage still holds is the collector's business, not a leak.
        gc.collect()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.find_leaks(before, owned), grace_s)
        return self.find_leaks(before, owned)

    def remove(self, leaks: Iterable[Resource]) -> None:
        """Kill leaked processes and delete leaked paths, so that the next test starts clean."""
        for resource in leaks:
            if resource.kind == "process":
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(int(resource.name)).kill()
            elif resource.kind == "path":
                path = Path(resource.name)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _list_processes(self) -> Iterator[int]:
        me = os.getpid()
        pids = set(psutil.pids())
        for pid in self._is_ours.keys() - pids:
            del self._is_ours[pid]
        for pid in pids:
            if pid not in self._is_ours:
                self._is_ours[pid] = pid != me and self._has_token_or_descends(pid, me)
            if self._is_ours[pid] and _is_running(pid):
                yield pid

    def _has_token_or_descends(self, pid: int, ancestor: int) -> bool:
        try:
            process = psutil.Process(pid)
            if any(parent.pid == ancestor for parent in process.parents()):
                return not any(helper in " ".join(process.cmdline()) for helper in _HELPERS)
            return process.environ().get(self._token_name) == self._token
        except psutil.Error:  # gone meanwhile, or somebody else's
            return False


def cluster_of(resource: Resource) -> str:
    """Return which cluster's a path is (its name ends in that); empty for what is no path."""
    return resource.name.rpartition("-")[2] if resource.kind == "path" else ""


def _is_running(pid: int) -> bool:
    # A zombie runs nothing and holds nothing; whether it gets reaped is between it and its Popen.
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _describe_process(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        command = "gone meanwhile"
    return f"process {pid}: {command[:200]}"


def _has_ancestor(pid: int, owned: Container[Resource]) -> bool:
    try:
        parents = psutil.Process(pid).parents()
    except psutil.Error:
        return False
    return any(Resource("process", str(parent.pid)) in owned for parent in parents)


def _is_our_thread(thread: threading.Thread) -> bool:
    # Daemon threads of libraries (progress bars, history savers) live as long as the process; ours
    # must not.
    target = getattr(thread, "_target", None)
    modules = (type(thread).__module__, getattr(target, "__module__", None) or "")
    return any(module.startswith(_OUR_PACKAGES) for module in modules)


def _list_open_files() -> Iterator[tuple[Resource, str]]:
    if sys.platform != "linux":
        return
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself, or one closed by another thread
            continue
        kind = target.partition(":")[0]
        if kind in ("socket", "pipe"):
            yield Resource(kind, target), f"{target} (file descriptor {name})"
        else:
            yield Resource("file", f"{name} {target}"), f"{target} (file descriptor {name})"
