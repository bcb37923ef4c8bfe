"""Engines for runs on workers."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from support.remote_agents import Processes


@pytest.fixture(scope="package")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two worker processes, which are up."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for warm in [pool.submit(max, 1, 2) for _ in range(4)]:
            warm.result(30)
        yield pool


@pytest.fixture
def processes() -> Iterator[Processes]:
    """A process for each job."""
    with Processes() as engine:
        yield engine


@pytest.fixture
def dbos_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that DBOS can work with: SQLite's, or PostgreSQL's where that SQLite is too old.

    On Python 3.12 and later DBOS takes the time from ``unixepoch('subsec')``, which is NULL before SQLite 3.42: its
    worker then ends at once with "NOT NULL constraint failed". On 3.11 it takes whole seconds, from any SQLite.
    """
    pytest.importorskip("dbos", reason="the extra engines is not installed")
    with contextlib.closing(sqlite3.connect(":memory:")) as probe:
        has_clock = sys.version_info < (3, 12) or probe.execute("SELECT unixepoch('subsec')").fetchone() != (None,)
    if has_clock:
        return f"sqlite:///{tmp_path}/dbos.sqlite"
    try:
        request.getfixturevalue("postgres")
    except pytest.skip.Exception as skipped:
        version = sqlite3.sqlite_version
        pytest.skip(f"unixepoch('subsec') of SQLite {version} is NULL, so DBOS needs another database. {skipped.msg}")
    server = request.getfixturevalue("postgres_server")
    return f"postgresql://lockgate@/test?host={server.directory}"
