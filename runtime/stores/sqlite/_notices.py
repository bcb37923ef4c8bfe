"""Who watches a store, and what has happened in it: a table of notices, which all processes write."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from channels import Channel, Receiver
from channels._lazy import lazy_logger

from ...session._journal import Request
from .._notices import tell
from .._store import Notice
from ._file import Connection, first
from ._rows import REQUEST, request_of

_logger = lazy_logger("runtime")


class Watchers:
    """The channels of those who watch. Used by the writer's thread alone."""

    def __init__(self) -> None:
        self._watchers: list[tuple[Channel[Notice], Receiver[Any], bool]] = []  # the last: also of event logs
        self._seen = 0  # the number of the last notice that was told
        self._logged = 0  # the last change of an event log that was told
        self._version = -1  # of the file, as far as others write it

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def add(self, connection: Connection, channel: Channel[Notice], done: Receiver[Any], events: bool) -> None:
        """Let the channel have what happens from now on."""
        if not self._watchers:
            self._seen = first(connection.execute("SELECT coalesce(max(number), 0) FROM notices").fetchone())
        if not self._wants_events:
            self._logged = first(connection.execute("SELECT coalesce(max(changed_at), 0) FROM event_logs").fetchone())
        self._watchers.append((channel, done, events))

    @property
    def _wants_events(self) -> bool:
        return any(events for _, _, events in self._watchers)

    def look(self, reading: Callable[[Callable[[Connection], Any]], Any], written: bool) -> None:
        """Tell them what has happened, and close the channels of those who have seen enough. ``written``: by this
        process too, or maybe only by others.
        """
        if not self._watchers:
            return
        for each in [each for each in self._watchers if each[1].closed]:
            self._watchers.remove(each)
            each[0].close()
        try:
            notices: list[Notice] = reading(lambda connection: self._new(connection, written))
        except sqlite3.Error as error:  # the next look may see it
            self._version = -1
            _logger.warning("what has happened in the store cannot be read: %s", error)
            return
        for notice in notices:
            logged = notice.kind == "events"
            self._watchers = [each for each in self._watchers if (logged and not each[2]) or tell(each[0], notice)]

    def close(self) -> None:
        """Nothing happens any more."""
        for channel, _, _ in self._watchers:
            channel.close()
        self._watchers.clear()

    def _new(self, connection: Connection, written: bool) -> list[Notice]:
        version = first(connection.execute("PRAGMA data_version").fetchone())  # goes up with what others commit
        if version == self._version and not written:
            return []
        self._version = version
        rows = connection.execute(
            "SELECT number, kind, session_id, request_id FROM notices WHERE number > ? ORDER BY number", (self._seen,)
        ).fetchall()
        if rows:
            self._seen = rows[-1][0]
        notices = [
            Notice(kind, session_id, None if request_id is None else find_request(connection, request_id))
            for _, kind, session_id, request_id in rows
        ]
        if self._wants_events:
            logs = connection.execute(
                "SELECT changed_at, id FROM event_logs JOIN sessions ON number = session WHERE changed_at > ?"
                " ORDER BY changed_at",
                (self._logged,),
            ).fetchall()
            if logs:
                self._logged = logs[-1][0]
            notices += [Notice("events", id) for _, id in logs]
        return notices


def find_request(connection: Connection, id: str) -> Request | None:
    """The request with this id."""
    row = connection.execute(
        f"SELECT {REQUEST} FROM requests JOIN sessions ON sessions.number = session WHERE requests.id = ?", (id,)
    ).fetchone()
    return None if row is None else request_of(row)
