"""A store that a test watches: it says what is durable and when, and fails or stands still where the test wants."""

from __future__ import annotations

import collections
import contextlib
import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from channels import SupportsDone
from runtime import (
    Agent,
    Delta,
    EventStream,
    FinishDelta,
    Message,
    NotPending,
    Session,
    Store,
    StoreError,
    Team,
    TextDelta,
    ToolCallDelta,
    ToolContext,
    ToolDefinition,
    tool,
)
from runtime.events import ElicitationRequest, Event, ToolCallConfirmation
from runtime.session._journal import Entry, Journal, Request, Status
from runtime.stores import MemoryStore, Parent
from runtime.stores._memory import _Kept

Strike = Callable[[int, "Watched"], None]  # at the write with this number; it may raise, or stand still


def survivor(store: MemoryStore) -> MemoryStore:
    """What another process finds where the one that has ``store`` dies now."""
    found = MemoryStore()
    with store._lock:
        for id, kept in store._sessions.items():
            found._sessions[id] = _Kept(copy.deepcopy(kept.snapshot))
    return found


class Watched:
    """A store, by default in memory, and what was made durable in it so far, in its order."""

    def __init__(self, strike: Strike | None = None, inner: Store | None = None, after: Strike | None = None) -> None:
        self.inner: Any = MemoryStore() if inner is None else inner
        self.durable: list[Any] = []  # entries, ("opened", session id), ("answered", request id), ("released", status)
        self.writes = 0
        self._strike = strike  # before a write
        self._after = after  # when it is durable, and nobody knows yet
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

    def struck(self) -> None:
        if self._after is not None:
            self._after(self.writes, self)

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

    def release(
        self, status: Status, reason: str = "", *, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> None:
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
        self._store.struck()
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


class World:
    """An agent that does everything that is written down, and what its tools have done outside."""

    def __init__(self) -> None:
        self.effects: collections.Counter[str] = collections.Counter()
        self.dead = False  # the process that did this: what its threads do now has not happened

    def effect(self, what: str) -> None:
        if not self.dead:
            self.effects[what] += 1

    def team(self) -> Team:
        @tool
        def pay(to: str, context: ToolContext) -> str:
            """Pays."""
            self.effect(f"pay {to}")
            return f"paid {to}"

        @tool(repeatable=True)
        def put(key: str, context: ToolContext) -> str:
            """Puts something where it lies already, if it does."""
            self.effect(f"put {key} {context.call_id}")
            return f"put {key}"

        @tool(read_only=True)
        def look() -> str:
            """Looks."""
            self.effect("look")
            return "seen"

        @tool(resumable=True)
        def order(context: ToolContext) -> str:
            """Asks how many, and orders as many, once."""
            answer = context.elicit("How many?", {"type": "object", "properties": {"n": {"type": "integer"}}})
            context.once("order", lambda: self.effect("order"))
            return f"ordered {answer.content.get('n')}"

        helper = Agent(
            "helper", Planned(calls(("h1", "pay", {"to": "ann"})), done("helped")), tools=[pay], description="helps"
        )
        model = Planned(
            calls(("c1", "pay", {"to": "bob"}), ("c2", "look", {}), ("c3", "put", {"key": "k"})),
            calls(("c4", "transfer_task", {"agent": "helper", "task": "help"}), ("c5", "order", {})),
            calls(("c6", "pay", {"to": "cat"})),
            done(),
        )
        return Team([Agent("boss", model, tools=[pay, put, look, order], sub_agents=["helper"]), helper])


def consume(stream: EventStream, events: list[Event]) -> None:
    """As people write it. Who is told that his answer could not be written down gives it again."""
    for event in stream:
        events.append(event)
        if isinstance(event, (ToolCallConfirmation, ElicitationRequest)):
            with contextlib.suppress(NotPending):  # the run has ended meanwhile
                try:
                    answer(stream, event)
                except StoreError:
                    answer(stream, event)


def answer(stream: EventStream, event: ToolCallConfirmation | ElicitationRequest) -> None:
    if isinstance(event, ToolCallConfirmation):
        stream.approve(event)
    else:
        stream.respond(event, "accept", {"n": 3})


RESULTS = {"c1": "paid bob", "c2": "seen", "c3": "put k", "c4": "helped", "c5": "ordered 3", "c6": "paid cat"}


def results(session: Session) -> dict[str | None, str]:
    return {message.tool_call_id: message.content for message in session.messages if message.role == "tool"}
