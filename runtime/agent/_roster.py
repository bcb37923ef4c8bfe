"""`Roster`: the agents that can come to act in a stream, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..permissions import Permissions
from ..schema._checking import properties_of
from ._agent import Agent


class Roster:
    """Agents by name: those it was given, and all that these name as sub-agents or for hand-offs, and so on.

    A name leads to one agent. Raises `ValueError` where two have the same, or nobody has it. ``above`` is asked for the
    names that are not found here.
    """

    def __init__(self, agents: Iterable[Agent], above: Roster | None = None) -> None:
        self._agents: dict[str, Agent] = {}
        self._above = above
        waiting = list(agents)
        while waiting:
            agent = waiting.pop(0)
            known = self._agents.setdefault(agent.name, agent)
            if known is not agent:
                raise ValueError(f"two different agents are named {agent.name!r}")
            waiting += [
                each
                for each in (*agent.sub_agents, *agent.handoffs)
                if isinstance(each, Agent) and self._agents.get(each.name) is not each
            ]
        for agent in self._agents.values():
            self.named(agent, agent.sub_agents)
            self.named(agent, agent.handoffs)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the agents that were given first, without those that they name."""
        return tuple(self._agents)

    def find(self, name: str | None) -> Agent | None:
        """The agent of this name, here only."""
        return None if name is None else self._agents.get(name)

    def named(self, agent: Agent, others: Iterable[Agent | str]) -> Mapping[str, Agent]:
        """The ``others`` that ``agent`` names, by name."""
        found: dict[str, Agent] = {}
        for each in others:
            other = each if isinstance(each, Agent) else self._look_up(each)
            if other is None:
                known = ", ".join(self.names)
                raise ValueError(f"agent {agent.name!r} names {each!r}, who is not in the team; there are: {known}")
            found[other.name] = other
        return found

    def _look_up(self, name: str) -> Agent | None:
        found = self._agents.get(name)
        return self._above._look_up(name) if found is None and self._above is not None else found

    def check(self, permissions: Permissions) -> None:
        """Raise `ValueError` for a pattern that can match no call, since the tool has no such argument. Only what is
        sure: tools of toolsets are not known yet, and other tools may take more than they say.
        """
        taken: dict[str, set[str] | None] = {}
        for agent in self._agents.values():
            for tool in agent.made_tools:
                strict = tool.parameters.get("additionalProperties") is False
                before = taken.setdefault(tool.name, set())
                if before is not None:
                    taken[tool.name] = before | set(properties_of(tool.parameters)) if strict else None
        for name, known in taken.items():
            others = (agent for agent in self._agents.values() if agent.toolsets)
            if known is not None and all(name in (tool.name for tool in agent.made_tools) for agent in others):
                permissions.check(name, sorted(known))

    def of(self, agent: Agent) -> Roster:
        """The roster of a stream that begins with ``agent``: this one, where it belongs to it."""
        return self if self._agents.get(agent.name) is agent else Roster([agent], self)

    def __repr__(self) -> str:
        return f"<Roster {', '.join(self.names)}>"
