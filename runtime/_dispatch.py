"""The tool calls of one turn: started together where the tools allow it, recorded in the order of the calls."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from channels import Cancelled, CancelToken, Channel, ChannelClosed

from . import events
from ._asks import Ask
from ._calls import INBOX, Call, Finished
from ._core import StreamCore, describe
from ._schema import problems
from .agent import Agent
from .session import Message, Session, ToolCall
from .tool import Answer, Question, Tool, ToolResult, result_of

if TYPE_CHECKING:
    from .stream import RunResult

_OVER: Final = "the call that asked is over"
_DROPPED: Final = "the call that asked does not wait for the answer any more"
_AHEAD: Final = 64  # how many events a nested stream may be ahead of its parent's worker


@dataclass(frozen=True, slots=True)
class _Asked:
    """A message to the worker: the tool of ``call_id`` asks; ``settled`` takes the answer, and does not wait.

    ``dropped`` is cancelled when the tool does not want to know any more.
    """

    call_id: str
    question: Question
    settled: Callable[[Answer], object]
    dropped: CancelToken


@dataclass(frozen=True, slots=True)
class _Forwarded:
    """A message to the worker: an event of a nested stream. Taking it gives one credit back."""

    event: events.Event
    credits: Channel[None]


@dataclass(slots=True)
class _Running:
    """A call under way."""

    call: ToolCall
    task: Call
    notes: list[str] = field(default_factory=list)  # why nobody was asked, for the model to read


def dispatch(core: StreamCore, calls: Sequence[ToolCall], tools: Mapping[str, Tool]) -> None:
    """Make the calls and record their results. What a tool raises is a result too, which the model can read.

    Raises `Cancelled` when the stream is cancelled first; the results that were there by then are recorded.
    """
    inbox: Channel[Any] = Channel(INBOX, name="tool calls")
    results: dict[str, ToolResult] = {}
    try:
        _make(core, calls, tools, inbox, results)
    finally:
        inbox.close()
        while len(inbox):
            message = inbox.try_recv()
            if isinstance(message, _Asked):
                message.settled(Answer("cancel", note=_OVER))
        for call in calls:
            if call.id in results:
                result = results[call.id]
                core.record(Message("tool", result.content, tool_call_id=call.id, is_error=result.is_error))


def _make(
    core: StreamCore,
    calls: Sequence[ToolCall],
    tools: Mapping[str, Tool],
    inbox: Channel[Any],
    results: dict[str, ToolResult],
) -> None:
    waiting = deque(calls)
    running: dict[str, _Running] = {}
    alone = False  # a call that must not run beside others is under way
    while waiting or running:
        while waiting and not alone:
            call = waiting[0]
            prepared = _prepare(call, tools)
            if running and isinstance(prepared, tuple) and not prepared[0].parallel:
                break
            waiting.popleft()
            core.emit(events.ToolCall(call, **core.tags))
            if isinstance(prepared, ToolResult):
                results[call.id] = prepared
                _respond(core, call, prepared)
                continue
            tool, arguments = prepared
            context = _Context(core, call, inbox)
            task = core.calls.start(f"tool {tool.name}", inbox, tool.function, **tool.bind(arguments, context))
            running[call.id] = _Running(call, task)
            alone = not tool.parallel
        if not running:
            continue
        message = inbox.recv(cancel=core.token)
        if isinstance(message, _Asked):
            asking = running.get(message.call_id)
            if asking is None:  # a thread that the call left behind
                message.settled(Answer("cancel", note=_OVER))
            else:
                _ask(core, message, asking)
            continue
        if isinstance(message, _Forwarded):
            core.emit(message.event)
            message.credits.try_recv()
            continue
        done = next(each for each in running.values() if each.task is message.call)
        del running[done.call.id]
        core.shared.asks.withdraw(done, _OVER)
        alone = False
        result = _result(message, done)
        if core.token.cancelled:
            raise Cancelled(core.token.cause)  # what it says now it may say because of that
        results[done.call.id] = result
        _respond(core, done.call, result)


def _prepare(call: ToolCall, tools: Mapping[str, Tool]) -> tuple[Tool, dict[str, Any]] | ToolResult:
    """The tool and its arguments; where the model got them wrong, an error that it can mend."""
    tool = tools.get(call.name)
    if tool is None:
        known = ", ".join(sorted(tools)) or "none"
        return ToolResult(f"there is no tool {call.name!r}; there are: {known}", is_error=True)
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        return ToolResult(f"the arguments are not JSON: {error}", is_error=True)
    if not isinstance(arguments, dict):
        return ToolResult(f"the arguments are a JSON object, not {call.arguments}", is_error=True)
    found = problems(arguments, tool.parameters)
    if found:
        return ToolResult(f"wrong arguments for {tool.name}: {'; '.join(found)}", is_error=True)
    return tool, arguments


def _result(message: Finished, done: _Running) -> ToolResult:
    try:
        result = result_of(message.result())
    except BaseException as error:
        result = ToolResult(describe(error), is_error=True)
    if done.notes:
        note = "".join(f"\n({note})" for note in done.notes)
        result = ToolResult(result.content + note, result.is_error)
    return result


def _respond(core: StreamCore, call: ToolCall, result: ToolResult) -> None:
    core.emit(events.ToolCallResponse(call, result.content, result.is_error, **core.tags))


def _ask(core: StreamCore, asked: _Asked, running: _Running) -> None:
    """Send the question to the stream that owns the call. Its waiter is registered before anyone can see it."""
    question = asked.question

    def settled(answer: Answer) -> None:
        if answer.note and not asked.dropped.cancelled:  # what the tool took back itself is no news to it
            running.notes.append(answer.note)
        asked.settled(answer)

    if not core.interactive:
        note = "the question was declined: nobody is there to be asked, this run is not interactive"
        settled(Answer("decline", note=note))
        return
    asks = core.shared.asks
    ask = Ask(core, core.root, running, question, settled)
    ask.event = events.ElicitationRequest(
        ask.id, question.message, question.mode, question.schema or {}, question.url, **core.tags
    )
    asks.register(ask, core.shared.answer_timeout if question.timeout is None else question.timeout)
    asked.dropped.on_cancel(lambda: asks.withdraw(ask, _DROPPED))
    if asks.is_pending(ask):
        core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)


class _Context:
    """`ToolContext`, for one call."""

    def __init__(self, core: StreamCore, call: ToolCall, inbox: Channel[Any]) -> None:
        self.call_id = call.id
        self.session_id = core.session.id
        self.agent_name = core.agent.name
        self.cancel: CancelToken = core.token
        self._core = core
        self._inbox = inbox
        self._credits: Channel[None] = Channel(_AHEAD, name="credits")

    def run_agent(self, agent: Agent, task: str | Session) -> RunResult:
        from ._nested import run_nested  # it opens streams, whose workers dispatch

        session = Session.from_user(task) if isinstance(task, str) else task
        return run_nested(self._core, agent, session, self._forward)

    def _forward(self, event: events.Event) -> None:
        self._credits.send(None, cancel=self.cancel)
        self._post(_Forwarded(event, self._credits))

    def elicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        question = _question(message, schema, url, timeout)
        if cancel is not None and cancel.cancelled:
            raise Cancelled(cancel.cause)
        answers: Channel[Answer] = Channel(1, name="answer")
        dropped = CancelToken()
        self._post(_Asked(self.call_id, question, answers.try_send, dropped))
        if cancel is None:
            return answers.recv(cancel=self.cancel)
        either = CancelToken(self.cancel)
        with cancel.on_cancel(lambda: either.cancel(cancel.cause)):
            try:
                return answers.recv(cancel=either)
            except Cancelled:
                dropped.cancel()
                raise

    async def aelicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
    ) -> Answer:
        import asyncio  # slow, and loaded by now: whoever awaits this has a loop

        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        def settled(answer: Answer) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the task that waited gone with it
                loop.call_soon_threadsafe(settle, answer)

        dropped = CancelToken()
        self._post(_Asked(self.call_id, _question(message, schema, url, timeout), settled, dropped))
        try:
            return await future
        except asyncio.CancelledError:
            dropped.cancel()
            raise

    def _post(self, message: _Asked | _Forwarded) -> None:
        try:
            self._inbox.try_send(message)
        except ChannelClosed:
            raise Cancelled(self.cancel.cause or "the stream has ended") from None

    def __repr__(self) -> str:
        return f"<ToolContext of call {self.call_id}>"


def _question(message: str, schema: Mapping[str, Any] | None, url: str, timeout: float | None) -> Question:
    if url and schema is not None:
        raise ValueError("a question is a form or a page to visit, not both")
    if not url and schema is None:
        schema = {"type": "object", "properties": {}}
    return Question(message, schema, "url" if url else "form", url, timeout)
