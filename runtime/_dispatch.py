"""The tool calls of one turn: started together where the tools allow it, recorded in the order of the calls.

Each call goes one way: its arguments are read (`_begin`), it is permitted, confirmed by the user or refused (`_permit`,
`_decided`), it runs (`_start`), and has a result (`_end`). A call that waits for the user holds its place as a running
one does: other calls that may run beside it do.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from channels import Cancelled, Channel

from . import events
from ._asks import Ask
from ._calls import INBOX, Call, Finished
from ._context import Asked, Context, Forwarded
from ._core import StreamCore, describe
from ._schema import problems
from .permissions import Decision, Rule, decide
from .session import Message, ToolCall
from .tool import Answer, Tool, ToolResult, result_of

_OVER: Final = "the call that asked is over"
_DROPPED: Final = "the call that asked does not wait for the answer any more"


@dataclass(frozen=True, slots=True)
class _Decided:
    """A message to the worker: what the user said about a call."""

    running: _Running
    decision: Decision


@dataclass(slots=True, eq=False)
class _Running:
    """A call under way. It has no ``task`` while it waits for the user's approval."""

    call: ToolCall
    tool: Tool
    arguments: Mapping[str, Any]
    task: Call | None = None
    notes: list[str] = field(default_factory=list)  # why nobody was asked, for the model to read


def dispatch(core: StreamCore, calls: Sequence[ToolCall], tools: Mapping[str, Tool]) -> None:
    """Make the calls and record their results. What a tool raises is a result too, which the model can read.

    Raises `Cancelled` when the stream is cancelled first; the results that were there by then are recorded.
    """
    turn = _Turn(core, calls, tools)
    try:
        turn.run()
    finally:
        turn.close()


class _Turn:
    """The calls of one turn. Used by the worker's thread only; others post to ``inbox``."""

    def __init__(self, core: StreamCore, calls: Sequence[ToolCall], tools: Mapping[str, Tool]) -> None:
        self.core = core
        self.calls = calls
        self.tools = tools
        self.inbox: Channel[Any] = Channel(INBOX, name="tool calls")
        self.waiting = deque(calls)
        self.running: dict[str, _Running] = {}
        self.results: dict[str, ToolResult] = {}

    def run(self) -> None:
        while self.waiting or self.running:
            while self.waiting and self._has_room(self.waiting[0]):
                self._begin(self.waiting.popleft())
            if self.running:
                self._take(self.inbox.recv(cancel=self.core.token))

    def close(self) -> None:
        """Answer who still asks, and record the results there are."""
        self.inbox.close()
        while len(self.inbox):
            message = self.inbox.try_recv()
            if isinstance(message, Asked):
                message.settled(Answer("cancel", note=_OVER))
            elif isinstance(message, _Decided):
                self._remember(message)  # the user has said so, even if it is too late for the call
        for call in self.calls:
            if call.id in self.results:
                result = self.results[call.id]
                self.core.record(Message("tool", result.content, tool_call_id=call.id, is_error=result.is_error))

    # -- the way of a call ---------------------------------------------------------------------------------------------

    def _has_room(self, call: ToolCall) -> bool:
        if any(not each.tool.parallel for each in self.running.values()):
            return False
        tool = self.tools.get(call.name)
        return not self.running or tool is None or tool.parallel

    def _begin(self, call: ToolCall) -> None:
        """Its turn has come: read what the model wrote. What is wrong with it is a result that the model can mend."""
        self.core.emit(events.ToolCall(call, **self.core.tags))
        prepared = _prepare(call, self.tools)
        if isinstance(prepared, ToolResult):
            self._end(call, prepared)
        else:
            tool, arguments = prepared
            self._permit(_Running(call, tool, arguments))

    def _permit(self, running: _Running) -> None:
        """Start it, ask the user first, or refuse it."""
        core, tool = self.core, running.tool
        known = {**tool.defaults, **running.arguments}  # a pattern sees what the tool will get
        verdict, rule = decide(core.permissions, tool.names, known, read_only=tool.read_only)
        if verdict == "allow":
            self._start(running)
        elif verdict == "deny":
            self._end(running.call, _refusal(f"it is denied by the permission {str(rule)!r}"))
        elif core.interactive:
            self._confirm(running, known)
        else:
            note = "it needs the user's approval, and nobody is there to be asked: this run is not interactive"
            self._end(running.call, _refusal(note))

    def _confirm(self, running: _Running, known: Mapping[str, Any]) -> None:
        """Ask the consumer of the stream. Its answer is awaited before anyone can see the question."""
        core = self.core
        self.running[running.call.id] = running

        def settled(decision: Decision) -> None:
            self.inbox.try_send(_Decided(running, decision))

        ask = Ask(core, core.root, running, running.call, settled)
        ask.event = events.ToolCallConfirmation(running.call, ask.id, known, running.tool.destructive, **core.tags)
        core.shared.confirmations.register(ask, core.shared.answer_timeout)
        core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)

    def _decided(self, message: _Decided) -> None:
        """The user has answered, or the time to do so is over."""
        running, decision = message.running, message.decision
        self._remember(message)
        if decision.approved:
            self._start(running)
        else:
            del self.running[running.call.id]
            self._end(running.call, _refusal(decision.reason))

    def _remember(self, message: _Decided) -> None:
        """What is approved for longer than once holds for the whole conversation: for the session of the outermost
        stream, whose consumer has said so.
        """
        decision, log = message.decision, self.core.root.log
        if decision.approved and decision.scope == "tool":
            log.allow(Rule.exactly(message.running.tool.names[-1]))
        elif decision.approved and decision.scope == "session":
            log.allow(None)

    def _start(self, running: _Running) -> None:
        core, tool = self.core, running.tool
        context = Context(core, running.call, self.inbox)
        self.running[running.call.id] = running
        running.task = core.calls.start(
            f"tool {tool.name}", self.inbox, tool.function, **tool.bind(running.arguments, context)
        )

    def _end(self, call: ToolCall, result: ToolResult) -> None:
        """It has a result, whichever way it got one."""
        self.results[call.id] = result
        self.core.emit(events.ToolCallResponse(call, result.content, result.is_error, **self.core.tags))

    # -- messages ------------------------------------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        if isinstance(message, Finished):
            self._finished(message)
        elif isinstance(message, Forwarded):
            self.core.emit(message.event)
            message.credits.try_recv()
        elif isinstance(message, _Decided):
            self._decided(message)
        else:
            self._asked(message)

    def _finished(self, message: Finished) -> None:
        running = next(each for each in self.running.values() if each.task is message.call)
        del self.running[running.call.id]
        self.core.shared.asks.withdraw(running, _OVER)
        result = _result(message, running)
        if self.core.token.cancelled:
            raise Cancelled(self.core.token.cause)  # what it says now it may say because of that
        self._end(running.call, result)

    def _asked(self, message: Asked) -> None:
        """Send the question to the stream that owns the call. Its waiter is registered before anyone can see it."""
        core, question = self.core, message.question
        running = self.running.get(message.call_id)
        if running is None:  # a thread that the call left behind
            message.settled(Answer("cancel", note=_OVER))
            return

        def settled(answer: Answer) -> None:
            if answer.note and not message.dropped.cancelled:  # what the tool took back itself is no news to it
                running.notes.append(answer.note)
            message.settled(answer)

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
        message.dropped.on_cancel(lambda: asks.withdraw(ask, _DROPPED))
        if asks.is_pending(ask):
            core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)


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


def _refusal(reason: str) -> ToolResult:
    return ToolResult(f"this call was rejected{f': {reason}' if reason else ' by the user'}", is_error=True)


def _result(message: Finished, done: _Running) -> ToolResult:
    try:
        result = result_of(message.result())
    except BaseException as error:
        result = ToolResult(describe(error), is_error=True)
    if done.notes:
        note = "".join(f"\n({note})" for note in done.notes)
        result = ToolResult(result.content + note, result.is_error)
    return result
