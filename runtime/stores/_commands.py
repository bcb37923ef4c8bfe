"""Commands for the stream of a session, which another process may run: what may be said, and when it is refused."""

from __future__ import annotations

from typing import get_args

from .._checks import check
from .._errors import NotRunning
from ..foreign._sound import well_formed
from ..session._journal import Mailed, MailPoint


def checked_mail(id: str, point: MailPoint, text: str) -> Mailed:
    """The message, ready to be written. Raises `ValueError` and `TypeError`."""
    if point not in get_args(MailPoint):
        raise ValueError(f"a message must be for {' or '.join(get_args(MailPoint))}, not {point!r}")
    check("what the user says", text, str, "text")
    return Mailed(id, point, well_formed(text))


def reason_for(reason: str) -> str:
    """The reason of a cancel, ready to be written. Raises `TypeError`."""
    check("the reason of a cancel", reason, str, "text")
    return well_formed(reason)


def not_running(session_id: str, owner: object | None) -> NotRunning:
    """The error for a session that no stream runs, or, with its ``owner``, one that takes no commands."""
    if owner is None:
        return NotRunning(f"no run on session {session_id} is live")
    return NotRunning(
        f"the run on session {session_id}, in {owner}, takes no commands of other processes: its runtime is to be made"
        " with Runtime(agent, store=store, listen=True)"
    )
