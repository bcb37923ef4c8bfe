"""Agents served as the tools of an MCP server. The clients are real ones: this package's own, and the SDK's."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from channels import Cancelled
from runtime import Agent, Team, serve
from runtime.agent import Answer, ToolResult
from runtime.agent._tool import Question
from runtime.mcp import MCPServerError, MCPToolSet
from support.mcp import Context, children, running, use
from support.mcp_http import served
from support.waiting import eventually

pytest.importorskip("mcp")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, ps")

MODES = ["2026-07-28", "legacy"]

#: Three agents: one that echoes, one that calls a tool that needs approval and asks, one that never ends.
AGENTS = '''
import sys, time
from runtime import Agent, Runtime, TextDelta, ToolCallDelta, ToolContext, serve, tool

class Calls:
    """Calls the tool that the user names, then says what it returned; without a tool, says what was said."""
    id = "calls"
    def stream(self, messages, tools, *, cancel):
        users = [each.content for each in messages if each.role == "user"]
        last = messages[-1]
        if last.role == "tool":
            yield TextDelta(last.content)
        elif last.content.startswith("!"):
            yield ToolCallDelta(0, f"c{len(messages)}", last.content[1:], "{}")
        else:
            yield TextDelta(f"{len(users)}: {last.content}")

@tool
def order(context: ToolContext) -> str:
    """Order something."""
    context.progress("looking at the card")
    answer = context.elicit("What?", {"type": "object", "properties": {"dish": {"type": "string", "minLength": 3}},
                                     "required": ["dish"]})
    return f"ordered {answer.content['dish']}" if answer.accepted else f"ordered nothing: {answer.action}"

@tool(read_only=True)
def visit(context: ToolContext) -> str:
    """Send the user to a page."""
    return context.elicit("Look", url="https://example.org/menu").action

@tool(read_only=True)
def noise() -> str:
    """Print something."""
    print("this is not MCP", flush=True)
    return "printed"

@tool(read_only=True)
def sleep(context: ToolContext) -> str:
    """Sleep until cancelled."""
    context.progress("zzz")
    try:
        context.cancel.done.recv(60)
    except Exception:
        pass
    return "woken"

waiter = Agent("waiter", Calls(), tools=[order, visit, noise, sleep], description="Takes orders.")
echo = Agent("echo desk", Calls())
broken = Agent("broken", Calls(), max_iterations=1, tools=[noise])

if __name__ == "__main__":
    server = serve.mcp([waiter, echo, broken], name="restaurant")
    if len(sys.argv) > 1:
        from urllib.parse import urlsplit
        server.run_http(port=0, token=sys.argv[1], ready=lambda told: print(urlsplit(told).port, flush=True))
    else:
        server.run()
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agents") / "agents.py"
    path.write_text(AGENTS)
    return path


@pytest.fixture(scope="module")
def url(script: Path) -> Iterator[str]:
    with served(AGENTS, ["sesame"]) as (address, _):
        assert eventually(lambda: is_up(address), 20)
        yield f"{address}/mcp"


def is_up(address: str) -> bool:
    try:
        urllib.request.urlopen(address)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def clients(script: Path, url: str) -> Iterator[dict[tuple[str, str], MCPToolSet]]:
    made = {}
    for mode in MODES:
        made["stdio", mode] = MCPToolSet([sys.executable, str(script)], name="restaurant", mode=mode)
        made["http", mode] = MCPToolSet(
            url=url, name="restaurant", mode=mode, headers={"Authorization": "Bearer sesame"}
        )
    try:
        for each in made.values():
            each.start()
        yield made
    finally:
        for each in made.values():
            each.stop()


@pytest.fixture(params=[(kind, mode) for kind in ("stdio", "http") for mode in MODES], ids="-".join)
def restaurant(request: pytest.FixtureRequest, clients: dict[tuple[str, str], MCPToolSet]) -> MCPToolSet:
    return clients[request.param]


@pytest.fixture(autouse=True)
def nothing_is_left(clients: object) -> Iterator[None]:
    before = children()
    yield
    assert eventually(lambda: children() <= before), children() - before


def ask(toolset: MCPToolSet, name: str, prompt: str, context: Context | None = None, **more: str) -> ToolResult:
    tool = next(each for each in toolset.tools() if each.name == name)
    return use(tool, context, prompt=prompt, **more)


def replying(answers: Sequence[tuple[str, dict[str, Any]]]) -> Callable[[Question], Answer]:
    left = list(answers)

    def reply(question: Question) -> Answer:
        action, content = left.pop(0)
        return Answer(action, content)  # type: ignore[arg-type]

    return reply


def test_each_agent_is_a_tool(restaurant: MCPToolSet) -> None:
    tools = {tool.name: tool for tool in restaurant.tools()}
    assert set(tools) == {"waiter", "echo_desk", "broken"}
    assert tools["waiter"].description == "Takes orders."
    assert ask(restaurant, "echo_desk", "hello").content == "1: hello"


def test_questions_and_approval_are_elicitations(restaurant: MCPToolSet) -> None:
    context = Context(replying([("accept", {"allow": "once"}), ("accept", {"dish": "soup"})]))
    assert ask(restaurant, "waiter", "!order", context).content == "ordered soup"
    assert [each.message for each in context.asked] == ["waiter wants to call order with {}.", "What?"]


def test_a_refusal_reaches_the_agent(restaurant: MCPToolSet) -> None:
    for answer in (("accept", {"allow": "no"}), ("decline", {})):
        context = Context(replying([answer]))
        assert "the user has refused it" in ask(restaurant, "waiter", "!order", context).content
    context = Context(replying([("accept", {"allow": "once"}), ("decline", {})]))
    assert ask(restaurant, "waiter", "!order", context).content == "ordered nothing: decline"


def test_a_wrong_answer_is_asked_for_again(restaurant: MCPToolSet) -> None:
    context = Context(replying([("accept", {"allow": "once"}), ("accept", {"dish": "x"}), ("accept", {"dish": "tea"})]))
    assert ask(restaurant, "waiter", "!order", context).content == "ordered tea"
    assert context.asked[2].message.startswith("What?\n(The last answer cannot be used: ")


def test_progress_is_progress(restaurant: MCPToolSet) -> None:
    context = Context(replying([("accept", {"allow": "once"}), ("accept", {"dish": "soup"})]))
    ask(restaurant, "waiter", "!order", context)
    assert [each[0] for each in context.told] == ["waiter calls order", "looking at the card"]


def test_a_page_to_visit(restaurant: MCPToolSet) -> None:
    context = Context(replying([("accept", {})]))
    assert ask(restaurant, "waiter", "!visit", context).content == "accept"
    assert context.asked[0].url == "https://example.org/menu"


def test_a_conversation_goes_on(url: str) -> None:
    """With the SDK's client, which shows the structured content."""

    async def talk() -> None:
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        async with (
            httpx2.AsyncClient(headers={"Authorization": "Bearer sesame"}) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            first = await client.call_tool("echo_desk", {"prompt": "one"})
            assert first.content[0].text == "1: one"
            conversation = first.structured_content["conversation"]
            second = await client.call_tool("echo_desk", {"prompt": "two", "conversation": conversation})
            assert second.content[0].text == "2: two"
            other = await client.call_tool("waiter", {"prompt": "two", "conversation": conversation})
            assert other.is_error
            assert "there is no conversation" in other.content[0].text
            # A client that cannot ask: nobody approves.
            refused = await client.call_tool("waiter", {"prompt": "!order"})
            assert "nobody is there to be asked" in refused.content[0].text
            for wrong in ({}, {"prompt": " "}, {"prompt": 5}):
                assert (await client.call_tool("waiter", wrong)).is_error
            late = await client.call_tool("waiter", {"prompt": "x"}, request_state="guess")
            assert late.is_error
            assert "has ended meanwhile" in late.content[0].text

    asyncio.run(asyncio.wait_for(talk(), 30))


def test_what_agents_print_does_not_disturb_the_protocol(clients: dict[tuple[str, str], MCPToolSet]) -> None:
    toolset = clients["stdio", "2026-07-28"]
    assert ask(toolset, "waiter", "!noise").content == "printed"
    link: Any = toolset._connections[-1]._link
    assert not link.rubbish
    assert eventually(lambda: b"this is not MCP" in link._errors)


def test_a_run_that_fails_is_an_error_of_the_tool(restaurant: MCPToolSet) -> None:
    context = Context(replying([("accept", {"go_on": False})]))
    result = ask(restaurant, "broken", "!noise", context)
    assert result.is_error
    assert "the run has failed" in result.content
    assert "May it take 10 more turns?" in context.asked[0].message


def test_cancelling_a_call_cancels_the_run(restaurant: MCPToolSet, threads: Any) -> None:
    context = Context()
    asleep = threads.go(ask, restaurant, "waiter", "!sleep", context)
    assert eventually(lambda: ("zzz", 2.0, None) in context.told), context.told
    context.cancel.cancel("enough")
    asleep.raises(Cancelled)
    assert ask(restaurant, "echo_desk", "and on").content == "1: and on"


def test_without_the_token_nobody_comes_in(url: str) -> None:
    for headers in ({}, {"Authorization": "Bearer other"}):
        with pytest.raises(MCPServerError, match="HTTP 401"):
            MCPToolSet(url=url, headers=headers).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_signal_ends_it_in_good_order(script: Path, number: int, state: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        say(process, id=1, method="initialize", params=hello)
        assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "restaurant"
        say(process, method="notifications/initialized")
        if state == "busy":
            params = {"name": "waiter", "arguments": {"prompt": "!sleep"}, "_meta": {"progressToken": 1}}
            say(process, id=2, method="tools/call", params=params)
            assert json.loads(process.stdout.readline())["method"] == "notifications/progress"
        since = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=15)
        assert time.monotonic() - since < 10
        assert "Traceback" not in errors
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_as_soon_as_the_address_is_known_ends_it_in_good_order(script: Path, number: int) -> None:
    program = (
        "import os, sys\nfrom runtime import serve\nfrom agents import waiter\n"
        f"serve.mcp(waiter).run_http(port=0, ready=lambda address: os.kill(os.getpid(), {int(number)}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=script.parent, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_half_a_character_in_a_request_does_not_leave_it_without_an_answer(script: Path) -> None:
    """JavaScript writes one where a text was cut."""
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        say(process, id=1, method="initialize", params=hello)
        process.stdout.readline()
        say(process, method="notifications/initialized")
        prompt = "a \ud83d b \U0001f600 \\ud83d"
        say(process, id=2, method="tools/call", params={"name": "echo_desk", "arguments": {"prompt": prompt}})
        said = json.loads(process.stdout.readline())["result"]["content"][0]["text"]
        assert said == "1: a \ufffd b \U0001f600 \\ud83d"
        _, errors = process.communicate(timeout=15)
        assert (process.returncode, "Traceback" in errors) == (0, False)
    finally:
        process.kill()
        process.wait()


def say(process: subprocess.Popen[str], **message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    process.stdin.flush()


def test_the_end_of_its_input_ends_it(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], input="", capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_client_that_does_not_come_back_is_not_waited_for_for_ever() -> None:
    class Asks:
        id = "asks"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            from runtime import ToolCallDelta

            yield ToolCallDelta(0, "c1", "pay", "{}")

    from runtime import tool

    @tool
    def pay() -> str:
        return "paid"

    async def talk(server: Any) -> None:
        from mcp import Client
        from mcp.types import InputRequiredResult

        async def never(*_: Any) -> Any:
            raise NotImplementedError

        async with Client(server._server(), elicitation_callback=never) as client:
            first = await client.session.call_tool("a", {"prompt": "go"}, allow_input_required=True)
            assert isinstance(first, InputRequiredResult)
            [run] = server._runs
            async with asyncio.timeout(10):
                while server._runs:
                    await asyncio.sleep(0.01)
            late = await client.call_tool("a", {"prompt": "go"}, request_state=first.request_state)
            assert late.is_error
            await asyncio.to_thread(run.join, 5)

    with serve.MCPServer(Agent("a", Asks(), tools=[pay]), idle_timeout=1.0) as server:
        asyncio.run(talk(server))


class Silent:
    id = "silent"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: serve.mcp([]), "no agent"),
        (lambda: serve.mcp(5), "an Agent, a Team, or a list of them, not 5"),  # type: ignore[arg-type]
        (lambda: serve.mcp(["x"]), "a list of them; .x. is none"),  # type: ignore[list-item]
        (lambda: serve.mcp([Agent("a", Silent()), Agent("a", Silent())]), "two agents are named 'a'"),
        (lambda: serve.mcp(Agent("a", Silent())).run_http("0.0.0.0"), "token= says who may"),
        (lambda: serve.mcp(Agent("a", Silent())).app(token=""), "the token is empty"),
        (lambda: serve.MCPServer(Agent("a", Silent()), idle_timeout=0), "idle_timeout"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        make()


def test_a_team_is_the_tool_of_its_first_agent() -> None:
    with serve.mcp(Team((Agent("boss", Silent()), Agent("help", Silent())))) as server:
        assert repr(server) == "<MCPServer 'lockgate': boss>"


def test_importing_it_does_not_import_the_sdk(script: Path) -> None:
    source = "import sys; from runtime import serve; sys.exit(any(n.split('.')[0] == 'mcp' for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0


def test_agents_of_one_process_use_agents_of_another(script: Path) -> None:
    """Both ways in one: an agent whose toolset is a server of agents."""
    from runtime import Permissions, Runtime, Session, TextDelta, ToolCallDelta

    class Boss:
        id = "boss"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            if messages[-1].role == "tool":
                yield TextDelta(f"it says {messages[-1].content}")
            else:
                yield ToolCallDelta(0, "c1", "echo_desk", json.dumps({"prompt": messages[-1].content}))

    with running(MCPToolSet([sys.executable, str(script)], name="restaurant")) as restaurant:
        agent = Agent("boss", Boss(), toolsets=[restaurant])
        with Runtime(agent, permissions=Permissions(approve_all=True)) as runtime:
            assert runtime.run(Session.from_user("hello")).text == "it says 1: hello"


def test_the_command_serves_agents(script: Path) -> None:
    noisy = script.with_name("noisy.py")
    noisy.write_text("print('hello from the file')\n" + script.read_text())
    command = [sys.executable, "-m", "runtime.cli", "serve", f"{noisy}:waiter", f"{noisy}:echo", "--mcp"]
    with running(MCPToolSet([*command, "--yes"], name="restaurant")) as restaurant:
        assert {tool.name for tool in restaurant.tools()} == {"waiter", "echo_desk"}
        link: Any = restaurant._connections[-1]._link
        assert not link.rubbish
        context = Context(replying([("accept", {"dish": "soup"})]))
        assert ask(restaurant, "waiter", "!order", context).content == "ordered soup"  # approved by --yes


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{script}:waiter", "--http", "8000"], "--http goes with --mcp"),
        (["{script}:waiter", "--mcp", "--listen", "8000"], "with --mcp, the address is --http"),
        (["{script}:waiter", "--mcp", "--store", "s.db"], "--store .*; with --mcp, sessions are kept in memory only"),
        (["{script}:waiter", "--mcp", "--token", "x"], "--token .*; with --mcp, the token is LOCKGATE_TOKEN"),
        (["{script}:waiter", "--mcp", "--linger", "0"], "--linger .*; with --mcp, a run ends with the call"),
        (["{script}:waiter", "--listen", "0.0.0.0:8000"], "LOCKGATE_TOKEN in the environment"),
        (["{script}:waiter", "--listen", "x"], "an address must be PORT or HOST:PORT"),
        (["{script}:waiter", "--linger", "-1"], "a number of seconds, or forever"),
        (["{script}:waiter", "--no-store", "--store", "s.db"], "leave one of them out"),
        (["{script}:waiter", "{script}:waiter", "--no-store"], "two agents are named 'waiter'"),
        (["nothing.py", "--mcp"], "there is no file nothing.py"),
        (["{script}:waiter", "{script}:waiter", "--mcp"], "two agents are named 'waiter', .*: give one another name"),
        (["{script}:waiter", "--mcp", "--http", "{taken}"], "^error: cannot listen on 127.0.0.1:{taken}: Addr"),
        (["{script}:waiter", "--no-store", "--listen", "{taken}"], "^error: cannot listen on 127.0.0.1:{taken}: Addr"),
        (["{script}:waiter", "--mcp", "--http", "0.0.0.0:8000"], "LOCKGATE_TOKEN in the environment"),
        (["{script}:waiter", "--mcp", "--http", "x"], "an address must be PORT or HOST:PORT"),
    ],
)
def test_what_the_command_cannot_serve(script: Path, arguments: list[str], problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        filled = [each.replace("{script}", str(script)).replace("{taken}", taken) for each in arguments]
        command = [sys.executable, "-m", "runtime.cli", "serve", *filled]
        env = {name: value for name, value in os.environ.items() if name != "LOCKGATE_TOKEN"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(problem.replace("{taken}", taken), done.stderr), done.stderr
