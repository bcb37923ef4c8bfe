"""Stores: sessions and questions that outlive their process."""

from ._memory import MemoryStore
from ._store import Notice, Parent, SessionInfo, Store

__all__ = ["MemoryStore", "Notice", "Parent", "SessionInfo", "Store"]
