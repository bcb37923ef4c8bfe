"""The keys of requests, in the file: rows that are written in the transaction in which their request takes effect."""

from __future__ import annotations

from ...foreign._sound import well_formed
from ...session import _idempotency
from ...session._idempotency import IdempotencyKey
from ._file import Connection


def know(connection: Connection, number: int, given: IdempotencyKey, now: int) -> None:
    """Note the key of a request about the session, and forget the keys that are old."""
    connection.execute("DELETE FROM idempotency WHERE used_at <= ?", (_oldest(now),))
    connection.execute(
        "INSERT OR REPLACE INTO idempotency SELECT number, ?, ?, max(events, ?), ? FROM sessions WHERE number = ?",
        (well_formed(given.key), well_formed(given.fingerprint), given.since, now, number),
    )


def known(connection: Connection, number: int, key: str, now: int) -> IdempotencyKey | None:
    """The request with this key."""
    row = connection.execute(
        "SELECT key, fingerprint, since FROM idempotency WHERE session = ? AND key = ? AND used_at > ?",
        (number, well_formed(key), _oldest(now)),
    ).fetchone()
    return None if row is None else IdempotencyKey(*row)


def _oldest(now: int) -> int:
    """The moment up to which keys are forgotten."""
    return now - int(_idempotency.KEPT * 1e6)
