"""Serving agents to other programs.

`Application` is a WSGI application: agents over HTTP, for browsers and API clients.

    application = runtime.serve.Application(agent)

`mcp` makes agents the tools of an MCP server, for editors, desktop assistants and other agents:

    runtime.serve.mcp(agent).run()
"""

from .._public import publish
from ._application import Application
from ._mcp import MCPServer, mcp

__all__ = ["Application", "MCPServer", "mcp"]

publish(__name__, globals(), __all__)
