"""`SQLiteStore`: the file, its one writer, two processes on one file, and what may be wrong with a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.stores import SQLiteStore
from runtime.stores.conformance import StoreConformance


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


class TestSQLiteStore(StoreConformance):
    @pytest.fixture
    def store(self, path: Path) -> Iterator[SQLiteStore]:
        with SQLiteStore(path) as store:
            yield store

    @pytest.fixture
    def other(self, store: SQLiteStore) -> Iterator[SQLiteStore]:
        with SQLiteStore(store.path) as other:
            yield other
