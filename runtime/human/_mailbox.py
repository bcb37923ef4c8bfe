"""The mailbox of a stream: steering messages, follow-ups, and pauses while it runs.

A message is either taken by the worker, which records it, or refused: the worker closes the mailbox in the same step in
which it finds it empty at the end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from channels import CancelToken, Channel, ChannelClosed
from channels._lazy import lazy

from .._dataclasses import dataclass
from .._errors import NotRunning
from ..session._journal import Mailed, MailPoint
from ..session._session import Session, SessionLog

if TYPE_CHECKING:
    import uuid
else:
    uuid = lazy("uuid")


@dataclass(frozen=True, slots=True)
class Mail:
    """A message of the user, and the hook point at which it is submitted. ``id`` is the id of its `Mailed` in the
    store."""

    point: MailPoint
    text: str
    id: str | None = None


class Mailbox:
    """The messages of the user for one stream, and whether it is paused. Thread-safe. Only `wait` waits, and `take`
    waits for a store. ``left`` are the messages that an earlier stream has not taken.
    """

    def __init__(self, session: Session, log: SessionLog, left: Iterable[Mailed] = ()) -> None:
        self._session = session
        self._outbox = log.outbox
        self._steering: list[Mail] = []
        self._following: list[Mail] = []
        self._closed = False
        self._resumed: Channel[None] | None = None  # closes when the pause is over
        self._lock = threading.RLock()  # a signal handler may steer, too
        self._known: set[str] = set()  # the ids of those that were here: the store has them until they are recorded
        self.deliver(left)

    # -- for anyone ----------------------------------------------------------------------------------------------------

    def take(self, mail: Mail) -> None:
        """Take a message for the next model call (`Runtime.steer`), or for when the agent has nothing more to do
        (`Runtime.follow_up`). Raises `NotRunning` and `StoreError`.
        """
        stored = self._outbox.is_open
        with self._lock:
            self._refuse_if_closed()
            mail = Mail(mail.point, mail.text, uuid.uuid4().hex if stored else None)
            if mail.id is not None:  # noted before the worker can take it: it is said after that
                self._known.add(mail.id)
                self._outbox.note(Mailed(mail.id, mail.point, mail.text))
            self._queue(mail.point).append(mail)
        if stored:
            self._outbox.flush(None)

    def deliver(self, mailed: Iterable[Mailed]) -> None:
        """Take the messages that the store has for this stream, but for those that were here before. A mailbox that is
        closed leaves them to the next stream.
        """
        with self._lock:
            for each in mailed:
                if not self._closed and each.id not in self._known:
                    self._known.add(each.id)
                    self._queue(each.point).append(Mail(each.point, each.text, each.id))

    def _queue(self, point: MailPoint) -> list[Mail]:
        return self._following if point == "user_followup_submit" else self._steering

    def pause(self) -> None:
        """Pause the stream before its next turn. Raises `NotRunning`."""
        with self._lock:
            self._refuse_if_closed()
            if self._resumed is None:
                self._resumed = Channel(name="resumed")

    def resume(self) -> None:
        """Let a paused stream go on. Raises `NotRunning`."""
        with self._lock:
            self._refuse_if_closed()
            resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise NotRunning(f"the run on session {self._session.id} has come to its end")

    # -- for the worker ------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the stream is to be paused."""
        return self._resumed is not None

    def wait(self, token: CancelToken) -> None:
        """Wait until the stream is resumed, and not paused again. Raises `Cancelled`."""
        while (resumed := self._resumed) is not None:
            with contextlib.suppress(ChannelClosed):
                resumed.recv(cancel=token)

    def steering(self) -> list[Mail]:
        """Take the steering messages that have come since the last call."""
        with self._lock:
            said = list(self._steering)
            self._steering.clear()
        return said

    def next(self) -> list[Mail]:
        """Take the next messages once the agent has nothing more to do. If there are none, the mailbox closes."""
        with self._lock:
            said = self.steering() or ([self._following.pop(0)] if self._following else [])
            self._closed = not said
        return said

    def close(self) -> list[Mail]:
        """Refuse further messages, and return those that were not taken."""
        with self._lock:
            self._closed = True
            said = [*self._steering, *self._following]
            self._steering.clear()
            self._following.clear()
        return said

    def __repr__(self) -> str:
        state = "closed" if self._closed else "paused" if self.paused else "open"
        return f"<Mailbox {state}, {len(self._steering) + len(self._following)} waiting>"
