"""`MemoryStore` passes what every store has to pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from runtime.stores import MemoryStore
from runtime.stores.conformance import StoreConformance


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> Iterator[MemoryStore]:
        with contextlib.closing(MemoryStore()) as store:
            yield store
