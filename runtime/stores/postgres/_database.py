"""Connections to the database, and what goes wrong with them, in words that say what to do.

Works behind a pooler that gives a connection away after each transaction (pgbouncer): nothing here lives in a
connection. No prepared statements, no advisory locks, no search path.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

from ..._errors import MissingExtra, StoreError

try:
    import psycopg
    from psycopg import conninfo
except ImportError as error:
    installed = "no pq wrapper" in str(error)  # psycopg itself is there, and found no libpq
    raise MissingExtra(
        "PostgresStore", "postgres", ", or the library libpq for the psycopg that is installed" if installed else ""
    ) from error

Connection: TypeAlias = "psycopg.Connection[Any]"
Cursor: TypeAlias = "psycopg.Cursor[Any]"
T = TypeVar("T")

#: Where the connection string says nothing else. A server that is cut off from the network is noticed in less time than
#: a lease lasts, not in the two hours of the system.
_DEFAULTS: Final[dict[str, Any]] = {
    "connect_timeout": 10,  # seconds
    "application_name": "lockgate",
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}
OLDEST: Final = 12  # version of the server
_IDLE: Final = 2  # connections that are kept for the next operation
_TRIES: Final = 5  # of a transaction that another one came in the way of, or whose connection was cut
_TABLE: Final = re.compile(r"(?<!@)@(?=[a-z])")
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,50}")

#: Another transaction came in the way: deadlock, serialization, a row that was there a moment ago, or came meanwhile.
_CONFLICTS: Final = frozenset(("40P01", "40001", "23503", "23505"))
#: The server ends, starts, has no connection left, or has become a standby: it may be well again in a moment.
_PASSING: Final = frozenset(("57P01", "57P02", "57P03", "53300", "25006"))


class Unreachable(StoreError):
    """The server cannot be reached at the moment."""


class Again(Exception):
    """The transaction has to be made once more."""


class Database:
    """A schema of a database. Thread-safe: each operation has a connection to itself."""

    def __init__(self, dsn: str, schema: str) -> None:
        if not isinstance(dsn, str):
            raise TypeError(f"the connection string of a PostgreSQL database must be text, not {type(dsn).__name__}")
        if not _SCHEMA.fullmatch(schema):
            raise ValueError(
                f"the name of a schema is made of lower-case letters, digits and underscores, not {schema!r}"
            )
        try:
            said = conninfo.conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as error:
            raise ValueError(
                f"no connection string of PostgreSQL, such as 'postgresql://user@host/database': {_text(error)}"
            ) from None
        self.schema = schema
        self._dsn = conninfo.make_conninfo(
            dsn, **{**_DEFAULTS, **{name: said[name] for name in _DEFAULTS if name in said}}
        )
        self._process = os.getpid()
        self._idle: deque[Connection] = deque()  # no lock: a finalizer closes them
        self._closed = False
        self._texts: dict[str, bytes] = {}

    def sql(self, text: str) -> bytes:
        """A statement, in which ``@`` stands before the name of a table of ours."""
        found = self._texts.get(text)
        if found is None:
            found = self._texts[text] = _TABLE.sub(f"{self.schema}.", text).encode()
        return found

    def connect(self) -> Connection:
        """A new connection. Raises `StoreError`."""
        try:
            connection = psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError as error:
            raise self._no_connection(error) from None
        try:
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def run(self, function: Callable[[Connection], T]) -> T:
        """What ``function`` returns, given a connection. It is called again where the connection was cut, or another
        transaction came in the way: so it makes one transaction, which does no harm twice. Raises `StoreError`.
        """
        for tries_left in reversed(range(_TRIES)):
            connection = self._take()
            whole = False
            try:
                result = function(connection)
                whole = True
                return result
            except Again:
                whole = True
                if not tries_left:
                    raise StoreError("other processes change the session all the time; try again later") from None
            except psycopg.Error as error:
                whole = not is_passing(error)  # the next may reach the server that has taken over
                if not tries_left or not (is_passing(error) or error.sqlstate in _CONFLICTS):
                    raise self.explained(error) from error
            except Exception:
                whole = True  # ours, from outside of any transaction
                raise
            finally:
                if whole:
                    self._give(connection)
                else:  # cut, or left in the middle by a Ctrl-C
                    connection.close()
        raise AssertionError

    def close(self) -> None:
        """Close the connections that wait for an operation; those at work are closed behind it."""
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that made the store: its thread and its connections are not ours."""
        return self._process != os.getpid()

    def check_open(self) -> None:
        """Raise `StoreError` where the store is closed, or was made before a fork."""
        if self.is_forked:
            raise StoreError("the store was made before this process was forked: make a new one here")
        if self._closed:
            raise StoreError("the store is closed")

    def explained(self, error: psycopg.Error) -> StoreError:
        """The error for people: why, and what to do."""
        state, text = error.sqlstate, _text(error)
        if state == "25006":
            return Unreachable(
                f"{self} takes no writes now: {text}; it is a standby, or default_transaction_read_only is on: connect"
                " to the primary (target_session_attrs=read-write in the connection string)"
            )
        if is_passing(error):
            return Unreachable(f"the connection to {self} was lost: {text}; is the server up?")
        if state == "42501":
            return StoreError(
                f"{self} refuses it: {text}; its administrator may say: CREATE SCHEMA {self.schema} AUTHORIZATION the"
                f" user, or where it is there: GRANT ALL ON SCHEMA {self.schema} TO the user; GRANT ALL ON ALL TABLES"
                f" IN SCHEMA {self.schema} TO the user"
            )
        if state in ("53100", "53200"):
            return StoreError(f"{self} has no room left: {text}; nothing was written, make room on the server")
        if state in ("42P01", "3F000", "42703"):
            return StoreError(f"{self} lacks a table: {text}; somebody has changed the schema {self.schema}")
        return StoreError(f"{self} refuses it: {text}")

    def _take(self) -> Connection:
        self.check_open()
        try:
            return self._idle.pop()
        except IndexError:
            return self.connect()

    def _give(self, connection: Connection) -> None:
        idle = not connection.closed and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if not idle or len(self._idle) >= _IDLE:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:  # meanwhile
            self.close()

    def _check(self, connection: Connection) -> None:
        version = connection.info.server_version // 10_000
        if version < OLDEST:
            raise StoreError(f"{self} is of version {version} of PostgreSQL; it takes {OLDEST} or later")
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(
                f"{self} keeps its text in {encoding}, which cannot write all of it; make one with: createdb -E UTF8"
            )

    def _no_connection(self, error: psycopg.OperationalError) -> StoreError:
        text = _text(error)
        # The server's code is not told of a connection that failed.
        if "password" in text or "authentication failed" in text or "pg_hba.conf" in text:
            return StoreError(f"{self} does not let in: {text}; check the user and the password")
        if re.search(r'database ".*" does not exist', text):
            return StoreError(f"{self} is not there: {text}; make it with: createdb")
        if re.search(r'role ".*" does not exist', text):
            return StoreError(f"{self} does not know the user: {text}; make it with: createuser")
        return Unreachable(f"{self} cannot be reached: {text}; is the server up, and the connection string right?")

    def __str__(self) -> str:
        """The database, without the password."""
        said = conninfo.conninfo_to_dict(self._dsn)
        name = said.get("dbname") or os.environ.get("PGDATABASE") or said.get("user") or "the default"
        host = said.get("host") or said.get("hostaddr") or os.environ.get("PGHOST") or "this machine"
        return f"the database {name} on {host}"


def is_passing(error: psycopg.Error) -> bool:
    """Whether the server may be well again in a moment, and the same transaction succeed."""
    if error.sqlstate is not None:
        return error.sqlstate in _PASSING or error.sqlstate.startswith("08")
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def is_conflict(error: psycopg.Error) -> bool:
    """Whether another transaction came in the way: the same one may succeed at once."""
    return error.sqlstate in _CONFLICTS


def roll_back(connection: Connection) -> None:
    """End the transaction that has failed, where the connection is still there."""
    with contextlib.suppress(psycopg.Error):
        if not connection.closed:
            connection.rollback()


def _text(error: BaseException) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split())
