"""Ids and moments that callers give, which may come from a command line or an address, and their tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from channels import Receiver, SupportsDone

from .._checks import check
from ..foreign._sound import well_formed


def checked_id(id: str, of: str = "session") -> str:
    """The id, as text that a database can look for: bytes that are no UTF-8 are the id of nothing, and no error of
    the store. Raises `TypeError` for what is no text.
    """
    check(f"the id of a {of}", id, str, "text")
    return well_formed(id)


def behind(prefix: str) -> str:
    """The first text behind all that begin with ``prefix``, in the order of their bytes; empty if there is none."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return ""
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if 0xD800 <= following < 0xE000 else following)  # no surrogates: they are no text


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC. The ends of the calendar are not the end of a list of sessions."""
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError):  # no year is before the first, or after the last
        return moment.replace(tzinfo=UTC)


def checked_done(cancel: SupportsDone) -> Receiver[Any]:
    """The receiver that closes when ``cancel`` is done. Raises `TypeError` for something else."""
    done = getattr(cancel, "done", None)
    if not isinstance(done, Receiver):
        raise TypeError(f"cancel must be a CancelToken, or an object whose done is a receiver, not {cancel!r:.200}")
    return done
