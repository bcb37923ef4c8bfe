"""The event logs of sessions, in the file: rows that are written once, and deleted when they are old."""

from __future__ import annotations

from typing import Final

from ..._errors import SessionNotFound
from .._events import EVENTS, KEPT, another, following
from ._file import Connection, first
from ._rows import SHIFT, items_of

_MICROS: Final = 1_000_000
_TOGETHER: Final = 20  # logs that are emptied at once


def append_events(connection: Connection, id: str, epoch: int, rows: list[tuple[int, str]], now: int) -> None:
    """Write the rows, in the transaction of ``connection``, as `Store.append_events` says."""
    found = connection.execute("SELECT number, epoch, events FROM sessions WHERE id = ?", (id,)).fetchone()
    if found is None:
        raise SessionNotFound(f"the store has no session {id}")
    number, current, last = found
    if current != epoch:
        raise another(id)
    rows = following(id, last, rows)
    if not rows:
        return
    base = number << SHIFT
    connection.executemany("INSERT INTO events VALUES (?, ?)", [(base + seq, data) for seq, data in rows])
    last = rows[-1][0]
    connection.execute("UPDATE sessions SET events = ? WHERE number = ?", (last, number))
    latest = first(connection.execute("SELECT coalesce(max(changed_at), 0) FROM event_logs").fetchone())
    connection.execute(
        "INSERT INTO event_logs VALUES (?, ?) ON CONFLICT DO UPDATE SET changed_at = excluded.changed_at",
        (number, max(now, latest + 1)),  # the clocks of two processes are one, but it may be set back
    )
    if last > EVENTS:
        connection.execute("DELETE FROM events WHERE number BETWEEN ? AND ?", (base, base + last - EVENTS))


def events_of(connection: Connection, number: int, since: int, limit: int) -> list[tuple[int, str]]:
    """The events of the session behind number ``since``."""
    base, end = items_of(number)
    rows = connection.execute(
        "SELECT number, data FROM events WHERE number > ? AND number <= ? ORDER BY number LIMIT ?",
        (min(base + since, end), end, min(limit, 2**62)),
    )
    return [(row - base, data) for row, data in rows]


def forget_events(connection: Connection, now: int) -> None:
    """Empty the logs whose last stream is over, and whose last event is old: some of them, the next time others."""
    old = connection.execute(
        "SELECT session FROM event_logs JOIN sessions ON number = session WHERE changed_at < ?"
        " AND (lease_until IS NULL OR lease_until < ?) ORDER BY changed_at LIMIT ?",
        (now - int(KEPT * _MICROS), now, _TOGETHER),
    ).fetchall()
    for (number,) in old:
        connection.execute("DELETE FROM events WHERE number BETWEEN ? AND ?", items_of(number))
        connection.execute("DELETE FROM event_logs WHERE session = ?", (number,))
