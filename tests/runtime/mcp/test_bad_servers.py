"""Servers on standard input and output that do what no server should: each ends in an error that says so, in time, and
no process is left. (Those that die, hang at start, resist signals or crash have their tests in test_mcp.py; those over
HTTP in test_http.py.)
"""

from __future__ import annotations

import gc
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.mcp import MCPServerError, MCPToolSet
from support.mcp import Context, call, children, running, tasks
from support.mcp_stdio import small_server
from support.waiting import eventually

pytest.importorskip("mcp")

ODD = """
tools = [tool(name) for name in ("echo", "rubbish", "shout", "wrong", "foreign", "big", "huge", "progress", "logs")]
def call(id, name, arguments):
    if name == "rubbish":  # 20 MB of it
        for _ in range(2000):
            sys.stdout.write("x" * 10_000 + "\\n")
    elif name == "shout":
        for _ in range(2000):
            sys.stderr.write("y" * 10_000 + "\\n")
        sys.stderr.flush()
    elif name == "wrong":
        return text(id + 1_000_000, "for nobody")
    elif name == "foreign":
        return text("seven", "for nobody")
    elif name == "big":
        return text(id, "z" * 50_000_000)
    elif name == "huge":
        return text(id, "z" * 70_000_000)
    elif name == "progress":
        for step in range(20_000):
            say(method="notifications/progress", params={"progressToken": token(), "progress": step})
    elif name == "logs":
        for step in range(5_000):
            say(method="notifications/message", params={"level": "info", "data": "l" * 1000})
    text(id, name)
def token():
    return params["_meta"]["progressToken"]
"""

DEAF = """
tools = [tool("echo")]
def call(id, name, arguments):
    text(id, "heard")
    time.sleep(60)  # and reads no more
"""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = children(), tasks()
    yield
    assert eventually(lambda: children() <= before[0]), children() - before[0]
    assert eventually(lambda: tasks() <= before[1]), tasks() - before[1]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MCPToolSet]:
    toolset = MCPToolSet(small_server(tmp_path_factory.mktemp("odd"), ODD), name="odd")
    with running(toolset):
        toolset.start()
        yield toolset


def seconds(function: Callable[[], object]) -> float:
    since = time.monotonic()
    function()
    return time.monotonic() - since


@pytest.mark.parametrize("name", ["rubbish", "shout", "logs"])
def test_a_flood_beside_the_answer_is_let_through(odd: MCPToolSet, name: str) -> None:
    assert call(odd, name).content == name
    assert call(odd, "echo").content == "echo"


def test_a_flood_of_progress_is_thinned_out_and_holds_no_memory(odd: MCPToolSet) -> None:
    context = Context()
    assert call(odd, "progress", context).content == "progress"
    assert 0 < len(context.told) <= 20_000


@pytest.mark.parametrize("name", ["wrong", "foreign"])
def test_an_answer_with_another_id_is_an_error_at_once(odd: MCPToolSet, name: str) -> None:
    with pytest.raises(MCPServerError, match="answered a call that nobody made"):
        call(odd, name)
    assert call(odd, "echo").content == "echo"


def test_an_answer_of_50_megabytes_comes_whole(odd: MCPToolSet) -> None:
    assert len(call(odd, "big").content) == 50_000_000


def test_an_answer_that_is_too_large_ends_the_connection(tmp_path: Path) -> None:
    """There is no telling where the next one begins."""
    with running(MCPToolSet(small_server(tmp_path, ODD), name="odd")) as odd:
        with pytest.raises(MCPServerError, match="more than 64 MB"):
            call(odd, "huge")
        assert call(odd, "echo").content == "echo"


def test_a_server_that_reads_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.mcp._connection.PONG", 0.3)  # for so long the next call waits for an old one's end
    toolset = MCPToolSet(small_server(tmp_path, DEAF), name="deaf", call_timeout=1)
    with running(toolset):
        assert call(toolset, "echo").content == "heard"
        for size in (10, 10_000_000):  # into its pipe, and more than that takes
            with pytest.raises(MCPServerError, match=r"has not finished echo after 1 s"):
                call(toolset, "echo", text="x" * size)
        took = seconds(toolset.stop)
    assert took < 20


def test_a_server_that_reads_nothing_from_the_start(tmp_path: Path) -> None:
    toolset = MCPToolSet(small_server(tmp_path, "time.sleep(60)\ndef call(*a): pass"), name="deaf", startup_timeout=0.5)

    def start() -> None:
        with pytest.raises(MCPServerError, match=r"no answer within 0\.5 s"):
            toolset.start()

    assert seconds(start) < 5


def test_a_flood_at_the_start_is_bounded_by_the_time_to_start(tmp_path: Path) -> None:
    body = "while True:\n    sys.stdout.write('x' * 1000 + '\\n')\ndef call(*a): pass"
    toolset = MCPToolSet(small_server(tmp_path, body), name="flood", startup_timeout=1)

    def start() -> None:
        with pytest.raises(MCPServerError, match=r"no answer within 1 s.*it wrote: xxx"):
            toolset.start()

    assert seconds(start) < 8


def test_a_start_that_is_given_up_while_the_system_makes_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(*args, **options)
        time.sleep(0.5)  # as long as that takes here
        return process

    monkeypatch.setattr("runtime.mcp._child.Popen", slow)
    toolset = MCPToolSet(small_server(tmp_path, DEAF), name="slow", startup_timeout=0.1)
    with pytest.raises(MCPServerError, match=r"no answer within 0\.1 s"):
        toolset.start()
    gc.collect()  # which finds pipes that nobody has closed
