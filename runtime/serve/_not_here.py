"""Addresses of docker-agent's server that mean nothing here. A client that asks for one reads why, and what to do
instead; without this it would read that there is no such address, as with a typing error.
"""

from __future__ import annotations

from typing import Final

from ._http import Problem

_SESSION: Final = "/api/sessions/<id>"

#: What stands at each of them: the method, the address, and the text.
NOT_HERE: Final = (
    (
        "PATCH",
        f"{_SESSION}/tokens",
        "the server counts the tokens of its sessions itself: GET /api/sessions/ID/status has them",
    ),
    ("PATCH", f"{_SESSION}/starred", "sessions have no star here"),
    (
        "POST",
        f"{_SESSION}/messages",
        "the messages of a session are what its runs have said: POST to .../agent/NAME, .../followup or .../steer, or"
        " give messages of the user to POST /api/sessions",
    ),
    (
        "PATCH",
        f"{_SESSION}/messages/<message>",
        "what was said is not changed: POST .../fork makes a new session with what came before a message of the user",
    ),
    (
        "POST",
        f"{_SESSION}/summaries",
        "conversations are summarized while they run, as the compaction of their agent says",
    ),
    (
        "GET",
        f"{_SESSION}/models",
        "the model of an agent is what its program says, and cannot be chosen: GET /api/agents/AGENT tells which it is",
    ),
    (
        "POST",
        "/api/sessions/batch/export",
        "sessions are exported one by one: GET /api/sessions/ID/recovery",
    ),
)


def not_here(path: str, text: str) -> Problem:
    """The error for one of these addresses."""
    if path.endswith("/models"):  # of which docker-agent's clients know that status, and leave out their choice
        return Problem(422, "no_model_switch", text)
    return Problem(501, "not_implemented", text)
