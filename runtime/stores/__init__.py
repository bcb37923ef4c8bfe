"""Stores: sessions and questions that outlive their process."""

from typing import TYPE_CHECKING, Any

from ._memory import MemoryStore
from ._store import Notice, Parent, SessionInfo, Store

if TYPE_CHECKING:
    from .postgres import PostgresStore

__all__ = ["MemoryStore", "Notice", "Parent", "PostgresStore", "SessionInfo", "Store"]


def __getattr__(name: str) -> Any:
    if name == "PostgresStore":  # an extra
        from .postgres import PostgresStore

        return PostgresStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
