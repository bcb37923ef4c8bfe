"""`SQLiteStore`: sessions in a file, for the processes of one machine."""

from __future__ import annotations

import atexit
import json
import os
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from channels import Channel, Receiver, SupportsDone
from channels._exit import exit_seconds

from ..._checks import check, check_number
from ..._dataclasses import asdict
from ..._errors import NotPending, SessionNotFound, StoreError
from ..._public import not_copied, publish
from ...session._idempotency import IdempotencyKey
from ...session._journal import Entry, Mailed, MailPoint, Request, Status
from ...session._session import Session
from .._answers import checked
from .._commands import checked_mail, not_running, reason_for
from .._events import EVERY, numbered
from .._ids import behind, checked_done, checked_id, in_utc
from .._notices import NOTICES
from .._owner import Owner
from .._snapshot import Snapshot, branched
from .._store import Commands, Notice, Parent, SessionInfo, Store
from .._transfer import exported, imported
from . import _keys, _search
from ._events import append_events, events_of, forget_events
from ._file import Connection, Durability, StoreFile
from ._journal import SQLiteJournal, is_held, open_session, refuse_busy
from ._migrations import back_up, migrate, refuse_others
from ._notices import find_request
from ._readers import Readers
from ._rows import (
    REQUEST,
    Head,
    as_json,
    blobs_of,
    family_of,
    forget_blobs,
    insert_session,
    items_of,
    mail_of,
    message_row,
    micros,
    moment,
    prepared,
    request_of,
    snapshot_of,
    update_session,
)
from ._writer import Writer, note

T = TypeVar("T")

LEASE: Final = 30.0  # seconds
_CLOSING: Final = 30.0  # seconds that what is on its way may take
_EXITING: Final = 1.5
_EVERY: Final = int(EVERY * 1e6)
_FORKING: Final = 1.0  # seconds that a fork waits for those who are inside SQLite


_INFO: Final = (
    "SELECT id, title, agent_name, status, reason, messages, created_at, updated_at, branch_of, owner, lease_until,"
    " (SELECT id FROM sessions p WHERE p.number = s.parent), (SELECT count(*) FROM requests r JOIN sessions x ON"
    " x.number = r.session WHERE r.answer IS NULL AND r.withdrawn_at IS NULL AND (r.expires_at IS NULL OR"
    " r.expires_at > ?) AND (x.number = s.number OR x.root = s.number)) FROM sessions s"
)


class SQLiteStore:
    """Sessions in an SQLite file, for any number of threads and processes of one machine.

    The file is created if it does not exist, and only its owner can read it (mode 0600); its directory has to exist.
    With ``durability="process"``, acknowledged writes survive the death of the process (``kill -9``); with ``"power"``
    they also survive a power failure, because each write waits for the disk. ``lease`` is the number of seconds for
    which a process that gives no sign of life keeps its sessions; the sessions of a process that has ended are free at
    once.

    Raises `StoreError`, which says what to do, if the file cannot be used, is damaged or belongs to another program,
    and `StoreTooNew` if a later version has written it. The file is then left unchanged. Close the store at the end, or
    use it as a context manager. A store that was made before a fork can be used in the child.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, durability: Durability = "process", lease: float = LEASE
    ) -> None:
        check_number("lease", lease, "seconds", above=0)
        self._file = StoreFile(path, durability)
        self._lease = lease
        self._closed = False
        # Not a dict of them by process: without the GIL, a dict has a lock, and a child that is forked as a thread of
        # the parent holds it would wait for it for ever.
        self._opened: _Core | None = None
        self._core()

    # -- sessions ------------------------------------------------------------------------------------------------------

    def load(self, id: str) -> Session:
        """The session with this id, ready to be run. Raises `SessionNotFound`."""
        id = checked_id(id)
        return self._read(lambda connection: self._snapshot(connection, id)).session()

    def open(self, session: Session, *, parent: Parent | None = None, listens: bool = False) -> SQLiteJournal:
        """Take the lease of the session, as `Store.open` says. Raises `SessionBusy` and `SessionChanged`."""
        check("what to open", session, Session, "a Session")
        try:
            session.id.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the id of a session must be text that UTF-8 can write, not {session.id!r:.200}"
            ) from None
        core = self._core()
        return open_session(self, core.writer, core.fts5, session, parent, listens)

    def sessions(
        self, query: str = "", *, limit: int = 50, before: datetime | None = None, prefix: str = ""
    ) -> Sequence[SessionInfo]:
        """The sessions, those that changed last first, as `Store.sessions` says."""
        check("query", query, str, "text")
        check_number("limit", limit, "sessions", least=0, whole=True)
        core = self._core()
        if query and core.fts5 and self._read(_search.is_behind):
            while core.writer.do(lambda connection, _: _search.index(connection)):
                pass
        found, values = _search.condition(query, core.fts5)
        check("before", before, (datetime, NoneType), "a datetime, or None")
        # The plus keeps SQLite from going through the sessions of all by their age.
        age = "s.updated_at"
        if prefix:
            age = "+s.updated_at"
            found += " AND s.id >= ? AND s.id < ?"
            values += _between(checked_id(prefix))
        if before is not None:
            found += f" AND {age} < ?"
            values.append(micros(in_utc(before)))
        now = micros(datetime.now(UTC))
        statement = f"{_INFO} WHERE s.parent IS NULL{found} ORDER BY {age} DESC, s.number DESC LIMIT ?"
        rows = self._read(
            lambda connection: connection.execute(statement, (now, *values, min(limit, 2**62))).fetchall()
        )
        return [_info(row, now) for row in rows]

    def info(self, id: str) -> SessionInfo:
        """What is known of the session, as `Store.info` says."""
        id = checked_id(id)
        now = micros(datetime.now(UTC))
        row = self._read(lambda connection: connection.execute(f"{_INFO} WHERE s.id = ?", (now, id)).fetchone())
        if row is None:
            raise SessionNotFound(f"the store has no session {id}")
        return _info(row, now)

    def branch(self, id: str, at: int | None = None) -> Session:
        """A new session with the first messages of another, as `Store.branch` says."""
        id = checked_id(id)
        original = self._read(lambda connection: self._snapshot(connection, id))
        session = branched(original.session(), at, original.parent is not None)
        rows = [message_row(message) for message in session._messages]

        def write(connection: Connection, now: int) -> None:
            number = insert_session(connection, session, now, branch=(id, len(rows)))
            head = Head(number, session.id)
            changed = head.write(connection, rows, now)
            changed.update(
                messages=head.messages, agent_name=session.agent_name, compacted=as_json(asdict(session.compacted))
            )
            update_session(connection, number, changed)

        self._core().writer.do(write)
        return self.load(session.id)

    def delete(self, id: str) -> None:
        """Forget the session and its sub-sessions. Raises `SessionNotFound` and `SessionBusy`."""
        id = checked_id(id)

        def delete(connection: Connection, now: int) -> None:
            family = family_of(connection, id)
            if not family:
                raise SessionNotFound(f"the store has no session {id}")
            for _, each in family:
                refuse_busy(connection, each, now, "a stream has it, so it is not deleted")
            numbers = [number for number, _ in family]
            blobs = blobs_of(connection, numbers)
            _search.forget(connection, numbers, core.fts5)
            for number, each in reversed(family):  # sub-sessions first
                connection.execute("DELETE FROM items WHERE number BETWEEN ? AND ?", items_of(number))
                connection.execute("DELETE FROM events WHERE number BETWEEN ? AND ?", items_of(number))
                connection.execute("DELETE FROM sessions WHERE number = ?", (number,))
                note(connection, "deleted", each)
            forget_blobs(connection, blobs)

        core = self._core()
        core.writer.do(delete)

    def export(self, id: str) -> dict[str, Any]:
        """Everything about the session and its sub-sessions, as `Store.export` says. Raises `SessionNotFound`."""
        id = checked_id(id)

        def read(connection: Connection) -> list[Snapshot]:
            family = [each for _, each in family_of(connection, id)]
            return [self._snapshot(connection, each) for each in family or [id]]

        return exported(self._read(read))

    def import_(self, data: Mapping[str, Any]) -> Session:
        """Add a session that `export` wrote, as `Store.import_` says. Raises `ValueError`."""
        snapshots = imported(data)
        rows = [[message_row(message) for message in each.messages] for each in snapshots]

        def write(connection: Connection, now: int) -> None:
            for snapshot, messages in zip(snapshots, rows, strict=True):
                found = connection.execute("SELECT 1 FROM sessions WHERE id = ?", (snapshot.id,)).fetchone()
                if found is not None:
                    raise ValueError(f"the store has a session {snapshot.id} already; delete it first")
                _insert(connection, snapshot, messages, now)

        self._core().writer.do(write)
        return self.load(snapshots[0].id)

    # -- requests ------------------------------------------------------------------------------------------------------

    def pending(self, id: str | None = None, *, prefix: str = "") -> Sequence[Request]:
        """The requests that wait for an answer, as `Store.pending` says."""
        id = None if id is None else checked_id(id)
        statement = (
            f"SELECT {REQUEST} FROM requests JOIN sessions ON sessions.number = session WHERE answer IS NULL AND"
            " withdrawn_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
        )

        def read(connection: Connection) -> list[Request]:
            which, values = "", [micros(datetime.now(UTC))]  # type: str, list[Any]
            if id is not None:
                family = [number for number, _ in family_of(connection, id)]
                which = f" AND session IN ({', '.join(map(str, family))})"
            if prefix:
                which += " AND root_id >= ? AND root_id < ?"
                values += _between(checked_id(prefix))
            rows = connection.execute(f"{statement}{which} ORDER BY requests.number", values)
            return [request_of(row) for row in rows]

        return self._read(read)

    def answer(self, request_id: str, answer: Mapping[str, Any], *, by: str = "") -> Request:
        """Answer a request; the first answer counts. Raises `NotPending` and `InvalidAnswer`."""
        request_id = checked_id(request_id, "request")
        request = self._read(lambda connection: find_request(connection, request_id))
        if request is None or request.answer is not None or request.expired:
            raise NotPending(f"no request {request_id} is waiting: it was answered, withdrawn or timed out")
        said = as_json(checked(request, answer))  # patterns of others: in the thread of whoever answers

        def write(connection: Connection, now: int) -> Request:
            done = connection.execute(
                "UPDATE requests SET answer = ?, answered_by = ?, answered_at = ? WHERE id = ? AND answer IS NULL AND"
                " withdrawn_at IS NULL AND (expires_at IS NULL OR expires_at > ?)",
                (said, _text(by), now, request_id, micros(datetime.now(UTC))),
            )
            found = find_request(connection, request_id)
            if not done.rowcount or found is None:
                raise NotPending(f"request {request_id} was answered, withdrawn or timed out meanwhile")
            note(connection, "answered", found.session_id, request_id)
            return found

        answered: Request = self._core().writer.do(write)
        return answered

    def ready(self) -> Sequence[str]:
        """The ids of the waiting sessions that have nothing to wait for any more."""
        now = micros(datetime.now(UTC))
        rows = self._read(
            lambda connection: connection.execute(
                "SELECT id FROM sessions s WHERE status = 'waiting' AND parent IS NULL AND NOT EXISTS (SELECT 1 FROM"
                " requests r JOIN sessions x ON x.number = r.session WHERE r.answer IS NULL AND r.withdrawn_at IS NULL"
                " AND (r.expires_at IS NULL OR r.expires_at > ?) AND (x.number = s.number OR x.root = s.number))"
                " ORDER BY updated_at",
                (now,),
            ).fetchall()
        )
        return [id for (id,) in rows]

    # -- other processes -----------------------------------------------------------------------------------------------

    def mail(self, id: str, point: MailPoint, text: str, *, key: IdempotencyKey | None = None) -> Mailed:
        """Put a message into the mailbox of the session, as `Store.mail` says."""
        mailed = checked_mail(uuid.uuid4().hex, point, text)

        def write(connection: Connection, now: int) -> None:
            if key is not None and _keys.known(connection, self._row(connection, id, "number")[0], key.key, now):
                return
            number = _commanded(connection, id, now)
            if key is not None:
                _keys.know(connection, number, key, now)
            connection.execute(
                "INSERT INTO mailbox (session, id, point, text) VALUES (?, ?, ?, ?)",
                (number, mailed.id, mailed.point, mailed.text),
            )
            note(connection, "mailed", id)

        id = checked_id(id)
        self._core().writer.do(write)
        return mailed

    def idempotency_key(self, id: str, key: str) -> IdempotencyKey | None:
        """The request with this key, as `Store.idempotency_key` says."""
        id = checked_id(id)

        def read(connection: Connection) -> IdempotencyKey | None:
            (number,) = self._row(connection, id, "number")
            return _keys.known(connection, number, key, micros(datetime.now(UTC)))

        return self._read(read)

    def cancel(self, id: str, reason: str = "") -> None:
        """Ask the stream of the session to end, as `Store.cancel` says."""
        reason = reason_for(reason)

        def write(connection: Connection, now: int) -> None:
            number = _commanded(connection, id, now)
            connection.execute("UPDATE sessions SET cancel = ? WHERE number = ?", (reason, number))
            note(connection, "canceled", id)

        id = checked_id(id)
        self._core().writer.do(write)

    def look(self, id: str) -> None:
        """Note that somebody looks at the session now, as `Store.look` says."""
        id = checked_id(id)

        def write(connection: Connection, now: int) -> None:
            if not connection.execute("UPDATE sessions SET looked_at = ? WHERE id = ?", (now, id)).rowcount:
                raise SessionNotFound(f"the store has no session {id}")

        self._core().writer.do(write)

    def commands(self, id: str) -> Commands:
        """What the stream of the session was told, as `Store.commands` says."""
        id = checked_id(id)

        def read(connection: Connection) -> Commands:
            number, cancel, looked_at = self._row(connection, id, "number, cancel, looked_at")
            seen = None if looked_at is None else moment(looked_at)
            return Commands(tuple(mail_of(connection, number)), cancel, seen)

        return self._read(read)

    def append_events(self, session: Session, events: Sequence[tuple[int, str]]) -> None:
        """Add to the event log of the session, as `Store.append_events` says."""
        epoch, rows = numbered(session, events)
        core = self._core()

        def write(connection: Connection, now: int) -> None:
            append_events(connection, session.id, epoch, rows, now)
            if now > core.forgotten + _EVERY:
                core.forgotten = now
                forget_events(connection, now)

        core.writer.do(write)

    def events(self, id: str, since: int = 0, *, limit: int = 1000) -> Sequence[tuple[int, str]]:
        """The events behind number ``since``, as `Store.events` says."""
        id = checked_id(id)
        check_number("since", since, "the number of an event", least=0, whole=True)
        check_number("limit", limit, "events", least=0, whole=True)

        def read(connection: Connection) -> list[tuple[int, str]]:
            number, last = self._row(connection, id, "number, events")
            return events_of(connection, number, last, since, limit)

        return self._read(read)

    def last_event(self, id: str) -> int:
        """The number of the last event, as `Store.last_event` says."""
        id = checked_id(id)
        last: int = self._read(lambda connection: self._row(connection, id, "events"))[0]
        return last

    def watch(self, cancel: SupportsDone, *, events: bool = False) -> Receiver[Notice]:
        """What happens in the store from now on, as `Store.watch` says. What another process does is seen within a
        fiftieth of a second.
        """
        done = checked_done(cancel)
        channel: Channel[Notice] = Channel(NOTICES, name="notices")
        self._core().writer.watch(channel, done, events)
        return channel.receiver

    # -- the file ------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The file."""
        return self._file.path

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Write a whole copy of the file, as of one moment, to ``path``, while streams go on. Raises `StoreError`, also
        where there is something at that path.
        """
        with self._core().readers.entered():
            connection = self._connect(write=True)
            try:
                back_up(self._file, connection, os.path.abspath(os.fspath(path)))
            finally:
                connection.close()

    def close(self) -> None:
        """Write what is on its way, give back leases of streams that still run, and close the file. Twice is harmless.

        Raises `StoreError` where that takes longer than half a minute; it then goes on by itself.
        """
        self._closed = True
        core = self._own_core()
        if core is not None and not core.close(_CLOSING):
            raise StoreError(f"{self._file} could not be closed within {_CLOSING:g} s: its disk stands still")

    def __enter__(self) -> SQLiteStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __reduce_ex__ = not_copied("open the file in each process, SQLiteStore(path)")

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._file.path!r}{', closed' if self._closed else ''}>"

    # -- inside --------------------------------------------------------------------------------------------------------

    def _core(self) -> _Core:
        """What this process has of the store."""
        if self._closed:
            raise StoreError("the store is closed")
        core = self._own_core()
        if core is None:
            with _making:
                core = self._own_core()
                if core is None:
                    core = self._opened = self._new_core()
        return core

    def _own_core(self) -> _Core | None:
        """What this process has opened: a forked child opens another one."""
        core = self._opened
        return core if core is not None and core.process == os.getpid() else None

    def _new_core(self) -> _Core:
        self._file.prepare()
        connection = self._connect(write=True)
        try:
            refuse_others(self._file, connection)  # before anything is written
            self._file.use_wal(connection)
            migrate(self._file, connection)
            fts5 = _search.has_fts5(connection)
            core = _Core(self._file, connection, self._lease, fts5)
        except sqlite3.Error as error:
            connection.close()
            raise self._file.explained(error) from error
        except BaseException:
            connection.close()
            raise
        weakref.finalize(self, core.let_end).atexit = False
        return core

    def _connect(self, *, write: bool) -> Connection:
        try:
            return self._file.connect(write=write)
        except sqlite3.Error as error:
            raise self._file.explained(error) from error

    def _read(self, function: Callable[[Connection], T]) -> T:
        try:
            return self._core().readers.read(function)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:  # it was not written by us
            raise StoreError(f"{self._file} has something in it that cannot be read: {error!r}") from error

    @staticmethod
    def _row(connection: Connection, id: str, columns: str) -> Any:
        """These columns of the row of a session. Raises `SessionNotFound`."""
        row = connection.execute(f"SELECT {columns} FROM sessions WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise SessionNotFound(f"the store has no session {id}")
        return row

    @staticmethod
    def _snapshot(connection: Connection, id: str) -> Snapshot:
        snapshot = snapshot_of(connection, id)
        if snapshot is None:
            raise SessionNotFound(f"the store has no session {id}")
        return snapshot


class _Core:
    """The connections of a process, and its writer. Does not hold the store, which may be forgotten."""

    def __init__(self, file: StoreFile, connection: Connection, lease: float, fts5: bool) -> None:
        self.process = os.getpid()
        self.fts5 = fts5
        self.forgotten = 0  # when it was looked for old event logs; used by the writer's thread alone
        self.readers = Readers(file)
        self.writer = Writer(file, connection, lease, self.readers.close)
        _live.add(self)

    def close(self, timeout: float) -> bool:
        """Whether it is closed, within ``timeout`` seconds."""
        ended = self.writer.close(timeout)
        self.readers.close()
        return ended

    def let_end(self) -> None:
        """The store is forgotten: for a finalizer, which waits for nobody."""
        if self.process == os.getpid():
            self.writer.inbox.close()


def _insert(connection: Connection, snapshot: Snapshot, messages: Sequence[Any], now: int) -> None:
    """Write a session that was imported."""
    branch = None if snapshot.branch_of is None else (snapshot.branch_of, snapshot.branch_at or 0)
    session = Session(id=snapshot.id, title=snapshot.title)
    number = insert_session(connection, session, now, parent=snapshot.parent, branch=branch)
    head = Head(number, snapshot.id)
    changed = head.write(connection, messages, now)
    more: list[Entry] = [*snapshot.mail, *([] if snapshot.partial is None else [snapshot.partial])]
    changed.update(head.write(connection, [prepared(each) for each in more], now))
    for call in snapshot.calls:
        key = (number, call.seq, call.call_id)
        connection.execute(
            "UPDATE calls SET began_at = ?, arguments = ? WHERE session = ? AND seq = ? AND call_id = ?",
            (now if call.began else None, call.arguments, *key),
        )
        connection.executemany(
            "INSERT INTO kept VALUES (?, ?, ?, ?, ?)",
            [(*key, name, as_json(value)) for name, value in call.kept.items()],
        )
    changed.update(
        messages=head.messages,
        permissions=as_json(snapshot.permissions),
        agent_name=snapshot.agent_name,
        compacted=as_json(snapshot.compacted),
        usage=None if snapshot.usage is None else as_json(snapshot.usage.to_dict()),
        status=snapshot.status,
        reason=snapshot.reason,
        epoch=snapshot.epoch,
        created_at=micros(snapshot.created_at),
        updated_at=micros(snapshot.updated_at),
    )
    update_session(connection, number, changed)


def _commanded(connection: Connection, id: str, now: int) -> int:
    """The number of a session on which a stream runs that listens. Raises `SessionNotFound` and `NotRunning`."""
    number, owner, lease_until = SQLiteStore._row(connection, id, "number, owner, lease_until")
    if not is_held(owner, lease_until, now):
        raise not_running(id, None)
    said = json.loads(owner)
    if not said.get("listens"):
        raise not_running(id, Owner.from_dict(said))
    found: int = number
    return found


def _info(row: Sequence[Any], now: int) -> SessionInfo:
    id, title, agent_name, status, reason, messages, created, updated, branch_of, owner, lease_until, *rest = row
    parent, waiting = rest
    shown: Status = status
    if status == "running" and not is_held(owner, lease_until, now):
        shown = "interrupted"  # its process has died
    return SessionInfo(
        id=id,
        title=title,
        agent_name=agent_name,
        status=shown,
        reason=reason,
        messages=messages,
        created_at=moment(created),
        updated_at=moment(updated),
        parent_id=parent,
        branch_of=branch_of,
        waiting=waiting,
    )


def _between(prefix: str) -> tuple[str, str | bytes]:
    """The first text that begins with ``prefix``, and the first value behind all of them, as SQLite orders them: texts
    by their bytes, and bytes behind all texts.
    """
    return prefix, behind(prefix) or b""


def _text(by: str) -> str:
    check("by", by, str, "text: who answers")
    return by.encode("utf-8", "replace").decode()


# -- the process -------------------------------------------------------------------------------------------------------

_live: weakref.WeakSet[_Core] = weakref.WeakSet()
_making = threading.RLock()
_held_back: dict[int, list[Any]] = {}  # by the thread that forks: the locks that it holds meanwhile


def _at_exit() -> None:
    """What was posted is written. Streams have ended by now: theirs is an exit function of `threading`, run before."""
    for core in list(_live):
        core.writer.inbox.close()
    for core in list(_live):
        core.close(exit_seconds(_EXITING))


def _before_fork() -> None:
    """No thread is inside SQLite as the process is forked: the child would find its locks taken for ever."""
    until = time.monotonic() + _FORKING
    held = _held_back[threading.get_ident()] = []

    def hold(lock: Any) -> None:
        if lock.acquire(timeout=max(0.0, until - time.monotonic())):
            held.append(lock)

    hold(_making)
    cores = list(_live)
    for core in cores:  # nobody enters any more ...
        hold(core.writer.inside)
        hold(core.readers.entrance)
    for core in cores:  # ... and who has entered leaves
        for lock in core.readers.inside:
            hold(lock)


def _after_fork() -> None:
    for lock in reversed(_held_back.pop(threading.get_ident(), [])):
        lock.release()


def _in_child() -> None:
    """A connection of the parent is never used here, and never closed: it would let go of what the parent has."""
    _after_fork()
    _held_back.clear()
    for core in list(_live):
        _never_closed(core.writer.connection)
        for connection in list(core.readers.connections):
            _never_closed(connection)
        _live.discard(core)


def _never_closed(connection: Connection) -> None:
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)

if TYPE_CHECKING:
    _is_a_store: Callable[[str], Store] = SQLiteStore

publish("runtime.stores", globals(), ["SQLiteStore"])
