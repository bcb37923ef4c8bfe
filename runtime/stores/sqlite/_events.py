"""The event logs of sessions, in the file: rows that are written once, and deleted when they are old.

Events that come together are one row: a row for each would take twice the time of all else that an event costs here.
So the row in which an event is may begin before it, and old events are left out where they are read.
"""

from __future__ import annotations

from typing import Final

from ..._errors import SessionNotFound
from .._events import EVENTS, KEPT, another, following
from ._file import Connection, first
from ._rows import SHIFT, items_of

_MICROS: Final = 1_000_000
_TOGETHER: Final = 20  # logs that are emptied at once
_ROW: Final = 256  # events of a row at most: who wants one of them reads all


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
    for at in range(0, len(rows), _ROW):
        some = rows[at : at + _ROW]
        connection.execute(
            "INSERT INTO events (number, data, count) VALUES (?, ?, ?)", (base + some[0][0], _joined(some), len(some))
        )
    last = rows[-1][0]
    connection.execute("UPDATE sessions SET events = ? WHERE number = ?", (last, number))
    latest = first(connection.execute("SELECT coalesce(max(changed_at), 0) FROM event_logs").fetchone())
    connection.execute(
        "INSERT INTO event_logs VALUES (?, ?) ON CONFLICT DO UPDATE SET changed_at = excluded.changed_at",
        (number, max(now, latest + 1)),  # the clocks of two processes are one, but it may be set back
    )
    if last > EVENTS:
        connection.execute(
            "DELETE FROM events WHERE number BETWEEN ? AND ? AND number + count - 1 <= ?",
            (base, base + last - EVENTS, base + last - EVENTS),
        )


def _joined(rows: list[tuple[int, str]]) -> str:
    texts = [text for _, text in rows]
    if len(texts) == 1:
        return texts[0]
    return "".join([",".join([str(len(text)) for text in texts]), "\n", *texts])


def _parted(data: str, count: int) -> list[str]:
    """The events of a row."""
    if count == 1:
        return [data]
    at = data.index("\n") + 1
    texts: list[str] = []
    for length in map(int, data[: at - 1].split(",")):
        texts.append(data[at : at + length])
        at += length
    return texts


def events_of(connection: Connection, number: int, last: int, since: int, limit: int) -> list[tuple[int, str]]:
    """The events of the session behind number ``since``; ``last`` is the number of its last event."""
    base, end = items_of(number)
    since = max(since, last - EVENTS)
    found: list[tuple[int, str]] = []
    if not limit or since >= last:
        return found
    rows = connection.execute(
        "SELECT number, data, count FROM events WHERE number <= ? AND number >= coalesce("
        "(SELECT max(number) FROM events WHERE number BETWEEN ? AND ?), ?) ORDER BY number",
        (end, base, base + since + 1, base + since + 1),
    )
    for row, data, count in rows:
        first = row - base
        skipped = max(0, since + 1 - first)
        if skipped < count:
            found += enumerate(_parted(data, count)[skipped:], first + skipped)
        if len(found) >= limit:
            break
    rows.close()
    return found[:limit]


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
