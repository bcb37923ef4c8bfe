"""What is served, and with what: the agents, their runtimes, the store of their sessions, the log of their events, and
the streams that are open. The addresses (`_api`) are a way to it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from .. import events
from .._checks import check, check_items
from .._errors import SessionNotFound
from ..agent._agent import Agent, Team
from ..agent._roster import Roster
from ..runtime import Runtime
from ..session._session import Session
from ..stores._memory import MemoryStore
from ..stores._store import SessionInfo, Store
from ._event_log import OURS, EventLog, MemoryLog
from ._runs import Runs
from ._store_log import StoreLog

#: Of the runtimes. A question waits as long as its user: the run is parked meanwhile. What comes while a store writes
#: is buffered, and written together.
DEFAULTS: Final[Mapping[str, Any]] = {"titles": True, "answer_timeout": None, "event_capacity": 512, "listen": True}
SESSIONS: Final = 500  # that are kept without a store
_LOOK_BACK: Final = 1000  # events in which the beginning of a run is looked for at once


class TooManyStreams(Exception):
    """There are as many streams as there may be: another would keep a thread that answers need."""


class Backend:
    """The parts of an application. Thread-safe."""

    def __init__(
        self,
        teams: Mapping[str, Team],
        store: Store | None,
        *,
        linger: float | None,
        max_streams: int,
        max_runs: int,
        settings: Mapping[str, Any],
    ) -> None:
        self.teams: Final = teams
        self._rosters = {name: dict(Roster(team.agents)._agents) for name, team in teams.items()}
        self.own_store: Final = store is None
        self.store: Final[Store] = MemoryStore() if store is None else store
        self.log: Final[EventLog] = MemoryLog() if store is None else StoreLog(store)
        self.max_streams = max_streams
        self._lock = threading.Lock()
        self._streams = 0
        self.closed = False
        # Made here: settings that are wrong are an error where they are given. A runtime starts no thread before a run.
        settings = {**DEFAULTS, **settings}
        self._runtimes = {name: Runtime(team, store=self.store, **settings) for name, team in teams.items()}
        for runtime in self._runtimes.values():
            runtime._shared.tells_settled = True  # whoever looks may answer, and the others have to know
        self.runs: Final = Runs(
            self.runtime, self.store, self.log, linger=linger, max_runs=max_runs, shared=store is not None
        )

    # -- streams -------------------------------------------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._streams

    def open_stream(self, session_id: str) -> None:
        """Count a stream that looks at a session, until `close_stream`. Raises `TooManyStreams`."""
        with self._lock:
            full = self._streams >= self.max_streams
            if not full:
                self._streams += 1
        if full:
            self.log.wake()  # whoever of them has left is noticed now
            raise TooManyStreams
        self.runs.look(session_id)

    def close_stream(self, session_id: str) -> None:
        """A stream has ended."""
        with self._lock:
            self._streams -= 1
        self.runs.leave(session_id)

    @contextlib.contextmanager
    def stream(self, session_id: str) -> Iterator[None]:
        """Within, a stream is open."""
        self.open_stream(session_id)
        try:
            yield
        finally:
            self.close_stream(session_id)

    def long_poll(self, session_id: str, since: int, form: str, wait: float) -> dict[str, Any]:
        """The events after ``since``; where there are none, those of the next ``wait`` seconds.
        Raises `TooManyStreams`."""
        until = time.monotonic() + wait
        with self.stream(session_id), self.log.watch(session_id) as watcher:
            self.runs.tell(session_id)
            while True:
                page = self.log.read(session_id, since)
                left = until - time.monotonic()
                if page.entries or page.gap or page.over or left <= 0 or self.closed:
                    break
                watcher.wait(min(left, self.runs.told_every))
                self.runs.tell(session_id)
        last = page.entries[-1].id if page.entries else self.log.last(session_id) if page.gap else since
        return {
            "events": [{"id": each.id, "event": json.loads(each.text(form))} for each in page.entries],
            "last": last,
            "gap": page.gap,
            "exited": page.over,
        }

    def run_of(self, session: Session) -> dict[str, int] | None:
        """Where the events of a session's live run begin: the id before the first, and how many messages of the session
        they do not tell of. It may be a run of another process. None where that is not known any more.
        """
        run = self.runs.get(session.id)
        if run is not None:
            return {"since": run.before, "messages": run.messages}
        started = self._last_start(session.id)
        if started is None:
            return None
        before, at = started
        messages = [each for each in session.messages if each.created_at.isoformat() < at]
        return {"since": before, "messages": len(messages) - (bool(messages) and messages[-1].role == "user")}

    def _last_start(self, session_id: str) -> tuple[int, str] | None:
        """The id before the event with which the last run began, and when that was."""
        end = self.log.last(session_id)
        while end > 0:
            since = max(end - _LOOK_BACK, 0)
            for entry in reversed(self.log.read(session_id, since, end - since).entries):
                if entry.type == events.StreamStarted.type:
                    return entry.id - 1, str(json.loads(entry.text(OURS))["timestamp"])
            end = since
        return None

    # -- what the addresses use ----------------------------------------------------------------------------------------

    def runtime(self, agent: str) -> Runtime:
        """The runtime of the agent that is served under this name."""
        return self._runtimes[agent]

    def roster(self, agent: str) -> Mapping[str, Agent]:
        """The agents of a team, by name."""
        return self._rosters[agent]

    def agent_of(self, session: Session) -> str:
        """The name under which the agent of a session is served, as far as its messages tell; else the first."""
        said = [session.agent_name, *(each.agent_name for each in reversed(session.messages))]
        said += [str(each.event.get("agent_name") or "") for each in session.waiting]
        for agent in filter(None, said):
            for name, roster in self._rosters.items():
                if agent in roster:
                    return name
        return next(iter(self.teams))

    def keep(self, session: Session) -> None:
        """Write a session that no run has: a new one, or what was changed in it. Raises `SessionBusy` and
        `SessionChanged`.
        """
        info = self.info(session.id) if session._stored is not None else None
        journal = self.store.open(session)
        journal.release("waiting" if info is not None and info.status == "waiting" else "idle")
        if self.own_store and info is None:
            self._forget_old()

    def _forget_old(self) -> None:
        """Without a store the sessions are in memory, which has an end."""
        known = self.store.sessions(limit=SESSIONS + 50)
        for info in known[SESSIONS:]:
            with contextlib.suppress(Exception):  # one with a run stays
                self.store.delete(info.id)
                self.log.end(info.id)

    def infos(self, owner: str, query: str, limit: int) -> Sequence[SessionInfo]:
        """The sessions of an owner, those that changed last first."""
        return self.store.sessions(query, limit=limit, prefix=owner)

    def info(self, id: str) -> SessionInfo | None:
        """What the store knows of a session without loading it."""
        try:
            return self.store.info(id)
        except SessionNotFound:
            return None

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End streams, runs and runtimes, and the store if it is our own."""
        self.closed = True
        self.log.wake()
        self.runs.close()
        for runtime in self._runtimes.values():
            runtime.close()
        self.log.close()
        if self.own_store:
            self.store.close()


_NOBODY: Final = "there is no agent to serve"


def checked_agents(agents: Agent | Team | Iterable[Agent | Team]) -> Sequence[Agent | Team]:
    """What is served, as a list. Raises `TypeError` for something else, and `ValueError` where there is nothing."""
    if isinstance(agents, (Agent, Team)):
        return [agents]
    given = check_items("what is served", agents, (Agent, Team), "an Agent, a Team, or a list of them")
    if not given:
        raise ValueError(_NOBODY)
    return given


def named(agents: Agent | Team | Iterable[Agent | Team] | Mapping[str, Agent | Team]) -> dict[str, Team]:
    """The teams that are served, by name."""
    if isinstance(agents, Mapping):
        given = list(agents.items())
    else:
        several = checked_agents(agents)
        given = [(each.name if isinstance(each, Agent) else each.root.name, each) for each in several]
    if not given:
        raise ValueError(_NOBODY)
    teams: dict[str, Team] = {}
    for name, each in given:
        check("the name of what is served", name, str, "text")
        check("what is served", each, (Agent, Team), "an Agent or a Team")
        name = name.replace("/", "-")  # it is a part of an address
        if name in teams:
            raise ValueError(f"two agents are named {name!r}: serve a mapping, {{'name': agent, ...}}")
        teams[name] = each if isinstance(each, Team) else Team((each,))
    return teams
