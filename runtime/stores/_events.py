"""The event log of a session: what its viewers were sent, so that another process can send it, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .._errors import LeaseLost
from ..foreign._sound import well_formed
from ..session._session import Session

EVENTS: Final = 10_000  # of a session that its log keeps, the last ones
KEPT: Final = 3600.0  # seconds that it keeps them behind the last one, once no stream runs
EVERY: Final = 60.0  # seconds between two looks for logs that are over
_PAIR: Final = (int, str)


def numbered(session: Session, events: Sequence[tuple[int, str]]) -> tuple[int, list[tuple[int, str]]]:
    """The epoch of the stream that has sent the events, and these, ready to be written. Raises `ValueError`."""
    if not isinstance(session, Session):
        raise TypeError(f"events are those of a Session, not of {session!r:.200}")
    if session._stored is None:
        raise ValueError(f"session {session.id} has no event log: no stream has run it with this store")
    rows: list[tuple[int, str]] = []
    for each in events:
        number, text = each if type(each) is tuple and tuple(map(type, each)) == _PAIR else _pair(each)
        if number < 1 or (rows and number != rows[-1][0] + 1):
            raise ValueError(f"the events of a session are numbered from 1, without a gap; {number} is out of order")
        rows.append((number, well_formed(text)))
    return session._stored.epoch, rows


def following(session_id: str, last: int, rows: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The rows that come after number ``last``. Raises `ValueError` where one between is missing."""
    if rows and rows[0][0] > last + 1:
        raise ValueError(f"the event log of session {session_id} ends with {last}, so {rows[0][0]} would leave a gap")
    return rows[max(0, last + 1 - rows[0][0]) :] if rows else []


def another(session_id: str) -> LeaseLost:
    """The error for a stream whose session another has opened since."""
    return LeaseLost(f"another stream has opened session {session_id} since: the event log has gone on with that one")


def _pair(each: Any) -> tuple[int, str]:
    match each:
        case (int(number), str(text)) if not isinstance(number, bool):
            return number, text
    raise TypeError(f"an event of a log must be a pair of a number and a text, not {each!r:.200}")
