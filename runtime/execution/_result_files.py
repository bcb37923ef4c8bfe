"""Files for the full text of results that are too long for the model."""

from __future__ import annotations

import os
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any

from channels._lazy import lazy

if TYPE_CHECKING:
    import uuid
else:
    uuid = lazy("uuid")


class ResultFiles:
    """The full texts of results that were shortened, each in a file that only its owner can read. Each session has a
    directory.

    The directories are in ``directory``, where they stay, or else in a temporary directory, which `close` removes.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._given = None if directory is None else os.fspath(directory)
        self._temporary = ""
        self._owner = 0  # the process that made it
        self._lock = threading.Lock()  # for _temporary: two results may be the first
        self._finalizer: weakref.finalize[Any, ResultFiles] | None = None

    def keep(self, session_id: str, tool: str, text: str) -> str:
        """Write ``text`` to a new file, and return its path. Raises `OSError`."""
        folder = os.path.join(self._root(), _safe(session_id))
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, f"{_safe(tool)}-{uuid.uuid4().hex[:12]}.txt")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)
        return path

    def _root(self) -> str:
        if self._given is not None:
            return self._given
        with self._lock:
            if not self._temporary:
                import tempfile  # slow, and rarely needed

                self._temporary = tempfile.mkdtemp(prefix="lockgate-results-")
                self._owner = os.getpid()
                self._finalizer = weakref.finalize(self, _remove, self._temporary, self._owner)
            return self._temporary

    def close(self) -> None:
        """Remove the temporary directory. A text that is kept later gets a new one."""
        # Without the lock: it takes its time, and a signal handler that closes the runtime may come in between. Then it
        # is removed there, and nothing is left to be done here.
        folder, finalizer = self._temporary, self._finalizer
        if finalizer is not None:
            _remove(folder, self._owner)
            finalizer.detach()
            if self._finalizer is finalizer:
                self._temporary, self._finalizer = "", None

    def __repr__(self) -> str:
        return f"<ResultFiles in {self._given or self._temporary or 'no directory yet'}>"


def _remove(folder: str, owner: int) -> None:
    import shutil

    if os.getpid() == owner:  # a forked child leaves its parent's files alone
        shutil.rmtree(folder, ignore_errors=True)


def _safe(name: str) -> str:
    """``name`` as the name of a directory: a session's id may be any text."""
    return re.sub(r"[^\w-]", "_", name)[:80] or "_"
