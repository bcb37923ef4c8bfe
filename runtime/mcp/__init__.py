"""The tools of MCP servers.

    booking = MCPToolSet([sys.executable, "examples/booking_server.py"], name="booking")
    agent = Agent("concierge", model, toolsets=[booking])

A question that a server asks during a call is sent to the stream that made the call, and to no other.
"""

from .._public import publish
from ._oauth import OAuth
from ._offers import Prompt, Resource
from ._server_error import MCPServerError
from ._toolset import MCPToolSet

__all__ = ["MCPServerError", "MCPToolSet", "OAuth", "Prompt", "Resource"]

publish(__name__, globals(), __all__)
