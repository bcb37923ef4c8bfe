"""Dumps for other processes: a process that listens answers whoever asks it, if that is its own user.

A socket, and not a signal. A signal reaches a process that does not listen too, and SIGUSR1 ends it; its handler would
run on the main thread, which may be stuck in C; and the text would have to be fetched from a file. The socket is
answered by a thread of its own. It lies in a directory that only its user may enter, has mode 0600, and on Linux the
listener asks the kernel who has connected.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import socket
import stat
import struct
import tempfile
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final

from channels._lazy import lazy_logger

from ._dump import dump_of

_logger = lazy_logger("runtime")
THREAD_NAME: Final = "lockgate-dump"
TEXT: Final = b"text\n"
JSON: Final = b"json\n"
PATIENCE: Final = 5.0  # seconds that one who asks may take to say what, and to read the answer
_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


class NotListening(Exception):
    """The process does not answer: it does not exist, or it has not called `listen`."""


class Listener:
    """Answers requests of other processes for a dump, until it is closed. Made by `listen`."""

    def __init__(self) -> None:
        self.path = address(os.getpid())
        _make_private(self.path.parent)
        _forget_the_gone(self.path.parent)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._over, self._ending = socket.socketpair()
        self._pid = os.getpid()
        try:
            before = os.umask(0o177)
            try:
                self._socket.bind(str(self.path))
            finally:
                os.umask(before)
            self._socket.listen(4)
            self._socket.setblocking(False)
            self._thread = threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True)
            self._thread.start()
        except BaseException:
            self._let_go()
            raise
        _listeners.add(self)

    def close(self) -> None:
        """Stop answering, and end the thread. Closing twice is harmless."""
        with contextlib.suppress(OSError):
            self._ending.send(b"\0")
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)
        self._let_go()

    def _let_go(self) -> None:
        if self._pid == os.getpid():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            self._pid = 0
        for each in (self._socket, self._over, self._ending):
            each.close()

    def _serve(self) -> None:
        """The function of the thread."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._over, selectors.EVENT_READ)
            while True:
                if any(key.fileobj is self._over for key, _ in selector.select()):
                    return
                try:
                    asker, _ = self._socket.accept()
                except OSError:  # it has left again
                    continue
                with asker:
                    try:
                        _answer(asker)
                    except OSError:  # it has left before it was answered, or took too long
                        pass
                    except Exception:
                        _logger.exception("a dump could not be made")

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Listener at {self.path}>"


def _answer(asker: socket.socket) -> None:
    asker.settimeout(PATIENCE)
    if not _is_mine(asker):
        return
    wanted = asker.recv(len(TEXT))
    dump = dump_of()
    text = json.dumps(dump.to_dict()) if wanted == JSON else str(dump)
    asker.sendall(text.encode("utf-8", "replace"))


def _is_mine(asker: socket.socket) -> bool:
    """Whether it is a process of this user, or of root, that asks, as far as the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, user, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user in (0, os.getuid())


def listen() -> Listener:
    """Let `python -m runtime.dump PID`, run by the same user, ask this process for a dump.

    Starts one thread, which ends with `Listener.close` or with the process. Raises `RuntimeError` if the system has no
    Unix sockets or the process already listens, and `OSError` if the socket cannot be made.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise RuntimeError("the system has no Unix sockets: call runtime.dump.dump() yourself")
    if any(listener._pid == os.getpid() for listener in list(_listeners)):
        raise RuntimeError("this process listens already")
    return Listener()


def ask(process: int, wanted: bytes = TEXT, timeout: float = 2 * PATIENCE) -> str:
    """What the process with this number says. Raises `NotListening`, and `OSError` where it does not end saying it."""
    path = address(process)
    _make_private(path.parent)  # or somebody else could answer there
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout)
        try:
            asking.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotListening(_why_not(process)) from None
        asking.sendall(wanted)
        pieces = []
        while piece := asking.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "replace")


def _why_not(process: int) -> str:
    """Why a process does not answer."""
    if process <= 0:
        return "the number of a process is positive"
    try:
        os.kill(process, 0)
        theirs = os.stat(f"/proc/{process}").st_uid != os.getuid()
    except (ProcessLookupError, OverflowError):
        return f"there is no process {process}"
    except PermissionError:
        theirs = True
    except OSError:  # the system has no /proc
        theirs = False
    if theirs:
        return f"process {process} is run by another user, and only its own user can ask it"
    return (
        f"process {process} does not listen: it has to call runtime.dump.listen(), with the same XDG_RUNTIME_DIR and"
        " TMPDIR as here"
    )


def address(process: int) -> Path:
    """Where the process with this number listens."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    directory = Path(base, "lockgate") if base else Path(tempfile.gettempdir(), f"lockgate-{os.getuid()}")
    return directory / f"dump-{process}"


def _make_private(directory: Path) -> None:
    """Make the directory, for this user alone. Raises `PermissionError` where another could come into it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{directory} has to be a directory of this user, with mode 700, or others could answer")


def _forget_the_gone(directory: Path) -> None:
    """Remove the sockets of processes that were killed, and of an earlier one with the number of this."""
    for path in directory.glob("dump-*"):
        number = path.name.removeprefix("dump-")
        if number.isdecimal() and (int(number) == os.getpid() or not _is_alive(int(number))):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (OSError, OverflowError):  # gone; or somebody else's by now, and then the socket in this directory is not
        return False
    return True


def _at_exit() -> None:
    for listener in list(_listeners):
        listener.close()


def _in_child() -> None:
    """A forked child does not listen: its parent does."""
    for listener in list(_listeners):
        for each in (listener._socket, listener._over, listener._ending):
            each.close()
    _listeners.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
