"""The tools with which an agent gives work to other agents: tasks, background tasks, and hand-offs of the conversation.

Agents with ``sub_agents`` or ``handoffs`` get these tools. A call of them needs no approval, because the tool calls of
the other agent need approval as if this agent made them. Permissions may name these tools all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .._dataclasses import dataclass
from ..agent._agent import Agent
from ..agent._tool import Tool, ToolResult
from ..agent._tool_context import ToolContext
from ..session._session import Session
from ..stream._core import StreamCore
from ..stream._tasks import BackgroundTask
from ._background import start

_WAIT: Final = 60.0  # seconds that `wait_background_agent` waits


@dataclass(frozen=True, slots=True)
class HandOff(ToolResult):
    """The result of a call that hands the conversation to ``agent``. The loop goes on with it."""

    agent: Agent | None = None


def tools(core: StreamCore) -> list[Tool]:
    """The tools of this kind for the agent that is in charge."""
    agent = core.agent
    found: list[Tool] = []
    if agent.sub_agents:
        subs = core.roster.named(agent, agent.sub_agents)
        found.append(_transfer(core, subs))
        if agent.background_agents:
            found += _background_tools(core, subs)
    if agent.handoffs:
        found.append(_handoff(core, core.roster.named(agent, agent.handoffs)))
    return found


def _transfer(core: StreamCore, agents: Mapping[str, Agent]) -> Tool:
    def transfer_task(agent: str, task: str, context: ToolContext, expected_output: str = "") -> str | ToolResult:
        chosen = agents[agent]
        return _refused(core, chosen) or context.run_agent(chosen, _brief(task, expected_output)).text

    return _tool(
        transfer_task,
        f"Give a task to another agent and wait for its result. It sees nothing of this conversation.{_listed(agents)}",
        {**_who(agents), **_TASK},
        ["agent", "task"],
    )


def _handoff(core: StreamCore, agents: Mapping[str, Agent]) -> Tool:
    def handoff(agent: str) -> ToolResult:
        return HandOff(
            f"{core.agent.name} has handed this conversation to {agent}. You are {agent} now: go on with it.",
            agent=agents[agent],
        )

    return _tool(
        handoff,
        "Hand this conversation to another agent, which sees all of it and answers in your place from now on."
        + _listed(agents),
        _who(agents),
        ["agent"],
    )


def _background_tools(core: StreamCore, agents: Mapping[str, Agent]) -> list[Tool]:
    def run_background_agent(agent: str, task: str, expected_output: str = "") -> str | ToolResult:
        chosen = agents[agent]
        refused = _refused(core, chosen)
        if refused is not None:
            return refused
        started = start(core, chosen, Session.from_user(_brief(task, expected_output)))
        return f"{started.id}: {agent} is at work in the background."

    def list_background_agents() -> str:
        lines = [f"{_line(task)}, {task.seconds:.0f} s" for task in list(core.background.values())]
        return "\n".join(lines) or "no agent was started in the background"

    def view_background_agent(task_id: str) -> str | ToolResult:
        return _with(core, task_id, _report)

    def stop_background_agent(task_id: str, context: ToolContext) -> str | ToolResult:
        def stop(task: BackgroundTask) -> str:
            task.stop("stopped by the agent that started it")
            task.wait(core.shared.grace, context.cancel)
            return _report(task)

        return _with(core, task_id, stop)

    def wait_background_agent(task_id: str, context: ToolContext, timeout: float = _WAIT) -> str | ToolResult:
        def wait(task: BackgroundTask) -> str:
            task.wait(timeout, context.cancel)
            return _report(task)

        return _with(core, task_id, wait)

    task_id = {"task_id": {"type": "string", "description": "What run_background_agent gave back."}}
    seconds = {"timeout": {"type": "number", "minimum": 0, "default": _WAIT, "description": "In seconds."}}
    return [
        _tool(
            run_background_agent,
            "Start a task of another agent in the background, and go on meanwhile. It sees nothing of this "
            "conversation, cannot ask the user, and is stopped when you give your final answer." + _listed(agents),
            {**_who(agents), **_TASK},
            ["agent", "task"],
        ),
        _tool(list_background_agents, "List the tasks in the background, and how they are.", polling=True),
        _tool(
            view_background_agent, "Read what a task in the background has said.", task_id, ["task_id"], polling=True
        ),
        _tool(
            wait_background_agent,
            "Wait until a task in the background has ended, and read what it said.",
            {**task_id, **seconds},
            ["task_id"],
            polling=True,
        ),
        _tool(stop_background_agent, "Stop a task in the background.", task_id, ["task_id"]),
    ]


_TASK: Final[Mapping[str, Any]] = {
    "task": {"type": "string", "description": "What to do, with everything that has to be known for it."},
    "expected_output": {"type": "string", "description": "What the result should look like."},
}


def _who(agents: Mapping[str, Agent]) -> dict[str, Any]:
    return {"agent": {"enum": list(agents), "description": "Its name."}}


def _listed(agents: Mapping[str, Agent]) -> str:
    lines = [f"- {name}: {agent.description}" if agent.description else f"- {name}" for name, agent in agents.items()]
    return "\n".join(["\nThe agents:", *lines])


def _tool(
    function: Callable[..., Any],
    description: str,
    properties: Mapping[str, Any] | None = None,
    required: Sequence[str] = (),
    *,
    polling: bool = False,
) -> Tool:
    schema = {
        "type": "object",
        "properties": dict(properties or {}),
        "required": list(required),
        "additionalProperties": False,
    }
    return Tool(
        function.__name__, function, description=description, parameters=schema, read_only=True, polling=polling
    )


def _brief(task: str, expected_output: str) -> str:
    return f"{task}\n\nExpected output: {expected_output}" if expected_output else task


def _refused(core: StreamCore, agent: Agent) -> ToolResult | None:
    """The error for the model if it gives a task to an agent that is waiting for this agent, which would be a
    deadlock."""
    line = [each.agent for each in core.line]
    if not any(each is agent for each in line):
        return None
    names = " > ".join(each.name for each in line)
    return ToolResult(f"{agent.name} is waiting for this task itself ({names}): do it without", is_error=True)


def _with(core: StreamCore, task_id: str, function: Callable[[BackgroundTask], str]) -> str | ToolResult:
    task = core.background.get(task_id)
    if task is None:
        known = ", ".join(core.background) or "none"
        return ToolResult(f"there is no task {task_id!r} in the background; there are: {known}", is_error=True)
    return function(task)


def _line(task: BackgroundTask) -> str:
    return f"{task.id}: {task.agent_name}, {task.status}"


def _report(task: BackgroundTask) -> str:
    return f"{_line(task)}\n{task.output}".strip()
