"""`Runtime`, which wires the parts together."""

from __future__ import annotations

import contextvars
import functools
import os
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import EllipsisType, NoneType, TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from ._checks import check, check_flags, check_number, check_path, is_number
from ._errors import NotPending, NotRunning, SessionBusy, SessionChanged, SessionNotFound, StillWaiting
from ._public import not_copied
from .agent._agent import Agent, Team
from .agent._budget import Budget
from .agent._output import Output
from .agent._result import RunResult
from .agent._roster import Roster
from .agent._tool import Action
from .execution._calls import refuse_on_the_loop
from .execution._helpers import HelperPool
from .execution._result_files import ResultFiles
from .execution._toolsets import ToolSets
from .human._asks import Pending
from .human._bridge import ElicitationBridge
from .human._mailbox import Mail, Mailbox
from .permissions import Decision, Permissions, Scope
from .session._journal import MailPoint, Request
from .session._session import Session
from .stores._store import Store
from .stream import _at_exit
from .stream._core import Shared, StreamCore
from .stream._event_stream import IN_A_COROUTINE, EventStream
from .stream._forwarder import AnyObserver, checked
from .stream._on_request import OnRequest, RequestEvent, ask, check_on_request
from .stream._open import open_stream
from .stream._requests import form
from .toolcalls._results import RESULT_CHARACTERS
from .usage import Price, Prices

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from channels.aio import LoopThread

    from .batch._runs import Runs, Sessions
    from .inspection._data import Dump, Stall
    from .recording._recorder import Recorder
    from .recording._recording import Recording, RecordOf

T = TypeVar("T")


class Runtime:
    """Runs an agent, or the first agent of a team, on sessions. Any number of streams may run at once. All methods may
    be called from any thread.

    - ``observers`` (see `Observer`) see every event before its consumer does.
    - ``executor`` is your thread pool for tools, hooks and in-process models; without one, the runtime uses threads of
      its own.
    - ``permissions`` are patterns for the tool calls of all streams. The session's permissions come before them, the
      team's after them.
    - ``event_capacity`` is the number of events that a stream buffers for a slow consumer.
    - ``answer_timeout``, in seconds: a question that nobody answers in this time is declined, and a tool call that
      nobody approves is rejected (None: they wait as long as their stream). By default they wait for five minutes, or
      without end if the run is parked or ``park_after`` is given.
    - ``grace`` is the number of seconds that a call which cannot be interrupted may go on after the end of its stream,
      before `StreamStuck` names it.
    - ``prices`` are the prices of your models, by id or by a pattern such as ``openai/gpt-5*``. They take precedence
      over the built-in list.
    - ``result_limit`` is the number of characters of a tool's result that the model is given (None: all). A longer
      result is kept in full in a file in ``result_directory``, where you delete it; by default in a temporary
      directory, which `close` removes.
    - ``titles``: a session without a title gets the first words of its user as the title (`SessionTitle`).
    - ``store`` (see `Store`) keeps sessions beyond the end of the process: ``runtime.run_stream(store.load(id))`` goes
      on with one. `close` does not close the store.
    - ``listen``: other processes may steer and cancel the runs of this runtime through the store (`Store.mail`,
      `Store.cancel`, and these methods of a runtime of theirs). It takes a thread that watches the store, from the
      first run to `close`.
    - ``park_after``, in seconds: a run that has only waited for its user for this time is parked (`EventStream.park`;
      None: never).
    - ``stall_after``, in seconds: a stream that makes no progress for this time, although nobody is being asked, is
      reported once (None: never). The report goes to ``on_stall``, a function that takes a `runtime.dump.Stall` and is
      called on a thread of its own, or else to the log.

    Use a runtime as a context manager, or `close` it, which ends its streams, calls and toolsets.
    """

    def __init__(
        self,
        agent: Agent | Team,
        *,
        observers: Sequence[AnyObserver] = (),
        executor: Executor | None = None,
        permissions: Permissions | None = None,
        event_capacity: int = 128,
        answer_timeout: float | EllipsisType | None = ...,
        grace: float = 1.0,
        prices: Mapping[str, Price] | None = None,
        result_limit: int | None = RESULT_CHARACTERS,
        result_directory: str | os.PathLike[str] | None = None,
        titles: bool = False,
        store: Store | None = None,
        listen: bool = False,
        park_after: float | None = None,
        stall_after: float | None = None,
        on_stall: Callable[[Stall], object] | None = None,
    ) -> None:
        for name, seconds in (("grace", grace), ("answer_timeout", answer_timeout)):
            if not is_number(seconds, least=0) and not (name == "answer_timeout" and seconds in (None, ...)):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, not {seconds!r:.200}")
        check_number("stall_after", stall_after, "seconds", above=0, optional=True)
        if on_stall is not None and not callable(on_stall):
            raise TypeError(f"on_stall must be a function that is given a Stall, not {on_stall!r:.200}")
        if on_stall is not None and stall_after is None:
            raise ValueError("on_stall needs stall_after=, the seconds without progress after which it is called")
        if not is_number(event_capacity, least=0, whole=True):
            raise ValueError(f"event_capacity must be a whole number, 0 or more, not {event_capacity!r:.200}")
        if result_limit is not None and not is_number(result_limit, least=1, whole=True):
            raise ValueError(
                f"result_limit must be a whole number of characters, or None for all, not {result_limit!r:.200}"
            )
        check_flags(listen=listen, titles=titles)
        if executor is not None and not callable(getattr(executor, "submit", None)):
            raise TypeError(f"executor must be a ThreadPoolExecutor, or None, not {executor!r:.200}")
        if isinstance(store, type) or not (store is None or callable(getattr(store, "open", None))):
            raise TypeError(f"store must be a store, such as SQLiteStore('sessions.db'), or None, not {store!r:.200}")
        if result_directory is not None:
            check_path("result_directory", result_directory)
        if listen and store is None:
            raise ValueError("listen=True needs a store, through which other processes say something: store=...")
        if park_after is not None and (store is None or not is_number(park_after, least=0)):
            raise ValueError(
                f"park_after must be a number of seconds, 0 or more, and needs a store, not {park_after!r:.200}"
            )
        check("permissions", permissions, (Permissions, NoneType), "made with Permissions(allow=[...], ...)")
        check("what a runtime runs", agent, (Agent, Team), "an Agent or a Team")
        patient = isinstance(answer_timeout, EllipsisType)
        if isinstance(answer_timeout, EllipsisType):
            answer_timeout = 300.0 if park_after is None else None
        # Not with the others above: a module that declares agents and tools for others to run needs no turns.
        from .loop import _loop

        self._team = agent if isinstance(agent, Team) else Team((agent,))
        roster = Roster(self._team.agents)
        for level in (permissions or Permissions(), self._team.permissions):
            roster.check(level)
        self._shared = Shared(
            helpers=HelperPool(executor),
            loop=_default_loop,
            toolsets=ToolSets(),
            answer_timeout=answer_timeout,
            patient=patient,
            grace=grace,
            event_capacity=event_capacity,
            observers=checked(observers),
            prices=Prices(prices),
            permissions=(permissions or Permissions(), self._team.permissions),
            result_limit=result_limit,
            result_files=ResultFiles(result_directory),
            titles=titles,
            store=store,
            listen=listen,
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
        """Start a run of the agent on ``session`` and return its events, to iterate over.

        Starts one thread and returns at once. With ``interactive=False`` nobody can be asked: questions are declined,
        tool calls that need approval are refused, and the model is told why. ``budget`` applies in addition to the
        agent's budget. ``output_type`` replaces the agent's. ``record`` is a file, or a `Recording`, to which the run
        is written without secrets; an existing record is replaced. Tools, hooks and models see the context variables of
        the caller.

        Raises `SessionBusy` while another stream runs on the session, `ValueError` for a permission of the session that
        can match no call, `TypeError` for an ``output_type`` that cannot be made from JSON, and `OSError` if the record
        cannot be written. With a store also `SessionChanged` if another copy of the session was run meanwhile,
        `StillWaiting` if the session waits for its user and the run is not interactive, `LookupError` if it waits with
        calls of an agent that this runtime does not have, and `StoreError`.
        """
        check("budget", budget, (Budget, NoneType), "a Budget, such as Budget(tokens=10_000)")
        check_flags(interactive=interactive)
        output = None if output_type is None else Output(output_type)
        return self._open(session, interactive=interactive, budget=budget, output=output, record=_recorder(record))

    def _open(
        self,
        session: Session,
        *,
        interactive: bool,
        budget: Budget | None,
        output: Output | None,
        record: Callable[[str, Session], Recorder] | None = None,
        quiet: bool = False,
    ) -> EventStream:
        if self._shared.closed:
            raise RuntimeError("the runtime is closed")
        check("what to run", session, Session, "a Session, such as Session.from_user('hello')")
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
            output=output,
            record=record,
            quiet=quiet,
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
        """Run the agent on ``session`` to the end, and return the result.

        ``on_request`` is called, in the calling thread, with each event that asks the user. For an `ElicitationRequest`
        it returns the content of the answer, an `Answer`, or None to decline; for a `ToolCallConfirmation` True, False,
        a `Decision`, or None to reject; for a `MaxIterationsReached` the number of turns that the run may take in
        addition, or None to end it. Without ``on_request`` the run is not interactive. The other arguments are as in
        `run_stream`. Raises `RunError` if the run does not end normally. An exception of ``on_request`` ends the run
        and is raised.
        """
        refuse_on_the_loop("Runtime.run", IN_A_COROUTINE)
        check_on_request(on_request)
        check("budget", budget, (Budget, NoneType), "a Budget, such as Budget(tokens=10_000)")
        output = None if output_type is None else Output(output_type)
        interactive = on_request is not None
        with self._open(  # quiet: each event that is only dropped here would wake this thread for nothing
            session, interactive=interactive, budget=budget, output=output, record=_recorder(record), quiet=True
        ) as stream:
            for event in stream:
                if on_request is not None and isinstance(event, RequestEvent):
                    ask(stream, event, on_request)
            return stream.result()

    @overload
    def map(
        self,
        sessions: Sessions,
        *,
        output_type: type[T],
        limit: int = 8,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: RecordOf | None = None,
        progress: bool = False,
    ) -> Runs[T]: ...
    @overload
    def map(
        self,
        sessions: Sessions,
        *,
        output_type: Any = None,
        limit: int = 8,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: RecordOf | None = None,
        progress: bool = False,
    ) -> Runs[Any]: ...
    def map(
        self,
        sessions: Sessions,
        *,
        output_type: Any = None,
        limit: int = 8,
        on_request: OnRequest | None = None,
        budget: Budget | None = None,
        record: RecordOf | None = None,
        progress: bool = False,
    ) -> Runs[Any]:
        """Run the agent on many sessions, at most ``limit`` at once. Returns an iterator of ``(session, result)`` in
        the order in which the runs end.

        ``sessions`` are sessions or prompts, in any iterable, from which one is taken when there is room for its run;
        if they come from a channel, the next one is waited for together with the runs. A run that fails does not end
        the others: ``result.error`` is the exception that `run` would have raised. `break`, an exception and Ctrl-C
        cancel the runs that are under way; see `Runs`. At most ``limit`` sessions are under way at any time, results
        that were not taken yet included. Each run goes on while the caller is busy with a result, unless the run asks.

        ``on_request``, ``output_type`` and ``budget``, which is for each run, are as in `run`; `on_request` is called
        in the thread that iterates. ``record`` is a function, called in that thread too, that gets a session and
        returns the file, or the `Recording`, to which its run is written as by `run`, or None; each run needs a file of
        its own. ``progress`` shows on standard error how many runs have ended, as a bar if `rich` is installed.

        Raises `TypeError` and `ValueError` for arguments that make no sense. An exception of ``sessions``,
        ``on_request`` or ``record``, and the `OSError` of a record that cannot be written, cancel all runs, and are
        raised by the iterator.
        """
        from .batch._runs import Runs

        refuse_on_the_loop("Runtime.map", IN_A_COROUTINE)
        check("budget", budget, (Budget, NoneType), "a Budget, such as Budget(tokens=10_000)")
        output = None if output_type is None else Output(output_type)

        def start(session: Session, file: Recording | str | os.PathLike[str] | None) -> EventStream:
            interactive = on_request is not None
            return self._open(
                session, interactive=interactive, budget=budget, output=output, record=_recorder(file), quiet=True
            )

        return Runs(start, sessions, limit=limit, on_request=on_request, record=record, progress=progress)

    def resume_elicitation(
        self, action: Action, content: Mapping[str, Any] | None = None, elicitation_id: str | None = None
    ) -> None:
        """Answer a question of any stream of this runtime. The id may be left out if only one question is open.

        With a store, the question may also belong to a parked run, or to a run of another process. Raises
        `InvalidAnswer` and `NotPending`, as `EventStream.respond`, and `StoreError`.
        """
        check("elicitation_id", elicitation_id, (str, NoneType), "the elicitation_id of an ElicitationRequest, or None")
        check("content", content, (Mapping, NoneType), _CONTENT)
        kept = self._kept(elicitation_id, self._shared.asks, ("question", "turns"))
        if kept is None:
            self._shared.asks.answer(elicitation_id, action, content)
        else:
            self._answer_kept(kept, {"action": action, "content": dict(content or {})})

    def approve(self, confirmation_id: str | None = None, scope: Scope = "once") -> None:
        """Approve a tool call of any stream of this runtime, by the ``confirmation_id`` of its event. The id may be
        left out if only one call is pending.

        With a store, the call may also belong to a parked run, or to a run of another process. Raises `NotPending`, as
        `EventStream.approve`, and `StoreError`.
        """
        self._decide(confirmation_id, Decision(True, scope))

    def reject(self, confirmation_id: str | None = None, reason: str = "") -> None:
        """Reject a tool call of any stream of this runtime. The arguments and errors are as in `approve`."""
        self._decide(confirmation_id, Decision(False, reason=reason))

    def _decide(self, confirmation_id: str | None, decision: Decision) -> None:
        wanted = "the confirmation_id of a ToolCallConfirmation, or None"
        check("confirmation_id", confirmation_id, (str, NoneType), wanted)
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
        """The unanswered requests of all sessions in the store, the oldest first. Their runs may be parked, may be live
        in this or another process, or their process may have died.

        `approve`, `reject` and `resume_elicitation` answer them by their ``id``. Raises `RuntimeError` without a store,
        and `StoreError`.
        """
        return self._its_store().pending()

    def resume_ready(self, *, interactive: bool = True) -> Iterator[EventStream]:
        """Continue the sessions in the store whose requests are all answered. Yields their streams, one after the
        other, to be read. This is for a worker or a cron job; if several do it at once, each session goes to one of
        them.

        Raises `RuntimeError` without a store, and `StoreError`.
        """
        store = self._its_store()
        check_flags(interactive=interactive)
        return self._resume_ready(store, interactive)

    def _resume_ready(self, store: Store, interactive: bool) -> Iterator[EventStream]:
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
        """Send a message to the run on ``session``, or on the session with this id.

        The text becomes a user message before the next model call, after the tool calls that are under way. It is
        recorded in the session in any case: if the run ends before the model has seen it, it is the last message of the
        session.

        With a store, the run may be one of another process whose runtime listens (``Runtime(..., listen=True)``). A
        message that comes too late for that run is the first that the next run on the session hears.

        Raises `NotRunning` if the session has no run, or if its run is too near its end. Then the message is not
        recorded, and you can add it to the session yourself (`Session.add_user`). With a store also `StoreError`.
        """
        self._mail(session, "user_steering_messages_submit", text)

    def follow_up(self, session: Session | str, text: str) -> None:
        """Queue a message for the run on ``session``. Once the agent has nothing more to do, the text becomes the next
        user message, and the run goes on; several follow-ups come one after the other. Whose run it may be, and the
        errors, are as in `steer`.
        """
        self._mail(session, "user_followup_submit", text)

    def cancel(self, session: Session | str, reason: str = "") -> None:
        """Cancel the run on ``session``, or on the session with this id. Does not wait for its end, where
        `EventStream.result` raises an error with the ``reason``. Whose run it may be, and what this raises, is as in
        `steer`.
        """
        check("the reason of a cancel", reason, str, "text")
        core = self._live(session)
        if core is not None:
            core.stopping.cancel(reason or None)
        else:
            self._elsewhere(session, lambda store, id: store.cancel(id, reason))

    def _mail(self, session: Session | str, point: MailPoint, text: str) -> None:
        check("the text of a message", text, str, "text")
        core = self._live(session)
        if core is not None:
            core.mailbox.take(Mail(point, text))
        else:
            self._elsewhere(session, lambda store, id: store.mail(id, point, text))

    def _elsewhere(self, session: Session | str, command: Callable[[Store, str], object]) -> None:
        """Give a command to the run of another process. Raises `NotRunning`."""
        store, id = self._shared.store, session if isinstance(session, str) else session.id
        if store is None:
            raise _not_live(session)
        try:
            command(store, id)
        except SessionNotFound:
            raise _not_live(session) from None

    def pause(self, session: Session | str) -> None:
        """Pause the run before its next turn, until `resume`. The stream then sends a `Paused` event.

        A paused run can be cancelled, and the pause counts towards a budget of seconds. Pausing twice is harmless.
        Raises `NotRunning`.
        """
        self._mailbox(session).pause()

    def resume(self, session: Session | str) -> None:
        """Let a paused run go on. Harmless if the run is not paused. Raises `NotRunning`."""
        self._mailbox(session).resume()

    def _mailbox(self, session: Session | str) -> Mailbox:
        core = self._live(session)
        if core is None:
            raise _not_live(session)
        return core.mailbox

    def _live(self, session: Session | str) -> StreamCore | None:
        """The run on the session, where it is one of this runtime."""
        check("the session", session, (Session, str), "a Session, or the id of one")
        return next((core for core in list(self._shared.cores) if session in (core.session, core.session.id)), None)

    @property
    def bridge(self) -> ElicitationBridge:
        """The elicitation bridge, which brings questions to the live streams."""
        return self._shared.bridge

    # -- looking inside ------------------------------------------------------------------------------------------------

    def dump(self) -> Dump:
        """A description of the live streams: what each stream waits for and since when, its calls with their stacks,
        its questions, and which threads wait on which channels of the process. ``str()`` of it is for people.

        Takes no lock and never waits, so it can be called while streams are stuck, and in a signal handler. Secrets are
        removed, as in records.
        """
        from .inspection._dump import dump_of
        from .inspection._look import snapshot

        return dump_of(snapshot(self._shared.cores))

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all streams, calls on helper threads and toolsets, within a bounded time. Calling it twice is harmless,
        even in a signal handler that interrupts the first call. A stream that is just being opened is refused.

        A toolset that another runtime has started too goes on. Whatever does not end in time is logged, and no longer
        waited for.
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

    __reduce_ex__ = not_copied("make a Runtime in each process, or let runtime.remote.Remote run the agent in others")

    def __repr__(self) -> str:
        state = "closed" if self._shared.closed else f"{len(self._shared.cores)} live streams"
        return f"<Runtime of {self._team.root!r}, {state}>"


def _not_live(session: Session | str) -> NotRunning:
    return NotRunning(f"no run on session {session if isinstance(session, str) else session.id} is live")


def _recorder(record: Recording | str | os.PathLike[str] | None) -> Callable[[str, Session], Recorder] | None:
    """A function that opens the file of a record, once the stream has the session."""
    if record is None:
        return None
    from .recording._recorder import Recorder
    from .recording._recording import Recording

    return functools.partial(Recorder, record if isinstance(record, Recording) else Recording(record))


def _default_loop() -> LoopThread:
    from channels import aio  # imports asyncio and janus: not before something asynchronous is met

    if not _loop_known:
        _loop_known.append(True)
        _at_exit.register()
    return aio.default_loop()


_loop_known: list[bool] = []
_CONTENT: Final = "a mapping of the fields of the form to their values, or None"
