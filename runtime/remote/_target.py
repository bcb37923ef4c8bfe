"""What a worker finds by name: the agent, the type of its output, the store."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from channels.net._tls import checked

from ..agent._agent import Agent, Team
from ..runtime import Runtime
from ..stores._store import Store

if TYPE_CHECKING:
    from ssl import SSLContext


def check_name(name: str) -> None:
    """Raise `ValueError` for what is no ``module:name``."""
    module, colon, attribute = name.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(f"what a worker imports must be named 'package.module:name', not {name!r:.200}")
    if module == "__main__":
        raise ValueError(f"{name!r} is in the script itself, which a worker does not import: move it to a module")


def find(name: str) -> Any:
    """The object ``package.module:name``. Raises `ImportError` and `AttributeError`."""
    check_name(name)
    module, _, attributes = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def find_agent(name: str) -> Agent | Team | Runtime:
    """The agent, team or runtime of this name, or what the function of this name returns."""
    found = find(name)
    if callable(found) and not isinstance(found, (Agent, Team, Runtime)):
        found = found()
    if not isinstance(found, (Agent, Team, Runtime)):
        raise TypeError(f"{name} is of type {type(found).__name__}, not an Agent, a Team or a Runtime")
    return found


def find_context(name: str | None) -> SSLContext | None:
    """The client's context of TLS of this name, or what the function of this name returns; the system's for an empty
    one."""
    if name is None:
        return None
    if not name:
        from ssl import create_default_context

        return create_default_context()
    found = find(name)
    return checked(found() if callable(found) else found, server_side=False)


def name_of(kind: Any) -> str:
    """The name under which a worker finds a type. Raises `TypeError`."""
    module, name = getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)
    if module == "builtins" or not (isinstance(module, str) and isinstance(name, str)):
        raise TypeError(f"output_type must be a class of a module, which the worker imports too, not {kind!r}")
    check_name(f"{module}:{name}")
    return f"{module}:{name}"


def check_store(name: str) -> None:
    """Raise `ValueError` for what names no store."""
    if not name.startswith(("sqlite:", "postgresql://", "postgres://")):
        raise ValueError(f"store= must be 'sqlite:/path/to/the/file' or 'postgresql://...', not {name!r}")


def open_store(name: str) -> Store:
    """The store of this name. Raises `StoreError` and `MissingExtra`."""
    check_store(name)
    if name.startswith("sqlite:"):
        from ..stores.sqlite import SQLiteStore

        return SQLiteStore(name.removeprefix("sqlite:"))
    from ..stores.postgres import PostgresStore

    return PostgresStore(name)
