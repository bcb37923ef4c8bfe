"""`SQLiteStore`: sessions in a file, for the processes of one machine."""

from ._store import SQLiteStore

__all__ = ["SQLiteStore"]
