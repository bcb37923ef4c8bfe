"""`MemoryStore`: a store that ends with its process, for tests, and to see what a store does."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import NoneType
from typing import TYPE_CHECKING, Any

from channels import Channel, Receiver, SupportsDone, select

from .._checks import check, check_number
from .._dataclasses import replace
from .._errors import NotPending, SessionBusy, SessionNotFound, StoreError
from .._public import not_copied, publish
from ..foreign._sound import well_formed
from ..session import _idempotency
from ..session._idempotency import IdempotencyKey
from ..session._journal import (
    Allowed,
    Began,
    Counted,
    Ended,
    Entry,
    HandedOver,
    Mailed,
    MailPoint,
    Named,
    Partial,
    Request,
    Requested,
    Said,
    Shortened,
    Status,
    Step,
)
from ..session._message import Message
from ..session._session import Session, Stored
from ._answers import checked
from ._commands import checked_mail, not_running, reason_for
from ._events import EVENTS, another, following, numbered
from ._ids import checked_done, checked_id, in_utc
from ._notices import NOTICES, tell
from ._search_terms import words
from ._snapshot import Asking, Call, Snapshot, allowing, branched, permissions_of, to_write
from ._store import Commands, Notice, Parent, SessionInfo, Store
from ._transfer import exported, imported


class _Kept:
    """A session in memory, and who runs it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.journal: MemoryJournal | None = None  # of the stream that has it
        self.listens = False
        self.cancel: str | None = None
        self.looked_at: datetime | None = None
        self.last_event = 0
        self.events: deque[tuple[int, str]] = deque(maxlen=EVENTS)
        self.keys: dict[str, tuple[float, IdempotencyKey]] = {}  # of requests, with their moments, the oldest first

    def know(self, given: IdempotencyKey) -> None:
        """Note the key of a request that takes effect now."""
        now = time.monotonic()
        self.keys.pop(given.key, None)
        for key in [key for key, (then, _) in self.keys.items() if then < now - _idempotency.KEPT]:
            del self.keys[key]
        self.keys[given.key] = now, replace(given, since=max(given.since, self.last_event))

    def known(self, key: str) -> IdempotencyKey | None:
        """The request with this key."""
        then, found = self.keys.get(key, (-math.inf, None))
        return found if then > time.monotonic() - _idempotency.KEPT else None

    # -- entries -------------------------------------------------------------------------------------------------------

    def write(self, entry: Entry) -> None:
        """Let the entry be part of the session."""
        snapshot = self.snapshot
        match entry:
            case Said(message, mail):
                snapshot.mail = [each for each in snapshot.mail if each.id != mail]
                self.say(message)
            case Ended(message):
                self.say(message)
                snapshot.calls = [call for call in snapshot.calls if call.call_id != message.tool_call_id]
                self.withdraw(message.tool_call_id)
            case Requested(request):
                known = [each for each in snapshot.requests if each.request.id == request.id]
                for each in known:
                    each.at = len(snapshot.messages)
                    if each.request.answer is None:
                        each.request = request
                if not known:
                    snapshot.requests.append(Asking(request, len(snapshot.messages)))
            case Began(call_id, arguments):
                for call in self.calls(call_id):
                    call.began, call.arguments = True, arguments
            case Step(call_id, key, value):
                for call in self.calls(call_id):
                    call.kept.setdefault(key, value)
            case Partial():
                snapshot.partial = entry
            case Counted(usage):
                snapshot.usage = usage if snapshot.usage is None else snapshot.usage + usage
            case Named(title):
                snapshot.title = title
            case HandedOver(agent_name):
                snapshot.agent_name = agent_name
            case Shortened(summary, start, shortened, at):
                snapshot.compacted = {"summary": summary, "start": start, "shortened": shortened, "at": at}
            case Allowed(rule):
                snapshot.permissions = allowing(snapshot.permissions, rule)
            case Mailed(id):
                if all(each.id != id for each in snapshot.mail):
                    snapshot.mail.append(entry)
            case _:
                raise TypeError(f"{entry!r:.200} is no entry of a journal")

    def say(self, message: Message) -> None:
        snapshot = self.snapshot
        known = {call.call_id: call for call in snapshot.calls}
        known.update({call.id: Call(len(snapshot.messages), call.id) for call in message.tool_calls})
        snapshot.calls = list(known.values())
        snapshot.messages.append(message)
        if message.usage is not None:
            self.write(Counted(message.usage))
        if message.role == "assistant":
            snapshot.partial = None

    def calls(self, call_id: str) -> list[Call]:
        return [call for call in self.snapshot.calls if call.call_id == call_id]

    def withdraw(self, call_id: str | None = None) -> None:
        """Let nobody answer the requests of a call any more, or any of them with None."""
        self.snapshot.requests = [
            each
            for each in self.snapshot.requests
            if each.request.answer is not None or (call_id is not None and each.request.call_id != call_id)
        ]

    def write_anew(self, session: Session) -> None:
        """Forget what was there: the copy has it all."""
        snapshot = self.snapshot
        snapshot.messages, snapshot.calls, snapshot.requests, snapshot.partial = [], [], [], None
        snapshot.agent_name = session.agent_name
        compacted = session.compacted
        self.write(Shortened(compacted.summary, compacted.start, compacted.shortened, compacted.at))

    @property
    def status(self) -> Status:
        return "running" if self.journal is not None else self.snapshot.status


class MemoryJournal:
    """The writing end of a session of a `MemoryStore`."""

    def __init__(self, store: MemoryStore, kept: _Kept, stored: Stored) -> None:
        self._store = store
        self._kept = kept
        self._stored = stored
        self._error: StoreError | None = None

    def append(self, *entries: Entry, cancel: SupportsDone | None = None) -> None:
        """Write the entries. Raises `StoreError`."""
        self.post(*entries)
        with self._store._lock:
            self._check()

    def post(self, *entries: Entry) -> None:
        """Write the entries; the next `append` finds out whether that has failed."""
        with self._store._lock:
            if self._error is not None or self._kept.journal is not self or not entries:
                return
            try:
                entries = tuple(map(_as_read, entries))
            except (TypeError, ValueError, RecursionError) as error:  # what JSON has no word for
                self._error = StoreError(f"session {self._kept.snapshot.id} cannot be written: {error}")
                return
            for entry in entries:
                self._kept.write(entry)
            self._stored.messages = len(self._kept.snapshot.messages)
            self._store._touch(self._kept)

    def release(
        self, status: Status, reason: str = "", *, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> None:
        """Give the session back. Raises `StoreError`."""
        with self._store._lock:
            if self._kept.journal is not self:
                return
            self._kept.journal = None
            snapshot = self._kept.snapshot
            snapshot.status, snapshot.reason = status, reason
            if status != "waiting":
                self._kept.withdraw()
            self._store._touch(self._kept)
            self._store._tell(Notice("released", snapshot.id))
            if self._error is not None:
                raise self._error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._kept.journal is not self:
            raise StoreError(f"the journal of session {self._kept.snapshot.id} was released, or its store closed")


class MemoryStore:
    """Sessions in the memory of this process: a `Store` for tests. Thread-safe; nothing here waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sessions: dict[str, _Kept] = {}
        self._watchers: list[tuple[Channel[Notice], bool]] = []  # and whether it wants those of event logs
        self._closing: Channel[None] = Channel(name="store closed")
        self._last = datetime.min.replace(tzinfo=UTC)
        weakref.finalize(self, self._closing.close)  # ends the threads of those who watch

    # -- sessions ------------------------------------------------------------------------------------------------------

    def load(self, id: str) -> Session:
        """The session with this id. Raises `SessionNotFound`."""
        with self._using():
            return self._find(id).snapshot.session()

    def open(self, session: Session, *, parent: Parent | None = None, listens: bool = False) -> MemoryJournal:
        """Take the session, as `Store.open` says. Raises `SessionBusy` and `SessionChanged`."""
        check("what to open", session, Session, "a Session")
        with self._using():
            kept = self._sessions.get(session.id)
            there = None if kept is None else (kept.snapshot.epoch, len(kept.snapshot.messages))
            own = kept is not None and session._stored is not None and session._stored.behind
            if kept is not None and kept.journal is not None and not (own and kept.journal._error is not None):
                raise SessionBusy(f"session {session.id} has a live stream, of this process")
            messages, anew = to_write(session, there)
            if kept is None:
                kept = self._new(session, parent)
            snapshot = kept.snapshot
            if anew:
                kept.write_anew(session)
            for message in messages:
                kept.write(Ended(message) if message.role == "tool" else Said(message))
            if anew:
                snapshot.usage = session._usage
            snapshot.title, snapshot.permissions = well_formed(session.title), permissions_of(session)
            snapshot.epoch += 1
            session._stored = Stored(snapshot.epoch, len(snapshot.messages))
            session._unfinished = snapshot.unfinished()
            kept.journal, kept.listens, kept.cancel = MemoryJournal(self, kept, session._stored), listens, None
            if session._idempotency is not None:
                kept.know(session._idempotency)
                session._idempotency = None
            self._touch(kept)
            return kept.journal

    def sessions(
        self, query: str = "", *, limit: int = 50, before: datetime | None = None, prefix: str = ""
    ) -> Sequence[SessionInfo]:
        """The sessions, those that changed last first, as `Store.sessions` says."""
        check("query", query, str, "text")
        check_number("limit", limit, "sessions", least=0, whole=True)
        check("before", before, (datetime, NoneType), "a datetime, or None")
        wanted = set(words(query))
        before = None if before is None else in_utc(before)
        found: list[SessionInfo] = []
        prefix = checked_id(prefix)
        with self._using():
            own = (kept for id, kept in self._sessions.items() if id.startswith(prefix))
            for kept in sorted(own, key=lambda each: each.snapshot.updated_at, reverse=True):
                snapshot = kept.snapshot
                if snapshot.parent is not None or (before is not None and snapshot.updated_at >= before):
                    continue
                texts = (snapshot.title, *(message.content for message in snapshot.messages))
                if wanted and not wanted <= {word for text in texts for word in words(text)}:
                    continue
                if len(found) == limit:
                    break
                found.append(self._info(kept))
        return found

    def info(self, id: str) -> SessionInfo:
        """What is known of the session, as `Store.info` says."""
        with self._using():
            return self._info(self._find(id))

    def branch(self, id: str, at: int | None = None) -> Session:
        """A new session with the first messages of another, as `Store.branch` says."""
        with self._using():
            original = self._find(id).snapshot
            session = branched(original.session(), at, original.parent is not None)
            kept = self._new(session, None)
            kept.snapshot.branch_of, kept.snapshot.branch_at = id, len(session.messages)
            kept.write_anew(session)
            for message in session.messages:
                kept.write(Ended(message) if message.role == "tool" else Said(message))
            return self.load(session.id)

    def delete(self, id: str) -> None:
        """Forget the session and its sub-sessions. Raises `SessionNotFound` and `SessionBusy`."""
        with self._using():
            self._find(id)
            family = self._family(id)
            for each in family:
                if self._sessions[each].journal is not None:
                    raise SessionBusy(f"session {each} has a live stream: it cannot be deleted before its end")
            for each in family:
                del self._sessions[each]
                self._tell(Notice("deleted", each))

    def export(self, id: str) -> dict[str, Any]:
        """Everything about the session and its sub-sessions, as `Store.export` says."""
        with self._using():
            self._find(id)
            return exported([self._sessions[each].snapshot for each in self._family(id)])

    def import_(self, data: Mapping[str, Any]) -> Session:
        """Add a session that `export` wrote. Raises `ValueError`."""
        snapshots = imported(data)
        with self._using():
            for each in snapshots:
                if each.id in self._sessions:
                    raise ValueError(f"the store has a session {each.id} already; delete it first")
            for each in snapshots:
                self._sessions[each.id] = _Kept(each)
            return self.load(snapshots[0].id)

    # -- requests ------------------------------------------------------------------------------------------------------

    def pending(self, id: str | None = None, *, prefix: str = "") -> Sequence[Request]:
        """The requests that wait for an answer, as `Store.pending` says."""
        id = None if id is None else checked_id(id)
        with self._using():
            wanted = list(self._sessions) if id is None else self._family(id)
            found = [request for each in wanted for request in self._open_requests(each)]
            return [request for request in found if request.root_id.startswith(prefix)]

    def answer(self, request_id: str, answer: Mapping[str, Any], *, by: str = "") -> Request:
        """Answer a request; the first answer counts. Raises `NotPending` and `InvalidAnswer`."""
        request_id = checked_id(request_id, "request")
        with self._using():
            asking = self._asking(request_id)
            if asking is None or asking.request.answer is not None or asking.request.expired:
                raise NotPending(f"no request {request_id} is waiting: it was answered, withdrawn or timed out")
            request = asking.request
        said = checked(request, answer)  # patterns of others: not under the lock
        with self._using():
            if self._asking(request_id) is not asking or asking.request.answer is not None:
                raise NotPending(f"request {request_id} was answered or withdrawn meanwhile")
            asking.request = asking.request.answered(said, well_formed(by))
            self._tell_of_answer(request_id)
            return asking.request

    def ready(self) -> Sequence[str]:
        """The ids of the waiting sessions that have nothing to wait for any more."""
        with self._using():
            return [
                id
                for id, kept in self._sessions.items()
                if kept.status == "waiting" and kept.snapshot.parent is None and not self._waiting(id)
            ]

    # -- other processes, or so ----------------------------------------------------------------------------------------

    def mail(self, id: str, point: MailPoint, text: str, *, key: IdempotencyKey | None = None) -> Mailed:
        """Put a message into the mailbox of the session, as `Store.mail` says."""
        mailed = checked_mail(uuid.uuid4().hex, point, text)
        with self._using():
            if key is not None and self._find(id).known(key.key) is not None:
                return mailed
            kept = self._commanded(id)
            if key is not None:
                kept.know(key)
            kept.write(mailed)
            self._tell(Notice("mailed", id))
        return mailed

    def idempotency_key(self, id: str, key: str) -> IdempotencyKey | None:
        """The request with this key, as `Store.idempotency_key` says."""
        with self._using():
            return self._find(id).known(key)

    def cancel(self, id: str, reason: str = "") -> None:
        """Ask the stream of the session to end, as `Store.cancel` says."""
        reason = reason_for(reason)
        with self._using():
            self._commanded(id).cancel = reason
            self._tell(Notice("canceled", id))

    def look(self, id: str) -> None:
        """Note that somebody looks at the session now."""
        with self._using():
            self._find(id).looked_at = datetime.now(UTC)

    def commands(self, id: str) -> Commands:
        """What the stream of the session was told."""
        with self._using():
            kept = self._find(id)
            return Commands(tuple(kept.snapshot.mail), kept.cancel, kept.looked_at)

    def append_events(self, session: Session, events: Sequence[tuple[int, str]]) -> None:
        """Add to the event log of the session, as `Store.append_events` says."""
        epoch, rows = numbered(session, events)
        with self._using():
            kept = self._find(session.id)
            if kept.snapshot.epoch != epoch:
                raise another(session.id)
            rows = following(session.id, kept.last_event, rows)
            if rows:
                kept.events.extend(rows)
                kept.last_event = rows[-1][0]
                self._tell(Notice("events", session.id))

    def events(self, id: str, since: int = 0, *, limit: int = 1000) -> Sequence[tuple[int, str]]:
        """The events behind number ``since``, as `Store.events` says."""
        check_number("since", since, "the number of an event", least=0, whole=True)
        check_number("limit", limit, "events", least=0, whole=True)
        with self._using():
            return [each for each in self._find(id).events if each[0] > since][:limit]

    def last_event(self, id: str) -> int:
        """The number of the last event of the session."""
        with self._using():
            return self._find(id).last_event

    def watch(self, cancel: SupportsDone, *, events: bool = False) -> Receiver[Notice]:
        """What happens from now on; the channel closes when ``cancel`` is done, or the store is closed."""
        done = checked_done(cancel)
        with self._using():
            channel: Channel[Notice] = Channel(NOTICES, name="notices")
            self._watchers.append((channel, events))
            thread = threading.Thread(
                target=_until, args=(done, self._closing.receiver, channel), name="store-watch", daemon=True
            )
            thread.start()
            return channel.receiver

    def close(self) -> None:
        """Let nobody write any more. Twice is harmless."""
        with self._lock:
            self._closing.close()
            for kept in self._sessions.values():
                if kept.journal is not None:
                    kept.journal = None
                    kept.snapshot.status = "interrupted"

    # -- inside --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            if self._closing.closed:
                raise StoreError("the store is closed")
            yield

    def _find(self, id: str) -> _Kept:
        id = checked_id(id)
        kept = self._sessions.get(id)
        if kept is None:
            raise SessionNotFound(f"the store has no session {id}")
        return kept

    def _commanded(self, id: str) -> _Kept:
        """The session, on which a stream runs that listens. Raises `NotRunning`."""
        kept = self._find(id)
        if kept.journal is None or not kept.listens:
            raise not_running(id, None if kept.journal is None else "this process")
        return kept

    def _new(self, session: Session, parent: Parent | None) -> _Kept:
        now = datetime.now(UTC)
        snapshot = Snapshot(session.id, well_formed(session.title), permissions_of(session), now, now, parent)
        if parent is not None:
            for call in self._find(parent.session_id).calls(parent.call_id or ""):
                call.nested.append(session.id)
        kept = self._sessions[session.id] = _Kept(snapshot)
        self._touch(kept)
        return kept

    def _touch(self, kept: _Kept) -> None:
        now = max(datetime.now(UTC), self._last + datetime.resolution)  # no two have the same: pages go on by it
        self._last = kept.snapshot.updated_at = now

    def _family(self, id: str) -> list[str]:
        """The session and its sub-sessions, which come after it."""
        family = [id] if id in self._sessions else []
        for each in family:  # it grows
            family += [
                other
                for other, kept in self._sessions.items()
                if kept.snapshot.parent is not None and kept.snapshot.parent.session_id == each
            ]
        return family

    def _asking(self, request_id: str) -> Asking | None:
        every = (each for kept in self._sessions.values() for each in kept.snapshot.requests)
        return next((each for each in every if each.request.id == request_id), None)

    def _open_requests(self, id: str) -> list[Request]:
        every = (each.request for each in self._sessions[id].snapshot.requests)
        return [request for request in every if request.answer is None and not request.expired]

    def _waiting(self, id: str) -> int:
        return sum(len(self._open_requests(each)) for each in self._family(id))

    def _info(self, kept: _Kept) -> SessionInfo:
        snapshot = kept.snapshot
        return SessionInfo(
            id=snapshot.id,
            title=snapshot.title,
            agent_name=snapshot.agent_name,
            status=kept.status,
            reason=snapshot.reason,
            messages=len(snapshot.messages),
            created_at=snapshot.created_at,
            updated_at=snapshot.updated_at,
            parent_id=None if snapshot.parent is None else snapshot.parent.session_id,
            branch_of=snapshot.branch_of,
            waiting=self._waiting(snapshot.id),
        )

    def _tell_of_answer(self, request_id: str) -> None:
        asking = self._asking(request_id)
        if asking is not None:
            self._tell(Notice("answered", asking.request.session_id, replace(asking.request)))

    def _tell(self, notice: Notice) -> None:
        logged = notice.kind == "events"
        self._watchers = [each for each in self._watchers if (logged and not each[1]) or tell(each[0], notice)]

    __reduce_ex__ = not_copied("its sessions are in this process; others need a store with a file or a database")

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._sessions)} sessions>"


def _until(done: Receiver[Any], closing: Receiver[None], channel: Channel[Notice]) -> None:
    select(done, closing)
    channel.close()


def _as_read(entry: Entry) -> Entry:
    """The entry as another process would read it. Raises where JSON has no word for what is in it."""
    match entry:
        case Step(_, _, value):
            return replace(entry, value=json.loads(json.dumps(value)))
        case Requested(request):
            said = replace(request, event=json.loads(json.dumps(request.event)))
            return Requested(replace(said, schema=json.loads(json.dumps(said.schema))))
    return entry


if TYPE_CHECKING:
    _is_a_store: type[Store] = MemoryStore

publish("runtime.stores", globals(), ["MemoryStore"])
