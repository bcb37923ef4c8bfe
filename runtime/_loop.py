"""What a stream does from its first event to its last but one: turns, until the model has nothing more to call."""

from __future__ import annotations

from collections.abc import Sequence

from channels import Cancelled

from . import events
from ._core import StopRun, StreamCore, describe
from ._dispatch import dispatch
from ._turn import take_turn
from .events import StopReason
from .session import Message
from .tool import Tool


def run(core: StreamCore) -> StopReason:
    """Run the agent on its session; why it ended. Raises `StopRun` and `Cancelled`."""
    core.emit(events.StreamStarted(**core.tags))
    core.emit(events.AgentInfo(core.agent.model.id, core.agent.description, **core.tags))
    extra = _begin(core)
    for _ in range(core.agent.max_iterations):
        tools = _tools(core)
        messages = _conversation(core, extra)
        reply = take_turn(core, messages, [tool.definition for tool in tools.values()])
        if not reply.tool_calls:
            return "normal"
        dispatch(core, reply.tool_calls, tools)
    core.emit(events.MaxIterationsReached(core.agent.max_iterations, **core.tags))
    return "max_iterations"


def _begin(core: StreamCore) -> list[str]:
    """Start hooks and toolsets; what hooks want the model to know."""
    started = core.fire("session_start")
    _stop_if_blocked(core, "session_start", started.block, started.reason)
    core.emit(events.ToolsetInfo(tuple(_tools(core)), **core.tags))
    extra = [started.context]
    last = core.session.messages[-1] if core.session.messages else None
    if last is not None and last.role == "user":
        core.emit(events.UserMessage(last.content, **core.tags))
        submitted = core.fire("user_prompt_submit", prompt=last.content)
        _stop_if_blocked(core, "user_prompt_submit", submitted.block, submitted.reason)
        extra.append(submitted.context)
    return [text for text in extra if text]


def _stop_if_blocked(core: StreamCore, point: str, block: bool, reason: str) -> None:
    if block:
        reason = reason or f"a {point} hook stopped the run"
        core.emit(events.HookBlocked(point, reason, **core.tags))
        raise StopRun("hook_blocked", "hook_blocked", reason)


def _tools(core: StreamCore) -> dict[str, Tool]:
    """The tools that the agent has now, by name. Toolsets are started with the first stream that needs them."""
    tools: dict[str, Tool] = {tool.name: tool for tool in core.agent.tools}  # type: ignore[union-attr, misc]
    for toolset in core.agent.toolsets:
        name = getattr(toolset, "name", None) or type(toolset).__name__
        starts = not core.shared.toolsets.is_started(toolset)
        if starts:
            core.emit(events.McpInitStarted(name, **core.tags))
        try:
            found: Sequence[Tool] = core.calls.run(f"toolset {name}", core.shared.toolsets.tools, toolset)
        except BaseException as error:
            if core.token.cancelled:
                raise Cancelled(core.token.cause) from error
            raise StopRun("error", "tool_failed", f"toolset {name} cannot be used: {describe(error)}") from error
        if starts:
            core.emit(events.McpInitFinished(name, **core.tags))
        for tool in found:
            if tool.name in tools:
                raise StopRun("error", "tool_failed", f"toolset {name}: there is another tool named {tool.name!r}")
            tools[tool.name] = tool
    return tools


def _conversation(core: StreamCore, extra: Sequence[str]) -> list[Message]:
    """What the model is shown: the instructions, what hooks added, the session."""
    system = "\n\n".join(text for text in (core.agent.instructions, *extra) if text)
    return [Message("system", system), *core.session.messages] if system else list(core.session.messages)
