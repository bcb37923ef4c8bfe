"""The one thread of a store that writes: many appends make one transaction (group commit).

Each thread with a connection of its own would do, but SQLite's lock is unfair: of 64 threads that wait for it, some
wait half a second. Behind a channel they are served in order, and what has come together meanwhile is written together.

Invariants:

- Only this thread uses the writing connection. It waits for jobs, for the next renewal of its leases, and for nothing
  else.
- A job whose ``done`` is closed without an ``error`` is in the file.
- Jobs are carried out in the order in which they were sent. A job that fails leaves nothing of its own behind.
- A lease that is in ``_held`` is renewed. When the thread ends, those that are left are given back.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from channels import Channel, ChannelClosed, Receiver, SupportsDone, WouldBlock
from channels._lazy import lazy_logger

from ..._dataclasses import dataclass
from ..._errors import StoreError
from .._store import Notice
from .._waiting import wait_written
from ._file import Connection, StoreFile, begin, roll_back
from ._migrations import refuse_later
from ._notices import Watchers
from ._rows import micros

_TOGETHER: Final = 200  # jobs of one transaction
_LOOK: Final = 0.02  # seconds between looks whether other processes have written, where somebody watches
_RENEWALS: Final = 3  # in the time of a lease

_logger = lazy_logger("runtime")
_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Lease:
    """A lease that the writer keeps. It does not hold the journal, which holds the store: that may be forgotten."""

    number: int  # of the session
    epoch: int
    touched: float  # when its row was written last, by `time.monotonic`


class Job:
    """Something to be done in a transaction. ``function`` gets the connection, and the moment for what it writes.

    ``settled`` is called in the writer's thread once it is known whether that is in the file, before ``done`` closes.
    """

    __slots__ = ("done", "error", "function", "result", "settled")

    def __init__(
        self, function: Callable[[Connection, int], Any], settled: Callable[[Job], None] | None = None
    ) -> None:
        self.function = function
        self.settled = settled
        self.done: Channel[None] = Channel(name="written")
        self.result: Any = None
        self.error: Exception | None = None

    def wait(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> Any:
        """What the function has returned. Raises what it raised, `StoreError`, `TimeoutError` and `Cancelled`."""
        wait_written(self.done, timeout, cancel)
        if self.error is not None:
            raise self.error
        return self.result


class Writer:
    """The thread, and what is sent to it. It is ended by `close`, or by closing ``inbox``, which waits for nobody."""

    def __init__(self, file: StoreFile, connection: Connection, lease: float, at_end: Callable[[], object]) -> None:
        self.file = file
        self.lease = lease
        #: Without a bound of its own: who sends waits for what he has sent, but for a few entries that are posted.
        self.inbox: Channel[Job] = Channel(2**31, name="to be written")
        #: Held by whoever is inside SQLite: a process is not forked meanwhile, for the child would find the locks of
        #: SQLite taken by a thread that it does not have.
        self.inside = threading.Lock()
        self._connection = connection
        self._connection.execute("PRAGMA busy_timeout = 0")  # `begin` waits
        self._at_end = at_end
        self._held: set[Lease] = set()
        self._watchers = Watchers()
        self._last = 0
        self._thread = threading.Thread(target=self._run, name=f"lockgate-store-{next(_numbers)}", daemon=True)
        self._thread.start()

    @property
    def connection(self) -> Connection:
        """For a forked child, which keeps it from being closed."""
        return self._connection

    # -- for anyone ----------------------------------------------------------------------------------------------------

    def send(self, job: Job) -> Job:
        """Have the job done; waits for nothing. Raises `StoreError` where the store is closed."""
        try:
            self.inbox.send(job)
        except ChannelClosed:
            raise StoreError("the store is closed") from None
        return job

    def do(self, function: Callable[[Connection, int], Any]) -> Any:
        """What ``function`` returns, in a transaction. Raises what it raises, and `StoreError`."""
        return self.send(Job(function)).wait()

    def watch(self, channel: Channel[Notice], done: Receiver[Any], events: bool) -> None:
        """Let the channel have what happens from now on, until ``done`` closes; also of event logs, if it wants."""
        self.do(lambda connection, _: self._watchers.add(connection, channel, done, events))

    def close(self, timeout: float | None) -> bool:
        """Let what was sent be written, and the thread end; whether it has, within ``timeout`` seconds."""
        self.inbox.close()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- for jobs ------------------------------------------------------------------------------------------------------

    def hold(self, held: Lease) -> None:
        """Renew the lease from now on."""
        self._held.add(held)

    def let_go(self, held: Lease) -> None:
        """Do not renew the lease any more."""
        self._held.discard(held)

    def holds(self, held: Lease) -> bool:
        """Whether the lease is renewed. For any thread."""
        return held in self._held

    def give_back(self, connection: Connection, now: int, held: Sequence[Lease]) -> None:
        """Let others have the sessions, as if the process had ended."""
        for each in held:
            self.let_go(each)
        connection.executemany(
            "UPDATE sessions SET status = 'interrupted', owner = NULL, lease_until = NULL, updated_at = ?"
            " WHERE number = ? AND epoch = ?",
            [(now, each.number, each.epoch) for each in held],
        )

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._go_on():
                pass
        finally:
            self.inbox.close()
            try:
                for job in self.inbox:  # only where this thread fails, which it does not: nobody shall wait for ever
                    job.error = StoreError("the store has failed")
                    job.done.close()
                self._end()
            finally:
                self._watchers.close()
                with self.inside:
                    self._connection.close()
                self._at_end()

    def _go_on(self) -> bool:
        """Whether there is more to do. What was done is forgotten by then: a job holds its journal, that the store."""
        batch = self._next()
        if batch is None:
            return False
        if batch:
            self._write(batch)
        self._renew()
        self._watchers.look(self._reading, bool(batch))
        return True

    def _next(self) -> list[Job] | None:
        """The jobs that have come together; none where it is time to look after other things, None at the end."""
        try:
            batch = [self.inbox.recv(self._patience())]
        except TimeoutError:
            return []
        except ChannelClosed:
            return None
        with contextlib.suppress(WouldBlock, ChannelClosed):
            while len(batch) < _TOGETHER:
                batch.append(self.inbox.try_recv())
        return batch

    def _patience(self) -> float | None:
        """Seconds until a lease has to be renewed, or somebody who watches to be told."""
        patience = _LOOK if self._watchers else None
        if self._held:
            left = min(each.touched for each in self._held) + self.lease / _RENEWALS - time.monotonic()
            patience = max(0.0, left) if patience is None else min(patience, max(0.0, left))
        return patience

    def _now(self) -> int:
        """The moment for what is written: no two transactions of this process have the same, as lists go on by it."""
        self._last = max(micros(datetime.now(UTC)), self._last + 1)
        return self._last

    def _write(self, batch: Sequence[Job]) -> None:
        try:
            with self.inside:
                self._transaction(batch)
        except sqlite3.Error as error:
            self._fail(batch, self.file.explained(error), error)
        except Exception as error:
            self._fail(batch, error if isinstance(error, StoreError) else StoreError(f"{self.file}: {error!r}"), error)
        for job in batch:
            try:
                if job.settled is not None:
                    job.settled(job)
            finally:
                job.function, job.settled = _nothing, None  # a job that somebody keeps holds nothing
                job.done.close()

    def _transaction(self, batch: Sequence[Job]) -> None:
        connection = self._connection
        self.file.check_in_place()
        begin(connection)
        try:
            refuse_later(self.file, connection)
            now = self._now()
            for job in batch:
                if len(batch) > 1:
                    connection.execute("SAVEPOINT job")
                try:
                    job.result = job.function(connection, now)
                except Exception as error:
                    if not connection.in_transaction:  # SQLite has undone all of it: the disk is full, or failed
                        raise
                    connection.execute("ROLLBACK TO job" if len(batch) > 1 else "ROLLBACK")
                    job.error = self.file.explained(error) if isinstance(error, sqlite3.Error) else error
                if len(batch) > 1:
                    connection.execute("RELEASE job")
            if not connection.in_transaction:
                return
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise

    @staticmethod
    def _fail(batch: Sequence[Job], said: StoreError, error: Exception) -> None:
        for job in batch:
            if job.error is None:
                job.error = type(said)(*said.args)  # one each: they are raised by several threads
                job.error.__cause__ = error

    def _renew(self) -> None:
        due = time.monotonic() - self.lease / _RENEWALS
        old = [each for each in self._held if each.touched <= due]
        if not old:
            return

        def renew(connection: Connection, now: int) -> None:
            until = now + int(self.lease * 1e6)
            connection.executemany(
                "UPDATE sessions SET lease_until = ? WHERE number = ? AND epoch = ?",
                [(until, each.number, each.epoch) for each in old],
            )

        job = Job(renew)
        self._write([job])
        if job.error is not None:  # it is tried again; where another has taken it over, the next append finds out
            _logger.warning("leases could not be renewed: %s", job.error)
        for each in old:
            each.touched = time.monotonic()

    def _reading(self, read: Callable[[Connection], Any]) -> Any:
        with self.inside:
            return read(self._connection)

    def _end(self) -> None:
        """The store is closed, maybe under streams that still run."""
        held = list(self._held)
        if held:
            self._write([Job(lambda connection, now: self.give_back(connection, now, held))])


def _nothing(connection: Connection, now: int) -> None:
    """It is done."""


def note(connection: Connection, kind: str, session_id: str, request_id: str | None = None) -> None:
    """Tell whoever watches, here and in other processes, with the transaction."""
    number = connection.execute(
        "INSERT INTO notices (kind, session_id, request_id) VALUES (?, ?, ?)", (kind, session_id, request_id)
    ).lastrowid
    assert number is not None
    connection.execute("DELETE FROM notices WHERE number <= ?", (number - 1000,))
