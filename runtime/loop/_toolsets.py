"""The tools that an agent has, turn by turn: its own, those of its toolsets, and those for its team."""

from __future__ import annotations

from collections.abc import Sequence

from channels import Cancelled

from .. import events
from .._errors import describe
from ..agent._tool import Tool, ToolSet
from ..stream._core import StreamCore
from ..stream._reason import StopRun


class AgentTools:
    """The tools of the agents that act in a stream, one after the other. Used by its worker."""

    def __init__(self, core: StreamCore) -> None:
        self._core = core
        self._missing: set[int] = set()  # toolsets that the agent goes on without

    def now(self, team: Sequence[Tool]) -> dict[str, Tool]:
        """The tools that the agent has now, by name: its own, those of its toolsets, which are started with the first
        stream that needs them, and those for its ``team``, which are made once for an agent that acts, and not every
        turn.
        """
        core = self._core
        tools: dict[str, Tool] = {tool.name: tool for tool in core.agent.made_tools}
        back = False
        for toolset in core.agent.toolsets:
            was_missing = id(toolset) in self._missing
            found = self._found(toolset)
            back = back or (was_missing and found is not None)
            for tool in found or ():
                if tool.name in tools:
                    problem = f"toolset {_name(toolset)}: there is another tool named {tool.name!r}"
                    if tool.server:
                        problem += "; MCPToolSet(..., prefix=) tells them apart"
                    raise StopRun("error", "tool_failed", problem)
                tools[tool.name] = tool
        for tool in team:
            if tool.name in tools:
                problem = f"there is another tool named {tool.name!r}, which agents come with"
                raise StopRun("error", "tool_failed", problem)
            tools[tool.name] = tool
        if back:
            core.emit(events.ToolsetInfo(tuple(tools), **core.tags))
        return tools

    def _found(self, toolset: ToolSet) -> Sequence[Tool] | None:
        """The tools of a toolset. None where it cannot be used, and the agent goes on without it: the user is told so
        when that begins, and when it is over.
        """
        core, name = self._core, _name(toolset)
        missing = id(toolset) in self._missing
        starts = not missing and not core.shared.toolsets.is_started(toolset)
        if starts:
            core.emit(events.McpInitStarted(name, **core.tags))
        try:
            found: Sequence[Tool] = core.calls.run(f"toolset {name}", core.shared.toolsets.tools, toolset)
        except BaseException as error:
            if core.token.cancelled:
                raise Cancelled(core.token.cause) from error
            problem = f"toolset {name} cannot be used: {describe(error)}"
            if getattr(toolset, "required", True) or not isinstance(error, Exception):
                raise StopRun("error", "tool_failed", problem) from error
            if not missing:
                self._missing.add(id(toolset))
                core.emit(events.Warning(f"{problem}; {core.agent.name} goes on without it", **core.tags))
            return None
        self._missing.discard(id(toolset))
        if starts or missing:
            core.emit(events.McpInitFinished(name, **core.tags))
        return found


def _name(toolset: ToolSet) -> str:
    return getattr(toolset, "name", None) or type(toolset).__name__
