"""What happens in the store, told to those who watch it.

One thread a store listens for all of them, from the first to the last. What it hears from the server (NOTIFY) is only
when to look; it looks by itself too, every few seconds and after its connection was cut: behind a pooler that gives a
connection away after each transaction there is nothing to be heard.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from datetime import datetime
from typing import Any, Final

import psycopg

from channels import CancelToken, Channel, ChannelClosed, Receiver, SupportsDone, WouldBlock

from ..._errors import StoreError
from .._store import Notice
from ._database import Connection, Database
from ._rows import LOGGED, REQUEST, request_of, text_of

logger = logging.getLogger("runtime")

LOOK: Final = 5.0  # seconds between two looks
_CAPACITY: Final = 1000  # notices that a slow receiver may be behind
_OVERLAP: Final = 10.0  # seconds that a transaction may take from its statement to its commit
_WINDOW: Final = "%s::timestamptz - %s * interval '1 second'"  # the moment from which on it reads
_AGAIN: Final = 1.0  # seconds until the next attempt to connect


class Watch:
    """The watchers of a store. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()  # for what follows
        self._watchers: dict[Channel[Notice], tuple[SupportsDone, bool]] = {}
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self._over = False

    def add(self, cancel: SupportsDone, events: bool = False) -> Receiver[Notice]:
        """A channel of what happens from now on, until ``cancel`` is done; also of event logs, if it wants ``events``.
        Raises `StoreError`.
        """
        channel: Channel[Notice] = Channel(_CAPACITY, name="notices of the store")
        new: _Listener | None = None
        while not self._put(channel, cancel, events, new):
            new = _Listener(self._database)  # hears what happens from here on
        with self._lock:
            listener = self._listener
        if new is not None and new is not listener:  # another was faster
            new.close()

        def end() -> None:  # maybe in a signal handler: it waits for no lock
            channel.close()
            if listener is not None:
                listener.ring()

        if isinstance(cancel, CancelToken):
            cancel.on_cancel(end)  # others are looked at now and then
        return channel.receiver

    def _put(self, channel: Channel[Notice], cancel: SupportsDone, events: bool, new: _Listener | None) -> bool:
        """Let the thread tell ``channel``; False where there is none, and no ``new`` listener for one."""
        with self._lock:
            if self._over:
                raise StoreError("the store is closed")
            if self._listener is None:
                if new is None:
                    return False
                self._listener = new
                self._thread = threading.Thread(
                    target=self._main, args=(new,), name="lockgate-store-watch", daemon=True
                )
                self._thread.start()
            self._watchers[channel] = (cancel, events)
            return True

    def close(self) -> None:
        """Close all channels, and end the thread."""
        self._over = True
        with self._lock:
            watchers, listener, thread = list(self._watchers), self._listener, self._thread
        for channel in watchers:
            channel.close()
        if listener is not None and thread is not None:
            listener.ring()
            if thread is not threading.current_thread():
                thread.join(2 * LOOK)

    def forget(self) -> None:
        """The store is gone: for a finalizer, which waits for no lock."""
        self._over = True
        if (listener := self._listener) is not None:
            listener.ring()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _main(self, listener: _Listener) -> None:
        try:
            while self._is_wanted():
                for notice in listener.notices(self._wants_logs):
                    self._tell(notice)
        except BaseException:
            logger.exception("the watch of a store has failed")
        finally:
            with self._lock:
                self._listener = self._thread = None
                left, self._watchers = self._watchers, {}
            for channel in left:
                channel.close()
            listener.close()

    def _is_wanted(self) -> bool:
        """Whether somebody watches; those who do no more are forgotten."""
        with self._lock:
            for channel, (cancel, _) in list(self._watchers.items()):
                if channel.closed or _is_done(cancel):
                    channel.close()
                    del self._watchers[channel]
            if self._watchers and not self._over:
                return True
            self._listener = self._thread = None  # the next who watches gets a new one
            return False

    @property
    def _wants_logs(self) -> bool:
        with self._lock:
            return any(events for _, events in self._watchers.values())

    def _tell(self, notice: Notice) -> None:
        with self._lock:
            watchers = [channel for channel, (_, events) in self._watchers.items() if events or notice.kind != "events"]
        for channel in watchers:
            while True:
                try:
                    channel.try_send(notice)
                except WouldBlock:  # it is slow: the oldest goes
                    with contextlib.suppress(WouldBlock, ChannelClosed):
                        channel.try_recv()
                    continue
                except ChannelClosed:
                    pass
                break


def _is_done(cancel: SupportsDone) -> bool:
    try:
        cancel.done.try_recv()
    except ChannelClosed:
        return True
    except WouldBlock:
        pass
    return False


class _Window:
    """What was told of one kind of changes. Those of the last seconds are read again at each look: a transaction may be
    seen later than its moment says.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str, Any]] = set()
        self._since: datetime | None = None

    def values(self, now: datetime) -> tuple[datetime, float]:
        """From which moment on, and how many seconds before that, changes are to be read."""
        return self._since or now, _OVERLAP

    def new(self, now: datetime, found: dict[tuple[str, str, Any], Notice]) -> list[Notice]:
        """What was not told yet. The first time nothing is told: it was before."""
        first, self._since = self._since is None, now
        told, self._told = self._told, set(found)  # what is out of the window does not come back
        return [] if first else [notice for key, notice in found.items() if key not in told]


class _Listener:
    """A connection that listens. ``ring`` is for all threads, the rest for one. Raises `StoreError` when it is made."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changes = _Window()
        self._logs = _Window()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._connection: Connection | None = None
        try:
            self._connection = self._connect()
            self._look(changes=True, logs=True)
        except BaseException as error:
            self.close()
            if isinstance(error, psycopg.Error):
                raise database.explained(error) from error
            raise

    def ring(self) -> None:
        """Let `notices` return."""
        with contextlib.suppress(OSError):  # it is full, which does; or closed
            self._rope.send(b".")

    def notices(self, logs: bool) -> list[Notice]:
        """Wait until something happens, or it is time to look; what has happened, also to event logs if ``logs``."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                return self._look(changes=True, logs=logs)
            heard = {notify.payload for notify in self._heard(self._connection)}
            # Logs grow all the time: those who do not want to know look neither at them nor at anything else.
            return self._look(changes=heard != {LOGGED}, logs=logs)
        except (psycopg.Error, StoreError) as error:
            logger.warning("the store is not watched at the moment: %s", error)
            self._hang_up()
            _wait(_AGAIN, self._bell)
            return []

    def _heard(self, connection: Connection) -> list[psycopg.Notify]:
        """Wait until the server or `ring` says something, or it is time to look; what the server has said."""
        _wait(LOOK, connection, self._bell)
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(100)
        return list(connection.notifies(timeout=0))  # however many there are, it looks once

    def close(self) -> None:
        """Close the connection."""
        self._hang_up()
        self._bell.close()
        self._rope.close()

    def _connect(self) -> Connection:
        connection = self._database.connect()
        try:
            connection.execute(f"LISTEN {self._database.schema}".encode())
        except BaseException:
            connection.close()
            raise
        return connection

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _look(self, *, changes: bool, logs: bool) -> list[Notice]:
        """Read what has happened, and was not told yet."""
        connection = self._connection
        assert connection is not None
        if not (changes or logs):
            return []
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        now: datetime = row[0]
        notices: list[Notice] = []
        if changes:
            notices += self._changes.new(now, self._changed(connection, self._changes.values(now)))
        if logs:
            notices += self._logs.new(now, self._logged(connection, self._logs.values(now)))
        return notices

    def _changed(self, connection: Connection, window: tuple[datetime, float]) -> dict[tuple[str, str, Any], Notice]:
        sql = self._database.sql
        with connection.pipeline():
            answered = connection.execute(
                sql(f"SELECT {REQUEST} FROM @requests r WHERE answered_at > {_WINDOW} ORDER BY answered_at"), window
            )
            released = connection.execute(
                sql(
                    "SELECT id, epoch FROM @sessions WHERE owner IS NULL AND appends > 0"
                    f" AND updated_at > {_WINDOW} ORDER BY updated_at"
                ),
                window,
            )
            deleted = connection.execute(
                sql(f"SELECT session_id, number FROM @deleted WHERE deleted_at > {_WINDOW} ORDER BY number"), window
            )
            mailed = connection.execute(
                sql(f"SELECT session_id, id FROM @mailbox WHERE mailed_at > {_WINDOW} ORDER BY mailed_at"), window
            )
            canceled = connection.execute(
                sql(f"SELECT id, cancel_at FROM @sessions WHERE cancel_at > {_WINDOW} ORDER BY cancel_at"), window
            )
        found: dict[tuple[str, str, Any], Notice] = {}
        for each in answered:
            request = request_of(each)
            found["answered", request.session_id, request.id] = Notice("answered", request.session_id, request)
        for key, epoch in released:
            found["released", key, epoch] = Notice("released", text_of(key))
        for key, number in deleted:
            found["deleted", key, number] = Notice("deleted", text_of(key))
        for key, mail in mailed:
            found["mailed", key, mail] = Notice("mailed", text_of(key))
        for key, at in canceled:
            found["canceled", key, at] = Notice("canceled", text_of(key))
        return found

    def _logged(self, connection: Connection, window: tuple[datetime, float]) -> dict[tuple[str, str, Any], Notice]:
        rows = connection.execute(
            self._database.sql(f"SELECT id, events FROM @sessions WHERE events_at > {_WINDOW} ORDER BY events_at"),
            window,
        )
        return {("events", key, last): Notice("events", text_of(key)) for key, last in rows}


def _wait(seconds: float, *sources: Any) -> None:
    """Wait until there is something to be read from one of the sources, which may be any files that there are."""
    with selectors.DefaultSelector() as waiting:
        for source in sources:
            waiting.register(source, selectors.EVENT_READ)
        waiting.select(seconds)
