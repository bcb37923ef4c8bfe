"""What servers offer beside plain tools (annotations, output schemas, resources, prompts), and what they ask of us (the
model, roots, a log). The server is made with the SDK, and speaks both generations.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, Permissions, Runtime, Session, TextDelta, ToolCallDelta, events
from runtime.mcp import MCPServerError, MCPToolSet, Prompt, Resource
from support.mcp import Context, call, children, running
from support.mcp_stdio import small_server
from support.waiting import eventually

pytest.importorskip("mcp")

MODES = ["2026-07-28", "legacy"]

LIBRARY = """
from typing import Annotated
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resolve import ListRoots, Resolve, Sample
from mcp.types import CreateMessageResult, ListRootsResult, SamplingMessage, TextContent, ToolAnnotations

server = MCPServer("library", log_level="ERROR")

@server.resource("notes://today", mime_type="text/plain")
def today() -> str:
    "What is on today."
    return "buy milk"

@server.resource("notes://{day}")
def of_day(day: str) -> str:
    return f"nothing on {day}"

@server.prompt()
def review(code: str, style: str = "kind") -> str:
    "Review some code."
    return f"Review this, and be {style}: {code}"

def asking(text: str) -> Sample:
    said = SamplingMessage(role="user", content=TextContent(type="text", text=f"Sum up: {text}"))
    return Sample(messages=[said], max_tokens=100, system_prompt="Be brief.")

@server.tool()
async def sum_up(text: str, reply: Annotated[CreateMessageResult, Resolve(asking)]) -> str:
    return f"summary: {reply.content.text}"

def roots() -> ListRoots:
    return ListRoots()

@server.tool()
async def look(found: Annotated[ListRootsResult, Resolve(roots)]) -> str:
    return " ".join(str(root.uri) for root in found.roots)

@server.tool()
async def talk(ctx: Context) -> str:
    await ctx.warning("the shelf is full")
    return "said"

@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def peek() -> str:
    return "a book"

@server.tool(annotations=ToolAnnotations(destructive_hint=True, open_world_hint=True))
async def burn() -> str:
    return "gone"

server.run()
"""

COUNTING = """
number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
tools = [tool("right", outputSchema=number), tool("wrong", outputSchema=number), tool("odd", outputSchema={"type": 5})]
def call(id, name, arguments):
    value = {"n": "many"} if name == "wrong" else {"n": 1}
    say(id=id, result={"content": [{"type": "text", "text": "counted"}], "structuredContent": value})
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("library") / "library.py"
    path.write_text(LIBRARY)
    return [sys.executable, str(path)]


@pytest.fixture(scope="module", params=MODES)
def library(request: pytest.FixtureRequest, script: list[str], tmp_path_factory: Any) -> Iterator[MCPToolSet]:
    mode = "auto" if request.param != "legacy" else "legacy"
    made = MCPToolSet(
        script,
        name="library",
        prefix="lib_",
        mode=mode,
        resource_tools=True,
        prompt_tools=True,
        sampling=True,
        roots=["/srv/books", Path("/srv/maps")],
    )
    # A runtime that keeps it from being stopped by those of the tests.
    with running(made), Runtime(Agent("keeper", Caller("lib_peek"), toolsets=[made])) as keeper:
        keeper.run(Session.from_user("go"))
        assert made._connections[-1].version.startswith("2026" if mode == "auto" else "2025")
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(library: MCPToolSet) -> Iterator[None]:
    before = children()
    yield
    assert eventually(lambda: children() <= before), children() - before


class Caller:
    """Makes one call, then says what it brought; asked by a server, it says what it was asked."""

    id = "caller"

    def __init__(self, name: str, arguments: str = "{}") -> None:
        self.name, self.arguments = name, arguments

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        last = messages[-1].content
        if messages[-1].role == "tool":
            yield TextDelta(last)
        elif not tools:
            yield TextDelta(f"{[each.content for each in messages if each.role == 'system']} {last} - in short")
        else:
            yield ToolCallDelta(0, "c1", self.name, self.arguments)


def test_annotations_are_for_permissions_and_for_who_approves(library: MCPToolSet) -> None:
    tools = {tool.name: tool for tool in library.tools()}
    assert tools["lib_peek"].read_only
    assert (tools["lib_burn"].destructive, tools["lib_burn"].open_world) == (True, True)
    assert (tools["lib_talk"].read_only, tools["lib_talk"].destructive, tools["lib_talk"].open_world) == (False,) * 3
    with Runtime(Agent("a", Caller("lib_burn"), toolsets=[library])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        asked = next(each for each in stream if isinstance(each, events.ToolCallConfirmation))
        assert (asked.destructive, asked.open_world, asked.server) == (True, True, "library")
        stream.reject(asked)
        list(stream)


def test_resources_are_tools(library: MCPToolSet) -> None:
    listed = call(library, "lib_list_resources").content
    assert "notes://today - text/plain - today: What is on today." in listed
    assert "notes://{day}" in listed
    assert "buy milk" in call(library, "lib_read_resource", uri="notes://today").content
    assert "nothing on friday" in call(library, "lib_read_resource", uri="notes://friday").content
    with pytest.raises(MCPServerError, match="other://"):
        call(library, "lib_read_resource", uri="other://x")


def test_prompts_are_tools(library: MCPToolSet) -> None:
    assert call(library, "lib_list_prompts").content == "review(code, style?) - Review some code."
    said = call(library, "lib_get_prompt", name="review", arguments={"code": "x = 1"}).content
    assert said == "Review this, and be kind: x = 1"


def test_resources_and_prompts_without_a_model(library: MCPToolSet) -> None:
    assert Resource("notes://today", "today", "What is on today.", "text/plain") in library.list_resources()
    assert any(each.is_template and each.uri == "notes://{day}" for each in library.list_resources())
    assert "buy milk" in library.read_resource("notes://today").content
    assert library.list_prompts() == [Prompt("review", "Review some code.", ("code", "style"), ("code",))]
    [message] = library.get_prompt("review", code="y", style="strict")
    assert (message.role, message.content) == ("user", "Review this, and be strict: y")


def test_a_server_asks_the_model_of_the_stream_once_the_user_approves(library: MCPToolSet) -> None:
    agent = Agent("a", Caller("lib_sum_up", '{"text": "long"}'), toolsets=[library])
    with Runtime(agent, permissions=Permissions(approve_all=True)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        text, asked = "", []
        for event in stream:
            if isinstance(event, events.ElicitationRequest):
                asked.append(event.message)
                stream.respond(event, "accept", {})
            elif isinstance(event, events.AgentChoice) and event.session_id == stream.session.id:
                text += event.content
        assert text == "summary: ['Be brief.'] Sum up: long - in short"
        assert asked == ["library wants to ask the model: Sum up: long\nIs that all right? Its reply goes to library."]


@pytest.mark.parametrize("interactive", [True, False])
def test_nobody_s_model_is_asked_without_approval(library: MCPToolSet, interactive: bool) -> None:
    agent = Agent("a", Caller("lib_sum_up", '{"text": "long"}'), toolsets=[library])
    with Runtime(agent, permissions=Permissions(approve_all=True)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"), interactive=interactive)
        text = ""
        for event in stream:
            if isinstance(event, events.ElicitationRequest):
                stream.respond(event, "decline")
            elif isinstance(event, events.AgentChoice):
                text += event.content
        assert "in short" not in text
        assert "does not want the model to be asked" in text or "nobody is there to be asked" in text


def test_roots_are_said_to_who_asks(library: MCPToolSet) -> None:
    assert call(library, "lib_look").content == "file:///srv/books file:///srv/maps"


def test_what_a_server_logs_is_logged(library: MCPToolSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "runtime.mcp"):
        assert call(library, "lib_talk").content == "said"
        assert eventually(lambda: "library: the shelf is full" in caplog.text)


def test_without_being_told_to_a_server_is_offered_nothing(script: list[str]) -> None:
    with running(MCPToolSet(script, name="library", tools=["sum_up", "look"])) as library:
        assert {tool.name for tool in library.tools()} == {"sum_up", "look"}
        context = Context()
        for name, arguments in (("sum_up", {"text": "x"}), ("look", {})):
            try:
                assert call(library, name, context, **arguments).is_error
            except MCPServerError:
                pass
        assert not context.asked


def test_results_are_held_against_their_schema(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(MCPToolSet(small_server(tmp_path, COUNTING), name="counting")) as toolset:
        assert call(toolset, "right").content == "counted"
        wrong = call(toolset, "wrong").content
        assert wrong.startswith("counted\n(This is not what wrong says that it returns:")
        assert not call(toolset, "wrong").is_error
        assert call(toolset, "odd").content == "counted"
    assert "wrong returned something other than its outputSchema says" in caplog.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"roots": "/srv"}, r"roots must be a list of directories, such as \['/srv'\]"),
        ({"sampling": "yes"}, "sampling must be True or False"),
        ({"required": None}, "required must be True or False"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        MCPToolSet(["x"], **options)
