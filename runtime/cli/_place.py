"""Where the command keeps its sessions: a file where the platform puts the data of its user, or what --store names.

The few lines that find that place are here, rather than in a package that may be installed or not: the sessions of a
user would be in one place today, and in another when it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .._errors import InvalidAnswer, MissingExtra, SessionBusy, SessionChanged, SessionNotFound, StoreError
from ..stores._store import Store
from ._load import CannotLoad

VARIABLE: Final = "LOCKGATE_STORE"
_DATABASE: Final = ("postgresql://", "postgres://")


def default_path() -> Path:
    """The file of the user's sessions, as the platform wants it: see the XDG base directories, or those of the Mac and
    of Windows.
    """
    home = Path.home()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "lockgate" / "sessions.db"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "lockgate" / "sessions.db"
    given = os.environ.get("XDG_DATA_HOME", "")
    return (Path(given) if os.path.isabs(given) else home / ".local" / "share") / "lockgate" / "sessions.db"


def is_there(given: str | None) -> bool:
    """Whether the store is there, as far as that can be told without opening it."""
    said = given or os.environ.get(VARIABLE)
    return bool(said) or default_path().exists()


@contextlib.contextmanager
def opened(given: str | None, *, make: bool = False) -> Iterator[Store]:
    """The store that ``given`` names, or else the variable `VARIABLE`, or else the user's own; ``make`` makes a file.

    Raises `CannotLoad`, also for what goes wrong with the store within.
    """
    try:
        with contextlib.closing(_open(given, make)) as store:
            yield store
    except (StoreError, SessionNotFound, SessionBusy, SessionChanged, InvalidAnswer, MissingExtra) as error:
        raise CannotLoad(" ".join(str(error).split())) from error


def _open(given: str | None, make: bool) -> Store:
    said = given or os.environ.get(VARIABLE)
    if said and said.startswith(_DATABASE):
        from ..stores.postgres import PostgresStore

        try:
            return PostgresStore(said)
        except ValueError as error:
            raise CannotLoad(" ".join(str(error).split())) from None
    try:
        from ..stores.sqlite import SQLiteStore
    except ImportError as error:
        raise CannotLoad(f"this Python comes without SQLite ({error}): --store postgresql://... needs none") from None
    path: Path | None = None
    try:
        path = Path(said) if said else default_path()
        if not path.exists():
            if not make:
                raise CannotLoad(f"there are no sessions yet: no file {path}; `lockgate run` keeps them there")
            if not said:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return SQLiteStore(path)
    except (StoreError, OSError, RuntimeError, ValueError) as error:  # no home, no permission, a name with a NUL in it
        way_out = "; --store FILE keeps sessions elsewhere, --no-store keeps none" if make else ""
        why = " ".join(str(error).split())
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            why = f"the sessions cannot be kept in {path}: {error.strerror or error}"
        raise CannotLoad(f"{why}{way_out}") from error
