"""The logs of served sessions: what their runs have sent, numbered, for any number of readers from any point on.

Invariant of a log: its ids go up by one from an entry to the next, and never come again, also not after a restart of
the process. So a reader that says which id it had last gets what came since, each entry once; and where that is not
there any more, it is told of the gap.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol

from channels import Channel, ChannelClosed, WouldBlock

from .._dataclasses import dataclass
from ..events import AgentChoice, AgentChoiceReasoning, Event
from ..foreign._sound import sound
from ..session._session import Session
from ._docker_agent import docker_agent_json

KEPT: Final = 10_000  # entries of a session
ENTRIES: Final = 100_000  # of all sessions together, of those that were written to last
PAGE: Final = 256  # entries that are read at once
TOLD: Final = 100  # events of no log that a reader is told

OURS: Final = "lockgate"
#: The forms that a client may have events in: docker-agent's JSON, and ours.
FORMS: Final[Mapping[str, Callable[[Event], dict[str, Any]]]] = {
    "docker-agent": docker_agent_json,
    OURS: Event.to_dict,
}


class Entry:
    """One event in a log. Its JSON is made when the first reader wants it, once for all readers."""

    __slots__ = ("_event", "_texts", "id")

    def __init__(self, id: int, event: Event | None = None, text: str | None = None) -> None:
        self.id = id
        self._event = event
        self._texts: dict[str, str] = {} if text is None else {OURS: text}

    @property
    def type(self) -> str:
        """The type of the event."""
        if self._event is not None:
            return self._event.type
        text = self._texts[OURS]
        return text[9 : text.index('"', 9)]  # it begins with {"type":"

    def text(self, form: str) -> str:
        """The event as one line of JSON."""
        text = self._texts.get(form)
        if text is None:  # two threads may both make it: it is the same
            text = self._texts[form] = self._made(form)
        return text

    def _made(self, form: str) -> str:
        if self._event is None:
            try:
                self._event = Event.from_dict(json.loads(self._texts[OURS]))
            except (TypeError, ValueError, KeyError):  # another version has written it
                return self._texts[OURS]
        if isinstance(self._event, _PIECES):
            text = _piece_json(self._event)
            self._texts = dict.fromkeys(FORMS, text)
            return text
        return as_json(FORMS[form](self._event))


#: Nearly all events are pieces of a reply. They are the same in both forms, and written without a dictionary each.
_PIECES: Final = (AgentChoice, AgentChoiceReasoning)
_quoted: Final = json.encoder.encode_basestring


def _piece_json(event: AgentChoice | AgentChoiceReasoning) -> str:
    return (
        f'{{"type":"{event.type}","agent_name":{_quoted(event.agent_name)},"session_id":{_quoted(event.session_id)},'
        f'"timestamp":"{event.timestamp.isoformat()}","content":{_quoted(event.content)}}}'
    )


_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def as_json(value: Any) -> str:
    """A value as one line of JSON, whatever floats and texts are in it."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(sound(value))


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries of a log. ``gap``: entries that came before them are not there any more. ``over``: the session was
    deleted, so that nothing will follow."""

    entries: Sequence[Entry]
    gap: bool = False
    over: bool = False


class Watcher:
    """Wakes one reader of a log. Leaving its ``with`` block ends that."""

    def __init__(self, forget: Callable[[Watcher], None]) -> None:
        self._woken: Channel[None] = Channel(1, name="log of a session")
        self._told: deque[Event] = deque(maxlen=TOLD)
        self._forget = forget

    def wait(self, timeout: float) -> bool:
        """Wait until there may be something new, for ``timeout`` seconds at most; whether there may be."""
        try:
            self._woken.recv(timeout=timeout)
        except TimeoutError:
            return False
        except ChannelClosed:
            pass
        return True

    def wake(self) -> None:
        """Let `wait` return. Does not wait."""
        if not len(self._woken):  # what is in there has yet to be taken, and the log is read after that
            with contextlib.suppress(WouldBlock, ChannelClosed):
                self._woken.try_send(None)

    def tell(self, event: Event) -> None:
        """Let the reader have an event that is in no log. Does not wait."""
        self._told.append(event)
        self.wake()

    def told(self) -> list[Event]:
        """The events that the reader was told, each once."""
        told: list[Event] = []
        with contextlib.suppress(IndexError):
            while True:
                told.append(self._told.popleft())
        return told

    def close(self) -> None:
        """Forget the reader. Twice is harmless."""
        self._forget(self)
        self._woken.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class EventLog(Protocol):
    """The logs of all sessions that a server has. Every method may be called from any thread."""

    def append(self, session: Session, events: Sequence[Event]) -> None:
        """Add events to the log of a session that a stream of this process runs, and wake its readers."""
        ...

    def read(self, session_id: str, since: int, limit: int = PAGE) -> Page:
        """The entries after the one with the id ``since`` (0: from the first on), at most ``limit``. Does not wait."""
        ...

    def last(self, session_id: str) -> int:
        """The id of the last entry; 0 where there was none."""
        ...

    def watch(self, session_id: str) -> Watcher:
        """A watcher that is woken by everything that is new in the log from now on."""
        ...

    def tell(self, session_id: str, event: Event) -> None:
        """Tell who reads the log now of something that happened while no run had the session, whose events alone are in
        the log."""
        ...

    def end(self, session_id: str) -> None:
        """The session was deleted: forget its log, and tell the readers."""
        ...

    def wake(self) -> None:
        """Wake all readers."""
        ...

    def close(self) -> None:
        """Watch nothing any more, and wake all readers."""
        ...


class _Ring:
    """The log of one session, in memory."""

    __slots__ = ("entries", "first", "last", "over", "watchers")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.first = 0  # the id of the first entry that there ever was
        self.last = 0
        self.over = False
        self.watchers: list[Watcher] = []


class MemoryLog:
    """Logs in the memory of this process: the last ``kept`` entries of each session, and about ``most`` altogether.

    Ids begin with the time: after a restart they are higher than all that clients have from before, who are then told
    of a gap, and not given other events under ids that they know.
    """

    def __init__(self, kept: int = KEPT, most: int = ENTRIES) -> None:
        self._kept = kept
        self._most = most
        self._count = 0
        self._lock = threading.Lock()
        self._rings: OrderedDict[str, _Ring] = OrderedDict()  # the one that was written to last is last

    def append(self, session: Session, events: Sequence[Event]) -> None:
        """Add events, and wake the readers."""
        last = self.last(session.id) or int(time.time() * 1000) * 1000
        self.add(session.id, [Entry(last + number, event) for number, event in enumerate(events, 1)])

    def add(self, session_id: str, entries: Sequence[Entry]) -> None:
        """Add entries that have their ids. Where they do not follow those that are there, these are forgotten."""
        with self._lock:
            ring = self._ring(session_id)
            before = len(ring.entries)
            if ring.last != entries[0].id - 1:
                ring.entries.clear()
                ring.first = entries[0].id
            ring.entries += entries
            ring.last = entries[-1].id
            if len(ring.entries) > self._kept + self._kept // 4:  # not at each: that moves all others
                del ring.entries[: len(ring.entries) - self._kept]
            self._count += len(ring.entries) - before
            self._rings.move_to_end(session_id)
            if self._count > self._most:
                self._forget_old()
            watchers = tuple(ring.watchers)
        for each in watchers:
            each.wake()

    def read(self, session_id: str, since: int, limit: int = PAGE) -> Page:
        """The entries after ``since``."""
        with self._lock:
            ring = self._rings.get(session_id)
            if ring is None:
                return Page((), gap=since > 0)
            if not ring.entries:
                return Page((), gap=since > ring.last, over=ring.over)
            first = ring.entries[0].id
            if since > ring.last or since < first - 1:
                return Page(ring.entries[:limit], gap=since > 0 or first > ring.first, over=ring.over)
            at = since - first + 1
            return Page(ring.entries[at : at + limit], over=ring.over)

    def last(self, session_id: str) -> int:
        """The id of the last entry."""
        with self._lock:
            ring = self._rings.get(session_id)
            return 0 if ring is None else ring.last

    def watch(self, session_id: str) -> Watcher:
        """A watcher of the log of one session."""
        watcher = Watcher(lambda watcher: self._forget(session_id, watcher))
        with self._lock:
            self._ring(session_id).watchers.append(watcher)
        return watcher

    def tell(self, session_id: str, event: Event) -> None:
        """Tell the readers of one log."""
        for each in self._watchers(session_id):
            each.tell(event)

    def _watchers(self, session_id: str) -> tuple[Watcher, ...]:
        with self._lock:
            ring = self._rings.get(session_id)
            return () if ring is None else tuple(ring.watchers)

    def end(self, session_id: str) -> None:
        """Forget the log of a session that was deleted."""
        with self._lock:
            ring = self._rings.pop(session_id, None)
            if ring is None:
                return
            self._count -= len(ring.entries)
            ring.over = True
            if ring.watchers:  # who reads it still reads it to its end; the last of them takes it away
                self._rings[session_id] = ring
            watchers = tuple(ring.watchers)
        for each in watchers:
            each.wake()

    def has(self, session_id: str, since: int) -> bool:
        """Whether the entry after ``since`` is here."""
        with self._lock:
            ring = self._rings.get(session_id)
            return ring is not None and bool(ring.entries) and ring.entries[0].id - 1 <= since < ring.last

    def wake_one(self, session_id: str) -> None:
        """Wake the readers of one log."""
        for each in self._watchers(session_id):
            each.wake()

    def close(self) -> None:
        """Wake all readers."""
        self.wake()

    def wake(self) -> None:
        """Wake all readers."""
        with self._lock:
            watchers = [each for ring in self._rings.values() for each in ring.watchers]
        for each in watchers:
            each.wake()

    def _ring(self, session_id: str) -> _Ring:
        ring = self._rings.get(session_id)
        if ring is None:
            ring = self._rings[session_id] = _Ring()
        return ring

    def _forget(self, session_id: str, watcher: Watcher) -> None:
        with self._lock:
            ring = self._rings.get(session_id)
            if ring is None or watcher not in ring.watchers:
                return
            ring.watchers.remove(watcher)
            if not ring.watchers and (ring.over or not ring.last):  # no entries
                del self._rings[session_id]

    def _forget_old(self) -> None:
        """Forget the logs that were written to longest ago, and that nobody reads."""
        unread = [id for id, ring in self._rings.items() if not ring.watchers]
        for id in unread[:-1]:  # the last may be the one that is written to now
            self._count -= len(self._rings.pop(id).entries)
            if self._count <= self._most:
                break
