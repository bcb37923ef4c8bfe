"""The file of a store: how it is opened, and what goes wrong with it, in words that say what to do.

Whatever is wrong, the file is never moved, never deleted, and never made anew in place of one that is there.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from channels._lazy import lazy_logger

from ..._checks import check
from ..._errors import StoreError

Durability: TypeAlias = Literal["process", "power"]
Connection: TypeAlias = sqlite3.Connection

APPLICATION_ID: Final = 0x6C6B6774  # "lkgt", in the header of the file: other programs have others, or none
OLDEST: Final = (3, 37)  # of SQLite: STRICT tables
_LOOK: Final = 0.001  # seconds between looks at the lock
_SMALLEST: Final = 512  # bytes of a database
PATIENCE: Final = 10.0  # seconds that another process may hold the lock for writing

_logger = lazy_logger("runtime")
_creating = threading.Lock()  # closing a file that is open elsewhere in the process would let go of SQLite's locks
_NETWORK: Final = (
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "davfs"}
    # and by a program of the user's
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.davfs"}
)
_SHARED_WITH_A_HOST: Final = frozenset(("9p", "virtiofs", "vboxsf", "fuse.grpcfuse", "fuse.osxfs", "prl_fs", "drvfs"))


class _Connection(sqlite3.Connection):
    """One with weak references: an interrupt as it is taken, or given back, does not leave it open for ever."""


class StoreFile:
    """The path of a store's file, and how connections to it are made. Nothing in here changes."""

    def __init__(self, path: str | os.PathLike[str], durability: Durability) -> None:
        check("the path of a store", path, (str, os.PathLike), "text or a Path")
        if durability not in get_args(Durability):
            raise ValueError(
                f"durability must be {' or '.join(map(repr, get_args(Durability)))}, not {durability!r:.200}"
            )
        said = os.fspath(path)
        if said in ("", ":memory:"):
            raise ValueError(
                f"the path of a store must be that of a file, not {said!r}; in memory there is MemoryStore()"
            )
        if "\0" in said:
            raise ValueError(f"the path of a store has no NUL in it, as {said!r} has")
        self.path = os.path.realpath(said)  # of now: the current directory may change
        self.durability = durability
        self.inode: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Make the file, for its owner alone, where it is not there. Raises `StoreError`."""
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreError(
                f"SQLiteStore needs SQLite {'.'.join(map(str, OLDEST))} or later, and this Python has"
                f" {sqlite3.sqlite_version}: use another build of Python"
            )
        path = Path(self.path)
        try:
            if path.is_dir():
                raise StoreError(f"{self} is a directory: give the path of a file in it")
            if path.exists() and not path.is_file():
                raise StoreError(f"{self} is not a file: give another path")
            if not path.parent.is_dir():
                raise StoreError(f"{self} cannot be made: there is no directory {str(path.parent)!r}; make it first")
            self._refuse_network(kind_of_file_system(self.path))
            with _creating, contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            status = os.stat(self.path)
        except OSError as error:
            raise self._cannot_open(error.strerror or str(error)) from error
        if 0 < status.st_size < _SMALLEST:  # which SQLite takes for an empty file, and writes over
            raise self._others()
        self.inode = status.st_dev, status.st_ino

    def check_in_place(self) -> None:
        """Raise `StoreError` where the file is no longer where it was: what is written would go with it."""
        try:
            status = os.stat(self.path)
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != self.inode:
            raise StoreError(
                f"{self} was moved, deleted or replaced while it was open, so nothing more is written: put it back, or"
                " open the new file with a new store"
            )

    def connect(self, *, write: bool) -> Connection:
        """A connection of one's own, for one thread at a time. Raises `sqlite3.Error`."""
        connection = sqlite3.connect(
            self.path,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
            cached_statements=200,
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")  # the file may be anybody's
            if not write:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def use_wal(self, connection: Connection) -> None:
        """Let readers and the writer not wait for each other. Raises `StoreError` where the file system cannot."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:  # SQLite does not wait for this lock by itself
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StoreError(
                f"{self} is on a file system that has no shared memory (its journal stays {mode!r}), as on a network or"
                " in a shared folder: put it on a local disk, or use PostgresStore"
            )
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'power' else 'NORMAL'}")
        connection.execute("PRAGMA journal_size_limit = 67108864")  # 64 MB, after an import that took more
        connection.execute("PRAGMA secure_delete = FAST")  # a session that was deleted is not left in free pages

    def explained(self, error: sqlite3.Error) -> StoreError:
        """The error for people: why, and what to do."""
        code = getattr(error, "sqlite_errorcode", None) or 0
        name = getattr(error, "sqlite_errorname", "") or ""
        primary = code & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(
                f"{self} is locked by another process, for more than {PATIENCE:g} s: end its transaction (a database"
                " shell, a backup), then try again"
            )
        if primary == sqlite3.SQLITE_FULL:
            return StoreError(f"no room is left on the disk of {self}: nothing was written; make room, then run again")
        if primary == sqlite3.SQLITE_READONLY:
            return StoreError(f"{self} cannot be written ({error}): {self._lacking('its file system is read-only')}")
        if primary == sqlite3.SQLITE_CORRUPT:
            return StoreError(
                f"{self} is damaged ({error}); it was left as it is: restore a backup, or save what is whole with"
                f" sqlite3 FILE .recover | sqlite3 NEW-FILE"
            )
        if primary == sqlite3.SQLITE_NOTADB:
            return self._others()
        if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return self._cannot_open(str(error))
        if name.startswith(("SQLITE_IOERR_SHM", "SQLITE_IOERR_LOCK", "SQLITE_IOERR_RDLOCK", "SQLITE_PROTOCOL")):
            return StoreError(
                f"the file system of {self} does not lock files or share memory as SQLite needs it ({error}), as on a"
                " network or in a shared folder: put it on a local disk, or use PostgresStore"
            )
        if primary == sqlite3.SQLITE_IOERR and self.inode is not None and not os.path.exists(f"{self.path}-wal"):
            return StoreError(
                f"a part of {self}, {self.path + '-wal'!r}, was moved or deleted while it was open, so nothing more is"
                f" written: put it back, or close the store, and open it again without what was in there ({name})"
            )
        if name == "SQLITE_IOERR_WRITE":  # the reason is not told: EIO as well as EDQUOT and EFBIG
            return StoreError(
                f"{self} could not be written ({name}: {error}), so nothing was: a quota or a limit of file sizes is"
                " used up, or the disk has failed"
            )
        if primary == sqlite3.SQLITE_IOERR:
            return StoreError(f"the disk of {self} has failed ({name}: {error}): nothing was written; look at the disk")
        return StoreError(f"{self} could not be used: {error}")

    def _others(self) -> StoreError:
        return StoreError(f"{self} is not a store, but a file of another program; it was left as it is")

    def _cannot_open(self, why: str) -> StoreError:
        return StoreError(f"{self} cannot be opened ({why}): {self._lacking('look at the path')}, or choose another")

    def _lacking(self, otherwise: str) -> str:
        """The right that this user lacks."""
        path = Path(self.path)
        closed = next((each for each in reversed(path.parents) if not os.access(each, os.X_OK)), None)
        if closed is not None and not os.path.lexists(closed):
            return f"there is no directory {str(closed)!r} any more: put it back"
        if closed is not None:
            return f"this user may not enter the directory {str(closed)!r}: give it the right"
        if not os.access(path.parent, os.W_OK):
            return f"this user may not make files in {str(path.parent)!r}, as SQLite has to: give it the right"
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
            return "this user may not read and write it: give it the right (chmod u+rw)"
        return otherwise

    def _refuse_network(self, kind: str) -> None:
        if kind in _NETWORK:
            raise StoreError(
                f"{self} is on a network file system ({kind}), where SQLite's locks do not hold and files are damaged:"
                " put it on a local disk, or use PostgresStore"
            )
        if kind in _SHARED_WITH_A_HOST:
            _logger.warning(
                "%s is on a file system that is shared with another kernel (%s): processes on both sides must not use"
                " it at once",
                self,
                kind,
            )

    def __str__(self) -> str:
        return f"the store {self.path!r}"


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process holds a lock."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def kind_of_file_system(path: str, mounts: str = "/proc/self/mounts") -> str:
    """The type of the file system that ``path`` is on, as Linux names it; empty where that is not known."""
    best, kind = "", ""
    try:
        lines = Path(mounts).read_text(errors="surrogateescape").splitlines()
    except OSError:  # another system
        return ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
            best, kind = point, fields[2]
    return kind


def begin(connection: Connection) -> None:
    """Begin to write, once no other process does. Raises `sqlite3.Error` where one holds the lock for too long.

    SQLite itself looks again after up to 100 ms: beside a process that writes all the time, that is half a second in
    the end. So ``connection`` has no time-out of its own.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK)


def roll_back(connection: Connection) -> None:
    """End a transaction that has failed; SQLite may have done so itself."""
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def first(row: Any) -> Any:
    """The only column of a row."""
    return row[0]
