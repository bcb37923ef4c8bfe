"""A tool that is a plain function, and asks before it acts. Run it as it is, or with `lockgate run examples/ask.py`.

python examples/ask.py
"""

from runtime import Agent, Permissions, Runtime, Session, Team, ToolContext
from runtime.events import AgentChoice, ElicitationRequest
from runtime.models.local import LocalModel

SURE = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}


def delete_file(file: str, ctx: ToolContext) -> str:
    """Delete a file."""
    answer = ctx.elicit(f"Delete {file} for good?", SURE)
    if answer.accepted and answer.content["sure"]:
        return f"{file} would be gone now, if this were not an example."
    return f"{file} is still there."


# It asks by itself, so its calls need no approval besides.
agent = Team([Agent("janitor", LocalModel(), tools=[delete_file])], permissions=Permissions(allow=["delete_file"]))

if __name__ == "__main__":
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("Delete the file notes.txt")) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                print(event.content, end="", flush=True)
            elif isinstance(event, ElicitationRequest):
                try:
                    sure = input(f"{event.message} [y/n] ").strip().lower() == "y"
                    stream.respond(event, "accept", {"sure": sure})
                except EOFError:  # nobody is there
                    print()
                    stream.respond(event, "decline")
    print()
