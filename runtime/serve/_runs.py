"""The runs of a server. They belong to it: a thread of each run's own reads its stream into the log of the session, and
connections only look at the log.

Invariant: a session is in ``_live`` from before its stream is opened until its last event is in the log, so that who
has seen that event can start the next run. A clock runs for a run exactly while nobody looks at its session.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from channels import CancelToken, Channel, ChannelClosed
from channels._lazy import lazy_logger

from .. import events
from .._errors import NotParkable, SessionBusy, SessionChanged, SessionNotFound, StoreError, StreamStuck
from .._standstill import PIECES, counts
from ..execution import _threads
from ..runtime import Runtime
from ..session._session import Session
from ..stores._store import Store
from ..stream._event_stream import EventStream
from ._event_log import EventLog

_logger = lazy_logger("runtime.serve")
PARK: Final = 30.0  # seconds until a run that waits for its user is parked, where runs without clients go on
PARKING: Final = 2.0  # seconds that runs have to end with the server
EXIT: Final = 0.5  # and with the interpreter, which ends them in its own way then
BATCH: Final = 512  # events that are put into the log at once: what comes while a store writes


class TooManyRuns(Exception):
    """The server has as many runs as it may have."""


class AlreadyRunning(Exception):
    """The session has a live run."""


class LiveRun:
    """A run under way."""

    def __init__(self, session: Session, agent: str) -> None:
        self.session = session
        self.agent = agent  # the name under which it is served
        self.before = 0  # the id of the last event in the log before it began
        last = session.messages[-1] if session.messages else None
        #: How many messages the session had before what the events of the run tell of.
        self.messages = len(session.messages) - (1 if last is not None and last.role == "user" else 0)
        self.opened: Channel[None] = Channel(name="served run opened")  # closes, also if it cannot be opened
        self.over: Channel[None] = Channel(name="served run over")  # closes
        self.clock: CancelToken | None = None
        self.ending = False
        self.answered = False  # it goes on because somebody has answered, and nobody has looked since then
        self._stream: EventStream | None = None

    @property
    def stream(self) -> EventStream:
        assert self._stream is not None
        return self._stream


class Runs:
    """The live runs of this process, and who looks at which session."""

    def __init__(
        self,
        runtimes: Callable[[str], Runtime],
        store: Store,
        log: EventLog,
        *,
        linger: float | None,
        max_runs: int,
        shared: bool,
    ) -> None:
        self._runtimes = runtimes
        self._store = store
        self._log = log
        self._linger = linger
        self._max_runs = max_runs
        self._shared = shared  # the store, with other processes, in which somebody may look at runs of this one
        #: Seconds between two times that a process says that somebody looks at a run of another one.
        self.told_every = min(10.0, max(self._time / 3, 0.05))
        self._lock = threading.Lock()
        self._live: dict[str, LiveRun] = {}
        self._looking: dict[str, int] = {}
        self._closed = False
        self._at_exit: list[bool] = []  # whether the interpreter was asked to park runs when it exits

    def __len__(self) -> int:
        return len(self._live)

    def get(self, session_id: str) -> LiveRun | None:
        """The live run of a session, in this process. One whose last event is on its way to the log is waited for: who
        has seen that event finds no run.
        """
        run = self._live.get(session_id)
        if run is not None and run.ending:
            with contextlib.suppress(ChannelClosed, TimeoutError):
                run.over.recv(timeout=PARKING)
            run = self._live.get(session_id)
        return None if run is None or run._stream is None else run

    def ids(self) -> set[str]:
        """The sessions that have a live run."""
        return set(self._live)

    # -- starting and ending -------------------------------------------------------------------------------------------

    def start(self, agent: str, session: Session, *, answered: bool = False) -> LiveRun:
        """Start a run of the agent that is served under this name. One that goes on because it was ``answered`` is not
        cancelled before somebody has looked at it, and left. Raises `AlreadyRunning`, `TooManyRuns`, and as
        `Runtime.run_stream`.
        """
        if not self._at_exit:
            self._at_exit.append(True)
            _park_at_exit(self)
        run = LiveRun(session, agent)
        run.answered = answered
        with self._lock:
            if self._closed or len(self._live) >= self._max_runs:
                raise TooManyRuns
            other = self._live.setdefault(session.id, run)
        if other is not run:  # who is told so finds it in the store, with the key of its request
            with contextlib.suppress(ChannelClosed, TimeoutError):
                other.opened.recv(timeout=PARKING)
            raise AlreadyRunning(session.id)
        try:
            run._stream = self._runtimes(agent).run_stream(session)
            run.opened.close()
            run.before = self._log.last(session.id)  # with the lease of the session: nobody else adds to its log now
            _threads.start(lambda: self._read(run), f"lockgate-serve-{session.id[:8]}")
        except BaseException:
            self._end(run)
            if run._stream is not None:
                run._stream.close()
            raise
        self._set_clock(session.id)
        return run

    def _read(self, run: LiveRun) -> None:
        """On the thread of the run: its events go to the log, whoever looks or does not."""
        id = run.session.id
        try:
            with contextlib.suppress(ChannelClosed):
                while True:
                    said = run.stream.recv_many(BATCH)
                    run.ending = isinstance(said[-1], events.StreamStopped)
                    self._log.append(run.session, said)
        except BaseException:
            _logger.exception("the events of session %s cannot be kept: its run is ended", id)
            self._close(run)  # first: as long as it lives, another one on its session would find that changed
        parked = run.stream.reason == "waiting"
        self._end(run)
        self._close(run)
        core = run.stream._core
        if core.ending.reason == "error":  # its client may see it, but who looks after the server does not
            what = f"{core.ending.code}: {core.ending.message}"
            _logger.warning("a run of session %s has failed: %s", id, what, extra=core.tags)
        if parked:
            self.go_on(id, run.agent)  # an answer may have come at the same moment

    def _close(self, run: LiveRun) -> None:
        try:
            run.stream.close()
        except StreamStuck as stuck:
            _logger.warning("a run of session %s has ended, but: %s", run.session.id, stuck)

    def _end(self, run: LiveRun) -> None:
        with self._lock:
            if self._live.get(run.session.id) is run:
                del self._live[run.session.id]
            clock, run.clock = run.clock, None
        if clock is not None:
            clock.cancel()
        run.opened.close()
        run.over.close()

    def go_on(self, session_id: str, agent: str) -> bool:
        """Go on with a parked session whose requests are all answered; whether a run was started, here or elsewhere."""
        if self._closed:
            return False
        try:
            if session_id not in self._store.ready():
                return False
            self.start(agent, self._store.load(session_id), answered=True)
        except (AlreadyRunning, SessionBusy, SessionChanged):  # somebody else was faster
            return True
        except (SessionNotFound, TooManyRuns):
            return False
        except Exception:
            _logger.exception("session %s, which was answered, cannot go on", session_id)
            return False
        return True

    def close(self, limit: float = PARKING) -> None:
        """Start no more runs. Those under way are parked if they wait for their user, and cancelled otherwise. Waits
        for their end, for ``limit`` seconds at most."""
        with self._lock:
            self._closed = True
            live = [run for run in self._live.values() if run._stream is not None]
        until = time.monotonic() + limit
        for run in [run for run in live if not self._park(run)]:
            run.stream.cancel("the server was closed")
        for run in live:
            with contextlib.suppress(ChannelClosed, TimeoutError):
                run.over.recv(timeout=max(0.0, until - time.monotonic()))

    # -- who looks -----------------------------------------------------------------------------------------------------

    def look(self, session_id: str) -> None:
        """Somebody looks at the session from now on, until `leave`."""
        with self._lock:
            self._looking[session_id] = self._looking.get(session_id, 0) + 1
            run = self._live.get(session_id)
            clock = None
            if run is not None:
                clock, run.clock = run.clock, None
                run.answered = False
        if clock is not None:
            clock.cancel("somebody looks")

    def answered(self, session_id: str) -> None:
        """A request of the session was answered: whoever did that wants its run to go on, also if nobody looks."""
        with self._lock:
            run = self._live.get(session_id)
            if run is not None and not self._looking.get(session_id):
                run.answered = True
        if run is None:
            self.tell(session_id)

    def leave(self, session_id: str) -> None:
        """One of those who look at the session has left."""
        with self._lock:
            left = self._looking.get(session_id, 0) - 1
            if left > 0:
                self._looking[session_id] = left
            else:
                self._looking.pop(session_id, None)
        self._set_clock(session_id)

    @property
    def _time(self) -> float:
        """The seconds that a run has without anybody who looks."""
        return PARK if self._linger is None else max(self._linger, 0.001)

    def tell(self, session_id: str) -> bool:
        """Somebody looks at the session here: let the process know that has its run, if it is another one. Whether that
        process has died in the middle of the run.
        """
        if self._shared and session_id not in self._live:
            with contextlib.suppress(StoreError, SessionNotFound):  # the next time, if it goes on like that
                status = self._store.info(session_id).status
                if status == "running":
                    self._store.look(session_id)
                return status == "interrupted"
        return False

    def _is_looked_at_elsewhere(self, session_id: str) -> bool:
        if not self._shared:
            return False
        try:
            seen = self._store.commands(session_id).looked_at
        except (StoreError, SessionNotFound):
            return False
        return seen is not None and (datetime.now(UTC) - seen).total_seconds() < max(self._time, 2 * self.told_every)

    def _set_clock(self, session_id: str) -> None:
        """Nobody may be looking: then the run has some time, until somebody comes back."""
        clock = CancelToken(timeout=self._time / PIECES)
        with self._lock:
            run = self._live.get(session_id)
            if run is None or run._stream is None or run.clock is not None or self._looking.get(session_id):
                return
            run.clock = clock
        self._await_end(run, clock, PIECES)

    def _await_end(self, run: LiveRun, clock: CancelToken, left: int) -> None:
        """Wait for the end of a piece, the first of so many that are ``left``, without a thread."""
        due = time.monotonic() + self._time / PIECES
        clock.on_cancel(lambda: self._ring(run, clock, left, due))

    def _ring(self, run: LiveRun, clock: CancelToken, left: int, due: float) -> None:
        """The clock has run out, or was stopped. The thread has other callbacks to call, and the store may be slow.

        A piece that ends much too late does not count: the process stood still, and nobody could come back.
        """
        if not isinstance(clock.cause, TimeoutError):
            return
        if counts(self._time / PIECES, time.monotonic() - due):
            left -= 1
        if not left:
            _threads.start(lambda: self._time_is_up(run, clock), "lockgate-serve-clock")
            return
        again = CancelToken(timeout=self._time / PIECES)
        with self._lock:
            if run.clock is not clock:
                return
            run.clock = again
        self._await_end(run, again, left)

    def _time_is_up(self, run: LiveRun, clock: CancelToken) -> None:
        with self._lock:
            if run.clock is not clock:
                return
            run.clock = None
            looked_at = self._looking.get(run.session.id)
        if looked_at or run.stream.reason is not None:
            return
        if self._is_looked_at_elsewhere(run.session.id):
            self._set_clock(run.session.id)
            return
        asks = bool(run.stream.pending)
        if asks and self._park(run):
            return
        if self._linger is None or run.answered or asks:  # what it asks would be lost: until it only asks
            self._set_clock(run.session.id)
        else:
            run.stream.cancel(f"nobody has looked for {self._linger:g} s")

    @staticmethod
    def _park(run: LiveRun) -> bool:
        if not run.stream.pending:
            return False
        try:
            run.stream.park()
        except NotParkable:
            return False
        return True


def _park_at_exit(runs: Runs) -> None:
    """Let the interpreter park what waits for its user before it ends all streams: gunicorn exits without closing its
    applications.
    """
    known = weakref.ref(runs)

    def park() -> None:
        found = known()
        if found is not None and found._live:
            found.close(EXIT)

    register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
    register(park)  # before what was registered earlier, which ends the streams
