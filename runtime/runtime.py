"""`Runtime`: wires the parts together, and does nothing itself."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from ._checks import check, is_number
from ._errors import NotPending, NotRunning, SessionBusy, SessionChanged, SessionNotFound, StillWaiting
from .agent._agent import Agent, Team
from .agent._budget import Budget
from .agent._output import Output
from .agent._result import RunResult
from .agent._roster import Roster
from .agent._tool import Action, Answer
from .events import ElicitationRequest, MaxIterationsReached, ToolCallConfirmation
from .execution._calls import refuse_on_the_loop
from .execution._helpers import HelperPool
from .execution._result_files import ResultFiles
from .execution._toolsets import ToolSets
from .human._asks import Pending
from .human._bridge import ElicitationBridge
from .human._mailbox import Mailbox
from .loop import _loop
from .permissions import Decision, Permissions, Scope
from .recording._recorder import Recorder
from .recording._recording import Recording
from .session._journal import Request
from .session._session import Session
from .stores._store import Store
from .stream import _at_exit
from .stream._core import Shared
from .stream._event_stream import IN_A_COROUTINE, EventStream
from .stream._forwarder import AnyObserver, checked
from .stream._open import open_stream
from .stream._requests import form
from .toolcalls._results import RESULT_CHARACTERS
from .usage import Price, Prices

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from channels.aio import LoopThread

    from .inspection._data import Dump, Stall

T = TypeVar("T")
RequestEvent: TypeAlias = ElicitationRequest | ToolCallConfirmation | MaxIterationsReached
OnRequest: TypeAlias = "Callable[[Any], Answer | Mapping[str, Any] | Decision | bool | int | None]"


class Runtime:
    """Runs an agent, or the first of a team, on sessions. Any number of streams at once, from any threads.

    ``observers`` (see `Observer`) see every event before its consumer does. ``executor`` is a thread pool of yours for
    tools, hooks and in-process models; without one they get threads of their own. ``permissions`` are patterns for the
    tool calls of all streams; those of a session come first, those of the team last. ``event_capacity`` is how many
    events a stream buffers for a slow consumer. A question that nobody answers within ``answer_timeout`` seconds is
    declined, and a tool call that nobody approves rejected (None: they wait as long as their stream). ``grace`` is how
    many seconds a call that cannot be interrupted may take to end after its stream did, before `StreamStuck` names it.
    ``prices`` are those of your models, by id or pattern such as ``openai/gpt-5*``; they go before the built-in list.
    Of a tool's result, the model is given ``result_limit`` characters (None: all of them); a longer one is kept in full
    in a file in ``result_directory``, where you clean up, or by default in a temporary directory, which goes with the
    runtime. With ``titles``, a session without one gets the first words of its user as the title (`SessionTitle`).
    With a ``store`` (see `Store`), sessions outlive the process, as far as they have come:
    ``runtime.run_stream(store.load(id))`` goes on with one. A run that has done nothing but wait for its user for
    ``park_after`` seconds is parked (`EventStream.park`; None: never). The store is yours to close.

    A stream that has made no progress for ``stall_after`` seconds though nobody is being asked is reported, once: to
    ``on_stall``, a function that is given a `runtime.dump.Stall`, on a thread of its own, or else to the log (None:
    nobody looks).

    Use it as a context manager, or `close` it: that ends its streams, helper threads and toolsets.
    """

    def __init__(
        self,
        agent: Agent | Team,
        *,
        observers: Sequence[AnyObserver] = (),
        executor: Executor | None = None,
        permissions: Permissions | None = None,
        event_capacity: int = 128,
        answer_timeout: float | None = 300.0,
        grace: float = 1.0,
        prices: Mapping[str, Price] | None = None,
        result_limit: int | None = RESULT_CHARACTERS,
        result_directory: str | os.PathLike[str] | None = None,
        titles: bool = False,
        store: Store | None = None,
        park_after: float | None = None,
        stall_after: float | None = None,
        on_stall: Callable[[Stall], object] | None = None,
    ) -> None:
        for name, seconds in (("grace", grace), ("answer_timeout", answer_timeout)):
            if not is_number(seconds, least=0) and not (name == "answer_timeout" and seconds is None):
                raise ValueError(f"{name} is a number of seconds, 0 or more, not {seconds!r}")
        if stall_after is not None and not (is_number(stall_after, least=0) and stall_after > 0):
            raise ValueError(f"stall_after is a number of seconds, more than 0, or None, not {stall_after!r}")
        if on_stall is not None and not callable(on_stall):
            raise TypeError(f"on_stall is a function that is given a Stall, not {on_stall!r}")
        if on_stall is not None and stall_after is None:
            raise ValueError("on_stall is called after stall_after= seconds without progress: say how many")
        if not is_number(event_capacity, least=0, whole=True):
            raise ValueError(f"event_capacity is a whole number, 0 or more, not {event_capacity!r}")
        if result_limit is not None and not is_number(result_limit, least=1, whole=True):
            raise ValueError(f"result_limit is a whole number of characters, or None for all, not {result_limit!r}")
        if park_after is not None and (store is None or not is_number(park_after, least=0)):
            raise ValueError(f"park_after is a number of seconds, 0 or more, and needs a store, not {park_after!r}")
        check("permissions", permissions or Permissions(), Permissions, "made with Permissions(allow=[...], ...)")
        self._team = agent if isinstance(agent, Team) else Team((agent,))
        roster = Roster(self._team.agents)
        for level in (permissions or Permissions(), self._team.permissions):
            roster.check(level)
        self._shared = Shared(
            helpers=HelperPool(executor),
            loop=_default_loop,
            toolsets=ToolSets(),
            answer_timeout=answer_timeout,
            grace=grace,
            event_capacity=event_capacity,
            observers=checked(observers),
            prices=Prices(prices),
            permissions=(permissions or Permissions(), self._team.permissions),
            result_limit=result_limit,
            result_files=ResultFiles(result_directory),
            titles=titles,
            store=store,
            park_after=park_after,
            roster=roster,
            run=_loop.run,
        )
        if self._shared.listener is not None:
            weakref.finalize(self, self._shared.listener.end).atexit = False

        if stall_after is not None:
            from .inspection._watchdog import Watchdog

            self._shared.watch = Watchdog(self._shared.cores, stall_after, on_stall)

    # -- running -------------------------------------------------------------------------------------------------------

    def run_stream(
        self,
        session: Session,
        *,
        interactive: bool = True,
        budget: Budget | None = None,
        output_type: Any = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> EventStream:
        """Start a run of the agent on ``session``; its events, to iterate over.

        Starts one thread, and returns at once. With ``interactive=False`` there is nobody to answer questions and to
        approve tool calls: they are declined, and the model is told why. ``budget`` holds beside that of the agent.
        ``output_type`` takes the place of the agent's. ``record`` is a file, or a `Recording`, to write what happens
        to, secrets left out; one that is there is replaced. Raises `ValueError` for a permission of the
        session that can match no call, `SessionBusy` while another stream runs on the
        session, `TypeError` for an ``output_type`` that JSON cannot be made into, `OSError` where the record cannot be
        written. Context variables of the caller are seen in tools, hooks and models.
        """
        if self._shared.closed:
            raise RuntimeError("the runtime is closed")
        check("what to run", session, Session, "a Session, such as Session.from_user('hello')")
        check("budget", budget, (Budget, NoneType), "a Budget, such as Budget(tokens=10_000)")
        self._shared.roster.check(session.permissions)
        if not interactive and self._shared.store is not None:
            self._refuse_waiting(session, self._shared.store)
        return open_stream(
            self._shared,
            self._team.root,
            session,
            interactive=interactive,
            context=contextvars.copy_context(),
            budget=budget,
            output=None if output_type is None else Output(output_type),
            record=None if record is None else _recorder(record),
        )

    def _refuse_waiting(self, session: Session, store: Store) -> None:
        """A run that cannot ask would refuse what the user has still to decide."""
        if session._stored is not None:
            waiting = [request.id for request in store.pending(session.id)]
            if waiting:
                raise StillWaiting(
                    f"session {session.id} waits for its user, and this run could not ask: answer first"
                    f" ({', '.join(waiting)}), or run it interactively, with on_request=..."
                )

    @overload
    def run(
        self,
        session: Session,
        *,
        output_type: type[T],
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> RunResult[T]: ...
    @overload
    def run(
        self,
        session: Session,
        *,
        output_type: Any = None,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> RunResult[Any]: ...
    def run(
        self,
        session: Session,
        *,
        output_type: Any = None,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: Recording | str | os.PathLike[str] | None = None,
    ) -> RunResult[Any]:
        """Run the agent on ``session`` to the end, in this thread, and return the result.

        ``on_request`` is called, in this thread, with each event that asks. To an `ElicitationRequest` it returns the
        content of the answer, an `Answer`, or None to decline; to a `ToolCallConfirmation` True, False or a `Decision`,
        or None to reject; to a `MaxIterationsReached` how many more turns the run may take, or None to end it. Without
        it the run is not interactive. The rest is as in `run_stream`. Raises `RunError` when the run ends other than
        normally; what ``on_request`` raises ends the run.
        """
        refuse_on_the_loop("Runtime.run", IN_A_COROUTINE)
        interactive = on_request is not None
        with self.run_stream(
            session, interactive=interactive, budget=budget, output_type=output_type, record=record
        ) as stream:
            for event in stream:
                if on_request is not None and isinstance(event, RequestEvent):
                    answer = on_request(event)
                    with contextlib.suppress(NotPending):  # it took longer than ``answer_timeout``
                        _settle(stream, event, answer)
            return stream.result()

    def resume_elicitation(
        self, action: Action, content: Mapping[str, Any] | None = None, elicitation_id: str | None = None
    ) -> None:
        """Answer a question of any stream of this runtime; the id may be left out where only one is waiting.

        With a store, it may be one of a run that is parked, or that another process runs. Raises `InvalidAnswer`,
        `NotPending` and `StoreError`, as `EventStream.respond`.
        """
        kept = self._kept(elicitation_id, self._shared.asks, ("question", "turns"))
        if kept is None:
            self._shared.asks.answer(elicitation_id, action, content)
        else:
            self._answer_kept(kept, {"action": action, "content": dict(content or {})})

    def approve(self, confirmation_id: str | None = None, scope: Scope = "once") -> None:
        """Let a tool call of any stream of this runtime be made; the id may be left out where only one is waiting.

        With a store, it may be one of a run that is parked, or that another process runs. Raises `NotPending` and
        `StoreError`, as `EventStream.approve`.
        """
        self._decide(confirmation_id, Decision(True, scope))

    def reject(self, confirmation_id: str | None = None, reason: str = "") -> None:
        """Refuse a tool call of any stream of this runtime, as `approve` lets it be made."""
        self._decide(confirmation_id, Decision(False, reason=reason))

    def _decide(self, confirmation_id: str | None, decision: Decision) -> None:
        kept = self._kept(confirmation_id, self._shared.confirmations, ("approval",))
        if kept is None:
            self._shared.confirmations.answer(confirmation_id, decision)
        else:
            self._answer_kept(kept, form(decision))

    def _kept(self, id: str | None, here: Pending[Any, Any], kinds: Collection[str]) -> str | None:
        """The id of a request that the store has and no stream of this runtime; None where one of these is meant."""
        store = self._shared.store
        live = {ask.id for ask in here.pending()}
        if store is None or id in live or (id is None and live):
            return None
        if id is not None:
            return id
        waiting = [request.id for request in store.pending() if request.kind in kinds]
        if len(waiting) > 1:
            raise NotPending(f"{len(waiting)} are waiting, so the answer needs an id: {', '.join(waiting)}")
        return waiting[0] if waiting else None

    def _answer_kept(self, id: str, answer: Mapping[str, Any]) -> None:
        assert self._shared.store is not None
        self._shared.store.answer(id, answer)

    # -- runs that wait ------------------------------------------------------------------------------------------------

    def waiting(self) -> Sequence[Request]:
        """The requests of all sessions in the store that nobody has answered: of runs that are parked, live, here or in
        another process, or whose process has died. The oldest comes first.

        `approve`, `reject` and `resume_elicitation` answer them by their ``id``. Raises `RuntimeError` without a store,
        and `StoreError`.
        """
        return self._its_store().pending()

    def resume_ready(self, *, interactive: bool = True) -> Iterator[EventStream]:
        """Go on with the sessions in the store whose requests are all answered: their streams, one after the other, to
        be read. For a worker or a cron job; several may do this at once, and each session goes to one of them.

        Raises `RuntimeError` without a store, and `StoreError`.
        """
        store = self._its_store()
        for id in store.ready():
            try:
                stream = self.run_stream(store.load(id), interactive=interactive)
            except (SessionNotFound, SessionBusy, SessionChanged):  # somebody else was faster
                continue
            with stream:
                yield stream

    def _its_store(self) -> Store:
        if self._shared.store is None:
            raise RuntimeError("this runtime has no store: Runtime(agent, store=SQLiteStore('sessions.db'))")
        return self._shared.store

    # -- steering ------------------------------------------------------------------------------------------------------

    def steer(self, session: Session | str, text: str) -> None:
        """Say something to the agent that runs on ``session``, or on the one with this id.

        The text is a user message before the next model call, after the tool calls that are under way.

        It is recorded in the session, whatever happens: where the run ends before the model could see it, as the last
        message. Raises `NotRunning` where no run could take it, or it has come to its end; then it is not recorded, and
        is yours to give to the next (`Session.add_user`).
        """
        self._mailbox(session).steer(text)

    def follow_up(self, session: Session | str, text: str) -> None:
        """Say something once the agent has nothing more to do: a user message, and the run goes on. One by one, where
        there are several. Raises `NotRunning`, as `steer`.
        """
        self._mailbox(session).follow_up(text)

    def pause(self, session: Session | str) -> None:
        """Let the run stand still before its next turn, with a `Paused` event, until `resume`.

        A cancel ends it meanwhile as always, and its time goes on to count. Twice is harmless. Raises `NotRunning`.
        """
        self._mailbox(session).pause()

    def resume(self, session: Session | str) -> None:
        """Let a paused run go on. Harmless where it is not paused. Raises `NotRunning`."""
        self._mailbox(session).resume()

    def _mailbox(self, session: Session | str) -> Mailbox:
        for core in list(self._shared.cores):
            if session in (core.session, core.session.id):
                return core.mailbox
        raise NotRunning(f"no run on session {session if isinstance(session, str) else session.id} is live")

    @property
    def bridge(self) -> ElicitationBridge:
        """The elicitation bridge: the places of the streams that are live, to which questions go."""
        return self._shared.bridge

    # -- looking inside ------------------------------------------------------------------------------------------------

    def dump(self) -> Dump:
        """The live streams: what each of them waits for and since when, its calls with their stacks, its questions, and
        the channels of the process with who is parked on them. ``str()`` of it is for people.

        Takes no lock and never waits, also while streams are stuck, and in a signal handler. Secrets are taken out, as
        in records.
        """
        from .inspection._dump import dump_of, snapshot

        return dump_of(snapshot(self._shared.cores))

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all streams, helper threads and toolsets; bounded. Calling it twice is harmless, also in a signal handler
        that comes into the middle of the first. A stream that another thread is just opening is refused there.

        A toolset that another runtime has started too is left to that one. What does not end in time is logged, and
        left to itself.
        """
        self._shared.closed = True
        if self._shared.listener is not None:
            self._shared.listener.end()
        _at_exit.end_streams(self._shared.cores, "the runtime was closed", 3 * self._shared.grace)
        self._shared.toolsets.stop(3 * self._shared.grace, self._shared.loop)
        self._shared.helpers.close()
        self._shared.helpers.join(self._shared.grace)
        if self._shared.listener is not None:
            self._shared.listener.end(self._shared.grace)
        self._shared.result_files.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._shared.closed else f"{len(self._shared.cores)} live streams"
        return f"<Runtime of {self._team.root!r}, {state}>"


def _recorder(record: Recording | str | os.PathLike[str]) -> Callable[[str, Session], Recorder]:
    """What opens the file of a record, once the stream has the session."""
    return functools.partial(Recorder, record if isinstance(record, Recording) else Recording(record))


def _settle(stream: EventStream, request: RequestEvent, answer: Any) -> None:
    """Pass on what an ``on_request`` returned."""
    if isinstance(request, MaxIterationsReached):
        stream.extend(request, 0 if answer is None else answer)
        return
    if isinstance(request, ElicitationRequest):
        if answer is None:
            answer = Answer("decline")
        elif isinstance(answer, int):
            raise TypeError(f"the answer to a question is its content or an Answer, not {answer!r}")
        elif not isinstance(answer, Answer):
            answer = Answer("accept", answer)
        stream.respond(request, answer.action, answer.content)
        return
    decision = Decision(bool(answer)) if answer is None or isinstance(answer, bool) else answer
    if not isinstance(decision, Decision):  # the content of a form, which must not pass for an approval
        raise TypeError(f"on_request answers a ToolCallConfirmation with True, False or a Decision, not {answer!r}")
    if decision.approved:
        stream.approve(request, decision.scope)
    else:
        stream.reject(request, decision.reason)


def _default_loop() -> LoopThread:
    from channels import aio  # imports asyncio and janus: not before something asynchronous is met

    if not _loop_known:
        _loop_known.append(True)
        _at_exit.register()
    return aio.default_loop()


_loop_known: list[bool] = []
