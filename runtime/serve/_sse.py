"""A stream of events as the body of a reply (server-sent events): what a WSGI server iterates over.

The thread of the request waits here, and holds nothing: not the run, which has a thread of its own, and no lock. It is
free again when the client has left: servers that show their socket are asked about that every second, with the others
the next ping fails.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from .. import events
from ._event_log import FORMS, EventLog, Page, Watcher, as_json

LOOK: Final = 1.0  # seconds between two looks whether the client has left
CHUNK: Final = 64  # events that are handed to the server at once
STUCK: Final = 60.0  # seconds that a client may take nothing, where the server shows its socket

_LOST: Final = "the process that had the run has died; a run without messages goes on with it"

HEADERS: Final = [
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Accel-Buffering", "no"),  # nginx would collect the events
]
PING: Final = b": ping\n\n"
AGAIN: Final = b"retry: 1000\n\n"  # the server ends: the client connects again, to the next one


class EventBody:
    """The events of a session from one id on. With ``run_is_over`` only those of one run, until its last event is sent,
    or until it is over without one.

    Used by one thread. `close`, which every WSGI server calls, gives back what it holds, also if nothing was read.
    """

    def __init__(
        self,
        log: EventLog,
        session_id: str,
        since: int,
        form: str,
        *,
        run_is_over: Callable[[], bool] | None,
        ping: float,
        closing: Callable[[], bool],
        environ: Mapping[str, Any],
        tell: Callable[[], bool],
        tell_every: float,
        on_close: Callable[[], None],
    ) -> None:
        self._log = log
        self._session_id = session_id
        self._since = since
        self._form = form
        self._run_is_over = run_is_over
        self._ping = ping
        self._closing = closing
        self._has_left = departure(environ)
        self._tell = tell  # that somebody looks; whether the process of the run has died
        self._tell_every = tell_every
        self._told = time.monotonic()
        self._socket = _socket(environ)
        self._timeout: float | None = None
        self._on_close: Callable[[], None] | None = on_close
        self._watcher: Watcher = log.watch(session_id)
        self._begun = self._over = self._lost = False
        self._started = False  # the run whose events these are

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._over:
            raise StopIteration
        if not self._begun:
            self._begun = True
            self._bound_writes()
            self._told = -self._tell_every
            page = self._read()
            # Headers go out with the first piece of the body, and the client waits for them.
            return self._chunk(page) if page.entries or page.gap or page.over else PING
        quiet_until = time.monotonic() + self._ping
        while True:
            if self._closing():
                self._over = True
                return AGAIN
            over = self._run_is_over is not None and self._run_is_over()  # first: its last event is there by then
            told = self._told_now()
            page = self._read()
            if page.entries or page.gap or page.over:
                return self._chunk(page) + told
            if told:
                return told
            if over:  # its events could not be kept
                self._over = True
                raise StopIteration
            now = time.monotonic()
            if now > self._told + self._tell_every:
                self._told = now
                if self._tell() != self._lost:
                    self._lost = not self._lost
                    if self._lost:
                        self._over = self._run_is_over is not None
                        return self._lost_run()
            left = quiet_until - now
            if self._watcher.wait(max(0.0, min(left, LOOK, self._tell_every))):
                continue
            if self._has_left():
                self._over = True
                raise StopIteration
            if time.monotonic() >= quiet_until:
                return PING

    def _read(self) -> Page:
        return self._log.read(self._session_id, self._since, CHUNK)

    def _chunk(self, page: Page) -> bytes:
        """The entries of a page as they are sent."""
        lines = ['data: {"type":"gap"}\n\n'] if page.gap else []
        for entry in page.entries:
            kind = "" if self._run_is_over is None else entry.type
            if kind == events.StreamStarted.type:
                if self._started:  # the next run: the process of this one has died, and not told of its end
                    self._over = True
                    return "".join(lines).encode("utf-8", "replace") + self._lost_run()
                self._started = True
            lines.append(f"id: {entry.id}\ndata: {entry.text(self._form)}\n\n")
            if kind == events.StreamStopped.type:
                self._over = True
                break
        if page.entries:
            self._since = page.entries[-1].id
        elif page.gap:
            self._since = self._log.last(self._session_id)
        if page.over and not page.entries:
            lines.append('data: {"type":"session_exited"}\n\n')
            self._over = True
        return "".join(lines).encode("utf-8", "replace")

    def _told_now(self) -> bytes:
        """What has happened while no run had the session. Without ids: no log has these events."""
        return self._without_ids(self._watcher.told())

    def _without_ids(self, told: Sequence[events.Event]) -> bytes:
        return "".join(f"data: {as_json(FORMS[self._form](each))}\n\n" for each in told).encode("utf-8", "replace")

    def _lost_run(self) -> bytes:
        """The end of a run whose process has died before it could tell. Without ids: no log has these events."""
        said = events.Error(_LOST, "interrupted", session_id=self._session_id)
        end = events.StreamStopped("error", session_id=self._session_id)
        return self._without_ids((said, end))

    def _bound_writes(self) -> None:
        """A client that takes nothing would keep the thread for ever."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._timeout = self._socket.gettimeout()
                if self._timeout is None:
                    self._socket.settimeout(STUCK)

    def close(self) -> None:
        """The client has left, or all is sent. Twice is harmless."""
        self._over = True
        self._watcher.close()
        if self._socket is not None and self._begun and self._timeout is None:
            with contextlib.suppress(OSError):
                self._socket.settimeout(None)
        done, self._on_close = self._on_close, None
        if done is not None:
            done()


def _socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """The client's socket, where the server shows it."""
    for name in ("gunicorn.socket", "werkzeug.socket"):
        found = environ.get(name)
        if isinstance(found, socket.socket):
            return found
    return None


def departure(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """A function that says whether the client has left, as far as the server can tell without sending."""
    told = environ.get("waitress.client_disconnected")
    if callable(told):
        return lambda: bool(told())
    found = _socket(environ)
    if found is None or not hasattr(select, "poll") or type(found) is not socket.socket:  # TLS: no looking
        return lambda: False

    def has_left() -> bool:
        try:
            poll = select.poll()
            poll.register(found, select.POLLIN)
            return bool(poll.poll(0)) and found.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    return has_left


def worker_is_ending() -> Callable[[], bool]:
    """A function that says whether the worker process of gunicorn that calls this was told to end: it waits for its
    streams then, without telling them.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("gunicorn.workers"):
            worker: Any = frame.f_locals.get("self")
            if hasattr(worker, "alive"):
                return lambda: not worker.alive
        frame = frame.f_back  # type: ignore[assignment]
    return lambda: False
