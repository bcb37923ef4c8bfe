"""Connections for reading, one for each thread that reads at the moment. They wait for nobody, and nobody for them."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from ..._errors import StoreError
from . import _search
from ._file import Connection, StoreFile, roll_back

T = TypeVar("T")

_IDLE: Final = 4  # connections that are kept for the next


class Readers:
    """The connections. Thread-safe."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        #: Held by those who are inside SQLite (see `Writer.inside`), each by its own. Held by who forks: nobody enters.
        self._inside: set[threading.Lock] = set()
        self.entrance = threading.Lock()
        #: Those that there are, for who forks.
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()

    def read(self, function: Callable[[Connection], T]) -> T:
        """What ``function`` returns, which sees the store as one moment has it. Raises `StoreError`."""
        try:
            with self.entered():
                connection = self._take()
                whole = False
                try:
                    connection.execute("BEGIN")
                    result = function(connection)
                    connection.execute("COMMIT")
                    whole = True
                    return result
                finally:
                    try:
                        if not whole:
                            roll_back(connection)
                    finally:
                        self._give(connection)
        except sqlite3.Error as error:
            raise self._file.explained(error) from error

    def close(self) -> None:
        """Close the connections; those at work are closed behind it."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            self._end(connection)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside SQLite: the process is not forked meanwhile, or only after some time."""
        mine = threading.Lock()
        with mine:
            with self.entrance:
                self._inside.add(mine)
            try:
                yield
            finally:
                self._inside.discard(mine)  # a single step

    @property
    def inside(self) -> list[threading.Lock]:
        """The locks of those who have entered."""
        return list(self._inside)

    def _take(self) -> Connection:
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            if self._idle:
                return self._idle.pop()
        connection = self._file.connect(write=False)
        _search.add_functions(connection)
        self.connections.add(connection)
        return connection

    def _give(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        self.connections.discard(connection)
        connection.close()
