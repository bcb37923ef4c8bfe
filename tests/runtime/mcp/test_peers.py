"""MCP servers that others wrote. Some are installed with the tests, some by `make peers`; what is not, is skipped."""

from __future__ import annotations

import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.agent import Answer
from runtime.mcp import MCPServerError, MCPToolSet
from support.mcp import Context, call, children, running
from support.mcp_http import served
from support.waiting import eventually

pytest.importorskip("mcp")

PEERS = Path(__file__).parents[3] / ".peers"
OLD_PYTHON = PEERS / "mcp1" / "bin" / "python"
NPM = PEERS / "npm" / "node_modules" / ".bin"

needs_old = pytest.mark.skipif(not OLD_PYTHON.exists(), reason="make peers installs the SDK of the older generation")


def npm(name: str) -> Any:
    return pytest.mark.skipif(not (NPM / name).exists(), reason=f"make peers installs {name}, where there is npm")


def module(name: str) -> list[str]:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: it is of the extra peers")
    return [sys.executable, "-m", name]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = children()
    yield
    assert eventually(lambda: children() <= before), children() - before


def test_mcp_server_time() -> None:
    command = [*module("mcp_server_time"), "--local-timezone", "Europe/Berlin"]
    with running(MCPToolSet(command, name="time", prefix="t_")) as clock:
        assert {tool.name for tool in clock.tools()} == {"t_get_current_time", "t_convert_time"}
        arguments = {"source_timezone": "Europe/Berlin", "time": "12:00", "target_timezone": "Asia/Tokyo"}
        told = json.loads(call(clock, "t_convert_time", **arguments).content)
        assert told["target"]["timezone"] == "Asia/Tokyo"
        wrong = call(clock, "t_get_current_time", timezone="Mars/Olympus")
        assert wrong.is_error


def test_mcp_server_git(tmp_path: Path) -> None:
    command = [*module("mcp_server_git"), "--repository", str(tmp_path)]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a.txt").write_text("one\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first of all"], check=True)
    (tmp_path / "a.txt").write_text("two\n")
    with running(MCPToolSet(command, name="git", roots=[tmp_path], tools=["git_*"])) as server:
        tools = {tool.name: tool for tool in server.tools()}
        assert tools["git_status"].read_only
        assert not tools["git_commit"].read_only
        assert "a.txt" in call(server, "git_status", repo_path=str(tmp_path)).content
        assert "first of all" in call(server, "git_log", repo_path=str(tmp_path)).content
        assert "+two" in call(server, "git_diff_unstaged", repo_path=str(tmp_path)).content


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html><body><h1>Menu</h1><p>Soup of the day</p></body></html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def test_mcp_server_fetch() -> None:
    command = [*module("mcp_server_fetch"), "--allow-private-ips", "--ignore-robots-txt"]
    site = http.server.HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    try:
        with running(MCPToolSet(command, name="fetch", prompt_tools=True)) as fetch:
            url = f"http://127.0.0.1:{site.server_port}/menu"
            assert "Soup of the day" in call(fetch, "fetch", url=url).content
            assert any(each.name == "fetch" for each in fetch.list_prompts())
            [message] = fetch.get_prompt("fetch", url=url)
            assert "Soup of the day" in message.content
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


FASTMCP = """
import sys
from mcp.server.fastmcp import Context, FastMCP, Image
from pydantic import BaseModel

server = FastMCP("old", log_level="ERROR", port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)

class Order(BaseModel):
    dish: str

@server.tool()
async def order(ctx: Context) -> str:
    answer = await ctx.elicit("What?", schema=Order)
    return answer.data.dish if answer.action == "accept" else answer.action

@server.tool()
async def count(ctx: Context, to: int) -> int:
    for step in range(to):
        await ctx.report_progress(step, to, f"at {step}")
    return to

@server.tool()
def picture() -> Image:
    return Image(data=b"\\x89PNG\\r\\n\\x1a\\n" + bytes(100), format="png")

@server.tool()
def fail() -> str:
    raise ValueError("out of soup")

@server.resource("menu://today")
def menu() -> str:
    return "soup"

server.run(sys.argv[1] if len(sys.argv) > 1 else "stdio")
"""


@pytest.fixture(scope="module", params=["stdio", "streamable-http", "sse"])
def old(request: pytest.FixtureRequest) -> Iterator[MCPToolSet]:
    """A FastMCP server, as they were before the newer generation."""
    if not OLD_PYTHON.exists():
        pytest.skip("make peers installs the SDK of the older generation")
    options: dict[str, Any] = {"name": "old", "resource_tools": True}
    if request.param == "stdio":
        with running(MCPToolSet([str(OLD_PYTHON), "-c", FASTMCP], **options)) as toolset:
            toolset.start()
            yield toolset
        return
    # The port is chosen by a process that tells it, and becomes the server.
    launch = f"""
import os, socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
print(port, flush=True)
os.execv({str(OLD_PYTHON)!r}, [{str(OLD_PYTHON)!r}, "-c", {FASTMCP!r}, {request.param!r}, str(port)])
"""
    with served(launch) as (address, _):
        toolset = MCPToolSet(url=f"{address}/{'sse' if request.param == 'sse' else 'mcp'}", **options)
        assert eventually(lambda: is_up(toolset), 30)
        with running(toolset):
            yield toolset


def is_up(toolset: MCPToolSet) -> bool:
    try:
        toolset.start()
    except MCPServerError:
        return False
    return True


def test_a_fastmcp_server_of_the_older_generation(old: MCPToolSet) -> None:
    assert old._connections[-1].version < "2026"
    context = Context(lambda question: Answer("accept", {"dish": "soup"}))
    assert call(old, "order", context).content == "soup"
    assert call(old, "order", Context(lambda question: Answer("decline"))).content == "decline"
    context = Context()
    assert call(old, "count", context, to=3).content == "3"
    assert [each[0] for each in context.told] == ["at 0", "at 1", "at 2"]
    assert len(call(old, "picture").images) == 1
    failed = call(old, "fail")
    assert failed.is_error
    assert "out of soup" in failed.content
    assert "soup" in call(old, "read_resource", uri="menu://today").content


@needs_old
def test_mcp_server_sqlite(tmp_path: Path) -> None:
    command = [str(OLD_PYTHON.with_name("mcp-server-sqlite")), "--db-path", str(tmp_path / "shop.db")]
    with running(MCPToolSet(command, name="sqlite", startup_timeout=60)) as database:
        call(database, "create_table", query="create table parts (name text)")
        call(database, "write_query", query="insert into parts values ('bolt')")
        assert "bolt" in call(database, "read_query", query="select * from parts").content
        assert database.list_resources()


@npm("mcp-server-everything")
@pytest.mark.parametrize("way", ["stdio", "streamableHttp"])
def test_server_everything(way: str) -> None:
    command = [str(NPM / "mcp-server-everything")]
    options: dict[str, Any] = {"name": "everything", "prompt_tools": True, "resource_tools": True, "sampling": True}
    if way == "stdio":
        with running(MCPToolSet(command, **options)) as toolset:
            everything(toolset)
        return
    launch = f"""
import os, socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
print(port, flush=True)
os.environ["PORT"] = str(port)
os.execv({command[0]!r}, [{command[0]!r}, "streamableHttp"])
"""
    with served(launch) as (address, _):
        toolset = MCPToolSet(url=f"{address}/mcp", **options)
        assert eventually(lambda: is_up(toolset), 30)
        with running(toolset):
            everything(toolset)


def everything(toolset: MCPToolSet) -> None:
    names = {tool.name for tool in toolset.tools()}
    assert {"echo", "list_prompts", "read_resource"} <= names
    assert "hello" in call(toolset, "echo", message="hello").content
    assert "5" in call(toolset, "get-sum", a=2, b=3).content
    assert call(toolset, "get-tiny-image").images
    assert toolset.list_prompts()
    assert toolset.list_resources()
    context = Context()
    call(toolset, "trigger-long-running-operation", context, duration=0.3, steps=3)
    assert context.told


@npm("mcp-server-filesystem")
def test_server_filesystem(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    command = [str(NPM / "mcp-server-filesystem"), str(tmp_path)]
    with running(MCPToolSet(command, name="files")) as files:
        tools = {tool.name: tool for tool in files.tools()}
        assert tools["read_text_file"].read_only
        assert tools["write_file"].destructive
        assert "one" in call(files, "read_text_file", path=str(tmp_path / "a.txt")).content
        call(files, "write_file", path=str(tmp_path / "b.txt"), content="two")
        assert (tmp_path / "b.txt").read_text() == "two"
        assert call(files, "read_text_file", path="/etc/passwd").is_error


@npm("mcp-server-memory")
def test_server_memory(tmp_path: Path) -> None:
    env = {"MEMORY_FILE_PATH": str(tmp_path / "memory.json")}
    with running(MCPToolSet([str(NPM / "mcp-server-memory")], name="memory", env=env)) as memory:
        entity = {"name": "Ann", "entityType": "person", "observations": ["likes soup"]}
        call(memory, "create_entities", entities=[entity])
        assert "likes soup" in call(memory, "search_nodes", query="soup").content
