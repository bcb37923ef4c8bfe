"""Stores: sessions and questions that outlive their process."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._memory import MemoryStore
from ._store import Notice, Parent, SessionInfo, Store

if TYPE_CHECKING:
    from .postgres import PostgresStore
    from .sqlite import SQLiteStore

__all__ = ["MemoryStore", "Notice", "Parent", "PostgresStore", "SQLiteStore", "SessionInfo", "Store"]

#: Not before somebody wants them: one is an extra, the other needs a Python with SQLite.
_LATER = {"PostgresStore": ".postgres", "SQLiteStore": ".sqlite"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
