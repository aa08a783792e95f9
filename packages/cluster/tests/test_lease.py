import os
import select
import subprocess
import sys

from ipyfleet_cluster.lease import Lease


def _is_over(fd: int) -> bool:
    """Whether a reader of the lease would see its end."""
    return bool(select.select([fd], [], [], 0)[0])


def test_child_sees_the_end_when_the_lease_is_released():
    """A child that reads its lease gets end-of-file as soon as the owner releases it."""
    code = "import os, sys; sys.exit(7 if os.read(int(sys.argv[1]), 1) == b'' else 1)"
    with Lease() as lease:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(lease.read_fd)], pass_fds=(lease.read_fd,)
        )
    assert child.poll() is None
    lease.release()
    assert child.wait(10) == 7


def test_forked_copy_does_not_keep_the_lease():
    """A process forked from the owner holds no copy of the write end."""
    lease = Lease()
    reader = os.dup(lease.read_fd)
    ready_r, ready_w = os.pipe()
    done_r, done_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(done_w)
        os.write(ready_w, b"x")
        os.read(done_r, 1)
        os._exit(0)
    try:
        os.read(ready_r, 1)
        assert not _is_over(reader)
        lease.release()
        assert _is_over(reader)
    finally:
        os.close(done_w)
        os.waitpid(pid, 0)
        for fd in (reader, ready_r, ready_w, done_r):
            os.close(fd)


def test_failed_start_releases_the_lease():
    """A lease whose child could not be started leaves no open descriptor."""
    try:
        with Lease() as lease:
            raise OSError("no such command")
    except OSError:
        assert not lease.is_held
        assert lease.read_fd == -1
