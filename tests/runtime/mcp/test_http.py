"""MCP servers over HTTP: streamable HTTP in both generations of the protocol, and SSE. The servers run in processes."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from channels import Cancelled
from runtime.mcp import MCPServerError, MCPToolSet
from support.mcp import Context, books, call, children, running, tasks
from support.mcp_http import BAD, BOOKING, ROOT, served
from support.waiting import eventually

pytest.importorskip("mcp")

WAYS = [("http", "2026-07-28"), ("http", "legacy"), ("sse", "legacy")]


@pytest.fixture(scope="module")
def booking_url() -> Iterator[str]:
    with served(BOOKING, [str(ROOT / "examples")]) as (url, _):
        yield url


@pytest.fixture(scope="module")
def bad_url() -> Iterator[str]:
    with served(BAD) as (url, _):
        yield url


@pytest.fixture(scope="module")
def desks(booking_url: str) -> Iterator[dict[tuple[str, str], MCPToolSet]]:
    made = {
        (kind, mode): MCPToolSet(
            url=f"{booking_url}/{'sse' if kind == 'sse' else 'mcp'}", name="booking", transport=kind, mode=mode
        )
        for kind, mode in WAYS
    }
    try:
        yield made
    finally:
        for toolset in made.values():
            toolset.stop()


@pytest.fixture(params=WAYS, ids="-".join)
def desk(request: pytest.FixtureRequest, desks: dict[tuple[str, str], MCPToolSet]) -> MCPToolSet:
    desks[request.param].start()
    return desks[request.param]


@pytest.fixture(autouse=True)
def nothing_is_left(booking_url: str, bad_url: str) -> Iterator[None]:
    before = children(), tasks()
    yield
    assert eventually(lambda: children() <= before[0]), children() - before[0]


def bad(url: str, how: str, **options: Any) -> MCPToolSet:
    return MCPToolSet(url=f"{url}/{how}", name="bad", **options)


# -- what works --------------------------------------------------------------------------------------------------------


def test_tools_are_listed_and_called(desk: MCPToolSet) -> None:
    assert {tool.name for tool in desk.tools()} >= {"book_table", "opening_hours"}
    assert call(desk, "opening_hours", restaurant="Sakura").content.startswith("Sakura is open")


def test_the_user_is_asked_in_the_middle_of_a_call(desk: MCPToolSet) -> None:
    context = Context(books())
    result = call(desk, "book_table", context, restaurant="Luigi's")
    assert result.content.startswith("Booked: Luigi's, 2026-12-24, 2 people")
    assert len(context.asked) == 2


def test_progress_comes_while_the_call_runs(desk: MCPToolSet) -> None:
    context = Context()
    assert "free" in call(desk, "wait_for_table", context, seconds=0.2).content
    assert len(context.told) >= 8


def test_a_large_result_comes_whole(desks: dict[tuple[str, str], MCPToolSet]) -> None:
    assert len(call(desks["http", "2026-07-28"], "large", size=3_000_000).content) == 3_000_000


def test_headers_go_with_every_request(booking_url: str) -> None:
    with running(MCPToolSet(url=f"{booking_url}/mcp", headers={"X-Team": "blue"})) as desk:
        assert call(desk, "header", name="x-team").content == "blue"


def test_questions_of_calls_side_by_side_reach_their_own_callers_over_http(
    desks: dict[tuple[str, str], MCPToolSet], threads: Any
) -> None:
    """Also in the older generation: over HTTP the answer to a call carries its questions."""
    desk = desks["http", "legacy"]
    contexts = [Context(books(people=number + 1), session_id=f"s{number}") for number in range(6)]
    made = [threads.go(call, desk, "book_table", each, restaurant=f"R{i}") for i, each in enumerate(contexts)]
    for number, task in enumerate(made):
        assert task.result().content.startswith(f"Booked: R{number}, 2026-12-24, {number + 1} pe")
        assert all(f"R{number}" in question.message for question in contexts[number].asked)


def test_which_transport_and_generation_a_server_speaks_is_found_out_and_kept(booking_url: str) -> None:
    for path, kind, mode in [("mcp", "http", "2026-07-28"), ("sse", "sse", "legacy")]:
        with running(MCPToolSet(url=f"{booking_url}/{path}")) as desk:
            desk.start()
            way = desk._connections[-1].way
            assert way is not None
            assert (way.kind, way.mode) == (kind, mode)
            desk.stop()
            desk.start()
            assert desk._ways()[0] == desk._connections[-1].way == way


def test_cancelling_a_call_reaches_the_server(desks: dict[tuple[str, str], MCPToolSet], threads: Any) -> None:
    desk = desks["http", "2026-07-28"]
    context = Context()
    waiting = threads.go(call, desk, "wait_for_table", context, seconds=60)
    assert eventually(lambda: "1 waiting" in call(desk, "opening_hours", restaurant="Sakura").content)
    context.cancel.cancel("enough")
    with pytest.raises(Cancelled):
        waiting.result()
    assert eventually(lambda: "0 waiting" in call(desk, "opening_hours", restaurant="Sakura").content)


@pytest.mark.parametrize(("kind", "mode"), WAYS)
def test_a_server_that_dies_and_comes_back(kind: str, mode: str, threads: Any) -> None:
    with served(BOOKING, [str(ROOT / "examples")]) as (url, process):
        path = "sse" if kind == "sse" else "mcp"
        toolset = MCPToolSet(url=f"{url}/{path}", name="booking", mode=mode, startup_timeout=5)
        with running(toolset) as desk:
            context = Context()
            waiting = threads.go(call, desk, "wait_for_table", context, seconds=60)
            assert eventually(lambda: context.told)
            process.kill()
            process.wait()  # its connections are closed one after the other
            with pytest.raises(MCPServerError, match=r"did not answer|closed the connection|stream ended|reached"):
                waiting.result()
            with pytest.raises(MCPServerError, match="cannot be reached"):
                call(desk, "opening_hours", restaurant="Sakura")
            port = url.rpartition(":")[2]
            with served(BOOKING, [str(ROOT / "examples"), port]):
                assert eventually(lambda: is_open(desk))  # it gets a pause first


def is_open(desk: MCPToolSet) -> bool:
    try:
        return "open" in call(desk, "opening_hours", restaurant="Sakura").content
    except MCPServerError:
        return False


# -- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("unauthorized", r"HTTP 401 Unauthorized: no token\. .*headers="),
        ("broken", r"HTTP 500 Internal Server Error: Oh no at http://127"),
        ("silent", r"no answer from http://127.* within 0\.7 s"),
        ("elsewhere", r"Redirect to http://example.org/mcp not followed|redirect elsewhere"),
        ("page", r"Unexpected content type"),
        ("rubbish", r"cannot be read"),
        ("huge_start", r"more than 64 MB"),
    ],
)
def test_a_start_that_fails_says_why(bad_url: str, how: str, problem: str) -> None:
    since = time.monotonic()
    with pytest.raises(MCPServerError, match=problem):
        bad(bad_url, how, startup_timeout=0.7 if how == "silent" else 20).start()
    assert time.monotonic() - since < 15


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(MCPServerError, match=r"cannot be reached: .* at http://127\.0\.0\.1:1/mcp$"):
        MCPToolSet(url="http://user:secret@127.0.0.1:1/mcp?key=secret").start()


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("call_fails", "HTTP 500 Internal Server Error: the database is away"),
        ("wrong_id", "answered a call that nobody made: id 999"),
        ("huge", "more than 64 MB"),
        ("many", "more than 100,000 values"),
        ("many_event", "more than 100,000 values"),
        ("hangs", "has not finished go after 0.5 s"),
        ("cut", "did not answer"),
        ("cut_event", "ended without a response"),
        ("endless", "has not finished go after 0.5 s"),
        ("endless_event", "SSE stream failed"),
    ],
)
def test_a_call_that_fails_says_why_and_costs_no_other(bad_url: str, how: str, problem: str) -> None:
    patience = 0.5 if "0.5" in problem else 20.0
    with running(bad(bad_url, how, call_timeout=patience)) as toolset:
        for _ in range(2):  # and the session is as good as before
            with pytest.raises(MCPServerError, match=problem):
                call(toolset, "go")
        assert len(toolset._connections) == 1


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("batch", "from a list"),
        ("half", "half \ufffd"),
        ("half_event", "half \ufffd"),
        ("mixed_event", "mixed"),
        ("sessionless", "gone well"),
    ],
)
def test_what_hosts_do_otherwise_is_understood(bad_url: str, how: str, text: str) -> None:
    with running(bad(bad_url, how)) as toolset:
        assert call(toolset, "go").content == text


@pytest.mark.parametrize("how", ["expires", "expires_400"])
def test_a_session_that_has_expired_is_begun_anew(how: str) -> None:
    with served(BAD) as (url, _), running(bad(url, how)) as toolset:
        toolset.start()
        if how == "expires":
            assert call(toolset, "go").content == "gone well"
            assert len(seen(url, "initialize")) == 2
        else:  # it says so of every session: no more than one other is tried
            with pytest.raises(MCPServerError, match="has ended the session"):
                call(toolset, "go")


def seen(url: str, method: str) -> list[Any]:
    with urllib.request.urlopen(f"{url}/seen") as answer:
        return [each for each in json.load(answer) if each[1] == method]


def test_a_server_that_does_not_let_its_session_end_holds_nobody_up(bad_url: str) -> None:
    toolset = bad(bad_url, "mute_end")
    toolset.start()
    since = time.monotonic()
    toolset.stop()
    assert time.monotonic() - since < 4


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "neither is given"),
        ({"command": ["x"], "url": "http://x"}, "both are given"),
        ({"url": "http:///mcp"}, "name a host"),
        ({"url": "example.org/mcp"}, "begin with https://"),
        ({"url": "ftp://example.org"}, "begin with https://"),
        ({"url": "http://example.org:99999/"}, "no address"),
        ({"url": "http://example.org/ mcp"}, "a space"),
        ({"url": 5}, "text"),
        ({"url": "http://x", "env": {"a": "b"}}, "has no env="),
        ({"url": "http://x", "cwd": "/"}, "has no cwd="),
        ({"command": ["x"], "headers": {"a": "b"}}, "has no headers="),
        ({"command": ["x"], "transport": "sse"}, "has no transport="),
        ({"url": "http://x", "transport": "carrier pigeon"}, "transport must be"),
        ({"url": "http://x", "transport": "sse", "mode": "2026-07-28"}, "older generation"),
        ({"url": "http://x", "headers": {"a b": "c"}}, "name of a header"),
        ({"url": "http://x", "headers": {"a": "secret\n"}}, r"^headers\['a'\] has characters in it that"),
        ({"url": "http://x", "headers": {"a": 5}}, "must be text"),
        ({"url": "http://x", "auth": "token"}, "a token goes into headers="),
    ],
)
def test_wrong_settings_are_refused_where_they_are_given(options: dict[str, Any], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        MCPToolSet(**options)
