"""Lists of one owner among many, and the keys of their requests, which are forgotten after a day."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Session, Store
from runtime.session import _idempotency
from runtime.session._idempotency import IdempotencyKey
from runtime.stores import MemoryStore, SQLiteStore
from runtime.stores._ids import behind


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        made: Any = MemoryStore()
    elif request.param == "sqlite":
        made = SQLiteStore(tmp_path / "s.db")
    else:
        from runtime.stores.postgres import PostgresStore

        made = PostgresStore(request.getfixturevalue("postgres"))
    with contextlib.closing(made):
        yield made


def test_a_key_is_forgotten_after_its_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.from_user("hello")
    session._idempotency = IdempotencyKey("run", "x")
    journal = store.open(session, listens=True)
    key = IdempotencyKey("mail", "y")
    store.mail(session.id, "user_followup_submit", "once", key=key)
    monkeypatch.setattr(_idempotency, "KEPT", 0.0)
    assert store.idempotency_key(session.id, "run") is None
    store.mail(session.id, "user_followup_submit", "once", key=key)  # which takes away what is old, too
    monkeypatch.undo()
    assert len(store.commands(session.id).mail) == 2
    assert store.idempotency_key(session.id, "run") is None
    assert store.idempotency_key(session.id, "mail") == key
    journal.release("idle")


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("a", "b"),
        ("ann-", "ann."),
        ("a\U0010ffff", "b"),
        ("\U0010ffff", ""),
        ("\ud7ff", "\ue000"),  # what lies between is no text
        ("", ""),
    ],
)
def test_the_first_text_behind_all_that_begin_alike(prefix: str, end: str) -> None:
    assert behind(prefix) == end


def test_a_list_of_one_owner_reads_no_sessions_of_others(tmp_path: Path) -> None:
    """By its plan: the ids of the owner are gone through, and not the sessions by their age."""
    with SQLiteStore(tmp_path / "s.db") as store:
        connection = store._core().writer.connection
        said: list[str] = []
        readers = store._core().readers
        readers.read(lambda connection: None)  # one is made
        [reader] = readers.connections
        reader.set_trace_callback(said.append)
        store.sessions(prefix="ann-")
        store.pending(prefix="ann-")
        reader.set_trace_callback(None)
        asked = [each for each in said if each.startswith("SELECT")]
        plans = ["\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {each}")) for each in asked]
    assert len(plans) == 2
    assert "SEARCH s USING INDEX sqlite_autoindex_sessions_1 (id>? AND id<?)" in plans[0]
    assert "requests_open_by_root (root_id>? AND root_id<?)" in plans[1]


def test_a_list_of_one_owner_in_postgres_reads_no_sessions_of_others(postgres: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    from runtime.stores.postgres import PostgresStore
    from runtime.stores.postgres._store import _beginning

    with PostgresStore(postgres) as store, psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO lockgate.sessions (id, root_id, title, status, permissions, compacted, messages, epoch, words)"
            " SELECT md5(n::text), '', '', 'idle', '{}', '{}', 0, 1, '' FROM generate_series(1, 5000) n"
        )
        connection.execute("ANALYZE lockgate.sessions")
        own, bounds = _beginning("s.id", "ann-")
        rows = connection.execute(
            f"EXPLAIN SELECT s.id FROM lockgate.sessions s WHERE s.parent_id IS NULL{own}"
            " ORDER BY s.updated_at + interval '0' DESC LIMIT 50",
            bounds,
        ).fetchall()
        assert list(store.sessions(prefix="ann-")) == []
    assert "Index Scan using sessions_id_idx" in "\n".join(each for (each,) in rows)
