"""The tables, and how older ones become those of today: forward only, each step a transaction.

JSON is kept as ``json``, never as ``jsonb``: that sorts the fields of a form, turns 1e2 into 100 and refuses a NUL. The
tables stand in a schema of their own, for a database of an application has a table ``sessions`` of its own.
"""

from __future__ import annotations

from typing import Final

import psycopg

from ..._errors import StoreTooNew
from ._database import Again, Connection, Database

_FIRST: Final = """
CREATE TABLE @sessions (
    id text PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY,
    parent_id text,
    root_id text NOT NULL,
    call_id text,
    branch_of text,
    branch_at integer,
    title text NOT NULL,
    agent_name text,
    status text NOT NULL CHECK (status IN ('idle', 'running', 'waiting', 'interrupted')),
    reason text NOT NULL DEFAULT '',
    permissions json NOT NULL,
    compacted json NOT NULL,
    usage json,
    partial json,
    messages integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    epoch bigint NOT NULL,
    appends bigint NOT NULL DEFAULT 0,
    owner json,
    lease_until timestamptz,
    words tsvector NOT NULL
);
CREATE INDEX ON @sessions (updated_at) WHERE parent_id IS NULL;
CREATE INDEX ON @sessions (parent_id);
CREATE INDEX ON @sessions (root_id);
CREATE INDEX ON @sessions USING gin (words);

CREATE TABLE @blobs (sha256 bytea PRIMARY KEY, data bytea NOT NULL);

CREATE TABLE @items (
    session_id text REFERENCES @sessions ON DELETE CASCADE,
    seq integer,
    data json NOT NULL,
    words tsvector NOT NULL,
    PRIMARY KEY (session_id, seq)
);
CREATE INDEX ON @items USING gin (words);

CREATE TABLE @images (
    session_id text,
    seq integer,
    sha256 bytea NOT NULL REFERENCES @blobs,
    FOREIGN KEY (session_id, seq) REFERENCES @items ON DELETE CASCADE
);
CREATE INDEX ON @images (session_id, seq);
CREATE INDEX ON @images (sha256);

CREATE TABLE @calls (
    session_id text REFERENCES @sessions ON DELETE CASCADE,
    seq integer,
    place integer NOT NULL,
    call_id text,
    name text NOT NULL,
    arguments text,
    began_at timestamptz,
    ended_at timestamptz,
    PRIMARY KEY (session_id, seq, call_id)
);
CREATE INDEX ON @calls (session_id) WHERE ended_at IS NULL;

CREATE TABLE @nested (
    session_id text,
    seq integer,
    call_id text,
    nested_id text,
    number bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (session_id, seq, call_id, nested_id),
    FOREIGN KEY (session_id, seq, call_id) REFERENCES @calls ON DELETE CASCADE
);

CREATE TABLE @kept (
    session_id text,
    seq integer,
    call_id text,
    key text,
    value json NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (session_id, seq, call_id, key),
    FOREIGN KEY (session_id, seq, call_id) REFERENCES @calls ON DELETE CASCADE
);

CREATE TABLE @requests (
    id text PRIMARY KEY,
    session_id text NOT NULL REFERENCES @sessions ON DELETE CASCADE,
    root_id text NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL CHECK (kind IN ('approval', 'question', 'turns')),
    event json NOT NULL,
    call_id text,
    arguments text,
    ordinal integer NOT NULL,
    at integer NOT NULL,
    schema json,
    expires_at timestamptz,
    answer json,
    answered_by text NOT NULL DEFAULT '',
    answered_at timestamptz,
    answer_id text,
    withdrawn_at timestamptz
);
CREATE INDEX ON @requests (session_id);
CREATE INDEX ON @requests (root_id) WHERE answer IS NULL AND withdrawn_at IS NULL;
CREATE INDEX ON @requests (answered_at);

CREATE TABLE @deleted (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id text NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE @mailbox (
    session_id text REFERENCES @sessions ON DELETE CASCADE,
    id text,
    number bigint GENERATED ALWAYS AS IDENTITY,
    point text NOT NULL,
    text text NOT NULL,
    taken_at timestamptz,
    PRIMARY KEY (session_id, id)
);
"""

#: What serving with several processes needs. ``mailed_at`` is there where another process has put a message in.
_SERVING: Final = """
ALTER TABLE @sessions
    ADD COLUMN cancel text, ADD COLUMN cancel_at timestamptz, ADD COLUMN looked_at timestamptz,
    ADD COLUMN events bigint NOT NULL DEFAULT 0, ADD COLUMN events_at timestamptz;
CREATE INDEX ON @sessions (cancel_at) WHERE cancel_at IS NOT NULL;
CREATE INDEX ON @sessions (events_at) WHERE events_at IS NOT NULL;
ALTER TABLE @mailbox ADD COLUMN mailed_at timestamptz;
CREATE INDEX ON @mailbox (mailed_at) WHERE mailed_at IS NOT NULL;

CREATE TABLE @events (
    session_id text REFERENCES @sessions ON DELETE CASCADE,
    seq bigint,
    data text NOT NULL,
    PRIMARY KEY (session_id, seq)
);
"""

#: Which requests were carried out, and the lists of one owner among many, by the bytes of the ids.
_REQUESTED: Final = """
CREATE TABLE @idempotency (
    session_id text REFERENCES @sessions ON DELETE CASCADE,
    key text,
    fingerprint text NOT NULL,
    since bigint NOT NULL,
    used_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session_id, key)
);
CREATE INDEX ON @idempotency (used_at);
CREATE INDEX ON @sessions (id text_pattern_ops) WHERE parent_id IS NULL;
CREATE INDEX ON @requests (root_id text_pattern_ops) WHERE answer IS NULL AND withdrawn_at IS NULL;
"""

STEPS: Final = (_FIRST, _SERVING, _REQUESTED)  # step n makes version n + 1; what was released is never changed


def migrate(database: Database) -> None:
    """Bring the tables up to date. Raises `StoreTooNew`, and `StoreError` where that may not be done."""
    while database.run(lambda connection: _step(database, connection)):
        pass


def _step(database: Database, connection: Connection) -> bool:
    """Take one step; whether there may be another."""
    if (found := _version(database, connection)) == len(STEPS):
        return False
    try:
        with connection.transaction():
            if found is None:
                there = connection.execute("SELECT to_regnamespace(%s)", (database.schema,)).fetchone()
                if there is None or there[0] is None:  # else it may be another user's, who has let us in
                    connection.execute(f"CREATE SCHEMA {database.schema}".encode())
                connection.execute(database.sql("CREATE TABLE IF NOT EXISTS @version (version integer NOT NULL)"))
            # Two processes that start together: one takes the step, the other finds it taken.
            connection.execute(database.sql("LOCK TABLE @version IN ACCESS EXCLUSIVE MODE"))
            version = _version(database, connection) or 0
            if version > len(STEPS):
                raise StoreTooNew(
                    f"{database} was written by a later version of lockgate: its tables are of version {version}, this"
                    f" one knows {len(STEPS)}; install the later one (pip install --upgrade lockgate)"
                )
            if version < len(STEPS):
                connection.execute(database.sql(STEPS[version]))
                connection.execute(database.sql("DELETE FROM @version"))
                connection.execute(database.sql("INSERT INTO @version VALUES (%s)"), (version + 1,))
    except (psycopg.errors.DuplicateSchema, psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):
        raise Again from None  # IF NOT EXISTS does not look at what another transaction is about to make
    return True


def _version(database: Database, connection: Connection) -> int | None:
    """The version of the tables; None where there are none."""
    known = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{database.schema}.version",)).fetchone()
    if not (known and known[0]):
        return None
    row = connection.execute(database.sql("SELECT version FROM @version")).fetchone()
    return row[0] if row else None
