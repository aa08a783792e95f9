"""The journal on disk."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ipyfleet_controller.hub.journal import PeerLeft
from ipyfleet_controller.journal import JournalFile, read_journal
from ipyfleet_protocol.ids import new_peer_id


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Entries come back in their order; without a file there are none."""
    entries = [PeerLeft(new_peer_id(), f"reason {number}") for number in range(3)]
    journal = JournalFile(tmp_path / "journal")
    assert read_journal(tmp_path / "journal") == []
    journal.open(entries[:1])
    for entry in entries[1:]:
        journal.append(entry)
    journal.close()
    assert read_journal(tmp_path / "journal") == entries


def test_an_entry_for_which_there_is_half_the_room(tmp_path: Path) -> None:
    """Who appends it is told; those before it can be read."""
    path = tmp_path / "journal"
    entries = [PeerLeft(new_peer_id(), f"reason {number}") for number in range(2)]
    journal = JournalFile(path)
    journal.open(entries[:1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="No space"):
            journal.append(entries[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.close()
    assert read_journal(path) == entries[:1]
