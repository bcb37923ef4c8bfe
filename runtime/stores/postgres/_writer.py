"""One writer thread a store: what all streams append goes to the server in groups, each one transaction.

- The journals of a store put their work into one queue; the thread takes what has gathered and writes it. Nobody waits
  for the server but this thread: a stream waits for its work to be done, with its cancel token.
- A work is written once. Each session counts its appends in its row; after a connection was cut in the middle of a
  commit, the count says whether that came through.
- A session whose epoch is no longer ours is left out of the group, and its journal has lost its lease.
- A work that the server refuses fails alone: its group is written again, each by itself.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import psycopg

from channels import Cancelled, CancelToken, Channel, ChannelClosed, SupportsDone, WouldBlock

from ..._errors import LeaseLost, StoreError
from ...session._journal import Entry, Status
from ...session._session import Stored
from .._events import EVERY
from .._waiting import wait_written
from ._database import Connection, Database, Unreachable, is_conflict, is_passing, roll_back
from ._events import Batch, write_batches
from ._rows import Head, Statement, column, ring, withdraw

logger = logging.getLogger("runtime")
T = TypeVar("T")

CLOSING: Final = 10.0  # seconds that what is on its way may take when the store is closed
_GROUP: Final = 100  # appends in one transaction
_DELAYS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts to connect, the last one again and again
_CONFLICTS: Final = 5  # times that other transactions may come in the way of a group


@dataclass(slots=True, eq=False)
class Work:
    """An append, or a release, on its way."""

    journal: PostgresJournal
    entries: tuple[Entry, ...]
    status: Status | None = None  # of a release
    reason: str = ""
    done: Channel[None] = field(default_factory=Channel)  # closes
    error: BaseException | None = None
    number: int = 0  # among those of its session
    statements: list[Statement] | None = None

    def finish(self, error: BaseException | None = None) -> None:
        self.error = error
        self.done.close()

    def give_up(self, error: StoreError) -> None:
        """The writer has ended before it was done."""
        if not self.done.closed:
            self.journal.fail(error)
            self.finish(error)


class PostgresJournal:
    """The journal of one session, which has its lease. See `Journal`."""

    def __init__(self, writer: Writer, head: Head, stored: Stored, appends: int, title: str) -> None:
        self._writer = writer
        self._stored = stored
        self._released: Work | None = None
        self.last: Work | None = None  # that was put
        # These are the writer thread's:
        self.head = head
        self.appends = appends
        self.title = title  # of the session, for errors
        self.error: StoreError | None = None

    def append(self, *entries: Entry, cancel: SupportsDone | None = None) -> None:
        """Write the entries, and wait until they are durable."""
        work = self.last
        if entries or work is None:
            work = self._writer.put(Work(self, entries))
        self._wait(work, cancel=cancel)
        if self.error is not None and not entries:  # found out since
            raise self.error

    def post(self, *entries: Entry) -> None:
        """Write the entries without waiting for them."""
        with contextlib.suppress(StoreError):  # the next append says so
            self._writer.put(Work(self, entries))

    def release(
        self, status: Status, reason: str = "", *, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> None:
        """Give the lease back, once all is written."""
        if self._released is None:
            self._released = self._writer.put(Work(self, (), status, reason))
        self._wait(self._released, timeout=timeout, cancel=cancel)

    def _wait(self, work: Work, timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        try:
            wait_written(work.done, timeout, cancel)
        except TimeoutError:
            raise StoreError(f"the store has not written session {self.title} within {timeout:g} s") from None
        if work.error is not None:
            raise work.error

    def written(self, work: Work) -> None:
        """The work is durable."""
        self.appends = work.number
        self._stored.messages = self.head.messages

    def fail(self, error: StoreError) -> None:
        """Nothing is written any more, or there would be a gap; nor is the lease renewed."""
        self._writer.drop(self)
        if self.error is None:
            self.error = error
            self._stored.behind = True


class Writer:
    """The writer thread of a store, from its first journal to `close`."""

    def __init__(self, database: Database, lease: float, patience: float) -> None:
        self._database = database
        self._lease = lease
        self._patience = patience
        self._lock = threading.Lock()  # for _thread, _closed and what is put into _queue
        self._queue: deque[Work | Batch] = deque()
        self._bell: Channel[None] = Channel(1, name="work for the store")
        self._stopping = CancelToken()
        self._closed = False
        self._forgotten = False
        self._thread: threading.Thread | None = None
        # These are the thread's:
        self._connection: Connection | None = None
        self._at_work: Sequence[Work | Batch] = ()
        self._journals: dict[PostgresJournal, None] = {}  # whose leases are renewed
        self._renewal = time.monotonic() + lease / 3
        self._forgetting = 0.0  # when it is looked for old event logs

    def journal(self, head: Head, stored: Stored, appends: int, title: str) -> PostgresJournal:
        """The journal of a session whose lease was just taken."""
        journal = PostgresJournal(self, head, stored, appends, title)
        self._journals[journal] = None  # in one step: the thread takes a copy
        self._start()
        return journal

    def put(self, work: Work) -> Work:
        """Let the thread do the work. Raises `StoreError` where it does none any more."""
        self._put(work)
        return work

    def log(self, batch: Batch) -> None:
        """Let the thread write the events, and wait for that. Raises `StoreError`, and what `write_batches` says."""
        self._put(batch)
        self._start()
        batch.wait()

    def _put(self, work: Work | Batch) -> None:
        if self._database.is_forked:
            self._database.check_open()
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            self._queue.append(work)
            if isinstance(work, Work):
                work.journal.last = work
        self._ring()

    def drop(self, journal: PostgresJournal) -> None:
        """Renew its lease no more."""
        self._journals.pop(journal, None)

    def close(self) -> None:
        """Write what is on its way, within bounds, and end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._stopping.cancel("the store is closed")
        self._ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSING + self._lease)

    def forget(self) -> None:
        """The store is gone: end the thread with the last journal. For a finalizer: it waits for no lock."""
        self._forgotten = True
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(WouldBlock):  # it has been rung
            self._bell.try_send(None)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._main, name="lockgate-store", daemon=True)
                self._thread.start()
        self._ring()  # there may be a lease to be renewed

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while True:
                group = self._next()
                if group:
                    self._at_work = group
                    if works := [each for each in group if isinstance(each, Work)]:
                        self._do(works)
                    if batches := [each for each in group if isinstance(each, Batch)]:
                        self._log(batches)
                    self._at_work = ()
                elif self._stopping.cancelled or (self._forgotten and not self._journals):
                    return
                if time.monotonic() >= self._renewal:
                    self._renew()
        except BaseException as error:
            logger.exception("the writer of a store has failed")
            self._give_up(StoreError(f"the writer of the store has failed: {type(error).__name__}: {error}"))
        finally:
            self._give_up(StoreError("the store is closed"))
            if self._connection is not None:
                self._connection.close()

    def _next(self) -> list[Work | Batch]:
        """The work that has gathered; waits for some until a lease has to be renewed."""
        if not self._queue and not self._stopping.cancelled:
            with contextlib.suppress(TimeoutError):
                self._bell.recv(timeout=max(0.0, self._renewal - time.monotonic()) if self._journals else None)
        group: list[Work | Batch] = []
        while self._queue and len(group) < _GROUP:
            group.append(self._queue.popleft())
        return group

    def _give_up(self, error: StoreError) -> None:
        with self._lock:
            self._closed = True
            left, self._queue = [*self._at_work, *self._queue], deque()
        for work in left:
            work.give_up(error)

    def _do(self, group: Sequence[Work]) -> None:
        """Write the group, and tell those who wait."""
        works = []
        numbers: dict[PostgresJournal, int] = {}
        for work in group:
            journal = work.journal
            if journal.error is None:
                numbers[journal] = work.number = numbers.get(journal, journal.appends) + 1
                try:
                    work.statements = self._statements(work)
                except Exception as error:  # an entry that is no entry
                    journal.fail(StoreError(f"session {journal.title} cannot be written: {error}"))
                else:
                    works.append(work)
                    continue
            if work.status is not None:
                self._let_go(work)
            work.finish(journal.error)
        try:
            self._write(works)
        except StoreError as error:
            if len(works) == 1 or isinstance(error, Unreachable):
                for work in works:
                    work.journal.fail(error)
                    work.finish(work.journal.error)
                return
            for work in works:  # one of them is refused, and should not take the others along
                if work.journal.error is not None:
                    work.finish(work.journal.error)
                    continue
                try:
                    self._write([work])
                except StoreError as its:
                    work.journal.fail(its)
                    work.finish(work.journal.error)

    def _let_go(self, work: Work) -> None:
        """Give the lease of a journal back that has failed, where that can be done at once: else it runs out."""
        head = work.journal.head
        try:
            connection = self._connected()
            with connection.transaction():
                ours = connection.execute(
                    self._database.sql("SELECT FROM @sessions WHERE id = %s AND epoch = %s FOR UPDATE"),
                    (head.session_id, head.epoch),
                )
                if ours.rowcount:
                    for text, values in self._end(work):
                        connection.execute(self._database.sql(text), values)
        except (psycopg.Error, Unreachable):
            self._disconnect()

    def _statements(self, work: Work) -> list[Statement]:
        head = work.journal.head
        statements = head.statements(work.entries)
        if work.status is None:
            statements.append(
                (
                    "UPDATE @sessions SET appends = %s, messages = %s, updated_at = clock_timestamp() WHERE id = %s",
                    (work.number, head.messages, head.session_id),
                )
            )
            return statements
        statements.append(("UPDATE @sessions SET appends = %s WHERE id = %s", (work.number, head.session_id)))
        return [*statements, *self._end(work)]

    def _end(self, work: Work) -> list[Statement]:
        """The statements of a release."""
        key = work.journal.head.session_id
        assert work.status is not None
        unanswered = [withdraw("session_id = %s", (key,))] if work.status != "waiting" else []
        given_back = (
            "UPDATE @sessions SET status = %s, reason = %s, owner = NULL, lease_until = NULL,"
            " updated_at = clock_timestamp() WHERE id = %s",
            (work.status, column(work.reason), key),
        )
        return [*unanswered, given_back, ring(work.journal.head.channel)]

    def _write(self, works: Sequence[Work]) -> None:
        """Write the works in one transaction; those of a lease that is lost fail. Raises `StoreError`, for all."""
        if not works:
            return
        lost = self._insistent(lambda connection: self._transaction(connection, works))
        for work in works:
            journal = work.journal
            if work in lost:
                journal.fail(
                    LeaseLost(f"session {journal.title} was taken over by another process, or deleted; it has gone on")
                )
                work.finish(journal.error)
                continue
            journal.written(work)
            if work.status is not None:
                self.drop(journal)
                journal.error = StoreError(f"session {journal.title} was released: open it again to write to it")
            work.finish()

    def _insistent(self, function: Callable[[Connection], T]) -> T:
        """What ``function`` returns, which makes one transaction; it is called again, within bounds, while the server
        is away, or others come in the way. Raises `StoreError`.
        """
        given_up = time.monotonic() + self._patience
        attempts = conflicts = 0
        while True:
            try:
                return function(self._connected())
            except (psycopg.Error, Unreachable) as error:
                if isinstance(error, psycopg.Error) and is_conflict(error) and conflicts < _CONFLICTS:
                    conflicts += 1
                    continue
                if isinstance(error, psycopg.Error) and not is_passing(error):
                    raise self._database.explained(error) from error
                self._disconnect()
                if time.monotonic() > given_up:
                    raise error if isinstance(error, Unreachable) else self._database.explained(error) from error
                if attempts:
                    self._pause(_DELAYS[min(attempts, len(_DELAYS)) - 1], given_up)
                attempts += 1
                if self._stopping.cancelled:
                    given_up = min(given_up, time.monotonic() + CLOSING)

    def _log(self, batches: Sequence[Batch]) -> None:
        """Write the batches of events, and tell those who wait."""
        forget = time.monotonic() > self._forgetting
        if forget:
            self._forgetting = time.monotonic() + EVERY
        try:
            self._insistent(lambda connection: write_batches(self._database, connection, batches, forget))
        except StoreError as error:
            for batch in batches:
                batch.give_up(error)
            return
        for batch in batches:
            batch.done.close()

    def _transaction(self, connection: Connection, works: Sequence[Work]) -> set[Work]:
        """Write the works; those that could not be, because the lease is lost."""
        sql = self._database.sql
        heads = {work.journal.head.session_id: work.journal.head for work in works}
        try:
            with connection.pipeline():
                connection.execute("BEGIN")
                # In the order of their ids, as everybody locks sessions: no two can wait for each other.
                rows = connection.execute(
                    sql(
                        "SELECT s.id, s.epoch, s.appends FROM @sessions s WHERE s.id = ANY(%s) ORDER BY s.id FOR UPDATE"
                    ),
                    (list(heads),),
                ).fetchall()
                found = {key: (epoch, appends) for key, epoch, appends in rows}
                lost = set()
                for work in works:
                    epoch, appends = found.get(work.journal.head.session_id, (None, 0))
                    if epoch != work.journal.head.epoch:
                        lost.add(work)
                    elif appends < work.number:  # else a commit came through whose answer did not
                        assert work.statements is not None
                        for text, values in work.statements:
                            connection.execute(sql(text), values)
                connection.execute("COMMIT")
        except psycopg.Error:
            roll_back(connection)
            raise
        return lost

    def _renew(self) -> None:
        """Say that this process is still there."""
        self._renewal = time.monotonic() + self._lease / 3
        heads = {(each.head.session_id, each.head.epoch): each for each in list(self._journals)}
        if not heads:
            return
        keys, epochs = zip(*heads, strict=True)
        try:
            kept = self._connected().execute(
                self._database.sql(
                    "UPDATE @sessions s SET lease_until = clock_timestamp() + %s * interval '1 second'"
                    " FROM unnest(%s::text[], %s::bigint[]) AS mine (id, epoch)"
                    " WHERE s.id = mine.id AND s.epoch = mine.epoch RETURNING s.id, s.epoch"
                ),
                (self._lease, list(keys), list(epochs)),
            )
            still = {(key, epoch) for key, epoch in kept}
        except (psycopg.Error, Unreachable) as error:
            logger.warning("leases could not be renewed: %s", error)
            self._disconnect()
            self._renewal = time.monotonic() + min(1.0, self._lease / 10)
            return
        for key, journal in heads.items():
            if key not in still:
                journal.fail(LeaseLost(f"session {journal.title} was taken over by another process, or deleted"))

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._database.connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _pause(self, seconds: float, until: float) -> None:
        """Wait before the next attempt, or until the store is closed."""
        seconds = max(0.0, min(seconds, until - time.monotonic()))
        with contextlib.suppress(TimeoutError, ChannelClosed, Cancelled):
            if self._stopping.cancelled:
                time.sleep(seconds)
            else:
                self._stopping.done.recv(timeout=seconds)
