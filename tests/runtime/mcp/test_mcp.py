"""MCP servers as tool sets. The servers are real ones, but for those whose misbehaviour is the point."""

from __future__ import annotations

import contextvars
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from channels import Cancelled, CancelToken
from channels.aio import LoopThread, default_loop
from runtime import (
    Agent,
    Delta,
    Image,
    Message,
    NotPending,
    Permissions,
    RunError,
    Runtime,
    Session,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
)
from runtime._orphans import _wrapper
from runtime.agent import Answer, ToolResult, ToolSet
from runtime.agent._tool import Question
from runtime.events import ElicitationRequest
from runtime.mcp import MCPServerError, MCPToolSet, _conversation
from runtime.mcp._connection import CallEnded
from runtime.mcp._conversation import is_page
from support.mcp import Context, books, call, children, is_alive, running, tasks, use
from support.waiting import eventually, in_time

pytest.importorskip("mcp")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, ps")

ROOT = Path(__file__).parents[3]
BOOKING = [sys.executable, str(ROOT / "examples" / "booking_server.py")]
BOOKING_ALLOWED = Permissions(allow=["mcp:booking:book_table"])
MODES = ["2026-07-28", "legacy"]

# What the booking desk does not do.
ODD = """
import base64, os, sys, time
from typing import Annotated
from mcp import MCPError
from mcp.server.mcpserver import Context, Elicit, ElicitationResult, MCPServer, Resolve
from mcp.types import AudioContent, BlobResourceContents, CallToolResult, EmbeddedResource, ImageContent
from mcp.types import ResourceLink, TextContent, TextResourceContents
from pydantic import BaseModel

server = MCPServer("odd", log_level="ERROR")

class A(BaseModel): a: int
class B(BaseModel): b: int
async def ask_a() -> Elicit[A]: return Elicit("A?", A)
async def ask_b() -> Elicit[B]: return Elicit("B?", B)

@server.tool()
async def both(a: Annotated[A, Resolve(ask_a)], b: Annotated[B, Resolve(ask_b)]) -> str:
    return f"{a.a} {b.b}"

@server.tool()
async def visit(ctx: Context) -> str:
    return (await ctx.elicit_url("Sign in", "https://example.org/in", "id-1")).action

@server.tool()
async def crash() -> str:
    print("no more tables", file=sys.stderr, flush=True)
    os._exit(3)

@server.tool()
async def hang_up() -> str:
    os.closerange(3, 100)
    os.close(1)
    time.sleep(60)

@server.tool()
async def refuse() -> str:
    raise MCPError(-32099, "not today")

@server.tool()
async def where(name: str) -> str:
    return f"{os.getcwd()} {os.environ.get(name)}"

@server.tool(structured_output=False)
async def names(self: str, context: str, function: str, call: str, arguments: str) -> str:
    return " ".join([self, context, function, call, arguments])

@server.tool()
async def nothing() -> CallToolResult:
    return CallToolResult(content=[])

@server.tool()
async def structured() -> CallToolResult:
    return CallToolResult(content=[], structured_content={"täble": 4})

@server.tool()
async def mixed() -> CallToolResult:
    data = base64.b64encode(b"\\x89PNG\\r\\n\\x1a\\n" + bytes(11_992)).decode()
    text = TextResourceContents(uri="file:///menu", mime_type="text/plain", text="soup")
    blob = BlobResourceContents(uri="file:///map", blob=base64.b64encode(bytes(2_500_000)).decode())
    return CallToolResult(content=[
        TextContent(type="text", text="first"),
        ImageContent(type="image", data=data, mime_type="image/png"),
        AudioContent(type="audio", data=data, mime_type="audio/wav"),
        ResourceLink(type="resource_link", name="terms", uri="https://example.org/terms"),
        EmbeddedResource(type="resource", resource=text),
        EmbeddedResource(type="resource", resource=blob),
        TextContent(type="text", text="last"),
    ], structured_content={"not": "shown"})

@server.tool()
async def large() -> str:
    return "x" * 3_000_000

@server.tool()
def stall(seconds: float) -> str:
    time.sleep(seconds)
    return "done"

server.run()
"""

# One of the old kind, which asks a question in each call and takes back none.
STUBBORN = """
import json, sys
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
schema = {"type": "object", "properties": {}}
for line in sys.stdin:
    message = json.loads(line)
    method, params, id = message.get("method"), message.get("params", {}), message.get("id")
    if method == "initialize":
        say(id=id, result={"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                           "serverInfo": {"name": "stubborn", "version": "1"}})
    elif method == "tools/list":
        say(id=id, result={"tools": [{"name": "ask", "inputSchema": schema}]})
    elif method == "tools/call":
        call = id
        say(id=f"q{id}", method="elicitation/create", params={"message": f"{id}?", "requestedSchema": schema})
    elif method is None and id == f"q{call}":
        say(id=call, result={"content": [{"type": "text", "text": message["result"]["action"]}]})
    elif id is not None:
        say(id=id, error={"code": -32601, "message": "Method not found"})
"""

# One of the old kind, each of whose tools does something that servers do.
OLD = """
import json, os, sys, threading, time
how = sys.argv[1] if len(sys.argv) > 1 else ""
schema = {"type": "object", "properties": {}}
tools = ["meet", "ask", "grow", "half", "bad", "cut", "sign_in", "echo", "a.b/c", "a_b_c", "n" * 80]
tools += ["heap", "table", "late"]
waiting, questions, visits = [], {}, []
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
def text(id, text):
    say(id=id, result={"content": [{"type": "text", "text": text}]})
for line in sys.stdin:
    message = json.loads(line)
    method, params, id = message.get("method"), message.get("params", {}), message.get("id")
    if method == "server/discover" and how == "exits":
        sys.exit("expected initialize request")
    elif method == "server/discover" and how == "mute":
        pass
    elif method == "initialize":
        say(id=id, result={"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}},
                           "serverInfo": {"name": "old", "version": "1"}})
    elif method == "tools/list":
        say(id=id, result={"tools": [{"name": name, "inputSchema": schema} for name in tools]})
    elif method == "ping":
        say(id=id, result={})
    elif method == "tools/call":
        name = params["name"]
        if name == "meet":  # answered when there are two of them
            waiting.append(id)
            if len(waiting) == 2:
                for each in waiting:
                    text(each, "met")
                waiting.clear()
        elif name == "ask":
            questions[f"q{id}"] = id
            say(id=f"q{id}", method="elicitation/create", params={"message": "sure?", "requestedSchema": schema})
        elif name == "grow":
            tools.append("grown")
            say(method="notifications/tools/list_changed")
            text(id, "grown")
        elif name == "half":
            text(id, "half \\ud83d a smile")
        elif name == "bad":
            say(id=id, result={"content": 5})
        elif name == "cut":
            print('{"jsonrpc": "2.0", "id": %d, "result": {"content": [{"type"' % id, flush=True)
        elif name == "heap":
            say(id=id, result={"content": [], "structuredContent": {"x": list(range(1_000_000))}})
        elif name == "late":  # as the TypeScript SDK writes it, and with a number that JSON has not
            print('{"result": {"content": [{"x": 0x1F}]}, "jsonrpc": "2.0", "id": %d}' % id, flush=True)
        elif name == "table":
            text(id, "a,b\\n" * 200_000)
        elif name == "sign_in":
            visits.append(id)
            if len(visits) < 3:
                pages = [{"mode": "url", "message": "Sign in", "url": "https://example.org/in", "elicitationId": "1"}]
                say(id=id, error={"code": -32042, "message": "sign in first", "data": {"elicitations": pages}})
            else:
                text(id, "welcome")
        else:
            text(id, name)
    elif method is None and id in questions:
        text(questions.pop(id), message["result"]["action"])
    elif id is not None:
        say(id=id, error={"code": -32601, "message": "Method not found"})
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], MCPToolSet]]:
    """A booking desk and an odd server in either mode, shared by the tests that leave them as they are."""
    script = tmp_path_factory.mktemp("servers") / "odd.py"
    script.write_text(ODD)
    commands = {"booking": BOOKING, "odd": [sys.executable, str(script)]}
    made = {
        (kind, mode): MCPToolSet(command, name=kind, mode=mode) for kind, command in commands.items() for mode in MODES
    }
    try:
        with ThreadPoolExecutor() as threads:
            list(threads.map(MCPToolSet.start, made.values()))
        yield made
    finally:
        for toolset in made.values():
            toolset.stop()


@pytest.fixture(autouse=True)
def nothing_is_left(servers: object) -> Iterator[None]:
    """No process, no task and no thread, of those that a test did not find when it began."""
    before = children(), tasks(), set(threading.enumerate())
    yield

    def threads() -> list[threading.Thread]:
        service = "channels-timer", "lockgate-idle"  # of the process, which need not end
        return [each for each in set(threading.enumerate()) - before[2] if each.name not in service]

    assert eventually(lambda: children() <= before[0]), children() - before[0]
    assert eventually(lambda: tasks() <= before[1]), tasks() - before[1]
    assert eventually(lambda: not threads()), threads()


@pytest.fixture(params=MODES)
def booking(request: pytest.FixtureRequest, servers: dict[tuple[str, str], MCPToolSet]) -> MCPToolSet:
    return servers["booking", request.param]


@pytest.fixture(params=MODES)
def odd(request: pytest.FixtureRequest, servers: dict[tuple[str, str], MCPToolSet]) -> MCPToolSet:
    return servers["odd", request.param]


@pytest.fixture
def odd_script(tmp_path: Path) -> list[str]:
    script = tmp_path / "odd.py"
    script.write_text(ODD)
    return [sys.executable, str(script)]


# -- calls and questions -----------------------------------------------------------------------------------------------


def test_is_a_tool_set_with_the_tools_of_the_server(booking: MCPToolSet) -> None:
    assert isinstance(booking, ToolSet)
    tools = {tool.name: tool for tool in booking.tools()}
    assert set(tools) == {"book_table", "opening_hours", "wait_for_table"}
    book = tools["book_table"].definition
    assert book.description.startswith("Book a table.")
    assert set(book.parameters["properties"]) == {"restaurant", "date", "people"}
    assert book.parameters["required"] == ["restaurant"]
    assert not tools["book_table"].is_async


def test_a_call_without_questions(booking: MCPToolSet) -> None:
    result = call(booking, "opening_hours", restaurant="Luigi's")
    assert result == ToolResult("Luigi's is open from 17:00 to 23:00; 0 waiting for a table")


def test_the_user_is_asked_and_the_answers_reach_the_server(booking: MCPToolSet) -> None:
    context = Context(books())
    result = call(booking, "book_table", context, restaurant="Luigi's")
    assert result.content.startswith("Booked: Luigi's, 2026-12-24, 2 people")
    details, confirm = context.asked
    assert details.mode == "form"
    assert details.message == "When would you like to eat at Luigi's, and how many will you be?"
    assert details.schema is not None
    assert set(details.schema["properties"]) == {"date", "people"}
    assert confirm.message == "Book Luigi's, 2026-12-24, 2 people?"
    assert set(context.threads) == {threading.get_ident()}  # where the tool was called, which may wait


@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_a_refusal_reaches_the_server(booking: MCPToolSet, action: Any) -> None:
    context = Context(lambda question: Answer(action, note="nobody is there"))
    result = call(booking, "book_table", context, restaurant="Luigi's")
    assert result.content == f"No booking was made: the question for the details was answered with {action!r}."
    assert len(context.asked) == 1


def test_a_wrong_answer_is_an_error_of_the_tool(booking: MCPToolSet) -> None:
    result = call(booking, "book_table", Context(books(people=99)), restaurant="Luigi's")
    assert result.is_error
    assert "does not match the requested schema" in result.content or "people" in result.content  # by generation


def test_an_answer_that_cannot_be_sent_ends_the_call(booking: MCPToolSet) -> None:
    context = Context(lambda question: Answer("accept", {"date": {"day": 24}}))
    with pytest.raises(MCPServerError, match=r"'booking' asked .When .* cannot be sent the answer .*flat form"):
        call(booking, "book_table", context, restaurant="Luigi's")
    assert call(booking, "opening_hours", restaurant="Luigi's").content


def test_what_the_context_raises_ends_the_call(booking: MCPToolSet) -> None:
    def fail(question: Question) -> Answer:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(booking, "book_table", Context(fail), restaurant="Luigi's")
    assert call(booking, "book_table", Context(books()), restaurant="Sakura").content.startswith("Booked: Sakura")


def test_without_a_context_questions_are_declined(booking: MCPToolSet) -> None:
    book = next(tool for tool in booking.tools() if tool.name == "book_table")
    assert "answered with 'decline'" in book(restaurant="Luigi's").content


def test_questions_of_concurrent_calls_reach_their_own_callers(booking: MCPToolSet) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    call(booking, "book_table", Context(books()), restaurant="First")  # an old server is known from then on to ask

    def book(number: int) -> tuple[ToolResult, list[Question]]:
        variable.set(number)
        answer = books(people=number % 20 + 1)

        def reply(question: Question) -> Answer:
            assert variable.get() == number
            time.sleep(0.002 * (number % 3))
            return answer(question)

        context = Context(reply)
        return call(booking, "book_table", context, restaurant=f"R{number}."), context.asked

    with ThreadPoolExecutor(20) as threads:
        for number, (result, asked) in enumerate(threads.map(book, range(60))):
            people = number % 20 + 1
            assert result.content.startswith(f"Booked: R{number}., 2026-12-24, {people} pe")
            assert len(asked) == 2
            assert all(f"R{number}." in question.message for question in asked)


def test_two_questions_of_one_round_are_asked_one_after_the_other(odd: MCPToolSet) -> None:
    context = Context(lambda question: Answer("accept", {"a": 1} if question.message == "A?" else {"b": 2}))
    assert call(odd, "both", context).content == "1 2"
    assert sorted(question.message for question in context.asked) == ["A?", "B?"]


def test_a_page_to_visit(servers: dict[tuple[str, str], MCPToolSet]) -> None:
    context = Context(lambda question: Answer("accept", {"ignored": True}))
    assert call(servers["odd", "legacy"], "visit", context).content == "accept"
    (question,) = context.asked
    assert (question.mode, question.url, question.schema) == ("url", "https://example.org/in", None)


def test_a_tool_s_parameters_may_have_any_names(odd: MCPToolSet) -> None:
    result = call(odd, "names", self="1", context="2", function="3", call="4", arguments="5")
    assert result.content == "1 2 3 4 5"


# -- results -----------------------------------------------------------------------------------------------------------


def test_what_is_not_text_becomes_a_note(odd: MCPToolSet) -> None:
    """An image is handed on beside it, and the text of an embedded resource is text."""
    result = call(odd, "mixed")
    assert result.images == (Image(b"\x89PNG\r\n\x1a\n" + bytes(11_992), "image/png"),)
    assert result.content.splitlines() == [
        "first",
        "[image image/png, 12 kB]",
        "[audio audio/wav, 12 kB]",
        "[resource https://example.org/terms, terms]",
        "[resource file:///menu, text/plain]",
        "soup",
        "[resource file:///map, 2.5 MB]",
        "last",
    ]


def test_structured_content_where_there_is_no_text(odd: MCPToolSet) -> None:
    assert call(odd, "structured").content == '{"täble": 4}'
    assert call(odd, "nothing").content == "[no content]"


def test_progress_is_passed_on(booking: MCPToolSet) -> None:
    context = Context()
    call(booking, "wait_for_table", context, seconds=0)
    assert context.told[0] == ("10 ahead of you", 0, 10)
    assert context.told[-1] == ("your table is free", 10, 10)


def test_a_large_result(odd: MCPToolSet) -> None:
    assert len(call(odd, "large").content) == 3_000_000


def test_a_failing_tool_is_an_error_result(booking: MCPToolSet) -> None:
    result = call(booking, "opening_hours", restaurant="nowhere")
    assert result.is_error
    assert "no restaurant 'nowhere' here" in result.content


def test_a_protocol_error_is_raised(odd: MCPToolSet) -> None:
    with pytest.raises(MCPServerError, match=r"MCP server 'odd' refused to call refuse: not today \(code -32099\)"):
        call(odd, "refuse")


def test_what_is_not_the_protocol_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    command = ["sh", "-c", f"echo debug: on; echo; echo hello; exec {sys.executable} {BOOKING[1]}"]
    with caplog.at_level(logging.WARNING), running(MCPToolSet(command, name="booking")) as booking:
        assert call(booking, "opening_hours", restaurant="Luigi's").content
    messages = [record.getMessage() for record in caplog.records if record.name == "runtime.mcp"]
    assert messages == ["MCP server 'booking' wrote something other than MCP to its standard output: debug: on"]


def test_the_standard_error_is_logged(odd_script: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "runtime.mcp")
    with running(MCPToolSet(odd_script, name="odd")) as odd, pytest.raises(MCPServerError):
        call(odd, "crash")
    assert ("runtime.mcp", logging.DEBUG, "odd: no more tables") in caplog.record_tuples


def test_environment_and_directory(odd_script: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "not for servers")
    with running(MCPToolSet(odd_script, env={"DESK": "7"}, cwd=tmp_path)) as odd:
        assert call(odd, "where", name="DESK").content == f"{tmp_path} 7"
        assert call(odd, "where", name="A_SECRET").content == f"{tmp_path} None"


# -- cancelling --------------------------------------------------------------------------------------------------------


class Caller(threading.Thread):
    """Calls a tool in a thread, and keeps what came of it and when."""

    def __init__(self, toolset: MCPToolSet, name: str, context: Context | None = None, /, **arguments: Any) -> None:
        super().__init__(daemon=True)
        self.context = context or Context()
        self.result: ToolResult | None = None
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self._call = toolset, name, self.context
        self._arguments = arguments
        self.start()

    def run(self) -> None:
        try:
            self.result = call(*self._call, **self._arguments)
        except BaseException as error:
            self.error = error
        self.ended_at = time.monotonic()

    def end(self, timeout: float = 10.0) -> Caller:
        self.join(timeout)
        assert not self.is_alive()
        return self


def in_flight(toolset: MCPToolSet) -> int:
    return len(toolset._connections[-1]._in_flight)


def taken(toolset: MCPToolSet) -> int:
    """How many calls the connection has taken up, those included that wait for others."""
    return len(toolset._connections[-1]._open)


def waiting(toolset: MCPToolSet) -> int:
    """How many calls of wait_for_table the server has under way."""
    return int(call(toolset, "opening_hours", restaurant="Luigi's").content.split(";")[1].split()[0])


def prompt(attempt: Callable[[], float]) -> bool:
    """Whether it takes less than 50 ms, law 18. The machine may be busy with something else, but not each time."""
    return in_time(attempt, 0.05)


def test_cancel_with_a_question_open_is_prompt(booking: MCPToolSet) -> None:
    def attempt() -> float:
        caller = Caller(booking, "book_table", restaurant="Luigi's")
        assert caller.context.question_came.wait(5)
        cancelled_at = time.monotonic()
        caller.context.cancel.cancel()
        assert isinstance(caller.end().error, Cancelled)
        return caller.ended_at - cancelled_at

    assert prompt(attempt)
    assert call(booking, "book_table", Context(books()), restaurant="Sakura").content.startswith("Booked: Sakura")


def test_cancel_is_prompt_and_reaches_the_server(servers: dict[tuple[str, str], MCPToolSet]) -> None:
    booking = servers["booking", "2026-07-28"]

    def attempt() -> float:
        caller = Caller(booking, "wait_for_table", seconds=3600)
        assert eventually(lambda: waiting(booking) == 1)
        cancelled_at = time.monotonic()
        caller.context.cancel.cancel()
        assert isinstance(caller.end().error, Cancelled)
        assert eventually(lambda: waiting(booking) == 0)
        return caller.ended_at - cancelled_at

    assert prompt(attempt)


def test_legacy_calls_wait_for_each_other_and_may_be_cancelled_meanwhile(
    servers: dict[tuple[str, str], MCPToolSet],
) -> None:
    booking = servers["booking", "legacy"]
    first = Caller(booking, "book_table", restaurant="First")
    assert first.context.question_came.wait(5)
    second = Caller(booking, "opening_hours", restaurant="Luigi's")
    third = Caller(booking, "opening_hours", restaurant="Luigi's")
    assert eventually(lambda: taken(booking) == 3)
    second.context.cancel.cancel()
    assert isinstance(second.end().error, Cancelled)
    assert third.is_alive()
    first.context.answers.send(Answer("decline"))
    assert "decline" in first.end().result.content  # type: ignore[union-attr]
    assert third.end().result is not None


def test_cancelled_already(booking: MCPToolSet) -> None:
    context = Context()
    context.cancel.cancel()
    with pytest.raises(Cancelled):
        call(booking, "wait_for_table", context, seconds=3600)


def test_a_question_of_a_cancelled_call_is_not_taken_for_the_next_one_s(booking: MCPToolSet) -> None:
    """In the legacy protocol a question on the wire when its call is cancelled looks like one of the next call's."""
    for number in range(60):
        given_up = Caller(booking, "book_table", restaurant=f"Old{number}.")
        time.sleep(0.0001 * (number % 40))
        given_up.context.cancel.cancel()
        context = Context(lambda question: Answer("decline"))
        call(booking, "book_table", context, restaurant=f"New{number}.")
        assert [f"New{number}." in question.message for question in context.asked] == [True]
        given_up.end()
        assert all(f"Old{number}." in question.message for question in given_up.context.asked)


def test_an_old_server_without_manners() -> None:
    """It is found out to be old, cannot be pinged, and leaves its questions open when their calls are cancelled."""
    with running(MCPToolSet([sys.executable, "-c", STUBBORN])) as stubborn:
        stubborn.start()
        assert "MCP 2025-11-25" in repr(stubborn)
        before = tasks()
        for _ in range(3):
            given_up = Caller(stubborn, "ask")
            assert given_up.context.question_came.wait(5)
            given_up.context.cancel.cancel()
            assert isinstance(given_up.end().error, Cancelled)
            context = Context(lambda question: Answer("decline"))
            assert call(stubborn, "ask", context).content == "decline"
            assert len(context.asked) == 1
        assert eventually(lambda: tasks() <= before), tasks() - before


def test_a_storm_of_calls_half_of_which_are_given_up(booking: MCPToolSet) -> None:
    def give_up(context: Context) -> Answer:
        context.cancel.cancel()
        raise Cancelled(None)

    def book(number: int) -> bool:
        if number % 2:
            context = Context(books())
            result = call(booking, "book_table", context, restaurant=f"R{number}.")
            assert result.content.startswith(f"Booked: R{number}.")
        else:
            context = Context(lambda question: give_up(context))
            with pytest.raises(Cancelled):
                call(booking, "book_table", context, restaurant=f"R{number}.")
        return all(f"R{number}." in question.message for question in context.asked)

    assert book(1)  # an old server's calls are told apart from its first question on
    with ThreadPoolExecutor(20) as threads:
        assert all(threads.map(book, range(80)))


# -- an old server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def old() -> Iterator[MCPToolSet]:
    with running(MCPToolSet([sys.executable, "-c", OLD], name="old", mode="legacy")) as toolset:
        toolset.start()
        yield toolset


def test_calls_of_an_old_server_run_side_by_side(old: MCPToolSet) -> None:
    with ThreadPoolExecutor(2) as threads:
        met = [threads.submit(call, old, "meet", Context(session_id=each)) for each in "ab"]
        assert [each.result(5).content for each in met] == ["met", "met"]


def test_from_its_first_question_on_an_old_server_has_one_call_at_a_time(old: MCPToolSet) -> None:
    assert call(old, "ask", Context(lambda question: Answer("accept"))).content == "accept"
    first = Caller(old, "meet")
    assert eventually(lambda: in_flight(old) == 1)
    second = Caller(old, "meet")
    first.join(0.3)
    assert first.is_alive()
    assert second.is_alive()
    for each in (second, first):  # the one that waits goes first: it would meet the call that has been given up
        each.context.cancel.cancel()
        assert isinstance(each.end().error, Cancelled)


def test_a_question_of_several_calls_of_one_stream_goes_to_that_stream(old: MCPToolSet) -> None:
    waiting = Caller(old, "meet")
    assert eventually(lambda: in_flight(old) == 1)
    asking = Context(lambda question: Answer("accept"))
    waiting.context._reply = asking._reply
    assert call(old, "ask", asking).content == "accept"
    assert [question.message for question in [*waiting.context.asked, *asking.asked]] == ["sure?"]
    waiting.context.cancel.cancel()
    waiting.end()


def test_a_question_that_may_be_for_several_streams_is_declined_with_a_note(old: MCPToolSet) -> None:
    waiting = Caller(old, "meet")
    assert eventually(lambda: in_flight(old) == 1)
    asking = Context(lambda question: Answer("accept"), session_id="another")
    result = call(old, "ask", asking)
    assert result.content.splitlines()[0] == "decline"
    assert "The server asked 'sure?' while calls of several conversations were under way" in result.content
    assert waiting.context.asked == asking.asked == []
    waiting.context.cancel.cancel()
    waiting.end()
    again = call(old, "ask", asking)
    assert again.content == "accept"


def test_what_cannot_be_decoded_fails_the_call_at_once(old: MCPToolSet) -> None:
    assert call(old, "half").content == "half \ufffd a smile"
    with pytest.raises(MCPServerError, match="failed to call bad: ValidationError"):
        call(old, "bad")
    with pytest.raises(MCPServerError, match="refused to call cut: the answer of the server cannot be read"):
        call(old, "cut")
    with pytest.raises(MCPServerError, match="refused to call late: the answer of the server cannot be read"):
        call(old, "late")
    assert call(old, "echo").content == "echo"


def test_what_would_take_long_to_decode_fails_the_call(old: MCPToolSet) -> None:
    """It would hold up every thread. A text may be long."""
    with pytest.raises(MCPServerError, match="refused to call heap: the answer of the server has more than 100,000"):
        call(old, "heap")
    assert len(call(old, "table").content) == 800_000


STRANGE = """
import json, sys
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
deep = {"type": "string"}
for _ in range(300):
    deep = {"anyOf": [deep]}
tools = [
    {"name": "good", "inputSchema": {"type": "object"}},
    {"name": "schemaless"},
    {"name": "text", "inputSchema": {"type": "string"}},
    {"name": "nulls", "title": None, "description": 5, "inputSchema": {"type": "object", "properties": None}},
    {"name": "deep", "inputSchema": {"type": "object", "properties": {"x": deep}}, "annotations": "none"},
    {"inputSchema": {}},
    "nonsense",
]
content = [
    {"type": "video", "data": "x"}, {"type": "text"}, "said", 7, {"type": "resource_link", "uri": "x://1"},
    {"type": "image", "data": "!!!"}, {"type": "text", "text": "the end"},
]
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "initialize":
        say(id=id, result={"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                           "serverInfo": {"name": "strange", "version": "1"}})
    elif method == "tools/list":
        say(id=id, result={"tools": tools})
    elif method == "tools/call":
        whole = message["params"]["name"] == "good"
        say(id=id, result={"content": content if whole else "only a text"})
"""


def test_what_is_wrong_with_a_piece_costs_only_the_piece() -> None:
    with running(MCPToolSet([sys.executable, "-c", STRANGE], name="strange", mode="legacy")) as strange:
        tools = strange.tools()
        assert [tool.name for tool in tools] == ["good", "schemaless", "text", "nulls", "deep"]
        assert all(tool.parameters == {"type": "object"} for tool in tools)
        assert call(strange, "good").content.splitlines() == [
            "[video, which cannot be read]",
            "[text, which cannot be read]",
            "said",
            "[None, which cannot be read]",
            "[resource x://1]",
            "[image image/png, which cannot be read: its base64 is broken]",
            "the end",
        ]
        assert call(strange, "text").content == "only a text"


def test_a_page_that_has_to_be_visited_first(old: MCPToolSet) -> None:
    """The call is made again when the user has been there, and not if the user refuses."""
    refusing = Context(lambda question: Answer("decline"))
    with pytest.raises(MCPServerError, match=r"before the user visits https://example\.org/in: .* 'decline'"):
        call(old, "sign_in", refusing)
    visiting = Context(lambda question: Answer("accept"))
    assert call(old, "sign_in", visiting).content == "welcome"
    (question,) = visiting.asked
    assert (question.message, question.url) == ("Sign in", "https://example.org/in")


def test_a_page_that_is_never_visited_does_not_go_on_for_ever() -> None:
    never = OLD.replace("len(visits) < 3", "True")
    with running(MCPToolSet([sys.executable, "-c", never], name="old", mode="legacy")) as old:
        visiting = Context(lambda question: Answer("accept"))
        with pytest.raises(MCPServerError, match="the user has to finish at https"):
            call(old, "sign_in", visiting)
        assert len(visiting.asked) == 3


NO_PAGES = [
    "javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "https://bank.example@evil.example/", "https://",
    "https://evil.example/\u202egnp.exe", "https://evil.example/ x", "//evil.example", "vscode://x", "https://[", "",
]  # fmt: skip


def test_what_is_no_page_of_the_web_is_not_shown_to_the_user() -> None:
    """A browser would run it, or the user would not see whose it is."""
    assert [url for url in NO_PAGES if is_page(url)] == []
    assert is_page("https://example.org:8080/in?a=b#c")
    url = NO_PAGES[0]
    asks = {"mode": "url", "message": "sure?", "url": url, "elicitationId": "1"}
    evil = OLD.replace('{"message": "sure?", "requestedSchema": schema}', repr(asks))
    evil = evil.replace('"url": "https://example.org/in"', f'"url": {url!r}')
    with running(MCPToolSet([sys.executable, "-c", evil], name="evil", mode="legacy")) as old:
        context = Context(lambda question: Answer("accept"))
        result = call(old, "ask", context)
        assert result.content.splitlines()[0] == "decline"
        assert "no page of the web" in result.content
        with pytest.raises(MCPServerError, match=r"no page of the web"):
            call(old, "sign_in", context)
        assert context.asked == []


@pytest.mark.parametrize("how", ["exits", "mute"])
def test_a_server_that_does_not_know_the_newer_handshake_is_found_out_soon(how: str) -> None:
    with running(MCPToolSet([sys.executable, "-c", OLD, how], name="old")) as old:
        since = time.monotonic()
        old.start()
        assert time.monotonic() - since < 15  # of the 30 that a start may take
        assert "MCP 2025-06-18" in repr(old)
        assert call(old, "echo").content == "echo"


def test_a_new_server_that_is_slow_to_start_is_still_a_new_one() -> None:
    command = ["sh", "-c", f"sleep 2; exec {sys.executable} {BOOKING[1]}"]
    with running(MCPToolSet(command, name="booking")) as booking:
        booking.start()
        assert "MCP 2026-07-28" in repr(booking)


def test_names_are_what_providers_take(old: MCPToolSet) -> None:
    names = [tool.name for tool in old.tools()]
    assert names[:8] == ["meet", "ask", "grow", "half", "bad", "cut", "sign_in", "echo"]
    dotted, plain, long = names[8:11]
    assert plain == "a_b_c"
    assert dotted.startswith("a_b_c_")
    assert len(long) == 64
    assert call(old, dotted).content == "a.b/c"
    assert call(old, long).content == "n" * 80


def test_a_prefix_and_the_tools_that_are_wanted() -> None:
    options: dict[str, Any] = {"name": "old", "mode": "legacy", "prefix": "old_"}
    with running(MCPToolSet([sys.executable, "-c", OLD], tools=["ask", "e*"], **options)) as old:
        assert [tool.name for tool in old.tools()] == ["old_ask", "old_echo"]
        assert call(old, "old_echo").content == "echo"
    before = children()
    with pytest.raises(MCPServerError, match=r"has no tool 'ecko'; it has: a\.b/c, a_b_c, ask"):
        MCPToolSet([sys.executable, "-c", OLD], tools=["ask", "ecko"], **options).start()
    assert children() == before


def test_a_schema_is_read_once_for_all_turns(old: MCPToolSet) -> None:
    first, second = old.tools()[0], old.tools()[0]
    assert first.schema is second.schema


def test_tools_that_change_are_noticed(old: MCPToolSet) -> None:
    assert "grown" not in [tool.name for tool in old.tools()]
    call(old, "grow")
    assert eventually(lambda: "grown" in [tool.name for tool in old.tools()])
    assert call(old, "grown").content == "grown"


CHANGING = """
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("changing", log_level="ERROR")

@server.tool()
async def grow(context: Context) -> str:
    server.add_tool(grown)
    await context.notify_tools_changed()
    return "grown"

def grown() -> str:
    return "I am new"

server.run()
"""


def test_tools_of_a_new_server_that_change_are_noticed() -> None:
    with running(MCPToolSet([sys.executable, "-c", CHANGING], name="changing")) as changing:
        assert [tool.name for tool in changing.tools()] == ["grow"]
        assert "MCP 2026-07-28" in repr(changing)

        def noticed() -> bool:
            call(changing, "grow")
            return [tool.name for tool in changing.tools()] == ["grow", "grown"]

        assert eventually(noticed)  # the first may come before the server knows that somebody listens
        assert call(changing, "grown").content == "I am new"


def test_call_timeout_is_silence() -> None:
    """Progress starts the time anew, and by default it is not endless."""
    assert MCPToolSet(["x"]).call_timeout == 300
    with running(MCPToolSet(BOOKING, name="booking", call_timeout=1.0)) as booking:
        booking.start()
        since = time.monotonic()
        context = Context()
        assert call(booking, "wait_for_table", context, seconds=2).content
        assert time.monotonic() - since > 1.9
        assert len(context.told) > 5


class StoodStill:
    """A call of a server that needs ``works`` seconds, in a process that stands still after 0.1 s, for ``seconds``; and
    the clock of both.
    """

    name = "wait_for_table"
    heard_at: float | None = 0.0

    def __init__(self, works: float, seconds: float) -> None:
        self.inbox = self
        self.now = 0.0
        self._answers_at = works + seconds  # the server's process stands still too
        self._until = 0.1 + seconds

    def monotonic(self) -> float:
        return self.now

    def recv(self, timeout: float | None, cancel: object) -> CallEnded:
        assert timeout is not None
        until = min(self.now + timeout, self._answers_at)
        self.now = self._until if 0.1 < until < self._until else until
        if self.now < self._answers_at:
            raise TimeoutError
        return CallEnded(result="a table")

    def drop(self) -> None:
        pass


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.3, 3600.0])
def test_a_standstill_of_this_process_is_no_silence_of_the_server(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The computer was closed, for example: nothing that the server said could be heard."""
    conversation = _conversation.Conversation("booking", 1.0, None)
    call = StoodStill(0.7, seconds)
    monkeypatch.setattr(_conversation, "time", call)
    assert conversation._converse(call) == "a table"  # type: ignore[arg-type]
    call = StoodStill(1.1, seconds)
    monkeypatch.setattr(_conversation, "time", call)
    with pytest.raises(MCPServerError, match="has not finished wait_for_table after 1 s"):
        conversation._converse(call)  # type: ignore[arg-type]
    assert call.now <= seconds + 1.0


# -- timeouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_takes_too_long(mode: str) -> None:
    with running(MCPToolSet(BOOKING, name="booking", mode=mode, call_timeout=1.0)) as booking:
        booking.start()
        since = time.monotonic()
        with pytest.raises(MCPServerError, match=r"has not finished wait_for_table after 1 s"):
            call(booking, "wait_for_table", seconds=3600)
        assert 0.95 < time.monotonic() - since < 10
        assert waiting(booking) == 0

        def slowly(question: Question) -> Answer:
            asked.set()
            time.sleep(1.2)
            return books()(question)

        asked = threading.Event()
        # Neither the time that a user takes counts, nor that in which the server is busy with another call.
        with ThreadPoolExecutor(2) as threads:
            slow = threads.submit(call, booking, "book_table", Context(slowly), restaurant="Luigi's")
            assert asked.wait(5)
            quick = threads.submit(call, booking, "opening_hours", restaurant="Luigi's")
            assert quick.result().content
            assert slow.result().content.startswith("Booked")


# -- a server that ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_killed_in_the_middle_of_a_call(mode: str) -> None:
    with running(MCPToolSet(BOOKING, name="booking", mode=mode)) as booking:
        before = children()
        booking.start()
        (server,) = children() - before
        caller = Caller(booking, "wait_for_table", seconds=3600)
        assert eventually(lambda: caller.context.told)
        killed_at = time.monotonic()
        os.kill(server, 9)
        error = caller.end().error
        assert isinstance(error, MCPServerError)
        assert str(error) == (
            "MCP server 'booking' was ended by SIGKILL during this call; the next call starts it again."
        )
        assert error.server == "booking"
        assert caller.ended_at - killed_at < 20
        assert "ended" in repr(booking)
        assert waiting(booking) == 0  # started again
        (again,) = children() - before
        assert again != server


@pytest.mark.parametrize("mode", MODES)
def test_killed_with_a_question_open(mode: str) -> None:
    with running(MCPToolSet(BOOKING, name="booking", mode=mode)) as booking:
        before = children()
        tools = {tool.name: tool for tool in booking.tools()}
        (server,) = children() - before
        asking = Caller(booking, "book_table", restaurant="Luigi's")
        assert asking.context.question_came.wait(5)
        os.kill(server, 9)
        # Nobody has to answer first.
        assert "was ended by SIGKILL during this call" in str(asking.end().error)
        # A tool from before the end serves on, with the next server.
        assert use(tools["opening_hours"], restaurant="Sakura").content.startswith("Sakura")


@pytest.mark.parametrize("mode", MODES)
def test_a_tool_that_crashes_its_server(mode: str, odd_script: list[str]) -> None:
    with running(MCPToolSet(odd_script, name="odd", mode=mode)) as odd:
        for _ in range(2):
            with pytest.raises(MCPServerError) as caught:
                call(odd, "crash")
            assert str(caught.value) == (
                "MCP server 'odd' ended with exit code 3 during this call; the next call starts it again."
                " The last it wrote to its standard error:\n  no more tables"
            )


def test_calls_in_the_queue_of_a_server_that_ends_go_to_the_next(odd_script: list[str]) -> None:
    with running(MCPToolSet(odd_script, name="odd", mode="legacy")) as odd:
        before = children()
        odd.start()
        (server,) = children() - before
        first = Caller(odd, "both")
        assert first.context.question_came.wait(5)
        queued = [Caller(odd, "where", name="HOME") for _ in range(5)]
        assert eventually(lambda: taken(odd) == 6)
        os.kill(server, 9)
        assert all(caller.end().result is not None for caller in queued)
        first.context.cancel.cancel()
        first.end()


def test_calls_that_come_while_a_server_ends_go_to_the_next(odd_script: list[str]) -> None:
    with running(MCPToolSet(odd_script, name="odd")) as odd:
        where = next(tool for tool in odd.tools() if tool.name == "where")
        hanging_up = Caller(odd, "hang_up")
        process = odd._connections[-1]._link
        assert eventually(lambda: process.ended)
        assert use(where, name="HOME").content  # the owner is still waiting for the server's last words
        hanging_up.end()
        assert "closed the connection during this call" in str(hanging_up.error)


# -- a server that does not start --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "problem"),
    [
        (["/no/such/server"], {}, "did not start: there is no command '/no/such/server'; install it, or give its path"),
        (["cat"], {"cwd": "/no/such"}, "did not start: there is no directory '/no/such' to start it in"),
        (["/etc/passwd"], {}, "did not start: '/etc/passwd' cannot be run: [Errno 13] Permission denied"),
        (["false"], {}, "did not start: it ended with exit code 1 before it had answered."),
        (
            ["sh", "-c", "echo no config >&2; echo give one >&2; exit 2"],
            {},
            "did not start: it ended with exit code 2 before it had answered."
            " The last it wrote to its standard error:\n  no config\n  give one",
        ),
        (["sh", "-c", "kill -9 $$"], {}, "did not start: it was ended by SIGKILL before it had answered."),
        (["cat"], {}, "did not start: it answered 'Method not found' where an MCP server introduces itself"),
        (
            ["sh", "-c", "echo Hello there; cat >/dev/null"],
            {"startup_timeout": 0.5},
            "did not start: no answer within 0.5 s. Does 'sh' speak MCP on its standard input and output?"
            " If it is only slow, give it more startup_timeout."
            " On its standard output, where only MCP belongs, it wrote: Hello there",
        ),
        (["sh", "-c", "exec >&-; sleep 60"], {}, "did not start: it closed the connection before it had answered."),
    ],
)
@pytest.mark.parametrize("mode", ["auto", *MODES])
def test_start_fails(mode: str, command: list[str], options: dict[str, Any], problem: str) -> None:
    before = children()
    toolset = MCPToolSet(command, name="bad", mode=mode, **options)
    for attempt in (toolset.start, toolset.tools):
        with pytest.raises(MCPServerError) as caught:
            attempt()
        assert problem in str(caught.value)
        assert "MCP server 'bad' did not start" in str(caught.value)
        assert children() == before  # at once, not some time later
    assert repr(toolset).startswith("<MCPToolSet 'bad' failed to start: ")
    toolset.stop()


def test_a_start_that_failed_may_be_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = f"test -e {flag} || exit 1; exec {sys.executable} {BOOKING[1]}"
    with running(MCPToolSet(["sh", "-c", script])) as booking:
        with pytest.raises(MCPServerError):
            booking.start()
        flag.touch()
        booking.start()
        assert len(booking.tools()) == 3


def test_only_the_last_of_what_a_server_complains_about_is_kept() -> None:
    complain = "import sys\nfor n in range(200000): print('line', n, file=sys.stderr)"
    toolset = MCPToolSet([sys.executable, "-c", complain])
    with pytest.raises(MCPServerError) as caught:
        toolset.start()
    assert str(caught.value).splitlines()[1:] == [f"  line {n}" for n in range(199_990, 200_000)]


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"the command must be a list, such as \['npx', 'server'\]"):
        MCPToolSet("npx server")
    with pytest.raises(ValueError, match="the command is empty"):
        MCPToolSet([])
    with pytest.raises(ValueError, match="startup_timeout must be a number of seconds above 0, not -1"):
        MCPToolSet(["x"], startup_timeout=-1)
    with pytest.raises(ValueError, match="call_timeout must be a number of seconds above 0, or None, not 0"):
        MCPToolSet(["x"], call_timeout=0)
    with pytest.raises(ValueError, match=r"mode must be .* not 'new'"):
        MCPToolSet(["x"], mode="new")
    with pytest.raises(TypeError, match="tools must be a list of names"):
        MCPToolSet(["x"], tools="search")
    with pytest.raises(TypeError, match=r"env\['KEY'\] must be text, not int"):
        MCPToolSet(["x"], env={"KEY": 1})  # type: ignore[dict-item]


def test_many_threads_start_one_server() -> None:
    with running(MCPToolSet(BOOKING)) as booking:
        before = children()
        with ThreadPoolExecutor(10) as threads:
            assert [len(tools) for tools in threads.map(lambda _: booking.tools(), range(10))] == [3] * 10
        assert len(children() - before) == 1


def test_many_threads_hear_that_it_does_not_start() -> None:
    toolset = MCPToolSet(["sleep", "60"], startup_timeout=0.5)
    with ThreadPoolExecutor(10) as threads:
        errors = [each.exception() for each in [threads.submit(toolset.start) for _ in range(10)]]
    assert all(isinstance(error, MCPServerError) for error in errors)
    assert len({id(error) for error in errors}) == 10  # each its own, with its own traceback


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_its_repr_says_what_it_is_without_secrets() -> None:
    command = ["npx", "-y", "server", "--api-key", "Zq9mW4xK7vT2", "postgres://u:Zq9mW4xK7vT2@db/x", "\x1b[2J"]
    assert repr(MCPToolSet(command, name="db")) == (
        "<MCPToolSet 'db' not started: npx -y server --api-key <redacted> postgres://<redacted>@db/x '\\x1b[2J'>"
    )
    remote = MCPToolSet(url="https://mcp.example.org/a?key=Zq9mW4xK7vT2", headers={"X": "Zq9mW4xK7vT2"}, name="far")
    assert repr(remote) == "<MCPToolSet 'far' not started: https://mcp.example.org/a>"
    assert len(repr(MCPToolSet(["x" * 5000], name="long"))) < 300


def test_stop_without_a_start() -> None:
    toolset = MCPToolSet(BOOKING, name="booking")
    assert repr(toolset).startswith("<MCPToolSet 'booking' not started: ")
    toolset.stop()
    toolset.stop()
    assert repr(toolset).startswith("<MCPToolSet 'booking' stopped: ")
    with pytest.raises(MCPServerError, match=r"MCP server 'booking' was stopped; start\(\) starts it again"):
        toolset.tools()


def test_stop_and_start_again() -> None:
    before = children()
    booking = MCPToolSet(BOOKING, name="booking")
    (hours,) = (tool for tool in booking.tools() if tool.name == "opening_hours")
    assert repr(booking).startswith("<MCPToolSet 'booking' running, MCP 2026-07-28, 3 tools: ")
    since = time.monotonic()
    booking.stop()
    assert time.monotonic() - since < 10
    assert children() == before
    booking.stop()
    with pytest.raises(MCPServerError, match="was stopped"):
        hours(restaurant="Luigi's")
    booking.start()
    assert hours(restaurant="Luigi's").content
    booking.stop()
    assert children() == before


@pytest.mark.parametrize("mode", MODES)
def test_stop_with_calls_under_way(mode: str) -> None:
    booking = MCPToolSet(BOOKING, name="booking", mode=mode)
    booking.start()
    callers = [Caller(booking, "wait_for_table", seconds=3600) for _ in range(5)]
    asking = Caller(booking, "book_table", restaurant="Luigi's") if mode != "legacy" else None
    assert eventually(lambda: taken(booking) == len(callers) + (asking is not None))
    assert asking is None or asking.context.question_came.wait(5)
    since = time.monotonic()
    booking.stop()
    assert time.monotonic() - since < 10
    for caller in callers:
        assert isinstance(caller.end().error, MCPServerError)
        assert "MCP server 'booking' was stopped" in str(caller.error)
    assert min(caller.ended_at for caller in callers) - since < 1
    if asking is not None:
        asking.context.answers.send(Answer("decline"))
        assert "was stopped" in str(asking.end().error)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("command", [["sleep", "60"], BOOKING], ids=["mute", "booking"])
def test_stop_in_the_middle_of_a_start(command: list[str], delay: float) -> None:
    before = children()
    toolset = MCPToolSet(command, name="slow")
    with ThreadPoolExecutor(1) as threads:
        start = threads.submit(toolset.start)
        time.sleep(delay)
        since = time.monotonic()
        toolset.stop()
        assert time.monotonic() - since < 10
        if start.exception() is not None:
            assert "MCP server 'slow' was stopped while it started" in str(start.exception())
    if "stopped" not in repr(toolset):  # stop came first
        toolset.stop()
    assert children() == before


def test_stop_from_many_threads() -> None:
    before = children()
    booking = MCPToolSet(BOOKING)
    booking.start()
    with ThreadPoolExecutor(5) as threads:
        for stop in [threads.submit(booking.stop) for _ in range(5)]:
            stop.result()
            assert children() == before  # each of them waits


def test_a_server_that_resists() -> None:
    script = "trap '' TERM INT; while true; do sleep 0.1; done"
    before = children()
    toolset = MCPToolSet(["sh", "-c", script], startup_timeout=0.3)
    since = time.monotonic()
    with pytest.raises(MCPServerError, match=r"no answer within 0\.3 s"):
        toolset.start()
    assert time.monotonic() - since < 10
    assert children() == before


def test_what_a_server_started_may_outlive_it() -> None:
    """A process that has our pipes keeps nobody waiting, and nothing open."""
    script = f"sleep 20 & exec {sys.executable} {BOOKING[1]}"
    before = children()
    booking = MCPToolSet(["sh", "-c", script])
    booking.start()
    since = time.monotonic()
    booking.stop()
    assert time.monotonic() - since < 10
    assert children() == before
    gc.collect()  # would warn of what is open


def test_a_toolset_that_is_forgotten_takes_its_server_with_it() -> None:
    before = children()
    booking = MCPToolSet(BOOKING)
    tools = booking.tools()
    assert len(children() - before) == 1
    del booking
    assert len(children() - before) == 1  # its tools lead to it
    tools.clear()
    assert eventually(lambda: children() == before)


# -- under the runtime -------------------------------------------------------------------------------------------------


class Books:
    """A model that books a table where the user says, and repeats what the tool said."""

    id = "books"

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        last = messages[-1]
        if last.role == "user":
            yield ToolCallDelta(0, "call-1", "book_table", json.dumps({"restaurant": last.content}))
        else:
            yield TextDelta(last.content)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    agent = Agent("concierge", Books(), toolsets=[MCPToolSet(BOOKING, name="booking")])
    with Runtime(agent, permissions=BOOKING_ALLOWED) as runtime:
        yield runtime


def test_streams_that_share_a_server_are_asked_their_own_questions(runtime: Runtime) -> None:
    """Law 6, from the model's call to the consumer's answer and back."""

    def consume(number: int) -> str:
        stream = runtime.run_stream(Session.from_user(f"R{number}."))
        for event in stream:
            if isinstance(event, ElicitationRequest):
                assert f"R{number}." in event.message
                answer = books(people=number + 1)(Question(event.message, event.schema))
                stream.respond(event, answer.action, answer.content)
        return stream.result().text

    with ThreadPoolExecutor(10) as threads:
        for number, text in enumerate(threads.map(consume, range(10))):
            assert text.startswith(f"Booked: R{number}., 2026-12-24, {number + 1} pe")


def test_where_nobody_is_there_the_model_reads_why(runtime: Runtime) -> None:
    """Law 7."""
    text = runtime.run(Session.from_user("Luigi's")).text
    assert "answered with 'decline'" in text
    assert "this run is not interactive" in text


def test_cancelling_a_stream_with_a_question_of_a_server_open(runtime: Runtime) -> None:
    """Laws 8 and 18: at once, and the server serves the next stream."""

    def attempt() -> float:
        since = 0.0
        stream = runtime.run_stream(Session.from_user("Luigi's"))
        for event in stream:
            if isinstance(event, ElicitationRequest):
                since = time.monotonic()
                stream.cancel()
        return time.monotonic() - since

    assert prompt(attempt)
    assert "answered with 'decline'" in runtime.run(Session.from_user("Luigi's")).text


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_dies_takes_its_question_back(mode: str) -> None:
    """The user need not answer, and cannot; the model reads why, and the stream goes on."""
    agent = Agent("concierge", Books(), toolsets=[MCPToolSet(BOOKING, name="booking", mode=mode)])
    before = children()
    with Runtime(agent, permissions=BOOKING_ALLOWED) as runtime:
        stream = runtime.run_stream(Session.from_user("Luigi's"))
        for event in stream:
            if isinstance(event, ElicitationRequest):
                (server,) = children() - before
                os.kill(server, 9)
                assert eventually(lambda: not stream.pending)
                with pytest.raises(NotPending):
                    stream.respond(event, "accept", {"date": "2026-12-24", "people": 2})
        assert "was ended by SIGKILL during this call" in stream.result().text


def test_a_server_that_does_not_start_ends_the_stream_with_the_reason() -> None:
    broken = MCPToolSet(["false"], name="broken")
    problem = "MCP server 'broken' did not start: it ended with exit code 1"
    with Runtime(Agent("a", Books(), toolsets=[broken])) as runtime, pytest.raises(RunError, match=problem):
        runtime.run(Session.from_user("hi"))


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_the_loop_s_own_thread_is_refused(booking: MCPToolSet) -> None:
    async def ask() -> None:
        booking.tools()

    with pytest.raises(RuntimeError, match="on the event loop's own thread would stall it"):
        default_loop().call(ask)


def test_a_loop_of_one_s_own_that_is_closed() -> None:
    before = children()
    with LoopThread("mine") as loop:
        booking = MCPToolSet(BOOKING, name="booking", loop=loop)
        booking.start()
        caller = Caller(booking, "wait_for_table", seconds=3600)
        asking = Caller(booking, "book_table", restaurant="Luigi's")
        assert asking.context.question_came.wait(5)
        assert eventually(lambda: caller.context.told)
    assert "lost its event loop, which was closed" in str(caller.end().error)
    asking.context.answers.send(Answer("decline"))
    assert isinstance(asking.end().error, MCPServerError)
    assert eventually(lambda: children() == before)
    booking.stop()
    with pytest.raises(RuntimeError, match="mine is closed"):
        booking.start()


def test_a_loop_that_is_closed_while_it_stands_still() -> None:
    """Nothing can be done on it, and yet the caller is free and the server ends."""
    before = children()
    loop = LoopThread("mine")
    booking = MCPToolSet(BOOKING, loop=loop)
    booking.start()
    (server,) = children() - before
    caller = Caller(booking, "wait_for_table", seconds=3600)
    assert eventually(lambda: caller.context.told)
    go_on = threading.Event()

    async def stand_still() -> None:
        go_on.wait(30)

    loop.start(stand_still)
    try:
        loop.close(timeout=0)
        assert "lost its event loop, which was closed" in str(caller.end().error)
        assert eventually(lambda: not is_alive(server))
        assert eventually(lambda: server not in children())  # nor is a zombie left for a loop that never comes to it
        booking.stop()
    finally:
        go_on.set()


def test_a_loop_that_is_closed_in_the_middle_of_a_start() -> None:
    before = children()
    with LoopThread("mine") as loop, ThreadPoolExecutor(1) as threads:
        toolset = MCPToolSet(["sleep", "60"], loop=loop)
        start = threads.submit(toolset.start)
        assert eventually(lambda: children() > before)
        loop.close()
        assert isinstance(start.exception(), MCPServerError)
    assert eventually(lambda: children() == before)


# -- the interpreter ---------------------------------------------------------------------------------------------------


def python(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    quiet = "import logging; logging.getLogger('asyncio').addFilter(lambda record: 'Executing' not in record.msg)\n"
    return subprocess.run(  # asyncio's debug mode, which -X dev brings, tells of every callback that takes 0.1 s
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", quiet + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=55,
        cwd=ROOT,
        check=False,
    )


def test_the_sdk_is_imported_on_first_use() -> None:
    done = python(f"""
        import sys
        from runtime.mcp import MCPToolSet
        MCPToolSet({BOOKING!r})
        assert "mcp" not in sys.modules and "pydantic" not in sys.modules
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_sdk_the_extra_is_named() -> None:
    done = python(f"""
        import sys
        sys.modules["mcp"] = None
        from runtime.mcp import MCPToolSet
        toolset = MCPToolSet({BOOKING!r})
        try:
            toolset.start()
        except ImportError as error:
            print(type(error).__name__, error)
        toolset.stop()
    """)
    assert done.stderr == ""
    assert done.stdout == "MissingExtra MCPToolSet needs an extra: pip install 'lockgate[mcp]'\n"


RESISTS = ["sh", "-c", f"trap '' TERM; {sys.executable} {BOOKING[1]}; sleep 60"]


@pytest.mark.parametrize(
    "state",
    [
        "toolset.start()",
        "toolset.start(); toolset.stop()",
        "background(toolset.start); until(lambda: children())",
        "toolset.start(); background(tool('wait_for_table'), seconds=99); "
        "until(lambda: toolset._connections[-1]._open)",
    ],
    ids=["running", "stopped", "starting", "calling"],
)
@pytest.mark.parametrize("command", [BOOKING, RESISTS], ids=["polite", "resists"])
def test_the_interpreter_exits(command: list[str], state: str) -> None:
    """Within 2 s, and what a busy machine takes to end a Python: no more than it has just taken to start one."""
    assert in_time(lambda: _late_at_exit(command, state), 0.0, tries=4)


def _late_at_exit(command: list[str], state: str) -> float:
    """How much longer than that it takes, in seconds."""
    began_at = time.time()
    done = python(f"""
        import os, subprocess, sys, threading, time
        from runtime.mcp import MCPServerError, MCPToolSet
        toolset = MCPToolSet({command!r})
        def tool(name):
            return next(tool for tool in toolset.tools() if tool.name == name)
        def background(function, **arguments):
            def run():
                try:
                    function(**arguments)
                except MCPServerError:
                    pass
            threading.Thread(target=run, daemon=True).start()
        def children():
            listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True).stdout
            lines = [line.split(None, 2) for line in listed.splitlines()]
            return [pid for pid, parent, name in lines if int(parent) == os.getpid() and name != "ps"]
        def until(condition):
            deadline = time.monotonic() + 20
            while not condition():
                assert time.monotonic() < deadline
                time.sleep(0.001)
        started_at = time.time()
        {state}
        print(*children())
        print(started_at, time.time(), flush=True)
    """)
    ended_at = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    pids, times = done.stdout.splitlines()
    started_at, exit_began_at = map(float, times.split())
    assert eventually(lambda: not any(is_alive(int(pid)) for pid in pids.split()))
    return ended_at - exit_began_at - (2 + max(1, 2 * (started_at - began_at)))


def test_the_end_of_a_killed_server_may_be_seen_late() -> None:
    """As on a busy machine: there is nothing to warn of on standard error."""
    done = python("""
        import signal, subprocess, time
        from runtime.mcp import MCPToolSet
        poll, ended_at = subprocess.Popen.poll, []
        def late(process):
            if poll(process) != -signal.SIGKILL:
                return poll(process)
            ended_at.append(time.monotonic())
            seen = time.monotonic() - ended_at[0] > 0.5
            return poll(process) if seen else None
        subprocess.Popen.poll = late
        toolset = MCPToolSet(["sh", "-c", "trap '' TERM; sleep 60; sleep 60"], startup_timeout=1.5)
        try:
            toolset.start()
        except Exception as error:
            print("not started")
        assert ended_at
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "not started\n", "")


def test_at_exit_a_server_may_end_by_itself(tmp_path: Path) -> None:
    flag, server = tmp_path / "flag", tmp_path / "server.py"
    server.write_text(STUBBORN)  # which is quick about it
    command = ["sh", "-c", f"{sys.executable} {server}; touch {flag}"]
    done = python(f"""
        from runtime.mcp import MCPToolSet
        toolset = MCPToolSet({command!r})
        toolset.start()
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert flag.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_a_server_of_its_own() -> None:
    done = python(
        f"""
        import os, sys
        from runtime.mcp import MCPToolSet, _stdio
        _stdio.POLITE = 15  # on a busy machine they take their time
        booking = MCPToolSet({BOOKING!r}, name="booking")
        hours = next(tool for tool in booking.tools() if tool.name == "opening_hours")
        unused = MCPToolSet({BOOKING!r}, name="unused")
        unused.start()
        child = os.fork()
        if not child:
            assert "not started" in repr(booking), booking
            assert hours(restaurant="Luigi's").content
            booking.stop()
            unused.stop()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert hours(restaurant="Luigi's").content
        assert "running" in repr(booking) and "running" in repr(unused)
        links = [each._connections[-1]._link for each in (booking, unused)]
        booking.stop()
        unused.stop()
        assert [link._forced for link in links] == [False, False]  # the child keeps nothing of them open
        print("fine")
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


@pytest.mark.skipif(not _wrapper(), reason="needs setpriv, which is Linux's")
@pytest.mark.parametrize("doing", ["pass", "threading.Thread(target=slow, daemon=True).start(); time.sleep(0.3)"])
def test_a_server_does_not_outlive_a_process_that_is_killed(tmp_path: Path, doing: str) -> None:
    """SIGKILL leaves no time to end it, and it is one that does not end with its input."""
    pid, server = tmp_path / "pid", tmp_path / "server.py"
    server.write_text(
        "import os, runpy, time\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "try:\n"
        f"    runpy.run_path({BOOKING[1]!r}, run_name='__main__')\n"
        "finally:\n"
        "    time.sleep(60)\n"
    )
    done = python(f"""
        import os, signal, threading, time
        from runtime.mcp import MCPToolSet
        toolset = MCPToolSet([{sys.executable!r}, {str(server)!r}])
        toolset.start()
        def slow():
            next(tool for tool in toolset.tools() if tool.name == "wait_for_table")(seconds=60)
        {doing}
        print(os.path.exists("/proc/" + open({str(pid)!r}).read()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "True\n")
    assert eventually(lambda: not is_alive(int(pid.read_text())))
