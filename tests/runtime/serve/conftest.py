"""Servers that share a store, and a port for one that has to be told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runtime.stores import SQLiteStore
from support.serving import Client, serving, waiter


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile, though a server that is told of it may listen there."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


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
