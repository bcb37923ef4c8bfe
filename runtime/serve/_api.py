"""What is at which address. The addresses and their JSON are docker-agent's where its clients need them; what only we
have is named in docs/serving.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from ._agent_handlers import AgentHandlers
from ._answer_handlers import AnswerHandlers
from ._backend import Backend
from ._handlers import Stream, is_own, unknown
from ._http import reply
from ._message_handlers import MessageHandlers
from ._not_here import NOT_HERE, not_here
from ._run_handlers import RunHandlers
from ._session_handlers import SessionHandlers


class Api:
    """The addresses of an application, and what is done there. ``owner`` is the beginning of the ids that the client
    may see."""

    def __init__(self, backend: Backend, *, max_body: int, knows_clients: bool) -> None:
        agents = AgentHandlers(backend, max_body=max_body, knows_clients=knows_clients)
        sessions = SessionHandlers(backend, max_body=max_body, knows_clients=knows_clients)
        runs = RunHandlers(backend, max_body=max_body, knows_clients=knows_clients)
        messages = MessageHandlers(backend, max_body=max_body, knows_clients=knows_clients)
        answers = AnswerHandlers(backend, max_body=max_body, knows_clients=knows_clients)
        rules: list[Rule] = []
        self._handlers: dict[str, Callable[..., Any]] = {}

        def at(method: str, path: str, handler: Callable[..., Any]) -> None:
            endpoint = f"{method} {path}"
            rules.append(Rule(path, methods=[method], endpoint=endpoint))
            self._handlers[endpoint] = handler

        at("GET", "/api/ping", _ping)
        at("GET", "/api/agents", agents.agents)
        at("GET", "/api/agents/<agent>", agents.agent)
        at("GET", "/api/agents/<agent>/<name>/tools/count", agents.tools)
        at("GET", "/api/waiting", answers.waiting)
        at("GET", "/api/sessions", sessions.sessions)
        at("POST", "/api/sessions", sessions.create)
        at("GET", "/api/sessions/<id>", sessions.session)
        at("DELETE", "/api/sessions/<id>", sessions.delete)
        at("GET", "/api/sessions/<id>/status", sessions.status)
        at("GET", "/api/sessions/<id>/snapshot", sessions.snapshot)
        at("GET", "/api/sessions/<id>/events", runs.events)
        at("GET", "/api/sessions/<id>/recovery", sessions.export)
        at("POST", "/api/sessions/batch/delete", sessions.delete_several)
        at("PATCH", "/api/sessions/<id>/title", sessions.title)
        at("PATCH", "/api/sessions/<id>/permissions", sessions.permissions)
        at("POST", "/api/sessions/<id>/fork", sessions.fork)
        at("POST", "/api/sessions/<id>/agent/<agent>", runs.run)
        at("POST", "/api/sessions/<id>/agent/<agent>/<name>", runs.run)
        at("POST", "/api/sessions/<id>/resume", answers.resume)
        at("POST", "/api/sessions/<id>/elicitation", answers.elicitation)
        at("POST", "/api/sessions/<id>/steer", messages.steer)
        at("POST", "/api/sessions/<id>/followup", messages.followup)
        at("GET", "/api/sessions/<id>/queue", messages.queue)
        at("POST", "/api/sessions/<id>/cancel", runs.cancel)
        at("POST", "/api/sessions/<id>/tools/toggle", sessions.toggle)
        for method, path, text in NOT_HERE:
            at(method, path, _refusing(path, text))
        self._map = Map(rules, strict_slashes=False, merge_slashes=False, redirect_defaults=False)

    def respond(self, request: Request, owner: str) -> Response | Stream:
        """Do what is asked. Raises `Problem`, and the exceptions of routing."""
        adapter = self._map.bind("localhost")
        endpoint, values = adapter.match(request.path, request.method)
        if "id" in values and not is_own(values["id"], owner):
            raise unknown()
        made: Response | Stream = self._handlers[endpoint](request, owner, **values)
        return made


def _refusing(path: str, text: str) -> Callable[..., Response]:
    def refuse(request: Request, owner: str, **values: str) -> Response:
        raise not_here(path, text)

    return refuse


def _ping(request: Request, owner: str) -> Response:
    return reply({"status": "ok"})
