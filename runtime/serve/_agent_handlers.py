"""The agents that are served."""

from __future__ import annotations

from werkzeug.wrappers import Request, Response

from ._handlers import Handlers
from ._http import reply


class AgentHandlers(Handlers):
    """Lists of the agents, and what is known of one."""

    def agents(self, request: Request, owner: str) -> Response:
        return reply(
            [
                {"name": name, "description": team.root.description, "multi": len(self.backend.roster(name)) > 1}
                for name, team in self.backend.teams.items()
            ]
        )

    def agent(self, request: Request, owner: str, agent: str) -> Response:
        self.check_agent(agent)
        said = [
            {
                "name": each.name,
                "description": each.description,
                "model": str(each.model.id),
                "tools": [tool.name for tool in each.made_tools],
            }
            for each in self.backend.roster(agent).values()
        ]
        return reply({"name": agent, "description": self.backend.teams[agent].root.description, "agents": said})

    def tools(self, request: Request, owner: str, agent: str, name: str) -> Response:
        self.check_agent(agent, name)
        return reply({"available_tools": len(self.backend.roster(agent)[name].made_tools)})
