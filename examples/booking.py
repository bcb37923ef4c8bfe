"""An agent that books a table: a model in this process, the tools of an MCP server, and a plain `for` loop.

    python examples/booking.py                                         # answers the questions by itself
    lockgate run examples/booking.py "Book a table at Luigi's"         # asks you
"""

import sys
from pathlib import Path

from runtime import Agent, Runtime, Session, events
from runtime.mcp import MCPToolSet
from runtime.models.local import LocalModel

desk = MCPToolSet([sys.executable, Path(__file__).with_name("booking_server.py")], name="booking desk")
agent = Agent("booking", LocalModel(), toolsets=[desk])
answers = {"date": "2026-12-24", "people": 4, "confirm": True}

if __name__ == "__main__":
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("Book a table at Luigi's")) as stream:
        for event in stream:
            if isinstance(event, events.ElicitationRequest):
                print(event.message)
                stream.respond(event, "accept", {name: answers[name] for name in event.schema["properties"]})
            elif isinstance(event, events.AgentChoice):
                print(event.content, end="", flush=True)
    print()
