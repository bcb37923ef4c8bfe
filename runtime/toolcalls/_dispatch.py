"""The tool calls of one turn: started together where the tools allow it. The session has each result before it is
seen, and has them in the order of the calls.

Each call goes one way: its arguments are read (`_begin`), hooks may change them (`_checked`), it is permitted,
confirmed by the user or refused (`_permit`, `_requested`, `_decided`), it runs (`_start`), hooks may change its result
(`_transformed`), and it is over (`_over`, or `_end` where it never ran). A call that waits for a hook or the user holds
its place as a running one does: other calls that may run beside it do.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from channels import Cancelled, CancelToken, Channel

from .. import events
from .._errors import BadArguments, describe
from ..agent._agent import Agent
from ..agent._hooks import NOTHING, HookResult
from ..agent._tool import Answer, Tool, ToolResult
from ..execution._calls import INBOX, Call, Finished
from ..foreign._spelling import spelled
from ..human._asks import Ask
from ..permissions import Decision, Rule, decide
from ..session._message import Message, ToolCall
from ..stream._core import StreamCore
from ..stream._firing import Firings
from ..stream._private_events import ConsumerCall, ToolReturned
from ..team._delegation import HandOff
from ._assembler import cut_off
from ._consumer import consumer_call
from ._context import Asked, Context, Fire, Forwarded, Progress, posting
from ._results import cut, run_tool, run_tool_async

_LONG: Final = 10_000  # characters of arguments
_OVER: Final = "the call that asked is over"
_DROPPED: Final = "the call that asked does not wait for the answer any more"


@dataclass(frozen=True, slots=True)
class _Ready:
    """A call that can be made: its arguments as the model, or a hook, gave them; the ``values`` that the tool gets; and
    these as patterns and the user see them, ``shown``. What is asked about is what runs: all three are made at once.
    """

    tool: Tool
    arguments: Mapping[str, Any]
    values: Mapping[str, Any]
    shown: Mapping[str, Any]


_Read: TypeAlias = _Ready | ToolResult  # or the result of a call that cannot be made


@dataclass(frozen=True, slots=True)
class _Decided:
    """A message to the worker: what the user said about a call."""

    running: _Running
    decision: Decision


@dataclass(slots=True, eq=False)
class _Resumed:
    """A message to the worker: what the tool waited for is over, the user or the consumer's thread. It may come twice,
    and counts once.
    """

    running: _Running
    taken: bool = False


@dataclass(slots=True, eq=False)
class _Running:
    """A call under way. It has a ``task`` while its tool runs, and an ``errand`` where that is on the consumer."""

    call: ToolCall
    ready: _Ready
    token: CancelToken
    task: Call | None = None
    errand: ConsumerCall | None = None
    ask: Ask[ToolCall, Decision] | None = None  # for the user's approval
    decided: bool = False
    notes: list[str] = field(default_factory=list)  # why nobody was asked, for the model to read
    # The clock of a tool with a timeout stands still while the tool waits for somebody.
    left: float | None = None
    deadline: float | None = None
    waits: int = 1  # it begins

    def pause(self) -> None:
        self.waits += 1
        if self.deadline is not None:
            self.left, self.deadline = self.deadline - time.monotonic(), None

    def resume(self) -> None:
        self.waits -= 1
        if self.left is not None and not self.waits:
            self.deadline, self.left = time.monotonic() + self.left, None

    @property
    def tool(self) -> Tool:
        return self.ready.tool


@dataclass(frozen=True, slots=True)
class Made:
    """The calls of a turn were made: what hooks want the model to know next, and whom the conversation is handed to."""

    contexts: list[str]
    successor: Agent | None


def dispatch(core: StreamCore, reply: Message, tools: Mapping[str, Tool]) -> Made:
    """Make the calls of the reply and record their results. What a tool raises is a result too, for the model to read.

    Raises `Cancelled` when the stream is cancelled first, `StopRun` where a hook ends it; the results that were there
    by then are recorded.
    """
    turn = _Turn(core, reply, tools)
    try:
        turn.run()
    finally:
        turn.close()
    core.stop_if_blocked("post_tool_use", turn.blocked)
    return Made(turn.contexts, turn.successor)


class _Turn:
    """The calls of one turn. Used by the worker's thread only; others post to ``inbox``."""

    def __init__(self, core: StreamCore, reply: Message, tools: Mapping[str, Tool]) -> None:
        self.core = core
        self.reply = reply
        self.tools = tools
        self.inbox: Channel[Any] = Channel(INBOX, name="tool calls")
        self.order: dict[str | None, int] = {call.id: i for i, call in enumerate(reply.tool_calls)}
        self.waiting = deque(reply.tool_calls)
        self.running: dict[str, _Running] = {}
        self.read: Mapping[str, _Read] = {}
        self.results: dict[str, ToolResult] = {}
        self.hooks = Firings(core, self.inbox)
        self.blocked = NOTHING  # or what a hook said that ends the run after these calls
        self.contexts: list[str] = []
        self.successor: Agent | None = None

    def run(self) -> None:
        # The schemas are a server's and the arguments a model's: what they take to be read is not for the worker.
        self.read = self.core.calls.run("reading the arguments", _read, self.reply, self.tools, self.core.token)
        while self.waiting or self.running or self.hooks:
            while self.waiting and self._has_room(self.waiting[0]):
                self._begin(self.waiting.popleft())
            if self.running or self.hooks:
                self._wait()

    def _wait(self) -> None:
        """For the next message, or until the time of a tool is up."""
        deadlines = [each.deadline for each in self.running.values() if each.deadline is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        try:
            message = self.inbox.recv(timeout, self.core.token)
        except TimeoutError:
            message = None
        if message is not None:
            self._take(message)
        if deadlines:
            self._expire()

    def close(self) -> None:
        """Answer who still asks; the session says whom the conversation is handed to, whatever ends the stream now."""
        self.inbox.close()
        for running in self.running.values():
            if running.errand is not None:
                running.errand.withdraw()
            decision = None if running.ask is None or running.decided else running.ask.answer
            if decision is not None:
                self._remember(_Decided(running, decision))  # the user has said so, even if too late for the call
        while len(self.inbox):
            message = self.inbox.try_recv()
            if isinstance(message, Asked):
                message.settled(Answer("cancel", note=_OVER))
            elif isinstance(message, Fire):
                message.done.close()
        for call in self.reply.tool_calls:
            result = self.results.get(call.id)
            if isinstance(result, HandOff) and result.agent is not None:
                self.core.log.hand_over(result.agent.name)

    # -- the way of a call ---------------------------------------------------------------------------------------------

    def _has_room(self, call: ToolCall) -> bool:
        if any(not each.tool.parallel for each in self.running.values()):
            return False
        tool = self.tools.get(call.name)
        return not self.running or tool is None or tool.parallel

    def _begin(self, call: ToolCall) -> None:
        """Its turn has come. What is wrong with the arguments is a result that the model can mend."""
        self.core.emit(events.ToolCallStarted(call, **self.core.tags))
        prepared = self.read[call.id]
        if isinstance(prepared, ToolResult):
            self._end(call, prepared)
        else:
            timeout = prepared.tool.timeout
            token = self.core.token if timeout is None else CancelToken(self.core.token)
            running = self.running[call.id] = _Running(call, prepared, token, left=timeout)
            self._fire("pre_tool_use", running, self._checked)

    def _fire(self, point: str, running: _Running, then: Callable[[_Running, HookResult], None], **fields: Any) -> None:
        """Run the hooks of this call, then go on with it."""
        self.hooks.start(
            point,
            lambda result: then(running, result),
            tool_name=running.tool.name,
            tool_use_id=running.call.id,
            tool_input=running.ready.arguments,
            **fields,
        )

    def _checked(self, running: _Running, hooks: HookResult) -> None:
        """The hooks have seen the arguments: what they make of them is held against the schema again."""
        if hooks.block:
            reason = hooks.reason or "a pre_tool_use hook blocks it"
            self.core.emit(events.HookBlocked("pre_tool_use", reason, running.call, **self.core.tags))
            self._end(running.call, _refusal(reason))
            return
        if hooks.updated_input is not None:
            changed = running.tool, hooks.updated_input, self.core.token
            read = self.core.calls.run("checking the arguments", _ready, *changed)
            if isinstance(read, ToolResult):
                self._end(running.call, replace(read, content=f"a hook changed the arguments: {read.content}"))
                return
            running.ready = read
        self._permit(running)

    def _permit(self, running: _Running) -> None:
        """Start it, ask first, or refuse it."""
        core, tool = self.core, running.tool
        said = core.permissions, tool.names, running.ready.shown
        judge = functools.partial(decide, *said, owner=tool.owner, read_only=tool.read_only)
        # Patterns are held against the values: where these are long, not here.
        verdict, rule = judge() if len(running.call.arguments) < _LONG else core.calls.run("permissions", judge)
        if verdict == "allow":
            self._settle(running, Decision(True, reason=_why(rule, tool)))
        elif verdict == "deny":
            self._settle(running, Decision(False, reason=f"it is denied by the permission {str(rule)!r}"))
        else:
            self._fire("permission_request", running, self._requested)

    def _requested(self, running: _Running, hooks: HookResult) -> None:
        """The user would be asked; a hook may have answered."""
        if hooks.allow:
            self._settle(running, Decision(True, reason=hooks.reason or "a permission_request hook allows it"))
        elif hooks.block:
            self._settle(running, Decision(False, reason=hooks.reason or "a permission_request hook denies it"))
        elif self.core.interactive:
            self._confirm(running)
        else:
            note = "it needs the user's approval, and nobody is there to be asked: this run is not interactive"
            self._settle(running, Decision(False, reason=note))

    def _confirm(self, running: _Running) -> None:
        """Ask the consumer of the stream. Its answer is awaited before anyone can see the question."""
        core = self.core

        def settled(decision: Decision) -> None:
            self.inbox.try_send(_Decided(running, decision))

        ask = running.ask = Ask(core, core.root, running, running.call, settled)
        ask.event = events.ToolCallConfirmation(
            running.call,
            ask.id,
            running.ready.shown,
            running.tool.destructive,
            running.tool.server,
            **core.tags,
        )
        core.shared.confirmations.register(ask, core.shared.answer_timeout)
        core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)
        self._user_is_asked(running, f"approval of {running.tool.name}")

    def _user_is_asked(self, running: _Running, reason: str) -> None:
        self._fire("on_user_input", running, lambda running, result: None, reason=reason)

    def _decided(self, message: _Decided) -> None:
        """The user has answered, or the time to do so is over. That may be said twice."""
        if message.running.decided:
            return
        message.running.decided = True
        self._remember(message)
        self._settle(message.running, message.decision)

    def _settle(self, running: _Running, decision: Decision) -> None:
        """It is decided: tell the hooks, then do it."""

        def go_on(running: _Running, hooks: HookResult) -> None:
            if decision.approved:
                self._start(running)
            else:
                self._end(running.call, _refusal(decision.reason))

        verdict = "allow" if decision.approved else "deny"
        self._fire("on_tool_approval_decision", running, go_on, decision=verdict, reason=decision.reason)

    def _remember(self, message: _Decided) -> None:
        """What is approved for longer than once holds for the whole conversation: for the session of the outermost
        stream, whose consumer has said so. A tool is that of its owner.
        """
        decision, log, tool = message.decision, self.core.root.log, message.running.tool
        if decision.approved and decision.scope == "tool":
            log.allow(Rule.exactly(tool.names[-1], tool.owner))
        elif decision.approved and decision.scope == "session":
            log.allow(None)

    def _start(self, running: _Running) -> None:
        core, tool = self.core, running.tool
        if tool.on == "consumer":
            begun = posting(self.inbox, _Resumed(running))
            running.errand, running.task = consumer_call(
                core, running.call, tool, running.ready.values, running.token, self.inbox, begun
            )
            core.emit(running.errand)
            return
        context = Context(core, running.call, self.inbox, running.token)
        run = run_tool_async if tool.is_async else run_tool
        running.task = core.calls.start(f"tool {tool.name}", self.inbox, run, tool, running.ready.values, context)
        running.resume()

    def _ran(self, running: _Running, result: ToolResult) -> None:
        """It is not running any more."""
        running.task = running.errand = running.left = running.deadline = None
        self.core.shared.asks.withdraw(running, _OVER)
        self._fire(
            "tool_response_transform",
            running,
            lambda running, hooks: self._transformed(running, result, hooks),
            tool_response=result.content,
            is_error=result.is_error,
        )

    def _transformed(self, running: _Running, result: ToolResult, hooks: HookResult) -> None:
        """It ran, and the hooks have seen what it gave back. It keeps its place until those after it have ended."""
        returned = result
        if hooks.updated_response is not None:
            result = replace(result, content=hooks.updated_response)
        result = self._respond(running.call, result)
        if self.core.recorded and result.content != returned.content:  # a replay gives the hooks what it returned
            said = running.call, returned.content, returned.is_error
            self.core.emit(ToolReturned(*said, **self.core.tags))
        self._fire("post_tool_use", running, self._over, tool_response=result.content, is_error=result.is_error)

    def _over(self, running: _Running, hooks: HookResult) -> None:
        del self.running[running.call.id]
        if hooks.block and not self.blocked.block:
            self.blocked = hooks
        if hooks.context:
            self.contexts.append(hooks.context)

    def _end(self, call: ToolCall, result: ToolResult) -> None:
        """It has a result without having run."""
        self.running.pop(call.id, None)
        self._respond(call, result)

    def _respond(self, call: ToolCall, result: ToolResult) -> ToolResult:
        """This is what the model is given; where it is too long, the beginning and the end, and the whole in a file."""
        core, tool = self.core, self.tools.get(call.name)
        limit = core.shared.result_limit if tool is None or tool.result_limit is None else tool.result_limit
        if limit is not None and len(result.content) > limit:
            result = replace(result, content=cut(result.content, limit, self._keep(call, result.content)))
        self.results[call.id] = result
        message = Message("tool", result.content, tool_call_id=call.id, is_error=result.is_error, images=result.images)
        core.log.add_result(message, self.order)  # before anyone sees it: who saves the session then has it
        result = replace(result, content=message.content)
        core.emit(events.ToolCallResponse(call, result.content, result.is_error, result.images, **core.tags))
        return result

    def _keep(self, call: ToolCall, text: str) -> str:
        """Where the whole of a result is."""
        core, keep = self.core, self.core.shared.result_files.keep
        try:
            return f"the full text is in {core.calls.run('keeping a result', keep, core.session.id, call.name, text)}"
        except OSError as error:
            return f"the full text could not be kept: {describe(error)}"

    # -- messages ------------------------------------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        if self.hooks.take(message):
            return
        if isinstance(message, Finished):
            self._finished(message)
        elif isinstance(message, Forwarded):
            self.core.emit(message.event)
            message.credits.try_recv()
        elif isinstance(message, _Decided):
            self._decided(message)
        elif isinstance(message, _Resumed):
            if not message.taken:
                message.taken = True
                message.running.resume()
        elif isinstance(message, Progress):
            self._progress(message)
        elif isinstance(message, Fire):
            self._run_hooks(message)
        else:
            self._asked(message)

    def _run_hooks(self, message: Fire) -> None:
        """For a nested stream, whose tool call waits for them."""

        def then(result: HookResult) -> None:
            message.done.close()

        self.hooks.start(message.point, then, **message.fields)

    def _finished(self, message: Finished) -> None:
        running = next((each for each in self.running.values() if each.task is message.call), None)
        if running is None:  # its time was up
            return
        result = _result(message, running)
        if message.error is not None and not isinstance(message.error, BadArguments):
            self.core.failures.append(message.call.traceback)
        if self.core.token.cancelled:
            raise Cancelled(self.core.token.cause)  # what it says now it may say because of that
        if isinstance(result, HandOff):
            if self.successor is not None:
                result = ToolResult(f"the conversation is handed to {self.successor.name} already", is_error=True)
            else:
                self.successor = result.agent
        self._ran(running, result)

    def _expire(self) -> None:
        """End the calls whose time is up. What still runs of them is left to itself, and told so."""
        core, now = self.core, time.monotonic()
        for running in list(self.running.values()):
            if running.task is None or running.deadline is None or running.deadline > now:
                continue
            tool = running.tool
            late = f"{tool.name} did not end within {tool.timeout:g} s, and was given up; it may still be at work"
            # Not from here: what a tool has registered with its token is foreign code.
            core.calls.start(f"cancelling {tool.name}", Channel(1), running.token.cancel, TimeoutError(late))
            running.task.cancel()
            self._ran(running, ToolResult(late, is_error=True))

    def _progress(self, message: Progress) -> None:
        message.credits.try_recv()
        running = self.running.get(message.call_id)
        if running is not None and running.task is not None:
            said = (message.output, message.progress, message.total)
            self.core.emit(events.ToolCallOutput(running.call, *said, **self.core.tags))

    def _asked(self, message: Asked) -> None:
        """Send the question to the stream that owns the call. Its waiter is registered before anyone can see it."""
        core, question = self.core, message.question
        running = self.running.get(message.call_id)
        if running is None or running.task is None:  # a thread that the call left behind
            message.settled(Answer("cancel", note=_OVER))
            return

        running.pause()
        resumed = posting(self.inbox, _Resumed(running))

        def settled(answer: Answer) -> None:
            resumed()
            told = message.dropped.cancelled or answer.note in running.notes  # it took the question back; said twice
            if answer.note and not told:
                running.notes.append(answer.note)
            message.settled(answer)

        if not core.interactive:
            note = "the question was declined: nobody is there to be asked, this run is not interactive"
            settled(Answer("decline", note=note))
            return
        asks = core.shared.asks
        ask = Ask(core, core.root, running, question, settled)
        ask.event = events.ElicitationRequest(
            ask.id,
            question.message,
            question.mode,
            question.schema or {},
            question.url,
            running.tool.name,
            running.tool.server,
            **core.tags,
        )
        asks.register(ask, core.shared.answer_timeout if question.timeout is None else question.timeout)
        message.dropped.on_cancel(lambda: asks.withdraw(ask, _DROPPED))
        if asks.is_pending(ask):
            core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)
            self._user_is_asked(running, question.message)


def _read(reply: Message, tools: Mapping[str, Tool], cancel: CancelToken) -> dict[str, _Read]:
    """What the calls say, by id. Anything may stand in them, and in the schemas: for a helper thread."""
    return {call.id: _prepare(call, reply.finish_reason, tools, cancel) for call in reply.tool_calls}


def _prepare(call: ToolCall, finish: str | None, tools: Mapping[str, Tool], cancel: CancelToken) -> _Read:
    """The tool and its arguments; where the model got them wrong, or was cut off, an error that it can mend."""
    if too_early := cut_off(call, finish):
        return ToolResult(too_early, is_error=True)
    tool = tools.get(call.name)
    if tool is None:
        known = ", ".join(sorted(tools)) or "none"
        return ToolResult(f"there is no tool {call.name!r:.200}; there are: {known}", is_error=True)
    arguments = call.parsed
    if arguments is None:
        return ToolResult(call.problem, is_error=True)
    return _ready(tool, arguments, cancel)


def _ready(tool: Tool, arguments: Mapping[str, Any], cancel: CancelToken) -> _Read:
    """The arguments, held against the schema of the tool and made into what it takes; or what is wrong with them."""
    checked = arguments
    if tool.nullable:
        checked = {k: v for k, v in arguments.items() if v is not None or k not in tool.nullable}
    found = tool.schema.problems(checked, cancel=cancel)
    if found:
        return ToolResult(f"wrong arguments for {tool.name}: {'; '.join(found)}", is_error=True)
    try:
        values = tool.values(arguments)
    except BadArguments as error:
        return ToolResult(describe(error), is_error=True)
    return _Ready(tool, arguments, values, spelled({**tool.defaults, **values}))


def _why(rule: Rule | None, tool: Tool) -> str:
    """Why a call is made without asking."""
    if rule is not None:
        return f"it is allowed by the permission {str(rule)!r}"
    return "it only reads" if tool.read_only else "everything is approved"


def _refusal(reason: str) -> ToolResult:
    return ToolResult(f"this call was rejected{f': {reason}' if reason else ' by the user'}", is_error=True)


def _result(message: Finished, done: _Running) -> ToolResult:
    try:
        result: ToolResult = message.result()
    except BadArguments:
        result = ToolResult(message.call.said, is_error=True)
    except BaseException:
        result = ToolResult(message.call.said, is_error=True)
    if done.notes:
        note = "".join(f"\n({note})" for note in done.notes)
        result = replace(result, content=result.content + note)
    return result
