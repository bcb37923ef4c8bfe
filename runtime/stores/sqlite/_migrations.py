"""The tables, and how an older file becomes one of today: forward only, each step one transaction, a backup before.

What is JSON is text: SQLite's own JSON would be read by a version that is not ours. Moments are microseconds since
1970, in UTC. The number of an item is that of its session, times 2**32, and its place in the session: one tree of
pages, in which what belongs together lies together, so an append changes two pages, its item's and its session's.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import Final

from ..._errors import StoreError, StoreTooNew
from ._file import APPLICATION_ID, Connection, StoreFile, first, roll_back

_FIRST: Final = """
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES sessions (number),
    root INTEGER REFERENCES sessions (number),
    call_id TEXT,
    call_seq INTEGER,
    branch_of TEXT,
    branch_at INTEGER,
    title TEXT NOT NULL,
    agent_name TEXT,
    status TEXT NOT NULL CHECK (status IN ('idle', 'running', 'waiting', 'interrupted')),
    reason TEXT NOT NULL DEFAULT '',
    permissions TEXT NOT NULL,
    compacted TEXT NOT NULL,
    usage TEXT,
    partial TEXT,
    messages INTEGER NOT NULL DEFAULT 0,
    indexed INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_until INTEGER
) STRICT;
CREATE INDEX sessions_by_change ON sessions (updated_at) WHERE parent IS NULL;
CREATE INDEX sessions_by_parent ON sessions (parent) WHERE parent IS NOT NULL;

CREATE TABLE items (number INTEGER PRIMARY KEY, data TEXT NOT NULL) STRICT;

CREATE TABLE blobs (sha256 BLOB NOT NULL PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE images (
    item INTEGER NOT NULL REFERENCES items (number) ON DELETE CASCADE,
    sha256 BLOB NOT NULL REFERENCES blobs (sha256),
    PRIMARY KEY (item, sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX images_by_blob ON images (sha256);

-- Those without a result: with that, a call is its two messages.
CREATE TABLE calls (
    session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    place INTEGER NOT NULL,
    call_id TEXT NOT NULL,
    name TEXT NOT NULL,
    arguments TEXT,
    began_at INTEGER,
    PRIMARY KEY (session, seq, call_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE kept (
    session INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    call_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (session, seq, call_id, key),
    FOREIGN KEY (session, seq, call_id) REFERENCES calls (session, seq, call_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    root_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('approval', 'question', 'turns')),
    event TEXT NOT NULL,
    call_id TEXT,
    arguments TEXT,
    ordinal INTEGER NOT NULL,
    at INTEGER NOT NULL,
    schema TEXT,
    expires_at INTEGER,
    answer TEXT,
    answered_by TEXT NOT NULL DEFAULT '',
    answered_at INTEGER,
    withdrawn_at INTEGER
) STRICT;
CREATE INDEX requests_by_session ON requests (session);
CREATE INDEX requests_open ON requests (session) WHERE answer IS NULL AND withdrawn_at IS NULL;

CREATE TABLE mailbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    id TEXT NOT NULL,
    point TEXT NOT NULL,
    text TEXT NOT NULL,
    taken_at INTEGER,
    UNIQUE (session, id)
) STRICT;

CREATE TABLE notices (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    session_id TEXT NOT NULL,
    request_id TEXT
) STRICT;

CREATE TABLE search (stale INTEGER NOT NULL) STRICT;
INSERT INTO search VALUES (0);
"""

#: What serving with several processes needs. The number of an event is made as that of an item. ``changed_at`` goes up
#: with each append, whichever process made it: whoever watches looks for what is behind the last he has seen.
_SERVING: Final = """
ALTER TABLE sessions ADD COLUMN cancel TEXT;
ALTER TABLE sessions ADD COLUMN looked_at INTEGER;
ALTER TABLE sessions ADD COLUMN events INTEGER NOT NULL DEFAULT 0;

CREATE TABLE events (number INTEGER PRIMARY KEY, data TEXT NOT NULL) STRICT;

-- Of the sessions that have any.
CREATE TABLE event_logs (
    session INTEGER PRIMARY KEY REFERENCES sessions (number) ON DELETE CASCADE,
    changed_at INTEGER NOT NULL
) STRICT;
CREATE INDEX event_logs_by_change ON event_logs (changed_at);
"""

#: Which requests were carried out, and the lists of one owner among many.
_REQUESTED: Final = """
CREATE TABLE idempotency (
    session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    since INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    PRIMARY KEY (session, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (used_at);
CREATE INDEX requests_open_by_root ON requests (root_id) WHERE answer IS NULL AND withdrawn_at IS NULL;
"""

#: A row has the events that were logged together. Its number is that of the first, and where they are several, ``data``
#: begins with how many characters each has.
_TOGETHER: Final = """
ALTER TABLE events ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
"""

STEPS: Final = [
    _FIRST,
    _SERVING,
    _REQUESTED,
    _TOGETHER,
]  # step n makes version n + 1; what was released is never changed


def migrate(file: StoreFile, connection: Connection) -> None:
    """Bring the tables up to date. Raises `StoreTooNew`, `StoreError`, `sqlite3.Error`."""
    first_version = _version(connection)
    while (version := _version(connection)) < len(STEPS):
        if version and version == first_version:  # of the file as it was, and not of each step on the way
            back_up(file, connection, _backup_path(file, version))
        connection.execute("BEGIN IMMEDIATE")
        try:
            refuse_others(file, connection)  # another process may have taken the step, or made it its own, meanwhile
            if _version(connection) == version:
                steps = STEPS[version : version + 1] if version else STEPS  # a new file has nothing to be backed up
                for statement in _statements("".join(steps)):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version + len(steps)}")
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise


def refuse_others(file: StoreFile, connection: Connection) -> None:
    """Raise `StoreError` where the file is another program's, `StoreTooNew` where a later version has written it."""
    application = first(connection.execute("PRAGMA application_id").fetchone())
    tables = first(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone())
    version = _version(connection)
    if application != APPLICATION_ID and (application or tables or version):
        raise StoreError(f"{file} is a database of another program; it was left as it is: choose another path")
    _refuse_later(file, version)


def refuse_later(file: StoreFile, connection: Connection) -> None:
    """Raise `StoreTooNew` where a later version has taken the file over while it was open here: what this version
    writes may not be what that one reads."""
    _refuse_later(file, _version(connection))


def _refuse_later(file: StoreFile, version: int) -> None:
    if version > len(STEPS):
        raise StoreTooNew(
            f"{file} was written by a later version of lockgate: it is of version {version}, this one knows"
            f" {len(STEPS)}; install the later one (pip install --upgrade lockgate)"
        )


def back_up(file: StoreFile, connection: Connection, path: str) -> None:
    """Write a whole copy of the file to ``path``, as of one moment, for its owner alone. Raises `StoreError`."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite would let others read it
    except OSError as error:
        raise StoreError(f"no backup of {file} can be written to {path!r}: {error.strerror}") from error
    try:
        connection.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(path),))  # it may be no UTF-8
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"no backup of {file} could be written to {path!r}: {error}") from error
        raise


def _backup_path(file: StoreFile, version: int) -> str:
    return f"{file.path}.version-{version}.{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.backup"


def _version(connection: Connection) -> int:
    version: int = first(connection.execute("PRAGMA user_version").fetchone())
    return version


def _statements(script: str) -> list[str]:
    """Not by `executescript`, which commits first: a step is one transaction."""
    return [each for each in script.split(";\n") if each.strip()]
