"""The tools of MCP servers.

    booking = MCPToolSet([sys.executable, "examples/booking_server.py"], name="booking")
    agent = Agent("concierge", model, toolsets=[booking])

What a server asks in the middle of a call goes to the user of the stream that made the call, and to nobody else.
"""

from ._oauth import OAuth
from ._offers import Prompt, Resource
from ._server_error import MCPServerError
from ._toolset import MCPToolSet

__all__ = ["MCPServerError", "MCPToolSet", "OAuth", "Prompt", "Resource"]
