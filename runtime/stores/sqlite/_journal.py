"""The writing end of a session in a file, and how it is opened: the lease, and the epoch that fences it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Final

from channels import ChannelClosed, SupportsDone, WouldBlock

from ..._dataclasses import asdict
from ..._errors import LeaseLost, SessionBusy, SessionNotFound, StoreError
from ...foreign._sound import well_formed
from ...session._journal import Entry, Status, Unfinished
from ...session._message import Message
from ...session._session import Session, Stored
from ...usage import Usage
from .._owner import Owner
from .._snapshot import permissions_of, to_write
from .._store import Parent
from . import _keys, _search
from ._file import Connection
from ._rows import (
    Head,
    MessageRow,
    Prepared,
    as_json,
    blobs_of,
    forget_blobs,
    forget_messages,
    insert_session,
    message_row,
    moment,
    prepared,
    snapshot_of,
    update_session,
    withdraw,
)
from ._writer import Job, Lease, Writer, note

_CHANGED: Final = 1_000_000  # microseconds that the list of sessions may be behind: it is by an index, which costs


class SQLiteJournal:
    """The writing end of one session, for as long as a stream holds the lease. Thread-safe."""

    def __init__(self, store: object, writer: Writer, head: Head, epoch: int) -> None:
        self._store = store  # which shall not be collected meanwhile
        self._writer = writer
        self._process = os.getpid()
        self._head = head  # used by the writer's thread alone
        self.lease = Lease(head.number, epoch, time.monotonic())
        self.stored = Stored(epoch, head.messages)
        self._changed = 0
        #: What is sent is sent in the order of the calls. Waiting is done outside; a signal handler may come between.
        self._sending = threading.RLock()
        self._last: Job | None = None
        self._released = False
        self._failed: StoreError | None = None
        # Whoever opened it may be interrupted (Ctrl-C) before he has it: the session shall not be busy for ever.
        weakref.finalize(self, _forgotten, writer, self.lease, self._process).atexit = False

    # -- for streams ---------------------------------------------------------------------------------------------------

    def append(self, *entries: Entry, cancel: SupportsDone | None = None) -> None:
        """Write the entries, and wait until they are durable. Raises `StoreError`, `LeaseLost` and `Cancelled`."""
        self._check_process()
        with self._sending:
            if self._released:
                raise StoreError(f"the journal of session {self._head.session_id} was released: its stream has ended")
            job = self._send(entries) if entries else self._last
        if job is not None:
            job.wait(cancel=cancel)
        if self._failed is not None:
            raise _again(self._failed)

    def post(self, *entries: Entry) -> None:
        """Write the entries without waiting. The next `append` or `release` finds out what became of them."""
        if not entries or self._process != os.getpid():
            return
        with self._sending:
            try:
                if not self._released:
                    self._send(entries)
            except StoreError as error:  # the store is closed: the next append says so
                self._failed = self._failed or error

    def release(
        self, status: Status, reason: str = "", *, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> None:
        """Give the lease back. Raises as `append`, and `StoreError` after ``timeout`` seconds."""
        self._check_process()

        def release(connection: Connection, now: int) -> None:
            self._writer.let_go(self.lease)
            done = connection.execute(
                "UPDATE sessions SET status = ?, reason = ?, owner = NULL, lease_until = NULL, updated_at = ?"
                " WHERE number = ? AND epoch = ?",
                (status, well_formed(reason), now, self._head.number, self.lease.epoch),
            )
            if not done.rowcount:
                raise self._failed or self._lost(connection)
            if status != "waiting":
                withdraw(connection, self._head.number, now)
            note(connection, "released", self._head.session_id)

        with self._sending:
            if self._released:
                return
            self._released = True
            job = self._writer.send(Job(release))
        try:
            job.wait(timeout, cancel)
        except TimeoutError:
            raise StoreError(
                f"the end of session {self._head.session_id} was not written within {timeout:g} s; its lease runs out"
                " by itself"
            ) from None
        if self._failed is not None:
            raise _again(self._failed)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _send(self, entries: Sequence[Entry]) -> Job:
        try:
            rows: list[Prepared] = [prepared(entry) for entry in entries]
            broken = None
        except StoreError as error:
            rows, broken = [], error

        def write(connection: Connection, now: int) -> None:
            if self._failed is not None:
                raise _again(self._failed)
            try:
                if broken is not None:
                    raise broken
                put(connection, now)
            except Exception as error:  # at once: the next of the same transaction may be this journal's, too
                self._fail(error)
                raise

        def put(connection: Connection, now: int) -> None:
            head = self._head
            try:
                changed = head.write(connection, rows, now)
            except sqlite3.IntegrityError:  # its place is taken, or the session gone
                self._check_fence(connection)
                raise
            until = now + int(self._writer.lease * 1e6)
            changed.update(messages=head.messages, lease_until=until)
            if now >= self._changed + _CHANGED:
                self._changed = changed["updated_at"] = now
            if not update_session(connection, head.number, changed, self.lease.epoch):
                self._check_fence(connection)

        self._last = self._writer.send(Job(write, self._settled))
        return self._last

    def _settled(self, job: Job) -> None:
        """In the writer's thread: the store never has a gap, so an entry that has failed is the last."""
        if job.error is None:
            self.lease.touched = time.monotonic()
            self.stored.messages = self._head.messages
        else:
            self._fail(job.error)
            if not isinstance(job.error, StoreError):
                job.error = self._failed

    def _fail(self, error: Exception) -> None:
        self._writer.let_go(self.lease)
        if self._failed is not None:
            return
        if isinstance(error, sqlite3.Error):
            self._failed = self._writer.file.explained(error)
        else:
            self._failed = error if isinstance(error, StoreError) else StoreError(f"{self._store}: {error!r}")

    def _check_fence(self, connection: Connection) -> None:
        """Raise `LeaseLost` where another has the session."""
        fence = (self._head.number, self.lease.epoch)
        if connection.execute("SELECT 1 FROM sessions WHERE number = ? AND epoch = ?", fence).fetchone() is None:
            raise self._lost(connection)

    def _lost(self, connection: Connection) -> LeaseLost:
        row = connection.execute("SELECT owner FROM sessions WHERE number = ?", (self._head.number,)).fetchone()
        if row is None:
            return LeaseLost(f"session {self._head.session_id} was deleted, after its lease had run out")
        by = "another stream" if row[0] is None else str(Owner.from_dict(json.loads(row[0])))
        return LeaseLost(
            f"session {self._head.session_id} was taken over by {by}, after its lease of {self._writer.lease:g} s had"
            " run out here (the process stood still, or the disk did)"
        )

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise StoreError("a forked process does not write what its parent's streams say: run one of its own")

    def __repr__(self) -> str:
        return f"<SQLiteJournal of session {self._head.session_id}>"


def _forgotten(writer: Writer, lease: Lease, process: int) -> None:
    """Give back the lease of a journal that nobody has any more. For a finalizer, which waits for nobody."""
    if process == os.getpid() and writer.holds(lease):
        with contextlib.suppress(ChannelClosed, WouldBlock):
            writer.inbox.try_send(Job(lambda connection, now: writer.give_back(connection, now, [lease])))


def _again(error: StoreError) -> StoreError:
    """The same error, for another call: one exception is not raised by two threads at once."""
    again = type(error)(*error.args)
    again.__cause__ = error.__cause__
    return again


def open_session(
    store: object, writer: Writer, fts5: bool, session: Session, parent: Parent | None, listens: bool
) -> SQLiteJournal:
    """Take the lease, as `Store.open` says."""
    stored = session._stored
    start = 0 if stored is None or stored.behind else stored.messages
    rows = [message_row(message) for message in session._messages[start:]]

    def take(connection: Connection, now: int) -> tuple[SQLiteJournal, Unfinished]:
        row = connection.execute(
            "SELECT number, epoch, messages, usage, partial IS NOT NULL FROM sessions WHERE id = ?", (session.id,)
        ).fetchone()
        if row is not None:
            own = stored is not None and stored.behind and stored.epoch == row[1]
            refuse_busy(connection, session.id, now, "another stream has it", but=Owner.here() if own else None)
        messages, anew = to_write(session, None if row is None else (row[1], row[2]))
        head, epoch = _head(connection, session, parent, row, anew, now, fts5)
        changed = head.write(connection, _rows(rows, messages), now)
        changed.update(title=well_formed(session.title), permissions=as_json(head.permissions))
        if anew:
            head.usage = session._usage
            changed["usage"] = None if head.usage is None else as_json(head.usage.to_dict())
            changed["agent_name"] = session.agent_name
            changed["compacted"] = as_json(asdict(session.compacted))
        changed.update(
            status="running",
            reason="",
            messages=head.messages,
            updated_at=now,
            epoch=epoch,
            cancel=None,
            owner=as_json({**Owner.here().to_dict(), "listens": listens}),
            lease_until=now + int(writer.lease * 1e6),
        )
        update_session(connection, head.number, changed)
        if session._idempotency is not None:
            _keys.know(connection, head.number, session._idempotency, now)
        snapshot = snapshot_of(connection, session.id, messages=False)
        assert snapshot is not None
        journal = SQLiteJournal(store, writer, head, epoch)
        return journal, snapshot.unfinished()

    def taken(job: Job) -> None:
        if job.error is None:
            writer.hold(job.result[0].lease)

    journal, unfinished = writer.send(Job(take, taken)).wait()
    session._stored, session._unfinished, session._idempotency = journal.stored, unfinished, None
    assert isinstance(journal, SQLiteJournal)
    return journal


def _head(
    connection: Connection, session: Session, parent: Parent | None, row: Any, anew: bool, now: int, fts5: bool
) -> tuple[Head, int]:
    """What is there of the session, and the epoch of the new stream."""
    if row is None:
        number, epoch, count, usage, partial = (
            insert_session(connection, session, now, parent=parent),
            0,
            0,
            None,
            False,
        )
    else:
        number, epoch, count, usage, partial = row
    if anew and row is not None:
        blobs = blobs_of(connection, [number])
        _search.forget(connection, [number], fts5)
        forget_messages(connection, number, now)
        forget_blobs(connection, blobs)
        count, usage, partial = 0, None, False
    head = Head(number, session.id, count, permissions_of(session), None, bool(partial))
    if usage is not None:
        head.usage = Usage(**json.loads(usage))
    head.calls = dict(
        connection.execute("SELECT call_id, seq FROM calls WHERE session = ? ORDER BY seq", (number,)).fetchall()
    )
    head.asked = {
        call_id
        for (call_id,) in connection.execute(
            "SELECT call_id FROM requests WHERE session = ? AND answer IS NULL AND withdrawn_at IS NULL", (number,)
        )
    }
    return head, epoch + 1


def _rows(rows: list[MessageRow], messages: Sequence[Message]) -> list[MessageRow]:
    """Those that were made before, where they are the right ones."""
    return rows if len(rows) == len(messages) else [message_row(message) for message in messages]


def refuse_busy(connection: Connection, id: str, now: int, what: str, but: Owner | None = None) -> None:
    """Raise `SessionBusy` where a stream has the session, here or elsewhere, whose process is not surely gone."""
    row = connection.execute("SELECT owner, lease_until FROM sessions WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise SessionNotFound(f"the store has no session {id}")
    if not is_held(row[0], row[1], now):
        return
    owner = Owner.from_dict(json.loads(row[0]))
    if owner == but:
        return
    raise SessionBusy(
        f"session {id}: {what}, of {owner}; wait for its end, or until {moment(row[1]):%H:%M:%S} UTC, when its lease"
        " runs out, should that process stand still"
    )


def is_held(owner: str | None, lease_until: int | None, now: int) -> bool:
    """Whether a stream has the session: its lease is not over, and its process not surely gone."""
    if owner is None or lease_until is None or lease_until <= now:
        return False
    return not Owner.from_dict(json.loads(owner)).gone
