"""Shared memory: writing, mapping, budgets, hostile handles, crashes and forks."""

from __future__ import annotations

import errno
import gc
import os
import select
import subprocess
import sys
import textwrap
import threading
from array import array
from pathlib import Path

import pytest

from ipyfleet_protocol import blobs, copying
from ipyfleet_protocol.blobs import (
    BlobStore,
    map_blob,
    remove_blob_dir,
    sweep_blobs,
    unlink_blob,
)
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.ids import PeerId, new_peer_id
from ipyfleet_protocol.messages import BlobHandle

OWNER = PeerId(bytes(range(16)))
SIZE = 300_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A blob directory that nobody has made yet."""
    return tmp_path / "blobs"


@pytest.fixture
def store(directory: Path):
    """A store, closed at the end; that leaves nothing."""
    with BlobStore(directory, OWNER) as made:
        yield made
    assert not directory.exists()


def names(directory: Path) -> list[str]:
    """Return what is in the directory, or nothing if there is none."""
    return sorted(os.listdir(directory)) if directory.exists() else []


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process that runs code with arguments."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish_python(code: str, *arguments: object) -> str:
    """Run code with arguments and return what it prints."""
    with run_python(code, *arguments) as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    return out


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints; it has ten seconds."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 10)[0], "the process says nothing"
    return process.stdout.readline().strip()


class TestRoundTrip:
    @pytest.mark.parametrize(
        "buffer",
        [
            b"x" * SIZE,
            bytearray(b"y" * SIZE),
            memoryview(array("d", range(SIZE // 8))),
            memoryview(bytes(SIZE)).cast("B", (SIZE // 100, 10, 10)),
            b"1",
        ],
        ids=["bytes", "bytearray", "doubles", "three axes", "one byte"],
    )
    def test_content(self, store: BlobStore, directory: Path, buffer) -> None:
        """What was put is what is mapped, byte by byte, for buffers of any format and shape."""
        handle = store.put(buffer)
        assert handle is not None
        assert handle.size == memoryview(buffer).nbytes
        assert bytes(map_blob(directory, handle)) == memoryview(buffer).tobytes()

    def test_numpy(self, store: BlobStore, directory: Path) -> None:
        """A Fortran-ordered array goes as its memory is; one with gaps is refused."""
        numpy = pytest.importorskip("numpy")
        values = numpy.asfortranarray(numpy.arange(60_000.0).reshape(200, 300))
        handle = store.put(values)
        again = numpy.frombuffer(map_blob(directory, handle)).reshape(200, 300, order="F")
        assert (again == values).all()
        with pytest.raises(BufferError):
            store.put(values[::2])
        assert store.held_bytes == values.nbytes

    def test_empty(self, store: BlobStore, directory: Path) -> None:
        """An empty buffer has no blob, and makes no directory."""
        assert store.put(b"") is None
        assert not directory.exists()

    def test_writable_and_private(self, store: BlobStore, directory: Path) -> None:
        """What one receiver writes neither another one nor a later one sees."""
        handle = store.put(bytes(SIZE))
        one, other = map_blob(directory, handle), map_blob(directory, handle)
        one[:4] = b"mine"
        assert bytes(one[:4]) == b"mine"
        assert bytes(other[:4]) == bytes(map_blob(directory, handle)[:4]) == bytes(4)

    def test_several_files(
        self, store: BlobStore, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A large blob is some files, which come and go together and are one buffer to all."""
        monkeypatch.setattr(blobs, "threads_for", lambda size: 3)
        content = os.urandom(SIZE)
        handle = store.put(content)
        assert (handle.files, store.held_bytes) == (3, SIZE)
        assert names(directory) == [handle.name, f"{handle.name}.1", f"{handle.name}.2"]
        view = map_blob(directory, handle)
        assert bytes(view) == content
        view[:4] = view[-4:] = b"mine"
        assert bytes(map_blob(directory, handle)) == content
        store.release(handle)
        assert (names(directory), store.held_bytes) == ([], 0)
        again = store.put(content)
        unlink_blob(directory, again)
        assert names(directory) == []
        assert store.put(content) is not None
        assert sweep_blobs(directory, OWNER) == 1
        assert names(directory) == []

    def test_interrupted(
        self, store: BlobStore, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A Ctrl-C while some threads write leaves no file, no thread, and the budget as it was."""
        monkeypatch.setattr(blobs, "threads_for", lambda size: 3)
        monkeypatch.setattr(copying, "STEP_BYTES", 1)
        write = os.write

        def interrupted_write(fd: int, content: memoryview) -> int:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return write(fd, content)

        monkeypatch.setattr(os, "write", interrupted_write)
        with pytest.raises(KeyboardInterrupt):
            store.put(bytes(SIZE))
        assert (names(directory), store.held_bytes) == ([], 0)
        assert not [t for t in threading.enumerate() if t.name == "ipyfleet-copy"]

    def test_outlives_its_name(self, store: BlobStore, directory: Path) -> None:
        """A mapping stays good after the blob was freed."""
        handle = store.put(b"z" * SIZE)
        view = map_blob(directory, handle)
        store.release(handle)
        assert names(directory) == []
        assert bytes(view) == b"z" * SIZE
        with pytest.raises(ProtocolError, match="No such file"):
            map_blob(directory, handle)

    def test_rights(self, store: BlobStore, directory: Path) -> None:
        """Only the owner may look: directory 0700, files 0600."""
        handle = store.put(b"secret")
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / handle.name).stat().st_mode & 0o777 == 0o600


class TestAccounts:
    def test_budget(self, directory: Path) -> None:
        """A store holds what its budget allows and says no, not more, to the rest."""
        with BlobStore(directory, OWNER, budget_bytes=2 * SIZE) as store:
            first, second = store.put(bytes(SIZE)), store.put(bytes(SIZE))
            assert store.held_bytes == 2 * SIZE
            assert store.put(b"1") is None
            store.release(first)
            assert store.held_bytes == SIZE
            assert store.put(bytes(SIZE)) is not None
            assert second is not None

    def test_what_others_have_removed_does_not_count(self, directory: Path) -> None:
        """A receiver that has mapped a result removes it; there is room for as much again, and
        again, whatever else stays.
        """
        with BlobStore(directory, OWNER, budget_bytes=200 * SIZE) as store:
            kept = [store.put(bytes(SIZE)) for _ in range(50)]
            for _ in range(500):
                handle = store.put(bytes(SIZE))
                assert handle is not None
                unlink_blob(directory, handle)
            assert names(directory) == sorted(each.name for each in kept)
            for handle in kept:
                store.release(handle)
            assert names(directory) == []

    def test_what_is_being_written_counts(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Although its file may not be there yet: there is room for no other, and it is freed."""
        with BlobStore(directory, OWNER, budget_bytes=SIZE) as store:
            others: list[BlobHandle | None] = []
            mkdir = os.mkdir

            def meanwhile(*arguments: object) -> None:
                others.append(store.put(b"1"))
                mkdir(*arguments)

            monkeypatch.setattr(os, "mkdir", meanwhile)
            handle = store.put(bytes(SIZE))
            assert others == [None]
            store.release(handle)
            assert (names(directory), store.held_bytes) == ([], 0)

    def test_default_budget_is_bounded(self, store: BlobStore, directory: Path) -> None:
        """By default no blob takes what the file system has not got."""
        space = os.statvfs(directory.parent)
        too_much = space.f_blocks * space.f_frsize
        assert store._reserve(too_much) is None
        assert store.held_bytes == 0

    def test_release_twice(self, store: BlobStore) -> None:
        """Freeing again, or freeing another's blob, does nothing."""
        handle = store.put(bytes(SIZE))
        store.put(bytes(SIZE))
        store.release(handle)
        store.release(handle)
        store.release(BlobHandle(f"{new_peer_id().hex()}-0", SIZE))
        assert store.held_bytes == SIZE

    def test_close_frees_all(self, directory: Path) -> None:
        """A closed store holds nothing, leaves nothing and takes nothing; closing twice is fine."""
        store = BlobStore(directory, OWNER)
        store.put(bytes(SIZE))
        store.close()
        store.close()
        assert (store.held_bytes, directory.exists()) == (0, False)
        assert store.put(bytes(SIZE)) is None

    def test_close_leaves_others(self, store: BlobStore, directory: Path) -> None:
        """Closing one store keeps the blobs of the others in the directory."""
        handle = store.put(bytes(SIZE))
        with BlobStore(directory, new_peer_id()) as other:
            assert other.put(bytes(SIZE)) is not None
        assert names(directory) == [handle.name]

    def test_directory_removed_meanwhile(self, store: BlobStore, directory: Path) -> None:
        """A store whose directory was removed makes it again."""
        store.release(store.put(bytes(SIZE)))
        directory.rmdir()
        handle = store.put(b"again")
        assert bytes(map_blob(directory, handle)) == b"again"

    def test_threads(self, directory: Path) -> None:
        """Threads that put and free at the same time never break the budget or lose a byte of
        it.
        """
        budget = 10 * SIZE
        store = BlobStore(directory, OWNER, budget_bytes=budget)
        over: list[int] = []
        failures: list[BaseException] = []

        def work(letter: bytes) -> None:
            try:
                for _ in range(40):
                    handle = store.put(letter * SIZE)
                    if store.held_bytes > budget:
                        over.append(store.held_bytes)
                    if handle is not None:
                        assert map_blob(directory, handle)[-1:] == letter
                        store.release(handle)
            except BaseException as failure:  # noqa: BLE001 - told by the main thread
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(b"%d" % n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert (over, failures) == ([], [])
        assert (store.held_bytes, names(directory)) == (0, [])
        store.close()

    def test_close_while_writing(self, directory: Path) -> None:
        """A store that is closed while other threads write leaves no file."""
        for _ in range(10):
            store = BlobStore(directory, OWNER)
            started = threading.Barrier(3)

            def write(store: BlobStore = store, started: threading.Barrier = started) -> None:
                started.wait(10)
                while store.put(bytes(4 * SIZE)) is not None:
                    continue

            threads = [threading.Thread(target=write) for _ in range(2)]
            for thread in threads:
                thread.start()
            started.wait(10)
            store.close()
            for thread in threads:
                thread.join(30)
            assert not directory.exists()


class TestWithoutSharedMemory:
    def test_missing(self, tmp_path: Path) -> None:
        """Without the file system the caller is told to send the buffer itself."""
        store = BlobStore(tmp_path / "no" / "such" / "place", OWNER)
        assert store.put(bytes(SIZE)) is None
        assert store.held_bytes == 0
        store.close()

    def test_full(self, directory: Path) -> None:
        """When the system stops a write half-way the caller gets None and no piece is left."""
        # A limit on the size of files fails like a full file system does: after some bytes were
        # written.
        code = """
            import pathlib, resource, signal, sys
            from ipyfleet_protocol.blobs import BlobStore
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            directory = pathlib.Path(sys.argv[1])
            store = BlobStore(directory, bytes(16))
            print(store.put(bytes(4 << 20)), store.held_bytes, list(directory.iterdir()))
            print(store.put(bytes(1 << 19)) is not None)
            store.close()
        """
        assert finish_python(code, directory).split("\n")[:2] == ["None 0 []", "True"]

    def test_somebody_elses_directory(self, directory: Path) -> None:
        """A directory that others may enter, or a link put in its place, is not used."""
        directory.mkdir(mode=0o700)
        directory.chmod(0o755)
        store = BlobStore(directory, OWNER)
        assert store.put(bytes(SIZE)) is None
        directory.chmod(0o700)
        moved = directory.rename(directory.with_name("elsewhere"))
        directory.symlink_to(moved)
        assert store.put(bytes(SIZE)) is None
        assert names(moved) == []
        store.close()


class TestHandles:
    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../secret",
            "/etc/passwd",
            f"{'0' * 32}-1/../../secret",
            f"{'0' * 32}-",
            f"{'0' * 32}-1\n",
            f"{'0' * 32}-\u0661",
            f"{'0' * 31}-1",
            "\0",
            "x" * 10**6,
        ],
    )
    def test_names(self, directory: Path, name: str) -> None:
        """A name that is not a blob's is refused before the file system is asked."""
        (directory.parent / "secret").write_bytes(b"secret")
        with pytest.raises(ProtocolError, match="not a blob's handle"):
            map_blob(directory, BlobHandle(name, 6))
        with pytest.raises(ProtocolError, match="not a blob's handle"):
            unlink_blob(directory, BlobHandle(name, 6))
        assert (directory.parent / "secret").exists()

    @pytest.mark.parametrize("size", [-1, 0, SIZE - 1, SIZE + 1, 1 << 62])
    def test_sizes(self, store: BlobStore, directory: Path, size: int) -> None:
        """A size that is not the blob's is refused, without reserving it."""
        handle = store.put(bytes(SIZE))
        with pytest.raises(ProtocolError):
            map_blob(directory, BlobHandle(handle.name, size))

    @pytest.mark.parametrize("files", [-1, 0, 2, 3, blobs.FILES_MAX + 1, 1 << 62])
    def test_number_of_files(self, store: BlobStore, directory: Path, files: int) -> None:
        """A number of files that is not the blob's is refused, whatever it is."""
        for size in (1, SIZE):
            handle = store.put(bytes(size))
            with pytest.raises(ProtocolError):
                map_blob(directory, BlobHandle(handle.name, size, files))

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_not_a_file(self, directory: Path, kind: str) -> None:
        """What is no plain file of ours is refused at once."""
        directory.mkdir(mode=0o700)
        path = directory / f"{'0' * 32}-1"
        if kind == "link":
            (directory / "target").write_bytes(b"123456")
            path.symlink_to("target")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
        with pytest.raises(ProtocolError):
            map_blob(directory, BlobHandle(path.name, 6))

    def test_missing(self, directory: Path) -> None:
        """A blob that is not there, or whose directory is not, is a protocol error."""
        with pytest.raises(ProtocolError, match=os.strerror(errno.ENOENT)):
            map_blob(directory, BlobHandle(f"{'0' * 32}-1", 6))

    def test_unlink(self, store: BlobStore, directory: Path) -> None:
        """Anyone in the cluster can remove a blob's name, any number of times."""
        handle = store.put(bytes(SIZE))
        unlink_blob(directory, handle)
        unlink_blob(directory, handle)
        assert names(directory) == []

    def test_many_mappings(self, directory: Path) -> None:
        """Holding more blobs than there are file descriptors works, and leaves some for others."""
        code = """
            import os, pathlib, resource, sys
            from ipyfleet_protocol.blobs import BlobStore, map_blob
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            directory = pathlib.Path(sys.argv[1])
            with BlobStore(directory, bytes(16)) as store:
                views = [map_blob(directory, store.put(b"%3d" % n)) for n in range(200)]
                for view in views:
                    view[:1] = b"+"
                print(len(os.listdir("/proc/self/fd")) < 40, bytes(views[199]), bytes(views[0]))
        """
        assert finish_python(code, directory).strip() == "True b'+99' b'+ 0'"

    def test_mappings_are_given_back(self, store: BlobStore, directory: Path) -> None:
        """A mapping takes no file descriptor any more when nobody refers to it."""
        handle = store.put(bytes(SIZE))
        map_blob(directory, handle)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            map_blob(directory, handle)
        assert len(os.listdir("/proc/self/fd")) == before


class TestCrashes:
    CRASH = """
        import pathlib, sys
        from ipyfleet_protocol.blobs import BlobStore
        store = BlobStore(pathlib.Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
        for n in range(3):
            store.put(bytes(300_000))
        print("ready", flush=True)
        while True:
            store.release(store.put(bytes(64 << 20)))
    """

    def test_sweep(self, store: BlobStore, directory: Path) -> None:
        """After an owner was killed, even amid a write, its blobs can be removed, and only they."""
        mine = store.put(bytes(SIZE))
        victim = new_peer_id()
        with run_python(self.CRASH, directory, victim.hex()) as process:
            assert read_line(process) == "ready"
            process.kill()
        assert len(names(directory)) >= 4
        assert sweep_blobs(directory, victim) in (3, 4)
        assert names(directory) == [mine.name]
        assert sweep_blobs(directory, victim) == 0

    def test_remove_directory(self, directory: Path) -> None:
        """When a cluster stops its directory goes, whatever a killed owner left there."""
        with run_python(self.CRASH, directory, new_peer_id().hex()) as process:
            assert read_line(process) == "ready"
            process.kill()
        remove_blob_dir(directory)
        remove_blob_dir(directory)
        assert not directory.exists()

    def test_remove_keeps_strangers_files(self, directory: Path) -> None:
        """Pointed at a wrong directory, the clean-up removes nothing of it."""
        directory.mkdir(mode=0o700)
        (directory / "thesis.tex").write_text("important")
        remove_blob_dir(directory)
        assert names(directory) == ["thesis.tex"]

    def test_missing_directory(self, directory: Path) -> None:
        """Sweeping where nothing is finds nothing."""
        assert sweep_blobs(directory, OWNER) == 0

    def test_fork(self, directory: Path) -> None:
        """A forked child's store takes nothing from its parent, whatever the child does with it."""
        code = """
            import os, pathlib, sys
            from ipyfleet_protocol.blobs import BlobStore, map_blob
            directory = pathlib.Path(sys.argv[1])
            store = BlobStore(directory, bytes(16))
            handle = store.put(b"parent's")
            store._lock.acquire()  # as if another thread held it at this moment
            pid = os.fork()
            if not pid:
                inline = store.put(b"child's") is None
                same = bytes(map_blob(directory, handle)) == b"parent's"
                store.release(handle)
                store.close()
                os._exit(0 if inline and same else 1)
            store._lock.release()
            _, status = os.waitpid(pid, 0)
            print(status, bytes(map_blob(directory, handle)), store.held_bytes)
            store.close()
        """
        assert finish_python(code, directory).strip() == '0 b"parent\'s" 8'
        assert not directory.exists()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="the system has no /dev/shm")
def test_real_shared_memory() -> None:
    """On /dev/shm itself another process maps what was put, and nothing is left."""
    directory = Path(f"/dev/shm/ipyfleet-test-{new_peer_id().hex()}")
    code = """
        import pathlib, sys
        from ipyfleet_protocol.blobs import map_blob
        from ipyfleet_protocol.messages import BlobHandle
        view = map_blob(pathlib.Path(sys.argv[1]), BlobHandle(sys.argv[2], int(sys.argv[3])))
        print(sum(view))
    """
    try:
        with BlobStore(directory, OWNER) as store:
            handle = store.put(b"\2" * SIZE)
            assert finish_python(code, directory, handle.name, handle.size).strip() == str(2 * SIZE)
    finally:
        remove_blob_dir(directory)
    assert not directory.exists()
