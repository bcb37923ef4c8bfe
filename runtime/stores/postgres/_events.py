"""The event logs of sessions: batches that the writer thread of the store writes together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import psycopg

from channels import Channel, ChannelClosed

from ..._errors import SessionNotFound, StoreError
from .._events import EVENTS, KEPT, another, following
from ._database import Connection, Database, roll_back
from ._rows import LOGGED, column, ring

_TOGETHER: Final = 20  # logs that are emptied at once


@dataclass(slots=True, eq=False)
class Batch:
    """Events of one session on their way into its log."""

    session_id: str
    epoch: int
    rows: list[tuple[int, str]]
    done: Channel[None] = field(default_factory=Channel)  # closes
    error: Exception | None = None

    def wait(self) -> None:
        """Wait until they are durable. Raises what has kept them from it."""
        with contextlib.suppress(ChannelClosed):
            self.done.recv()
        if self.error is not None:
            raise self.error

    def give_up(self, error: StoreError) -> None:
        """They are not written."""
        if not self.done.closed:
            self.error = type(error)(*error.args)  # one each: they are raised by several threads
            self.error.__cause__ = error.__cause__
            self.done.close()


def write_batches(database: Database, connection: Connection, batches: Sequence[Batch], forget: bool) -> None:
    """Write the batches in one transaction; one that has to be refused gets its ``error``, and nothing of it is
    written. With ``forget`` old logs are emptied, too.
    """
    sql = database.sql
    try:
        with connection.pipeline():
            connection.execute("BEGIN")
            # In the order of their ids, as everybody locks sessions.
            found = connection.execute(
                sql("SELECT id, epoch, events FROM @sessions WHERE id = ANY(%s) ORDER BY id FOR UPDATE"),
                (list({column(batch.session_id) for batch in batches}),),
            ).fetchall()
            heads = {key: (epoch, last) for key, epoch, last in found}
            for batch in batches:
                _write(database, connection, batch, heads)
            if forget:
                _forget(database, connection)
            connection.execute(*ring(database.schema, LOGGED))
            connection.execute("COMMIT")
    except psycopg.Error:
        roll_back(connection)
        raise


def _write(database: Database, connection: Connection, batch: Batch, heads: dict[str, tuple[int, int]]) -> None:
    key, sql = column(batch.session_id), database.sql
    batch.error = None  # of an earlier attempt
    if key not in heads:
        batch.error = SessionNotFound(f"{database} has no session {batch.session_id}")
        return
    epoch, last = heads[key]
    if epoch != batch.epoch:
        batch.error = another(batch.session_id)
        return
    try:
        rows = following(batch.session_id, last, batch.rows)
    except ValueError as error:
        batch.error = error
        return
    if not rows:
        return
    last = rows[-1][0]
    heads[key] = epoch, last
    numbers, texts = zip(*rows, strict=True)
    connection.execute(
        sql("INSERT INTO @events (session_id, seq, data) SELECT %s, * FROM unnest(%s::bigint[], %s::text[])"),
        (key, list(numbers), [column(text) for text in texts]),
    )
    connection.execute(
        sql("UPDATE @sessions SET events = %s, events_at = clock_timestamp() WHERE id = %s"), (last, key)
    )
    if last > EVENTS:
        connection.execute(sql("DELETE FROM @events WHERE session_id = %s AND seq <= %s"), (key, last - EVENTS))


def _forget(database: Database, connection: Connection) -> None:
    """Empty the logs whose last stream is over, and whose last event is old: some of them, the next time others."""
    connection.execute(
        database.sql(
            "WITH old AS (UPDATE @sessions SET events_at = NULL WHERE id IN (SELECT id FROM @sessions"
            " WHERE events_at < clock_timestamp() - %s * interval '1 second'"
            " AND (lease_until IS NULL OR lease_until < clock_timestamp()) ORDER BY events_at LIMIT %s"
            " FOR UPDATE SKIP LOCKED) RETURNING id)"
            " DELETE FROM @events WHERE session_id IN (SELECT id FROM old)"
        ),
        (KEPT, _TOGETHER),
    )
