"""The steps of one tool call, from the text that the model has written to the result that it reads.

`tool_run` has these steps, from top to bottom. The generator yields whatever it waits for: a hook, the user's approval,
its tool. The dispatcher of the turn (`_dispatch`) resumes it, so that other calls go on meanwhile. A call that waits
counts as running: a call that must not run at the same time does not begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from channels import Cancelled, CancelToken, Channel

from .. import events
from .._dataclasses import replace
from .._errors import BadArguments, describe
from ..agent._hooks import nothing
from ..agent._tool import ToolResult
from ..execution._calls import Call, Finished
from ..execution._errands import Held
from ..session._journal import Began
from ..session._message import Message, ToolCall
from ..stream._private_events import ToolReturned
from ..team._delegation import HandOff
from ._approval import approval, is_made_anyway
from ._consumer import consumer_call
from ._context import StreamContext
from ._messages import Resumed, posting
from ._resolve import Resolved, given
from ._results import cut, run_tool, run_tool_async
from ._running import Running, Steps, Turn

IN_DOUBT: Final = (
    "this call had begun when the process that made it ended, and was not made again: it is not known whether it took"
    " effect"
)


def tool_run(turn: Turn, call: ToolCall, resolved: Resolved) -> Steps[None]:
    """Make the call, and record its result."""
    core = turn.core

    # Resolve: what is wrong with the name or the arguments is a result that the model can mend.
    if isinstance(resolved, ToolResult):
        core.emit(events.ToolCallStarted(call, **core.tags))
        core.trace.refused(call, turn.tools.get(call.name), "invalid_call", resolved)
        _record(turn, call, resolved)
        return
    timeout = resolved.tool.timeout
    token = core.token if timeout is None else CancelToken(core.token)
    running = turn.running[call.id] = Running(turn, call, resolved, token, left=timeout)
    if running.state.phase == "open" and is_made_anyway(running):
        _note_begun(running)  # with the reply, in one transaction
    core.emit(events.ToolCallStarted(call, **core.tags))

    # Go on where an earlier stream has left it: what may have taken effect is not made again.
    if running.state.phase == "began" and not running.tool.may_begin_again(running.state.kept):
        del turn.running[call.id]
        unknown = ToolResult(IN_DOUBT, is_error=True)
        core.trace.refused(call, running.tool, "in_doubt", unknown)
        _record(turn, call, unknown)
        return

    # Check: hooks may refuse the call, or change its arguments, as long as the user has not seen them.
    hooks = nothing()
    if running.state.phase == "open" and running.hooked("pre_tool_use"):
        hooks = yield from running.fire("pre_tool_use")
    refused: ToolResult | None = None
    if hooks.block:
        reason = hooks.reason or "a pre_tool_use hook blocks it"
        core.emit(events.HookBlocked("pre_tool_use", reason, call, **core.tags))
        refused = _refusal(reason)
    elif hooks.updated_input is not None:
        checked: Finished = yield _check(running, hooks.updated_input)
        changed = checked.result()
        if isinstance(changed, ToolResult):
            refused = replace(changed, content=f"a hook changed the arguments: {changed.content}")
        else:
            running.ready, running.changed = changed, True

    # Permit, and ask where that is to be decided by the user.
    if refused is None:
        decision = yield from approval(running)
        if running.hooked("on_tool_approval_decision"):
            verdict = "allow" if decision.approved else "deny"
            yield from running.fire("on_tool_approval_decision", decision=verdict, reason=decision.reason)
        if not decision.approved:
            refused = _refusal(decision.reason)
    if refused is not None:
        core.trace.refused(call, running.tool, "rejected", refused, running.waited)
        del turn.running[call.id]
        _record(turn, call, refused)
        return

    # Run: what a tool raises is a result too, and so is that it takes too long.
    _note_begun(running)
    if core.log.outbox.unwritten:
        core.commit()
    task = _start(running)
    ended: Finished | None = yield task
    returned = _late(running, task) if ended is None else _returned(running, ended)
    running.stop()
    running.trace.end(returned, TimeoutError() if ended is None else ended.error)

    # Transform: hooks may change what the model reads.
    said, failed = returned.content, returned.is_error
    result = returned
    if running.hooked("tool_response_transform"):
        hooks = yield from running.fire("tool_response_transform", tool_response=said, is_error=failed)
        if hooks.updated_response is not None:
            result = replace(returned, content=hooks.updated_response)

    # Record: in the session first, then as an event.
    result = _record(turn, call, result)
    if core.recorded and result.content != said:  # a replay gives the hooks what it returned
        core.emit(ToolReturned(call, said, failed, **core.tags))

    # The hooks after it: the call keeps its place until they have ended.
    hooks = nothing()
    if running.hooked("post_tool_use"):
        hooks = yield from running.fire("post_tool_use", tool_response=result.content, is_error=result.is_error)
    del turn.running[call.id]
    if hooks.block and not turn.blocked.block:
        turn.blocked = hooks
    if hooks.context:
        turn.contexts.append(hooks.context)


def _note_begun(running: Running) -> None:
    """The tool is about to be entered: should the process die, nobody could tell whether it took effect. Of one that
    changes nothing that need not be known.
    """
    outbox = running.turn.core.log.outbox
    if outbox.is_open and not running.tool.read_only and not running.begun:
        running.begun = True
        outbox.note(Began(running.call.id, running.ready.text))


def _refusal(reason: str) -> ToolResult:
    return ToolResult(f"this call was rejected{f': {reason}' if reason else ' by the user'}", is_error=True)


def _check(running: Running, arguments: Mapping[str, Any]) -> Call:
    """Start checking the arguments that a hook has changed: the schema, and what the hook gave, are foreign."""
    turn = running.turn
    return turn.core.calls.start("checking the arguments", turn.inbox, given, running.tool, arguments, turn.core.token)


def _start(running: Running) -> Call:
    """The call of the tool, which the dispatcher starts; one in the consumer's thread is started here."""
    turn, call, tool, values = running.turn, running.call, running.tool, running.ready.values
    core = turn.core
    trace = running.trace = core.trace.tool_call(call, tool, running.ready.arguments, running.waited)
    if tool.on == "consumer":
        begun = posting(turn.inbox, Resumed(call.id))
        running.errand, task = consumer_call(
            core, call, tool, values, running.token, turn.inbox, running.state, begun, trace.context or core.context
        )
        running.task = task
        task.tool_call_id = call.id
        core.emit(running.errand)
        return task
    context = StreamContext(core, call, turn.inbox, running.token, running.state, running.agents)
    run = run_tool_async if tool.is_async else run_tool
    given = run, tool, values, context
    held = Held(core.calls, f"tool {tool.name}", turn.inbox, *given, within=trace.context, task=tool.is_async)
    turn.held.append(held)
    task = running.task = held.call
    task.tool_call_id = call.id
    running.resume()
    return task


def _returned(running: Running, ended: Finished) -> ToolResult:
    """What the tool came to, with what it was not told by the user. Raises `Cancelled`."""
    turn, core = running.turn, running.turn.core
    result: ToolResult
    try:
        result = ended.result()
    except BaseException:
        result = ToolResult(ended.call.said, is_error=True)
    if running.notes:
        note = "".join(f"\n({note})" for note in running.notes)
        result = replace(result, content=result.content + note)
    if ended.error is not None and not isinstance(ended.error, BadArguments):
        core.note_failure(ended.call.traceback)
    if core.token.cancelled:
        raise Cancelled(core.token.cause)  # what it says now it may say because of that
    if isinstance(result, HandOff):
        if turn.successor is not None:
            return ToolResult(f"the conversation is handed to {turn.successor.name} already", is_error=True)
        turn.successor = result.agent
    return result


def _late(running: Running, task: Call) -> ToolResult:
    """The time of the tool is up. What still runs of it is left to itself, and told so."""
    tool = running.tool
    late = f"{tool.name} did not end within {tool.timeout:g} s, and was given up; it may still be at work"
    # Not from here: what a tool has registered with its token is foreign code.
    cancel = running.token.cancel
    running.turn.core.calls.start(f"cancelling {tool.name}", Channel(1), cancel, TimeoutError(late))
    task.cancel()
    return ToolResult(late, is_error=True)


def _record(turn: Turn, call: ToolCall, result: ToolResult) -> ToolResult:
    """This is what the model is given; where it is too long, the beginning and the end, and the whole in a file."""
    core, tool = turn.core, turn.tools.get(call.name)
    limit = core.shared.result_limit if tool is None or tool.result_limit is None else tool.result_limit
    if limit is not None and len(result.content) > limit:
        result = replace(result, content=cut(result.content, limit, _keep(turn, call, result.content)))
    turn.results[call.id] = result
    message = Message("tool", result.content, tool_call_id=call.id, is_error=result.is_error, images=result.images)
    core.log.add_result(message, turn.order)  # before anyone sees it: who saves the session then has it
    if isinstance(result, HandOff) and result.agent is not None:
        core.log.hand_over(result.agent.name)  # whatever ends the stream now
    if message.content is not result.content:
        result = replace(result, content=message.content)
    core.emit(events.ToolCallResponse(call, result.content, result.is_error, result.images, **core.tags))
    return result


def _keep(turn: Turn, call: ToolCall, text: str) -> str:
    """Where the whole of a result is."""
    core = turn.core
    keep = core.shared.result_files.keep
    try:
        return f"the full text is in {core.calls.run('keeping a result', keep, core.session.id, call.name, text)}"
    except OSError as error:
        return f"the full text could not be kept: {describe(error)}"
