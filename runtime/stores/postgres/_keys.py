"""The keys of requests: rows that are written in the transaction in which their request takes effect."""

from __future__ import annotations

from ...foreign._sound import well_formed
from ...session import _idempotency
from ...session._idempotency import IdempotencyKey
from ._database import Connection, Database
from ._rows import column, text_of


def know(database: Database, connection: Connection, session: str, given: IdempotencyKey) -> None:
    """Note the key of a request about the session, and forget the keys that are old."""
    connection.execute(
        database.sql("DELETE FROM @idempotency WHERE used_at <= clock_timestamp() - %s * interval '1 second'"),
        (_idempotency.KEPT,),
    )
    connection.execute(
        database.sql(
            "INSERT INTO @idempotency (session_id, key, fingerprint, since)"
            " SELECT id, %s, %s, greatest(events, %s) FROM @sessions WHERE id = %s"
            " ON CONFLICT (session_id, key) DO UPDATE SET fingerprint = excluded.fingerprint, since = excluded.since,"
            " used_at = excluded.used_at"
        ),
        (column(well_formed(given.key)), column(well_formed(given.fingerprint)), given.since, session),
    )


def known(database: Database, connection: Connection, session: str, key: str) -> IdempotencyKey | None:
    """The request with this key."""
    row = connection.execute(
        database.sql(
            "SELECT fingerprint, since FROM @idempotency WHERE session_id = %s AND key = %s"
            " AND used_at > clock_timestamp() - %s * interval '1 second'"
        ),
        (session, column(well_formed(key)), _idempotency.KEPT),
    ).fetchone()
    return None if row is None else IdempotencyKey(key, text_of(row[0]), row[1])
