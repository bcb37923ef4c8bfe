"""What the user declares: agents and teams, tools, hooks, budgets, output types."""

from ._agent import Agent, Team
from ._budget import Budget
from ._compaction import Compaction
from ._hooks import Hook, HookInput, HookResult
from ._result import RunResult
from ._tool import Answer, Tool, ToolResult, ToolSet, tool
from ._tool_context import ToolContext

__all__ = [
    "Agent",
    "Answer",
    "Budget",
    "Compaction",
    "Hook",
    "HookInput",
    "HookResult",
    "RunResult",
    "Team",
    "Tool",
    "ToolContext",
    "ToolResult",
    "ToolSet",
    "tool",
]
