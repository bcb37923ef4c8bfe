"""A store that a test watches: it says what is durable and when, and fails or stands still where the test wants."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from channels import SupportsDone
from runtime import Delta, FinishDelta, Message, Session, StoreError, TextDelta, ToolCallDelta, ToolDefinition
from runtime.session._journal import Entry, Journal, Request, Status
from runtime.stores import MemoryStore, Parent
from runtime.stores._memory import _Kept

Strike = Callable[[int, "Watched"], None]  # before the write with this number; it may raise, or stand still


def survivor(store: MemoryStore) -> MemoryStore:
    """What another process finds where the one that has ``store`` dies now."""
    found = MemoryStore()
    with store._lock:
        for id, kept in store._sessions.items():
            found._sessions[id] = _Kept(copy.deepcopy(kept.snapshot))
    return found


class Watched:
    """A `MemoryStore`, and what was made durable in it so far, in its order."""

    def __init__(self, strike: Strike | None = None) -> None:
        self.inner = MemoryStore()
        self.durable: list[Any] = []  # entries, ("opened", session id), ("answered", request id), ("released", status)
        self.writes = 0
        self._strike = strike
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open(self, session: Session, *, parent: Parent | None = None) -> Journal:
        self.strike()
        journal = _Journal(self, self.inner.open(session, parent=parent))
        self.durable.append(("opened", session.id))
        return journal

    def answer(self, request_id: str, answer: Mapping[str, Any], *, by: str = "") -> Request:
        self.strike()
        request = self.inner.answer(request_id, answer, by=by)
        self.durable.append(("answered", request_id))
        return request

    def heal(self) -> None:
        """Nothing comes in between any more."""
        self._strike = None

    def strike(self) -> None:
        with self._lock:
            self.writes += 1
            number = self.writes
        if self._strike is not None:
            self._strike(number, self)


class _Journal:
    def __init__(self, store: Watched, inner: Journal) -> None:
        self._store = store
        self._inner = inner
        self._posted: list[Entry] = []
        self._failed: StoreError | None = None

    def append(self, *entries: Entry, cancel: SupportsDone | None = None) -> None:
        self.post(*entries)
        self._write(lambda: None)

    def post(self, *entries: Entry) -> None:
        self._posted.extend(entries)

    def release(self, status: Status, reason: str = "", *, timeout: float | None = None) -> None:
        try:
            self._write(lambda: self._inner.release(status, reason, timeout=timeout))
        except StoreError:
            self._inner.release("interrupted", reason)  # the lease runs out by itself
            raise
        self._store.durable.append(("released", status))

    def _write(self, last: Callable[[], None]) -> None:
        if self._failed is not None:
            raise self._failed
        try:
            self._store.strike()
        except StoreError as error:
            self._failed = error
            raise
        posted, self._posted = self._posted, []
        self._inner.append(*posted)
        self._store.durable.extend(posted)
        last()


class Planned:
    """A model that says what its plan has for the number of replies it has given, in whichever process that was."""

    id = "planned"

    def __init__(self, *replies: Sequence[Delta]) -> None:
        self.replies = replies
        self.seen: list[Sequence[Message]] = []

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: object
    ) -> Sequence[Delta]:
        self.seen.append(messages)
        said = sum(message.role == "assistant" for message in messages)
        return self.replies[min(said, len(self.replies) - 1)]


def calls(*named: tuple[str, str, Mapping[str, Any]]) -> list[Delta]:
    """A reply that makes calls: id, name, arguments."""
    made: list[Delta] = [ToolCallDelta(i, id, name, arguments) for i, (id, name, arguments) in enumerate(named)]
    return [*made, FinishDelta("tool_calls")]


def done(text: str = "done") -> list[Delta]:
    """A reply that ends the turn."""
    return [TextDelta(text), FinishDelta("stop")]
