"""Stores: sessions and questions that outlive their process."""

from typing import TYPE_CHECKING, Any

from .._public import publish
from ._store import Notice, Parent, SessionInfo, Store

if TYPE_CHECKING:
    from ._memory import MemoryStore
    from .postgres import PostgresStore
    from .sqlite import SQLiteStore

__all__ = ["MemoryStore", "Notice", "Parent", "PostgresStore", "SQLiteStore", "SessionInfo", "Store"]

publish(__name__, globals(), ["Notice", "Parent", "SessionInfo"])

#: Not before somebody wants them: one is an extra, one needs a Python with SQLite, and streams need none of them.
_LATER = {"MemoryStore": "._memory", "PostgresStore": ".postgres", "SQLiteStore": ".sqlite"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
