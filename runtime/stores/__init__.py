"""Stores: sessions and questions that outlive their process."""

from ._store import Notice, Parent, SessionInfo, Store

__all__ = ["Notice", "Parent", "SessionInfo", "Store"]
