"""An agent that books a table: a model in this process, the tools of an MCP server, and a plain `for` loop.

python examples/booking.py                                       # gives its own answers
lockgate run examples/booking.py "Book a table at Luigi's"       # asks you
"""

import sys
from pathlib import Path

from runtime import Agent, Runtime, Session
from runtime.events import AgentChoice, ElicitationRequest, ToolCallConfirmation
from runtime.mcp import MCPToolSet
from runtime.models.local import LocalModel

desk = MCPToolSet([sys.executable, Path(__file__).with_name("booking_server.py")], name="booking desk")
agent = Agent("booking", LocalModel(), toolsets=[desk])

if __name__ == "__main__":
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("Book a table at Luigi's")) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                print(event.content, end="", flush=True)
            elif isinstance(event, ToolCallConfirmation):
                print(f"Run {event.tool_call.name}? Yes.")
                stream.approve(event)
            elif isinstance(event, ElicitationRequest):
                print(event.message)
                stream.respond(event, "accept", {"date": "2026-12-24", "people": 4, "confirm": True})
    print()
