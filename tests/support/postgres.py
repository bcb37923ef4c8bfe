"""A PostgreSQL server of the tests' own, in a temporary directory: no port, no password, nothing that outlives them.

`postgres_server` is one server for all tests of a process, started by the first that asks; `postgres` is an empty
database in it, as a connection string. Where no server is installed these tests are skipped, and say why. With
``LOCKGATE_POSTGRES=required`` in the environment, as in CI, they fail instead.

The server belongs to a small process of its own (`support/postgres_guard.py`), which ends it when these tests do.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from . import postgres_guard


class Server:
    """A cluster that is running. ``directory`` has its socket."""

    def __init__(self, guard: subprocess.Popen[str], directory: str, pid: int) -> None:
        self._guard = guard
        self.directory = directory
        self.pid = pid
        self._pooled = False

    def dsn(self, database: str = "postgres", **more: str) -> str:
        """The connection string of a database."""
        said = {"host": self.directory, "user": "lockgate", "dbname": database, **more}
        return " ".join(f"{name}={value}" for name, value in said.items())

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement as the superuser; the rows it gives."""
        import psycopg

        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """A database without tables, as its connection string; at the end nobody is connected any more, and it is
        emptied: to make another one would take ten times as long.
        """
        if not self.execute("SELECT 1 FROM pg_database WHERE datname = 'test'"):
            self.execute("CREATE DATABASE test")
        try:
            yield self.dsn("test")
        finally:
            self.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'test'")
            made = "nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', 'public')"
            for (name,) in self.execute(f"SELECT nspname FROM pg_namespace WHERE {made}", "test"):
                self.execute(f'DROP SCHEMA "{name}" CASCADE', "test")

    @property
    def pooled(self) -> str:
        """The connection string of the test's database, by way of a pgbouncer in its transaction mode."""
        if not self._pooled:
            self._tell("pool")
            self._pooled = True
        return f"host={self.directory}/pool port={postgres_guard.POOL} user=lockgate dbname=test"

    def stop(self) -> None:
        """End the server at once, as a crash does."""
        self._tell("stop")

    def start(self) -> None:
        """Start it again, on the same data."""
        self._tell("start")

    def _tell(self, what: str) -> None:
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.write(what + "\n")
        self._guard.stdin.flush()
        said = json.loads(self._guard.stdout.readline() or '{"error": "the guard of the server has ended"}')
        assert "error" not in said, said["error"]
        if what != "pool":
            self.pid = said["pid"]

    def close(self) -> None:
        """End the server, and remove what it wrote."""
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.close()
        self._guard.wait(2 * postgres_guard.ENDING)
        self._guard.stdout.close()


def running_server() -> Server:
    """Start a server. Raises `FileNotFoundError` where none is installed."""
    if postgres_guard.programs() is None:
        raise FileNotFoundError("no PostgreSQL server is installed (on Debian: apt-get install postgresql)")
    guard = subprocess.Popen(
        [sys.executable, postgres_guard.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for pytest, which ends it in its turn
    )
    assert guard.stdout is not None
    said = json.loads(guard.stdout.readline() or '{"error": "the guard of the server ended at once"}')
    if "error" in said:
        guard.communicate()
        raise RuntimeError(f"the PostgreSQL server of the tests did not start: {said['error']}")
    return Server(guard, said["directory"], said["pid"])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The server that the tests of this process share."""
    required = os.environ.get("LOCKGATE_POSTGRES") == "required"
    try:
        import psycopg  # noqa: F401

        server = running_server()
    except (FileNotFoundError, ImportError) as error:
        reason = f"needs PostgreSQL and psycopg: {error}"
        if required:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def pooled(postgres: str, postgres_server: Server) -> str:
    """The same database as that of `postgres`, by way of pgbouncer."""
    if postgres_guard.pooler() is None:
        if os.environ.get("LOCKGATE_POSTGRES") == "required":
            pytest.fail("needs pgbouncer", pytrace=False)
        pytest.skip("needs pgbouncer (on Debian: apt-get install pgbouncer)")
    return postgres_server.pooled


@pytest.fixture
def postgres(postgres_server: Server) -> Iterator[str]:
    """An empty database, as its connection string."""
    with postgres_server.database() as dsn:
        yield dsn
