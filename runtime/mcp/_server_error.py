"""The error of a server."""

from __future__ import annotations

from .._errors import Portable


class MCPServerError(Portable, RuntimeError):
    """A server cannot be used, or has refused a call. The text names the server, and says what happened and what to
    do."""

    def __init__(self, server: str, problem: str) -> None:
        super().__init__(f"MCP server {server!r} {problem}")
        self.server = server
        self.problem = problem


class SignInNeeded(MCPServerError):
    """The server wants a user to sign in, and none has."""

    needs_user = True  # where nobody is there, the run goes on without these tools
