"""The tool calls of one turn, which run at the same time if their tools allow it. Each result is recorded in the
session before its event is sent, and the session holds the results in the order of the calls.

The steps of one call are in `_tool_run`. This file decides which calls run at the same time, and passes messages to
them.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from channels import Cancelled, CancelToken
from channels._park import NOTHING

from .. import events
from .._dataclasses import dataclass
from .._errors import NotParkable
from ..agent._agent import Agent
from ..agent._tool import Answer, Tool
from ..execution import _driver
from ..execution._calls import Call, Finished
from ..execution._driver import thrown
from ..execution._errands import call_here
from ..human._asks import Ask
from ..permissions import Decision
from ..session._journal import CallState
from ..session._message import Message, ToolCall
from ..stream._core import StreamCore
from ..stream._parking import parked
from ..stream._requests import tell
from ..stream._run_hooks import HookRun, firing
from ._approval import remember_late
from ._elicitation import elicitation
from ._messages import Asked, Decided, Fire, Forwarded, Late, NestedParked, Park, Progress, Resumed, posting
from ._resolve import Read, Resolved, read
from ._running import OVER, Approval, Steps, Turn, nothing_to_note
from ._tool_run import tool_run


@dataclass(frozen=True, slots=True)
class Made:
    """The outcome of the calls of a turn: the context that hooks have for the model, and the agent that the
    conversation is handed to; and the texts of the arguments that calls are compared by, by id.
    """

    contexts: list[str]
    successor: Agent | None
    compared: Mapping[str, str]


def dispatch(
    core: StreamCore,
    reply: Message,
    tools: Mapping[str, Tool],
    left: Mapping[str, CallState] | None = None,
) -> _driver.Steps[Made]:
    """Make the calls of the reply and record their results. If a tool raises, the error is its result, which the model
    reads. With ``left``, only these calls are made, which an earlier stream has left unfinished.

    Raises `Cancelled` if the stream is cancelled first, and `StopRun` if a hook ends it. Results that have arrived by
    then are recorded.
    """
    turn = Turn(core, tools, {call.id: i for i, call in enumerate(reply.tool_calls)}, left or {})
    calls = reply.tool_calls if left is None else [call for call in reply.tool_calls if call.id in left]
    dispatcher = _Dispatcher(turn, calls)
    try:
        compared = yield from dispatcher.run(reply)
    finally:
        dispatcher.close()
    core.stop_if_blocked("post_tool_use", turn.blocked)
    return Made(turn.contexts, turn.successor, compared)


class _Dispatcher:
    """Resumes the calls of one turn, and the hooks that run meanwhile, when what they wait for has arrived. Used by the
    worker's thread only.
    """

    def __init__(self, turn: Turn, calls: Sequence[ToolCall]) -> None:
        self.turn = turn
        turn.note_under_way = self._note_under_way
        self.core = turn.core
        self.calls = calls
        self.to_begin = deque(calls)
        #: For each wait, the steps that go on when it is over. A hook has a deadline too; dropping it drops its timer.
        self.waits: dict[Call | Ask[ToolCall, Decision], tuple[Steps[Any], CancelToken | None]] = {}
        self.asks_since: float | None = None  # when nothing was left under way but questions

    def run(self, reply: Message) -> _driver.Steps[Mapping[str, str]]:
        """Make the calls. Returns what they are compared by."""
        # The schemas are from servers and the arguments from a model: checking them may take long.
        given = reply, self.calls, self.turn.tools, self.turn.states, self.core.token
        said: Read = yield from call_here(self.core.calls, "reading the arguments", read, *given)
        parking = self.core.parking
        if parking is None:
            yield from self._make(said.resolved)
            return said.compared
        with parking.wanted.on_cancel(posting(self.turn.inbox, Park())):
            try:
                yield from self._make(said.resolved)
            finally:
                parking.at_the_model()
        return said.compared

    def _make(self, resolved: Mapping[str, Resolved]) -> _driver.Steps[None]:
        while self.to_begin or self.waits:
            self._park_if_wanted()
            while self.to_begin and self._has_room(self.to_begin[0]):
                call = self.to_begin.popleft()
                self._step(tool_run(self.turn, call, resolved[call.id]))
            if self.waits:
                yield from self._wait()

    def _park_if_wanted(self) -> None:
        """End the stream (`StopRun`) if it is to be parked and only waits for answers of the user."""
        parking = self.core.parking
        if parking is not None:
            self._note_under_way()
            if parking.wanted.cancelled and (parking.forced or not parking.busy):
                raise parked()

    def _note_under_way(self) -> None:
        if self.core.parking is not None:
            self.core.parking.busy = tuple(self._under_way())

    def _under_way(self) -> Iterator[str]:
        """The names of what keeps the stream from being parked: everything under way, except questions to the user and
        agents run by tools, which report for themselves or are parked.
        """
        asks = self.core.shared.asks
        tasks = {running.task: running for running in self.turn.running.values() if running.task is not None}
        wanted = self.core.parking is not None and self.core.parking.wanted.cancelled
        for wait in self.waits:
            if isinstance(wait, Ask):
                continue
            running = tasks.get(wait)
            if running is None:
                yield wait.what
            elif running.parked or (running.agents and not wanted):
                continue
            elif not (running.tool.resumable and any(ask.call is running for ask in asks.pending())):
                yield f"tool {running.tool.name}"

    def _has_room(self, call: ToolCall) -> bool:
        running = self.turn.running
        if not running:
            return True
        tool = self.turn.tools.get(call.name)
        return (tool is None or tool.parallel) and all(each.tool.parallel for each in running.values())

    def close(self) -> None:
        """Close the inbox, and settle the questions and hooks in it that nobody will answer."""
        turn = self.turn
        turn.note_under_way = nothing_to_note  # it holds this
        turn.inbox.close()
        for running in turn.running.values():
            if running.errand is not None:
                running.errand.withdraw()
            running.trace.let_go()
            remember_late(running)
        while len(turn.inbox):
            message = turn.inbox.try_recv()
            if isinstance(message, Asked):
                message.settled(Answer("cancel", note=OVER))
            elif isinstance(message, Fire):
                message.done.close()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step(self, steps: Steps[Any], sent: Any = None) -> None:
        """Resume the generator ``steps`` with ``sent``, until it waits again or ends."""
        try:
            wait = steps.send(sent)
        except StopIteration:
            return
        if isinstance(wait, HookRun):
            deadline = CancelToken(timeout=wait.hook.timeout)
            self.waits[wait.call] = steps, deadline
            wait.start(self.core.calls, self.turn.inbox)
            deadline.on_cancel(posting(self.turn.inbox, Late(wait)))
        elif isinstance(wait, Approval):
            self.waits[wait.ask] = steps, None
            self._step(wait.told)
        else:
            self.waits[wait] = steps, None

    def _go_on(self, wait: Call | Ask[ToolCall, Decision], sent: Any) -> None:
        """Resume the steps that were waiting for ``wait``, with its outcome ``sent``. The message that a wait is over
        may come twice, or after its time was up, so only the first one counts.
        """
        steps, _ = self.waits.pop(wait, (None, None))
        if steps is not None:
            self._step(steps, sent)

    def _wait(self) -> _driver.Steps[None]:
        """Wait for the next message, or until the time of a tool is up. Where there is nothing to wait for but one
        tool that has not begun, its call is an errand.
        """
        deadlines = [each.deadline for each in self.turn.running.values() if each.deadline is not None]
        if (parks_at := self._parks_at()) is not None:
            deadlines.append(parks_at)
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        held, message = self.turn.held, NOTHING
        if held:
            if len(self.waits) == len(held) == 1 and timeout is None and held[0].may_be_errand:
                message = thrown((yield held.pop()))
            while held:
                held.pop(0).start()
        if message is NOTHING:
            try:
                message = self.turn.inbox.recv(timeout, self.core.token)
            except TimeoutError:
                message = None
        elif self.core.token.cancelled:  # meanwhile; `recv` would say so
            raise Cancelled(self.core.token.cause)
        if message is not None:
            self._take(message)
        if deadlines:
            self._expire()
        if parks_at is not None and parks_at <= time.monotonic():
            self._park()

    def _parks_at(self) -> float | None:
        """The time at which the stream is to be parked, if it only waits for answers of the user until then."""
        parking = self.core.parking
        if parking is None or parking.after is None or parking.wanted.cancelled:
            return None
        self._note_under_way()
        if parking.busy or not self._asks():
            self.asks_since = None
            return None
        self.asks_since = self.asks_since or time.monotonic()
        return self.asks_since + parking.after

    def _asks(self) -> bool:
        """Whether this stream itself, not one of its nested streams, has a question for the user."""
        approvals, questions = self.core.shared.confirmations.pending(), self.core.shared.asks.pending()
        return any(ask.stream is self.core for ask in approvals) or any(ask.stream is self.core for ask in questions)

    def _park(self) -> None:
        """Park the stream, unless another stream of the run still has something to do; then it is tried again later."""
        self.asks_since = None
        if self.core.parking is not None:
            with contextlib.suppress(NotParkable):
                self.core.parking.park()

    def _expire(self) -> None:
        """Resume the calls whose time is up."""
        now = time.monotonic()
        for running in list(self.turn.running.values()):
            if running.task is not None and running.deadline is not None and running.deadline <= now:
                self._go_on(running.task, None)

    # -- messages ------------------------------------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        if isinstance(message, Finished):
            self._go_on(message.call, message)
        elif isinstance(message, Forwarded):
            self.core.emit(message.event)
            message.credits.try_recv()
        elif isinstance(message, Decided):
            self._go_on(message.ask, message.decision)
        elif isinstance(message, Resumed):
            self._resume(message)
        elif isinstance(message, Progress):
            self._progress(message)
        elif isinstance(message, Late):
            self._late(message)
        elif isinstance(message, NestedParked):
            running = self.turn.running.get(message.call_id)
            if running is not None:
                running.parked = True
        elif isinstance(message, Park):
            pass  # `_make` checks before each wait whether the stream is to be parked
        elif isinstance(message, Fire):
            self._step(_fire(self.core, message))
        else:
            self._step(elicitation(self.turn, message))

    def _resume(self, message: Resumed) -> None:
        running = self.turn.running.get(message.call_id)
        if running is not None and not message.taken:
            message.taken = True
            if message.request_id and message.answer is not None:
                tell(self.core, message.request_id, message.answer)
            running.resume()

    def _progress(self, message: Progress) -> None:
        message.credits.try_recv()
        running = self.turn.running.get(message.call_id)
        if running is not None and running.task is not None:
            said = (message.output, message.progress, message.total)
            self.core.emit(events.ToolCallOutput(running.call, *said, **self.core.tags))

    def _late(self, message: Late) -> None:
        """A hook's time is up: it has failed, and is no longer waited for."""
        run = message.run
        if run.call in self.waits:
            self._go_on(run.call, run.late(run.hook.timeout))


def _fire(core: StreamCore, message: Fire) -> Steps[None]:
    """Run this stream's hooks for a point that a nested stream has reached, and tell the tool call that waits for
    them."""
    yield from firing(core, message.point, **message.fields)
    message.done.close()
