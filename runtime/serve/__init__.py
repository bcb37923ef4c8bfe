"""Serving agents to other programs.

`mcp` makes agents the tools of an MCP server, for editors, desktop assistants and other agents:

    runtime.serve.mcp(agent).run()
"""

from ._mcp import MCPServer, mcp

__all__ = ["MCPServer", "mcp"]
