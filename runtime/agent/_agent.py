"""`Agent` and `Team`: who acts, with which model, instructions, tools and hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Final

from .._checks import check, check_flags, check_items, is_number
from .._dataclasses import dataclass, field, replace
from ..model import Model
from ..permissions import Permissions
from ._budget import Budget
from ._compaction import Compaction
from ._hooks import Hooks
from ._instructions import Instructions
from ._output import Output
from ._tool import Tool, ToolSet, tool

#: The tools that agents get for their ``sub_agents`` and ``handoffs``.
TEAM_TOOLS: Final = (
    "transfer_task",
    "handoff",
    "run_background_agent",
    "list_background_agents",
    "view_background_agent",
    "wait_background_agent",
    "stop_background_agent",
)


@dataclass(frozen=True)
class Agent:
    """A model with instructions, tools and hooks. Immutable, so runtimes and threads may share it.

    ``instructions`` is the system prompt: a text, or a function that returns a text. The function takes the `Session`
    or no argument, may be a coroutine function, and is called before each model call; an exception in it ends the run.
    ``tools`` are `Tool` objects or plain functions; ``toolsets`` are started by the first stream that needs them.
    ``hooks`` maps a hook point to a list of callables, shell commands and `Hook` objects.

    ``max_iterations`` is the number of turns that a stream may take before it asks for more, ``budget`` what it may
    use. A stream ends if its turns make the same tool calls with the same results ``max_repeated_calls`` times in a row
    (None: no such limit). With an ``output_type`` (a dataclass, a TypedDict, a pydantic model, or any type that a
    tool's parameter may have) the agent's last reply has to be JSON of this type, and becomes `RunResult.output`.
    ``compaction`` says how a conversation is shortened that fills the model's context window (None: it is not).

    ``sub_agents`` are the agents that this agent may give a task to, which runs in a conversation of its own.
    ``handoffs`` are the agents that it may hand its conversation over to. Both lists hold agents, or names of agents of
    the team, so that two agents may name each other. With ``background_agents`` it may also run its sub-agents in the
    background.

    Raises `TypeError` or `ValueError` for a setting that cannot be used.
    """

    name: str
    model: Model
    instructions: str | Callable[..., Any] = ""
    description: str = ""
    tools: Sequence[Tool | Callable[..., Any]] = ()
    toolsets: Sequence[ToolSet] = ()
    hooks: Mapping[str, Sequence[Any]] | None = None
    max_iterations: int = 50
    max_repeated_calls: int | None = 5
    budget: Budget | None = None
    sub_agents: Sequence[Agent | str] = ()
    handoffs: Sequence[Agent | str] = ()
    background_agents: bool = False
    output_type: Any = None
    compaction: Compaction | None = field(default_factory=Compaction)
    _output: Output | None = field(init=False, repr=False, compare=False, default=None)
    _instructions: Instructions = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("the name of an agent", self.name, str, "text")
        if not self.name:
            raise ValueError("an agent needs a name")
        wanted = "an object with an id and a stream method"
        if isinstance(self.model, type):
            raise TypeError(
                f"the model of agent {self.name!r} must be {wanted}, not the class {self.model.__name__} itself"
            )
        check(f"the model of agent {self.name!r}", self.model, Model, wanted)
        object.__setattr__(self, "_instructions", Instructions(self.instructions))
        check("description", self.description, str, "text")
        given = check_items("tools", self.tools, Callable, "a list of functions and Tool objects")
        toolsets = check_items(
            "toolsets", self.toolsets, ToolSet, "a list of objects with the methods start, tools and stop"
        )
        check("hooks", self.hooks, (Mapping, NoneType), "a mapping, such as {'stop': [function]}")
        check_flags(background_agents=self.background_agents)
        check("compaction", self.compaction, (Compaction, NoneType), "a Compaction, or None")
        check("budget", self.budget, (Budget, NoneType), "a Budget, such as Budget(tokens=10_000)")
        Hooks(self.hooks)  # what is wrong with them is wrong here, not when a stream begins
        for field_name in ("sub_agents", "handoffs"):
            others = getattr(self, field_name)
            others = check_items(field_name, others, (Agent, str), "a list of agents and names of agents")
            object.__setattr__(self, field_name, others)
        if self.background_agents and not self.sub_agents:
            raise ValueError(f"agent {self.name!r} has no sub_agents to run in the background")
        if not is_number(self.max_iterations, least=1, whole=True):
            raise ValueError(f"max_iterations must be a whole number, 1 or more, not {self.max_iterations!r}")
        if self.max_repeated_calls is not None and not is_number(self.max_repeated_calls, least=2, whole=True):
            raise ValueError(f"max_repeated_calls must be 2 or more, or None, not {self.max_repeated_calls!r}")
        tools = tuple(each if isinstance(each, Tool) else tool(each) for each in given)
        for each in tools:
            if each.unbound:
                raise TypeError(f"{each.name} is a method, and has to be that of an object, such as Shop().{each.name}")
        names = [each.name for each in tools]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"agent {self.name!r} has two tools named {name!r}")
        object.__setattr__(self, "_output", None if self.output_type is None else Output(self.output_type))
        object.__setattr__(self, "tools", tools)
        object.__setattr__(self, "toolsets", toolsets)

    @property
    def made_tools(self) -> tuple[Tool, ...]:
        """The agent's ``tools`` as `Tool` objects, including those that were given as functions."""
        return self.tools  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<Agent {self.name!r} on {self.model.id}>"


@dataclass(frozen=True)
class Team:
    """Several agents, of which the first begins a conversation. ``permissions`` apply to the tool calls of all.
    Immutable.

    Agents may name each other in ``sub_agents`` and ``handoffs``.
    """

    agents: Sequence[Agent] = field(default_factory=tuple)
    permissions: Permissions = field(default_factory=Permissions)

    def __post_init__(self) -> None:
        agents = check_items("agents", self.agents, Agent, "a list of agents, each made with Agent(name, model, ...)")
        object.__setattr__(self, "agents", agents)
        if not self.agents:
            raise ValueError("a team needs at least one agent")
        check("permissions", self.permissions, Permissions, "made with Permissions(allow=[...], ...)")

    def map(self, change: Callable[[Agent], Agent]) -> Team:
        """A copy of the team in which ``change`` has replaced every agent, including those in ``sub_agents`` and
        ``handoffs``.
        """
        check("change", change, Callable, "a function from an agent to an agent")  # type: ignore[arg-type]
        made: dict[int, Agent] = {}

        def changed(agent: Agent) -> Agent:
            if id(agent) not in made:
                others = {
                    name: [each if isinstance(each, str) else changed(each) for each in getattr(agent, name)]
                    for name in ("sub_agents", "handoffs")
                }
                other = change(agent)
                check(f"what change returns for {agent!r}", other, Agent, "an agent")
                made[id(agent)] = replace(other, **others)  # type: ignore[arg-type]
            return made[id(agent)]

        return replace(self, agents=[changed(agent) for agent in self.agents])

    @property
    def root(self) -> Agent:
        """The first agent of the team, with which a new conversation begins."""
        return self.agents[0]
