"""Names of databases, and files of clusters that are gone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ipyfleet_controller.database.place import (
    BACKENDS,
    DatabasePlace,
    backend_name,
    open_backend,
)
from ipyfleet_controller.database.sqlite import database_file, remove_outdated


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SQLiteDB", "sqlite"),
        ("some.module.path.DictDB", "memory"),
        ("NoDB", "none"),
        ("PostgreSQL", "postgresql"),
    ],
)
def test_names_that_users_know_are_understood(text: str, name: str) -> None:
    """Classes of old, with or without their module, and our names in any case."""
    assert backend_name(text) == name


def test_each_backend_of_the_table_can_be_opened(tmp_path: Path) -> None:
    """The table names modules and functions that exist; nothing is touched by opening."""
    for name in BACKENDS:
        if name == "postgresql":
            pytest.importorskip("psycopg")
        database = open_backend(name, DatabasePlace(tmp_path))
        assert database.statistics() == {"records": 0, "bytes": 0, "culled": 0}
    assert list(tmp_path.iterdir()) == []


def test_files_of_clusters_that_are_gone_go_when_all_in_them_is_too_old(tmp_path: Path) -> None:
    """Neither a fresh file, nor one whose cluster has a connection file, nor our own."""
    now = time.time()
    paths = {name: database_file(tmp_path, name) for name in ("", "old", "fresh", "alive", "own")}
    for name, path in paths.items():
        path.write_text("records")
        if name != "fresh":
            os.utime(path, (now - 1000, now - 1000))
    wal = tmp_path / "ipyfleet-tasks-old.db-wal"
    wal.write_text("log")
    os.utime(wal, (now - 1000, now - 1000))
    security = tmp_path / "security"
    security.mkdir()
    (security / "ipyfleet-alive-client.json").write_text("{}")
    remove_outdated(tmp_path, paths["own"], now - 500)
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {paths[name].name for name in ("", "fresh", "alive", "own")}
