"""What is at which address. The addresses and their JSON are docker-agent's where its clients need them; what only we
have is named in docs/serving.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from ._agent_handlers import AgentHandlers
from ._answer_handlers import AnswerHandlers
from ._backend import Backend
from ._handlers import Stream, unknown
from ._http import reply
from ._message_handlers import MessageHandlers
from ._run_handlers import RunHandlers
from ._session_handlers import SessionHandlers

_ID: Final = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")


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
        at("PATCH", "/api/sessions/<id>/title", sessions.title)
        at("POST", "/api/sessions/<id>/fork", sessions.fork)
        at("POST", "/api/sessions/<id>/agent/<agent>", runs.run)
        at("POST", "/api/sessions/<id>/agent/<agent>/<name>", runs.run)
        at("POST", "/api/sessions/<id>/resume", answers.resume)
        at("POST", "/api/sessions/<id>/elicitation", answers.elicitation)
        at("POST", "/api/sessions/<id>/steer", messages.steer)
        at("POST", "/api/sessions/<id>/followup", messages.followup)
        at("POST", "/api/sessions/<id>/cancel", runs.cancel)
        at("POST", "/api/sessions/<id>/tools/toggle", sessions.toggle)
        self._map = Map(rules, strict_slashes=False, merge_slashes=False, redirect_defaults=False)

    def respond(self, request: Request, owner: str) -> Response | Stream:
        """Do what is asked. Raises `Problem`, and the exceptions of routing."""
        adapter = self._map.bind("localhost")
        endpoint, values = adapter.match(request.path, request.method)
        if "id" in values and not (_ID.fullmatch(values["id"]) and values["id"].startswith(owner)):
            raise unknown()
        made: Response | Stream = self._handlers[endpoint](request, owner, **values)
        return made


def _ping(request: Request, owner: str) -> Response:
    return reply({"status": "ok"})
