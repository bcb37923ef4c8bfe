"""Servers that share a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runtime.stores import SQLiteStore
from support.serving import Client, serving, waiter


class Two(NamedTuple):
    """Clients of two servers, which may be one, and the model of the first."""

    first: Client
    second: Client
    model: Any


@pytest.fixture(params=["sqlite", "postgres"])
def two(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Two]:
    """Two servers that share a store, as two worker processes do. A test may ask for "one process" as well."""
    agent = waiter()
    if request.param == "one process":
        with serving(agent, ping=0.1) as client:
            yield Two(client, client, agent.model)
        return

    def store() -> Any:
        if request.param == "sqlite":
            return SQLiteStore(tmp_path / "s.db")
        from runtime.stores.postgres import PostgresStore

        return PostgresStore(request.getfixturevalue("postgres"))

    with (
        store() as here,
        store() as there,
        serving(agent, store=here, ping=0.1) as first,
        serving(store=there, ping=0.1) as second,
    ):
        yield Two(first, second, agent.model)
