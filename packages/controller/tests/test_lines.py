"""What engines are told when clients acknowledge, and what is left of those that are gone."""

from __future__ import annotations

from ipyfleet_controller.lines import ForwardedBlobs, ForwardedResults, Line
from ipyfleet_protocol.ids import Channel, PeerId, routing_id
from ipyfleet_protocol.messages import BlobHandle

CLIENT, OTHER = PeerId(b"c" * 16), PeerId(b"o" * 16)
ENGINE, SECOND = PeerId(b"e" * 16), PeerId(b"f" * 16)


def test_an_engine_is_told_of_the_last_of_its_results_that_a_client_has() -> None:
    """Each engine's highest number behind an acknowledged position is returned, once."""
    forwarded = ForwardedResults()
    for position, engine, number in [
        (1, ENGINE, 7),
        (2, SECOND, 1),
        (2, ENGINE, 8),
        (5, ENGINE, 9),
    ]:
        forwarded.note(CLIENT, position, engine, number)
    forwarded.note(OTHER, 1, ENGINE, 10)
    assert forwarded.take(CLIENT, 0) == {}
    assert forwarded.take(CLIENT, 1) == {ENGINE: 7}
    assert forwarded.take(CLIENT, 4) == {ENGINE: 8, SECOND: 1}
    assert forwarded.take(CLIENT, 4) == {}
    assert forwarded.take(CLIENT, None) == {ENGINE: 9}
    assert forwarded.take(OTHER, 1) == {ENGINE: 10}


def test_what_a_client_that_goes_has_not_acknowledged_is_left() -> None:
    """And what comes for it afterwards; not what another one has yet to receive."""
    blobs = ForwardedBlobs()
    line, others = Line(routing_id(CLIENT, Channel.CLIENT)), Line(routing_id(OTHER, Channel.CLIENT))
    handles = [BlobHandle(str(number), 1) for number in range(6)]
    for number in range(4):
        line.sent.note([b"results"])
        blobs.note(CLIENT, line, handles[number : number + 1])
        if number == 1:
            line.sent.acknowledge(1)
    others.sent.note([b"results"])
    blobs.note(OTHER, others, handles[5:])
    line.sent.acknowledge(2)
    assert blobs.left == []
    blobs.note_gone(CLIENT, line)
    blobs.note_gone(CLIENT, None)
    assert blobs.left == handles[2:4]
    blobs.note(CLIENT, None, handles[4:5])
    assert blobs.left == handles[2:5]
