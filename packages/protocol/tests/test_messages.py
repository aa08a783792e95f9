"""The table of messages and the structs agree; every struct can be sent."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.codec import decode, encode, split, split_output
from ipyfleet_protocol.table import SENDERS, TABLE, Party

MESSAGES = [
    kind
    for kind in vars(m).values()
    if isinstance(kind, type) and issubclass(kind, m.Message) and kind is not m.Message
]
PARTS = [
    kind
    for kind in vars(m).values()
    if isinstance(kind, type) and issubclass(kind, m.Part) and kind is not m.Part
]
PACKAGE_OF = {
    "client": "ipyfleet_client",
    "controller": "ipyfleet_controller",
    "engine": "ipyfleet_engine",
    "agent": "ipyfleet_engine",
}


def inner(value: object):
    """Yield a struct and all structs in it."""
    if isinstance(value, msgspec.Struct):
        yield value
        for field in value.__struct_fields__:
            yield from inner(getattr(value, field))
    elif isinstance(value, list):
        for item in value:
            yield from inner(item)


def test_table_has_each_message_once() -> None:
    """No message is missing in the table, twice in it, or unknown to the decoder."""
    listed = [entry.message for entry in TABLE]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(MESSAGES) == set(get_args(m.AnyMessage))


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.message.__name__)
def test_entry(entry) -> None:
    """An entry names parties, a handler in the package of each receiver, and a meaning."""
    assert entry.senders
    assert set(entry.senders) | set(entry.receivers) <= set(get_args(Party))
    assert len(set(entry.senders)) == len(entry.senders)
    assert all(re.fullmatch(r"[a-z_.]+:[A-Za-z_.]+", handler) for handler in entry.handlers)
    packages = {handler.partition(".")[0].partition(":")[0] for handler in entry.handlers}
    assert packages == {PACKAGE_OF[party] for party in entry.receivers}
    assert len(entry.meaning) > 10
    assert not entry.meaning.endswith(".")
    assert entry.senders == SENDERS[entry.message]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_tag_is_the_name(kind: type[m.Message]) -> None:
    """On the wire a message is called what its class is called, so tags are unique."""
    assert kind.__struct_config__.tag == kind.__name__
    assert kind.__struct_config__.array_like


@pytest.mark.parametrize("union", [m.AnyMessage, m.ControlAction, m.Question])
def test_tags_are_unique(union) -> None:
    """Within each set of alternatives a tag means one struct."""
    tags = [kind.__struct_config__.tag for kind in get_args(union)]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("kind", [*MESSAGES, *PARTS], ids=lambda kind: kind.__name__)
def test_documented(kind: type[msgspec.Struct]) -> None:
    """Every struct says in a docstring of its own what it is."""
    assert "__doc__" in vars(kind)
    assert kind.__doc__
    assert len(kind.__doc__) > 20


def test_samples_are_complete(samples) -> None:
    """The examples that the tests below use contain every message and every part."""
    used = {type(struct) for sample in samples for struct in inner(sample.message)}
    in_payloads = {m.BlobHandle, m.ExecuteInfo}
    assert used | in_payloads == {*MESSAGES, *PARTS}


def test_round_trip(sample) -> None:
    """Each message comes back from the wire as it was, with its frames where they belong."""
    message = decode(encode(sample.message))
    assert message == sample.message
    assert type(message) is type(sample.message)
    if isinstance(message, m.Submit | m.RunTasks | m.Results):
        parts = split(message, sample.frames)
        again = [frame for part in parts for frame in (*part.function, *part.payload)]
    elif isinstance(message, m.Output):
        again = [frame for frames in split_output(message, sample.frames) for frame in frames]
    else:
        again = []
    assert again == sample.frames


def test_newer_peer(sample) -> None:
    """A field that a later release adds at the end is ignored."""
    values = msgspec.msgpack.decode(encode(sample.message))
    assert decode(msgspec.msgpack.encode([*values, {"new": 1}])) == sample.message


@pytest.mark.parametrize("kind", [*MESSAGES, *PARTS], ids=lambda kind: kind.__name__)
def test_older_peer(kind: type[msgspec.Struct]) -> None:
    """Fields that may be left out are the last ones, so an older release's message decodes."""
    required = [field.required for field in msgspec.structs.fields(kind)]
    assert required == sorted(required, reverse=True)
