"""What is kept of what was submitted, and submitted again."""

import pytest

from ipyfleet_client.ledger import Ledger
from ipyfleet_client.pending import Segment, Work
from ipyfleet_client.retention import MESSAGE_GROUPS, Retained, submit_again
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, split
from ipyfleet_protocol.columns import Payloads, PayloadWriter
from ipyfleet_protocol.serialize import pack_call, pack_function


def attach(function):
    """Send every function with its body."""
    return function.function, function.frames


def make(ledger, first, values, function=None, since=0.0, **options):
    """Retain a group with one work."""
    work = Work(len(values), method="apply", name="f", submitted=0.0)
    writer = PayloadWriter()
    for value in values:
        packed = pack_call((value,), {})
        writer.append(packed.pickle, [(buffer, False) for buffer in packed.buffers])
    columns, frames = writer.finish()
    retained = Retained(first, m.Options(**options), function, columns, frames, since=since)
    ledger.add(first, len(values), work, 0, retained)
    work.sent(0, first, len(values))
    return work


def end(ledger, work, index, count=1, status=m.OK):
    """End tasks of a work."""
    columns = m.Columns(b"\0\0\0\0" * count)
    statuses = bytes((status,)) * count
    piece = m.ResultSlice(0, count, 0, 0, statuses, b"", b"", b"", columns)
    work.add(index, count, Segment(piece, [b""], 0, 0.0), 0)
    ledger.ended(work.seq(index), count, work)


def test_groups_are_kept_until_their_tasks_have_ended():
    """A group goes when the last of its tasks ends, whatever happens to the others."""
    ledger = Ledger()
    one, many = make(ledger, 0, [1]), make(ledger, 1, [1, 2, 3])
    assert list(ledger.groups) == [0, 1]
    end(ledger, many, 1, 2)
    end(ledger, one, 0)
    assert list(ledger.groups) == [1]
    end(ledger, many, 0)
    assert ledger.groups == {}
    assert ledger.outstanding == 0


def test_what_is_submitted_again_says_what_has_ended():
    """The message has payloads and function as before, and a mark for each task that has ended."""
    ledger = Ledger()
    function = pack_function(lambda x: x)
    work = make(ledger, 5, [10, 20, 30], function)
    end(ledger, work, 1)
    (frames,) = submit_again(ledger, attach, 0.0)
    message = decode(frames[0])
    (group,), (parts,) = message.groups, split(message, frames[1:])
    assert (group.first, group.count, group.ended) == (5, 3, b"\0\1\0")
    assert len(parts.function) == group.function.frames
    payloads = Payloads(group.columns, parts.payload)
    assert bytes(payloads.pickle(2)) == bytes(pack_call((30,), {}).pickle)


def test_what_is_submitted_again_says_how_it_ended():
    """The marks tell a value from an error and an abort; so does a list of what ended before."""
    ledger = Ledger()
    function = pack_function(abs)
    work = make(ledger, 5, [10, 20, 30, 40], function)
    for index, status in enumerate((m.OK, m.FAILED, m.ABORTED)):
        end(ledger, work, index, status=status)
    ledger.failed.note(1, bytes((m.FAILED, m.FAILED, m.OK, m.ABORTED)))
    make(ledger, 12, [50], function)
    ledger.failed.note(9, bytes((m.ABORTED,)))
    (frames,) = submit_again(ledger, attach, 0.0)
    first, second = decode(frames[0]).groups
    assert (first.ended, second.ended) == (b"\1\2\3\0", b"")
    assert first.failed_before == [m.EndedRange(1, 2, m.FAILED), m.EndedRange(4, 1, m.ABORTED)]
    assert second.failed_before == [m.EndedRange(9, 1, m.ABORTED)]


def test_what_is_submitted_again_says_how_long_it_has_waited():
    """Where there is a limit for that."""
    ledger = Ledger()
    make(ledger, 0, [1], pack_function(abs), since=7.0, timeout_s=60.0)
    make(ledger, 1, [1], pack_function(abs), since=7.0)
    (frames,) = submit_again(ledger, attach, 9.5)
    assert [group.waited_ms for group in decode(frames[0]).groups] == [2500, 0]


def test_large_arguments_are_not_copied():
    """What travels as a buffer of its own is kept as the user's memory."""
    ledger = Ledger()
    data = bytearray(100_000)
    make(ledger, 0, [data])
    data[7] = 9
    (frames,) = submit_again(ledger, attach, 0.0)
    (kept,) = (frame for frame in frames[1:] if len(frame) == len(data))
    assert kept[7] == 9


@pytest.mark.parametrize("count", [MESSAGE_GROUPS, 2 * MESSAGE_GROUPS + 1])
def test_many_groups_travel_together(count):
    """Groups come again in the order of their seqs, in few messages."""
    ledger = Ledger()
    function = pack_function(abs)
    for seq in range(count):
        make(ledger, seq, [seq], function)
    messages = [decode(frames[0]) for frames in submit_again(ledger, attach, 0.0)]
    assert len(messages) == -(-count // MESSAGE_GROUPS)
    assert [group.first for message in messages for group in message.groups] == list(range(count))


def test_giving_up_lets_everything_go():
    """When nothing can end any more nothing is kept."""
    ledger = Ledger()
    make(ledger, 0, [1, 2])
    ledger.give_up()
    assert ledger.groups == {}
    assert ledger.outstanding == 0
