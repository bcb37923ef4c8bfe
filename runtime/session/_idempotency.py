"""`IdempotencyKey`: what a client calls a request that it may send twice."""

from __future__ import annotations

from typing import Final

from .._dataclasses import dataclass

KEPT: Final = 24 * 3600.0  # seconds that a store knows a key


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key of a request about a session, so that the request is carried out once, however often it is sent, and to
    whichever process.

    ``fingerprint`` is what the request says: the same key with another one is a mistake of the client. ``since`` is the
    number of the last event in the log of the session before the request took effect. Where that log is the store's,
    the store knows it better, and notes its own.
    """

    key: str
    fingerprint: str
    since: int = 0
