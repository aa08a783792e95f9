"""Which tasks have not ended well."""

from ipyfleet_client.failed import FailedTasks
from ipyfleet_protocol.messages import ABORTED, FAILED, OK, EndedRange


def test_only_what_did_not_end_well_is_kept():
    """Neighbours that ended alike are one range, in whatever order they come; twice is once."""
    failed = FailedTasks()
    failed.note(100, bytes(1000))
    failed.note(10, bytes((FAILED, FAILED, ABORTED, OK, FAILED)))
    failed.note(15, bytes((FAILED,)))
    failed.note(2, bytes((ABORTED,)))
    failed.note(11, bytes((FAILED,)))
    assert failed.between(0, 1 << 40) == [
        EndedRange(2, 1, ABORTED),
        EndedRange(10, 2, FAILED),
        EndedRange(12, 1, ABORTED),
        EndedRange(14, 2, FAILED),
    ]
    assert failed.between(11, 15) == [
        EndedRange(11, 1, FAILED),
        EndedRange(12, 1, ABORTED),
        EndedRange(14, 1, FAILED),
    ]
    assert failed.between(3, 10) == failed.between(16, 99) == []


def test_the_oldest_are_forgotten():
    """A client whose tasks keep failing needs no more memory for that."""
    failed = FailedTasks(max_ranges=32)
    for seq in range(0, 2000, 2):
        failed.note(seq, bytes((FAILED,)))
    kept = failed.between(0, 2000)
    assert 30 <= len(kept) <= 32
    assert kept[-1] == EndedRange(1998, 1, FAILED)
