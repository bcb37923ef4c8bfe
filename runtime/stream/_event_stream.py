"""`EventStream`: the consumer's end of a run."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from channels import Cancelled, CancelToken, Channel, ChannelClosed, Receiver, SupportsDone, WouldBlock
from channels._lazy import lazy_logger

from .._checks import check, check_flags, check_number, is_number
from .._errors import InvalidAnswer, NotParkable, RunError, StreamStuck
from .._public import not_copied
from ..agent._result import RunResult
from ..agent._tool import Action
from ..events import ElicitationRequest, Event, MaxIterationsReached, StopReason, ToolCallConfirmation
from ..execution._calls import Calls, refuse_on_the_loop, stack_of
from ..execution._threads import Running
from ..permissions import Decision, Scope
from ..session._session import Session, SessionLog
from ..usage import Usage
from ._core import StreamCore
from ._private_events import ConsumerCall

_logger = lazy_logger("runtime")
IN_A_COROUTINE: Final = "await asyncio.to_thread(runtime.run, session), or in a tool await context.arun_agent(...)"
NAMED: Final = 5  # of what is stuck: a thousand stacks tell nobody more


class EventStream(Receiver[Event]):
    """The events of one run, as an iterator; the last is `StreamStopped`.

    Leaving its ``with`` block cancels the run and waits for its end. Methods may be called from any thread, but only
    one thread iterates at a time. An exception that leaves the iteration, such as Ctrl-C, cancels the run; so does
    dropping the stream, in the background. The stream is a receiver, so `channels.select` and `channels.merge` accept
    it.
    """

    __slots__ = ("_core", "_finalizer", "_in_tool", "_iterating", "_observing", "_told")

    def __init__(self, core: StreamCore, observing: Calls | None) -> None:
        super().__init__(core.out)
        self._core = core
        self._observing = observing
        self._iterating = threading.RLock()
        self._in_tool: int | None = None  # the thread that runs a tool for the stream
        self._told = False  # `result` has said what is stuck
        self._finalizer = weakref.finalize(self, _drop, core.log, core.gone.canceller("the stream was dropped"))
        self._finalizer.atexit = False

    # -- events --------------------------------------------------------------------------------------------------------

    def __iter__(self) -> EventStream:
        refuse_on_the_loop("iterating over a stream", IN_A_COROUTINE)
        return self

    def __next__(self) -> Event:
        if self._in_tool is not None:
            self._refuse_tool()
        iterating = self._iterating
        try:
            if iterating.acquire(False):
                event: Event = self._channel.recv()
                while event.__class__ is ConsumerCall:
                    self._run(event)
                    event = self._channel.recv()
                iterating.release()  # here: in a `finally` it would cost as much as all of the rest
                return event
        except BaseException as error:
            try:
                if not isinstance(error, ChannelClosed):
                    self._core.stopping.cancel(error)
            finally:
                if iterating._is_owned():  # type: ignore[attr-defined]
                    iterating.release()
            if isinstance(error, ChannelClosed):
                self._finalizer.detach()
                if self._core.inherited:
                    raise RuntimeError("this stream belongs to the process that was forked; start one here") from None
                raise StopIteration from None
            raise
        raise RuntimeError("another thread is iterating over this stream")

    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> Event:
        """The next event, as `channels.Channel.recv`. A timeout leaves the run as it is; Ctrl-C cancels it.

        Tools with ``on="consumer"`` run inside this call; the timeout does not limit them.
        """
        if self._in_tool is not None:
            self._refuse_tool()
        began = 0.0 if timeout is None else time.monotonic()
        try:
            event = super().recv(timeout, cancel)
            while event.__class__ is ConsumerCall:
                self._run(event)
                event = super().recv(None if timeout is None else max(0.0, began + timeout - time.monotonic()), cancel)
            return event
        except (Exception, Cancelled):  # the caller does not wait any longer
            raise
        except BaseException as error:
            self._core.stopping.cancel(error)
            raise

    def try_recv(self) -> Event:
        """The next event if there is one already, as `channels.Channel.try_recv`."""
        if self._in_tool is not None:
            self._refuse_tool()
        event = super().try_recv()
        while event.__class__ is ConsumerCall:
            self._run(event)
            event = super().try_recv()
        return event

    def recv_many(
        self, limit: int | None = None, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> list[Event]:
        """The events that are there, at least one, as `channels.Channel.recv_many`."""
        _check_limit(limit)
        events = [self.recv(timeout, cancel)]
        with contextlib.suppress(WouldBlock, ChannelClosed):
            while limit is None or len(events) < limit:
                events.append(self.try_recv())
        return events

    def try_recv_many(self, limit: int | None = None) -> list[Event]:
        """The events that are there, as `channels.Channel.try_recv_many`."""
        _check_limit(limit)
        events = [self.try_recv()]
        with contextlib.suppress(WouldBlock, ChannelClosed):
            while limit is None or len(events) < limit:
                events.append(self.try_recv())
        return events

    def _run(self, call: Any) -> None:
        """Make a call that waits for the consumer's thread. A failure is its result; Ctrl-C ends the run."""
        self._in_tool = threading.get_ident()
        try:
            call.run()
        except BaseException as error:
            self._core.stopping.cancel(error)
            raise
        finally:
            self._in_tool = None

    def _refuse_tool(self) -> None:
        """The stream waits for the tool: were the tool to wait for the stream, neither would end."""
        if self._in_tool == threading.get_ident():
            raise RuntimeError("a tool that runs in the consumer's thread cannot read from its own stream")

    @property
    def session(self) -> Session:
        """The session of the run."""
        return self._core.session

    @property
    def reason(self) -> StopReason | None:
        """Why the run ended; None while it goes on."""
        return self._core.ending.reason if self._core.events.closed else None

    # -- answers -------------------------------------------------------------------------------------------------------

    def respond(
        self, request: ElicitationRequest | str, action: Action, content: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a question of this stream, by its event or its id: ``accept`` with ``content``, ``decline`` or
        ``cancel``.

        Raises `InvalidAnswer` if ``content`` does not fit the schema; the question then stays open. Raises `NotPending`
        if the question was already answered, was withdrawn or has timed out.
        """
        ask_id = _id(request, ElicitationRequest, "elicitation_id")
        self._core.shared.asks.answer(ask_id, action, content, root=self._core)

    def extend(self, request: MaxIterationsReached | str, iterations: int) -> None:
        """Allow a run that has used up its turns to take more turns; 0 ends the run. The request is given as its event
        or its ``request_id``.

        Raises `NotPending` if the request was already answered or has timed out; then the run has ended.
        """
        if not is_number(iterations, least=0, whole=True):
            raise InvalidAnswer(f"extend takes a whole number of turns, 0 or more, not {iterations!r:.200}")
        ask_id = _id(request, MaxIterationsReached, "request_id")
        self._core.shared.asks.answer(
            ask_id, "accept" if iterations else "decline", {"iterations": iterations}, root=self._core
        )

    def approve(self, call: ToolCallConfirmation | str, scope: Scope = "once") -> None:
        """Approve a tool call. ``call`` is the event, or its ``confirmation_id``.

        With the ``scope`` "tool" the approval also holds for later calls of the same tool, and with "session" for all
        later calls of the session. It does not hold for calls that are already pending, nor for calls that a ``deny``
        pattern matches. Raises `NotPending` if the call was already approved or rejected, was withdrawn or has timed
        out.
        """
        self._decide(call, Decision(True, scope))

    def reject(self, call: ToolCallConfirmation | str, reason: str = "") -> None:
        """Reject a tool call. The model reads the ``reason``. Raises `NotPending`, as `approve`."""
        self._decide(call, Decision(False, reason=reason))

    def _decide(self, call: ToolCallConfirmation | str, decision: Decision) -> None:
        ask_id = _id(call, ToolCallConfirmation, "confirmation_id")
        self._core.shared.confirmations.answer(ask_id, decision, root=self._core)

    @property
    def pending(self) -> list[Event]:
        """The events of the open questions and confirmations of this stream and its nested streams, the oldest first.

        An event may be in this list before the iteration has delivered it.
        """
        shared = self._core.shared
        # Not by the time stamps of the events: the clock of the machine may have been set back between two questions.
        waiting = [
            *((ask.began, ask.event) for ask in shared.asks.pending(self._core)),
            *((ask.began, ask.event) for ask in shared.confirmations.pending(self._core)),
        ]
        return [event for _, event in sorted(waiting, key=lambda pair: pair[0]) if event is not None]

    def park(self, *, force: bool = False) -> None:
        """End the run while it waits for its user, and keep its questions in the store: the last event is
        `StreamStopped` with the reason "waiting". They can be answered from any process (`Store.answer`), at any time
        unless ``answer_timeout`` was set, and ``runtime.run_stream(store.load(id))`` goes on with the run.

        Does not wait. Raises `NotParkable` if the runtime has no store, or if something other than a question is under
        way, such as a tool or a model call. With ``force`` such a call is no longer waited for. Whether a tool call
        that had begun took effect is then unknown (see `Tool`), unless the tool is ``read_only``, ``repeatable`` or
        ``resumable``. An answer that arrives at the same time either reaches this run or is kept for the next one.
        """
        check_flags(force=force)
        if self._core.parking is None:
            raise NotParkable("a run is parked in a store, and this runtime has none: Runtime(agent, store=...)")
        self._core.parking.park(force=force)

    # -- the end -------------------------------------------------------------------------------------------------------

    def cancel(self, cause: object = None) -> None:
        """Cancel the run. Does not wait. Buffered events and the last event can still be read."""
        self._core.stopping.cancel(cause)

    def close(self) -> None:
        """Cancel the run, drop the events that were not read, and wait for its end, for a few seconds at most.

        Afterwards no thread and no task of the run is left, or `StreamStuck` names what is left, unless `result` has
        done so before. Calling it twice is harmless.
        """
        self._close(0.0)

    def _close(self, waited: float) -> None:
        """`close`, by somebody who has waited so many seconds for other streams, since it cancelled this one."""
        core = self._core
        self._finalizer.detach()
        core.stopping.cancel("the stream was closed")
        if core.observed:
            core.out.close()  # the forwarder may be waiting for a consumer that does not read any more
        stuck = self._join(waited)
        for _ in core.out:
            pass
        if stuck is not None and not self._told:
            raise stuck

    def result(self) -> RunResult[Any]:
        """Read the stream to its end and return the result of the run. The events that are read are dropped: iterate
        first if you need them.

        Raises `RunError` if the run did not end normally, with the exception that ended it as the cause. Calls that
        have not ended within the grace time are logged, and listed as ``stuck`` in the result or the error.
        """
        outcome = self._outcome()
        if outcome.error is None:
            return outcome
        error = outcome.error
        del outcome  # which holds the error, whose traceback holds this frame
        raise error

    def _outcome(self) -> RunResult[Any]:
        """As `result`, but a run that did not end normally has its `RunError` in the result."""
        for _ in self:
            pass
        core = self._core
        ending = core.ending
        stuck = self._join()
        if stuck is not None and not self._told:
            self._told = True
            _logger.warning("%r: %s", core, stuck, extra=core.tags)
        error: RunError | None = None
        if ending.reason != "normal":
            error = RunError(ending.code, ending.message, ending.reason, failures=core.failures, stuck=stuck)
            error.__cause__ = ending.error
        added = tuple(core.session._messages[core.first_message :])
        said = core.session.messages if core.unfinished is not None else added  # in an earlier stream it may have been
        text = next((m.content for m in reversed(said) if m.role == "assistant"), "")
        return RunResult(text, added, core.spending.usage or Usage(), ending.reason, core.said, stuck, error)

    @property
    def failures(self) -> tuple[str, ...]:
        """The last few tracebacks of tools that failed in the run so far; the model reads only one line of each."""
        return tuple(self._core.failures)

    def _join(self, waited: float = 0.0) -> StreamStuck | None:
        """Wait for the worker, the forwarder and every call, bounded; what does not end."""
        core = self._core
        whole = 0.0 if self._told else core.shared.grace
        grace = max(0.0, whole - waited)
        me = threading.get_ident()
        stuck: list[tuple[str, threading.Thread | Running | None]] = []
        # Of the worker, and of those nested, which run cleanup hooks.
        deadline = CancelToken(timeout=max(0.0, 3 * whole - waited))
        if not _closes(core.finished, deadline):
            stuck.append((f"the worker, {core.threads[0].name}", core.threads[0]))
        # A nested stream does not wait for its calls, which go to its parent: two that wait as long as each other
        # give up at the same moment, and the outer one would name the inner one, not what that waits for.
        if core.root is core:
            stuck += [(call.what, call.thread) for call in core.calls.join(grace, deadline)]
        if self._observing is not None:
            stuck += [(call.what, call.thread) for call in self._observing.join(grace)]
        for thread in core.threads:
            if thread.ident != me and not stuck:
                thread.join(grace)
                if thread.is_alive():
                    stuck.append((thread.name, thread))
        if not stuck:
            return None
        named = [f"{what}\n{stack_of(thread) if thread is not None else ''}" for what, thread in stuck[:NAMED]]
        if len(stuck) > NAMED:
            named.append(f"... and {len(stuck) - NAMED} more")
        return StreamStuck(f"did not end within {core.shared.grace:g} s and is left to itself: " + "\n".join(named))

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StreamStuck as stuck:
            if error is None:
                raise
            error.add_note(f"StreamStuck: {stuck}")  # never in place of what the body raised

    __reduce_ex__ = not_copied("pass the stream itself to the thread that reads it; its run belongs to this process")

    def __repr__(self) -> str:
        core = self._core
        state = f"ended: {self.reason}" if core.events.closed else "cancelling" if core.token.cancelled else "live"
        return f"<EventStream {core.number} {state}, {len(core.out)} events waiting, {core.session!r}>"


def _drop(log: SessionLog, cancel: Callable[[], object]) -> None:
    """The consumer has gone. Said to the session at once: the next stream on it waits for this one's end."""
    log.dropped = True
    cancel()


def _check_limit(limit: object) -> None:
    """Before the first event is taken, which an error would lose."""
    check_number("limit", limit, "events", least=1, whole=True, optional=True)


def _id(request: object, kind: type[Event], name: str) -> str:
    """The id of a request, given by itself or as the event."""
    if isinstance(request, str):
        return request
    check("what is answered here", request, kind, f"the event {kind.__name__}, or its {name}")
    return str(getattr(request, name))


def _closes(channel: Channel[None], deadline: CancelToken) -> bool:
    with contextlib.suppress(ChannelClosed, Cancelled):
        channel.recv(cancel=deadline)
    return channel.closed
