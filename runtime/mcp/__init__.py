"""The tools of MCP servers.

    booking = MCPToolSet([sys.executable, "examples/booking_server.py"], name="booking")
    agent = Agent("concierge", model, toolsets=[booking])

What a server asks in the middle of a call goes to the user of the stream that made the call, and to nobody else.
"""

from ._toolset import MCPServerError, MCPToolSet

__all__ = ["MCPServerError", "MCPToolSet"]
