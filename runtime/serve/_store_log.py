"""The logs of served sessions in their store, so that any process serves the events of a run, whichever has it.

An event is in the store before a reader is told of it: the id that a client has had is one that the next process knows
too, also where this one is killed. What this process has written it also keeps in memory, for its own readers.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from channels import CancelToken, Receiver
from channels._lazy import lazy_logger

from .._errors import SessionNotFound, StoreError
from ..events import Event
from ..session._journal import Request
from ..session._session import Session
from ..stores._store import Notice, Store
from ._event_log import OURS, PAGE, Entry, MemoryLog, Page, Watcher
from ._session_json import settled_event

HERE: Final = 1000  # entries of a session that are also kept in memory
ALL_HERE: Final = 20_000  # of all sessions: what is older is read from the store by those who want it
EPOCHS: Final = 500  # sessions whose last epoch here is known
_logger = lazy_logger("runtime.serve")


class StoreLog:
    """The event logs of a store, as an `EventLog`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._here = MemoryLog(kept=HERE, most=ALL_HERE)
        self._epochs: OrderedDict[str, int | None] = OrderedDict()  # in which this process has added to a log last
        self._ended = CancelToken()
        self._starting = threading.Lock()  # of the thread; and for the epochs
        self._thread: threading.Thread | None = None

    def append(self, session: Session, events: Sequence[Event]) -> None:
        """Write the events, wait until they are durable, and wake the readers. Raises `StoreError`."""
        last, epoch = self._here.last(session.id), None if session._stored is None else session._stored.epoch
        if self._epochs.get(session.id) != epoch or not self._here.has(session.id, last - 1):
            last = self._store.last_event(session.id)  # another process may have run it meanwhile
            with self._starting:
                self._epochs[session.id] = epoch  # nobody else adds to the log while the session has this one
                self._epochs.move_to_end(session.id)
                if len(self._epochs) > EPOCHS:
                    self._epochs.popitem(last=False)
        entries = [Entry(last + number, event) for number, event in enumerate(events, 1)]
        self._store.append_events(session, [(each.id, each.text(OURS)) for each in entries])
        self._here.add(session.id, entries)

    def read(self, session_id: str, since: int, limit: int = PAGE) -> Page:
        """The entries after ``since``. Raises `StoreError`."""
        if self._here.has(session_id, since):
            return self._here.read(session_id, since, limit)
        try:
            found = self._store.events(session_id, since, limit=limit)
            gap = False
            if not found and (last := self._store.last_event(session_id)) != since:
                gap = since > last  # an id of another store, or of a file that was put back
                found = self._store.events(session_id, 0 if gap else since, limit=limit)  # some came in between, or
                gap = gap or not found  # they are not kept any more
            entries = [Entry(number, text=text) for number, text in found]
            return Page(entries, gap=gap or bool(entries and entries[0].id != since + 1))
        except SessionNotFound:
            return Page((), over=True)

    def last(self, session_id: str) -> int:
        """The id of the last entry. Raises `StoreError`."""
        try:
            return self._store.last_event(session_id)
        except SessionNotFound:
            return 0

    def watch(self, session_id: str) -> Watcher:
        """A watcher of the log of one session. Raises `StoreError`."""
        self._listen()
        return self._here.watch(session_id)

    def tell(self, session_id: str, event: Event) -> None:
        """Tell the readers of one log, in this process."""
        self._here.tell(session_id, event)

    def end(self, session_id: str) -> None:
        """Forget the log of a session that was deleted."""
        self._here.end(session_id)

    def wake(self) -> None:
        """Wake all readers."""
        self._here.wake()

    def close(self) -> None:
        """Watch the store no longer."""
        self._ended.cancel("the application was closed")
        self._here.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def _listen(self) -> None:
        """Start to watch the store: with the first reader, so that a server may fork before."""
        if self._thread is not None:
            return
        with self._starting:
            if self._thread is None and not self._ended.cancelled:
                notices = self._store.watch(self._ended, events=True)
                self._thread = threading.Thread(
                    target=self._wake_readers, args=(notices,), name="lockgate-serve-events", daemon=True
                )
                self._thread.start()

    def _tell_of_answer(self, request: Request) -> None:
        """A live run tells of the answers to its requests itself."""
        with contextlib.suppress(StoreError, SessionNotFound):
            if self._store.info(request.root_id).status == "waiting":
                self._here.tell(request.root_id, settled_event(request))

    def _wake_readers(self, notices: Receiver[Notice]) -> None:
        try:
            for notice in notices:
                if notice.kind == "deleted":
                    self._here.end(notice.session_id)
                elif notice.kind in ("events", "released"):
                    self._here.wake_one(notice.session_id)
                elif notice.kind == "answered" and notice.request is not None:
                    self._tell_of_answer(notice.request)
        except BaseException:
            _logger.exception("events of other processes are shown late: the store cannot be watched")
