"""`PostgresStore`: sessions in a PostgreSQL database, which several machines share."""

from ._store import PostgresStore

__all__ = ["PostgresStore"]
