"""The tables and statements of `sql.SqlDatabase`.

What lives here: SQL that SQLite and PostgreSQL both understand, and `narrow`, which turns a part of
a query into SQL. What must not: anything that is executed.

Texts of users are stored as bytes in UTF-8: a text may hold a NUL, which PostgreSQL's cannot, and
comparing is not left to collations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipyfleet_protocol.ids import parse_msg_id

# The tables' names have a number that grows with their form, so that a release that needs another
# form makes its own and never has to understand, or spoil, those of another.
GROUPS, RESULTS, BUFFERS = "ipyfleet_groups_2", "ipyfleet_results_2", "ipyfleet_buffers_2"
OUTPUTS = "ipyfleet_outputs_2"

MAX_SEQ = 1 << 62
"""Sequence numbers stay below."""

SCHEMA = (
    f"""CREATE TABLE IF NOT EXISTS {GROUPS} (
        number BIGINT PRIMARY KEY, client {{blob}} NOT NULL, first BIGINT NOT NULL,
        count BIGINT NOT NULL, label {{blob}} NOT NULL, method TEXT NOT NULL,
        placement TEXT NOT NULL, name {{blob}} NOT NULL, submitted DOUBLE PRECISION NOT NULL,
        touched DOUBLE PRECISION NOT NULL, n_live BIGINT NOT NULL, n_purged BIGINT NOT NULL,
        n_bytes BIGINT NOT NULL, conditions {{blob}} NOT NULL, UNIQUE (client, first))""",
    f"CREATE INDEX IF NOT EXISTS {GROUPS}_live ON {GROUPS} (number) WHERE n_live > 0",
    f"CREATE INDEX IF NOT EXISTS {GROUPS}_age ON {GROUPS} (touched)",
    f"""CREATE TABLE IF NOT EXISTS {RESULTS} (
        number BIGINT NOT NULL, start BIGINT NOT NULL, count BIGINT NOT NULL,
        engine_id BIGINT NOT NULL, engine_uuid TEXT NOT NULL, received DOUBLE PRECISION NOT NULL,
        status {{blob}} NOT NULL, started {{blob}} NOT NULL, completed {{blob}} NOT NULL,
        sizes {{blob}} NOT NULL, buffer_counts {{blob}} NOT NULL, flags {{blob}} NOT NULL,
        loss TEXT NOT NULL, packed {{blob}} NOT NULL, PRIMARY KEY (number, start))""",
    f"""CREATE TABLE IF NOT EXISTS {BUFFERS} (
        number BIGINT NOT NULL, start BIGINT NOT NULL, place BIGINT NOT NULL,
        content {{blob}} NOT NULL, PRIMARY KEY (number, start, place))""",
    f"""CREATE TABLE IF NOT EXISTS {OUTPUTS} (
        number BIGINT NOT NULL, serial BIGINT NOT NULL, content {{blob}} NOT NULL,
        PRIMARY KEY (number, serial))""",
)

# Work that was detached: groups with their payloads. Its form has a number of its own.
REQUESTS, REQUEST_FRAMES = "ipyfleet_requests_1", "ipyfleet_request_frames_1"

DETACHED_SCHEMA = (
    f"""CREATE TABLE IF NOT EXISTS {REQUESTS} (
        client {{blob}} NOT NULL, first BIGINT NOT NULL, count BIGINT NOT NULL,
        submitted DOUBLE PRECISION NOT NULL, header {{blob}} NOT NULL,
        n_function BIGINT NOT NULL, PRIMARY KEY (client, first))""",
    f"""CREATE TABLE IF NOT EXISTS {REQUEST_FRAMES} (
        client {{blob}} NOT NULL, first BIGINT NOT NULL, place BIGINT NOT NULL,
        content {{blob}} NOT NULL, PRIMARY KEY (client, first, place))""",
)
DROP_REQUEST = tuple(
    f"DELETE FROM {table} WHERE client = ? AND first = ?" for table in (REQUESTS, REQUEST_FRAMES)
)
ADD_REQUEST = f"INSERT INTO {REQUESTS} VALUES (?, ?, ?, ?, ?, ?)"
ADD_REQUEST_FRAME = f"INSERT INTO {REQUEST_FRAMES} VALUES (?, ?, ?, ?)"
ALL_REQUESTS = f"SELECT client, first, count, submitted, header, n_function FROM {REQUESTS}"
REQUEST_NAMES = f"SELECT client, first, count FROM {REQUESTS}"
FRAMES_OF_REQUEST = f"""SELECT content FROM {REQUEST_FRAMES} WHERE client = ? AND first = ?
    ORDER BY place"""
PARTS = f"""SELECT number, first, count, n_live FROM {GROUPS}
    WHERE client = ? AND first < ? AND first + count > ?"""
ENDED_PARTS = f"SELECT start, status FROM {RESULTS} WHERE number = ?"

ENTRY_COLUMNS = "number, client, first, count, label, method, placement, name, submitted"
GROUP_COLUMNS = f"{ENTRY_COLUMNS}, touched, n_live, n_purged, n_bytes, conditions"
CHUNK_COLUMNS = (
    "number, start, count, engine_id, engine_uuid, received, status, started, completed, "
    "sizes, buffer_counts, flags, loss"
)

ADD_GROUP = f"""INSERT INTO {GROUPS} ({GROUP_COLUMNS})
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
UPDATE_GROUP = f"""UPDATE {GROUPS} SET touched = ?, n_live = ?, n_purged = ?, n_bytes = ?
    WHERE number = ?"""
ADD_RESULTS = f"""INSERT INTO {RESULTS} ({CHUNK_COLUMNS}, packed)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
ADD_BUFFER = f"""INSERT INTO {BUFFERS} (number, start, place, content)
    VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"""

ADD_OUTPUT = f"""INSERT INTO {OUTPUTS} (number, serial, content) VALUES (?, ?, ?)
    ON CONFLICT DO NOTHING"""
ADD_BYTES = f"UPDATE {GROUPS} SET n_bytes = n_bytes + ? WHERE number = ?"
LAST_SERIAL = f"SELECT max(serial) FROM {OUTPUTS}"
OUTPUTS_OF = f"SELECT content FROM {OUTPUTS} WHERE number = ? ORDER BY serial"
SIZE_OF_OUTPUTS = f"SELECT sum(length(content)) FROM {OUTPUTS} WHERE number = ?"

LAST_NUMBER = f"SELECT max(number) FROM {GROUPS}"
TOTALS = f"SELECT sum(count - n_purged), sum(n_bytes) FROM {GROUPS}"
GROUPS_OF_CLIENT = f"SELECT {GROUP_COLUMNS} FROM {GROUPS} WHERE client = ? ORDER BY first"
GROUPS_WHERE = f"SELECT {GROUP_COLUMNS} FROM {GROUPS} WHERE {{where}} ORDER BY number"
GROUP_OF_TASK = f"""SELECT {GROUP_COLUMNS} FROM {GROUPS}
    WHERE client = ? AND first <= ? AND first + count > ?"""
COVERED = f"""SELECT number, start, count FROM {RESULTS}
    WHERE number IN (SELECT number FROM {GROUPS} WHERE n_live > 0)"""
CHUNKS_OF = f"""SELECT {CHUNK_COLUMNS} FROM {RESULTS} WHERE number IN ({{marks}})
    ORDER BY number, start"""
CHUNK_OF_TASK = f"""SELECT {CHUNK_COLUMNS} FROM {RESULTS} WHERE number = ? AND start <= ?
    ORDER BY start DESC LIMIT 1"""
PACKED = f"SELECT packed FROM {RESULTS} WHERE number = ? AND start = ?"
BUFFERS_OF_CHUNK = f"""SELECT content FROM {BUFFERS} WHERE number = ? AND start = ?
    ORDER BY place"""
SIZE_OF_CHUNK = f"""SELECT length(packed), (SELECT sum(length(content)) FROM {BUFFERS} AS b
    WHERE b.number = r.number AND b.start = r.start) FROM {RESULTS} AS r
    WHERE number = ? AND start = ?"""
MARK_CHUNK = f"UPDATE {RESULTS} SET status = ? WHERE number = ? AND start = ?"
EMPTY_CHUNK = f"""UPDATE {RESULTS} SET status = ?, loss = 'purged', sizes = ?, buffer_counts = ?,
    flags = ?, packed = ? WHERE number = ? AND start = ?"""
DROP_BUFFERS_OF_CHUNK = f"DELETE FROM {BUFFERS} WHERE number = ? AND start = ?"
DROP_GROUP = tuple(
    f"DELETE FROM {table} WHERE number = ?" for table in (GROUPS, RESULTS, BUFFERS, OUTPUTS)
)
OLDEST_ENDED = f"""SELECT number, count - n_purged, n_bytes FROM {GROUPS} WHERE n_live = 0
    ORDER BY number LIMIT ?"""
TOO_OLD = f"""SELECT number, count - n_purged, n_bytes FROM {GROUPS} AS g
    WHERE touched < ? AND (n_live = 0 OR (number < ? AND NOT EXISTS (SELECT 1 FROM {REQUESTS} AS r
    WHERE r.client = g.client AND r.first < g.first + g.count AND r.first + r.count > g.first)))
    ORDER BY touched LIMIT ?"""
GROUPS_OF_ENGINES = f"""number IN (SELECT number FROM {RESULTS} WHERE engine_id IN ({{marks}}))"""

_COMPARISONS = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}


def narrow(query: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Return a condition on groups that holds for every group with a task that matches.

    It may hold for others; what it says nothing of is left to `recorded.Search`.
    """
    conditions: list[str] = ["1 = 1"]
    arguments: list[Any] = []
    wanted = query.get("msg_id")
    ids = wanted.get("$in", wanted.get("$eq")) if isinstance(wanted, dict) else wanted
    ids = [ids] if isinstance(ids, str) else ids
    if isinstance(ids, list) and len(ids) <= 256:
        tasks = [task for task in map(_task, ids) if task]
        condition = "(client = ? AND first <= ? AND first + count > ?)"
        conditions.append(f"({' OR '.join([condition] * len(tasks))})" if tasks else "1 = 0")
        for peer, seq in tasks:
            arguments += [peer, seq, seq]
    client = query.get("client_uuid")
    if isinstance(client, str):
        owner = _task(f"{client}_0")
        conditions.append("client = ?" if owner else "1 = 0")
        arguments += [owner[0]] if owner else []
    seqs = query.get("seq")
    if isinstance(seqs, dict):
        for name, condition in (("$gte", "first + count > ?"), ("$lt", "first < ?")):
            number = seqs.get(name)
            if type(number) is int and abs(number) < 1 << 62:
                conditions.append(condition)
                arguments.append(number)
    label = query.get("label")
    if isinstance(label, str):
        conditions.append("label = ?")
        arguments.append(label.encode(errors="surrogatepass"))
    for field in ("completed", "received", "status"):
        if field in query and query[field] is None:
            conditions.append("n_live > 0")
    submitted = query.get("submitted")
    if isinstance(submitted, dict):
        for name, sign in _COMPARISONS.items():
            value = submitted.get(name)
            # Whole numbers and infinities are compared exactly in Python, and not worth more here.
            if isinstance(value, float) and abs(value) < 1e300:
                conditions.append(f"submitted {sign} ?")
                arguments.append(value)
    return " AND ".join(conditions), arguments


def _task(msg_id: Any) -> tuple[bytes, int] | None:
    if not isinstance(msg_id, str):
        return None
    try:
        client, seq = parse_msg_id(msg_id)
    except ValueError:
        return None
    return (client, seq) if seq < MAX_SEQ else None
