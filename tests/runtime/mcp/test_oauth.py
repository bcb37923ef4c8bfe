"""Signing in to a remote server: against a real authorization server on this machine, with a browser that agrees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from channels import Cancelled
from runtime import Agent, NotPending, Permissions, Runtime, Session, TextDelta, ToolCallDelta, events
from runtime.mcp import MCPServerError, MCPToolSet, OAuth
from runtime.mcp._sign_in import Provider
from runtime.mcp._tokens import TokenStore
from support.mcp import Context, call, children, running
from support.mcp_http import GUARDED, served
from support.waiting import eventually

pytest.importorskip("mcp")

EVERYTHING = Permissions(approve_all=True)
LONG = 10.0  # seconds after which something will never happen


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with served(GUARDED, ["3600", "agree"]) as (url, _):
        yield url


@pytest.fixture(autouse=True)
def nothing_is_left(guarded: str) -> Iterator[None]:
    before = children()
    yield
    assert eventually(lambda: children() <= before), children() - before


class Caller:
    id = "caller"

    def __init__(self, name: str = "secret", arguments: str = "{}") -> None:
        self.name, self.arguments = name, arguments
        self.system = ""

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        self.system = "\n".join(each.content for each in messages if each.role == "system")
        if messages[-1].role == "tool" or not tools:
            yield TextDelta(messages[-1].content)
        else:
            yield ToolCallDelta(0, "c1", self.name, self.arguments)


def browse(url: str) -> str:
    """What a browser does, whose user agrees."""
    with urllib.request.urlopen(url) as page:
        return page.read().decode()


def log(url: str) -> list[str]:
    return list(json.loads(browse(f"{url}/log")))


def toolset(url: str, file: Path, **options: Any) -> MCPToolSet:
    return MCPToolSet(url=f"{url}/mcp", name="guarded", auth=OAuth(file=file, **options))


def signed_in(made: MCPToolSet, model: Any, answer: str = "accept") -> list[Any]:
    """The events of a run in which the user is sent to a page."""
    with Runtime(Agent("a", model, toolsets=[made]), permissions=EVERYTHING) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        said = []
        for event in stream:
            said.append(event)
            if isinstance(event, events.ElicitationRequest):
                if answer == "accept":
                    assert "signed in" in browse(event.url)
                stream_answers(stream, event, answer)
        return said


def stream_answers(stream: Any, event: Any, answer: str) -> None:
    with contextlib.suppress(NotPending):  # the browser was there before the answer: nobody waits for it any more
        stream.respond(event, answer)


def text(said: list[Any]) -> str:
    return "".join(each.content for each in said if isinstance(each, events.AgentChoice))


def statuses(said: list[Any]) -> list[str]:
    return [each.status for each in said if isinstance(each, events.AuthorizationEvent)]


def test_the_user_signs_in_in_the_open_stream(guarded: str, tmp_path: Path) -> None:
    before = len(log(guarded))
    said = signed_in(toolset(guarded, tmp_path / "token"), Caller())
    assert text(said) == "the cake is a lie"
    assert statuses(said) == ["required", "granted"]
    [asked] = [each for each in said if isinstance(each, events.ElicitationRequest)]
    assert (asked.mode, asked.server, asked.message) == ("url", "guarded", "Sign in to guarded")
    assert "code_challenge_method=S256" in asked.url
    assert log(guarded)[before:] == ["register", "authorize", "code"]


def test_what_it_brings_is_kept_where_only_the_user_reads_it(guarded: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    signed_in(toolset(guarded, file), Caller())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert os.listdir(file.parent) == ["token"]
    before = log(guarded)
    with running(toolset(guarded, file)) as again:  # as in the next process, and without anyone to ask
        again.start()
        assert call(again, "secret").content == "the cake is a lie"
    assert log(guarded) == before


def test_a_token_that_has_ended_is_renewed_without_asking(tmp_path: Path) -> None:
    with served(GUARDED, ["5", "agree"]) as (url, _):  # shorter than the time before its end at which it is renewed
        file = tmp_path / "token"
        signed_in(toolset(url, file), Caller())
        done = len(log(url))
        with running(toolset(url, file)) as again:  # another process: it knows when, and where
            again.start()
            assert call(again, "secret").content == "the cake is a lie"
        assert set(log(url)[done:]) == {"refresh"}


def test_a_token_that_is_refused_is_renewed_without_asking(guarded: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    signed_in(toolset(guarded, file), Caller())
    with running(toolset(guarded, file)) as again:
        again.start()
        before = len(log(guarded))
        browse(f"{guarded}/revoke_all")
        assert call(again, "secret").content == "the cake is a lie"
        assert log(guarded)[before:] == ["refresh"]


def test_a_call_asks_its_own_user_to_sign_in_again(guarded: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    made = toolset(guarded, file)
    model = Caller()
    with Runtime(Agent("a", model, toolsets=[made]), permissions=EVERYTHING) as runtime:
        first = runtime.run_stream(Session.from_user("go"))
        for event in first:
            if isinstance(event, events.ElicitationRequest):
                browse(event.url)
        browse(f"{guarded}/revoke_all?refresh=1")
        said = []
        second = runtime.run_stream(Session.from_user("go"))
        for event in second:
            said.append(event)
            if isinstance(event, events.ElicitationRequest):
                assert event.session_id == second.session.id
                browse(event.url)
        assert text(said) == "the cake is a lie"
        assert statuses(said) == ["required", "granted"]


def test_a_user_who_does_not_want_to_is_not_asked_twice(guarded: str, tmp_path: Path) -> None:
    said = signed_in(toolset(guarded, tmp_path / "token"), Caller(), "decline")
    assert len([each for each in said if isinstance(each, events.ElicitationRequest)]) == 1
    assert statuses(said) == ["required", "failed"]
    [error] = [each for each in said if isinstance(each, events.Error)]
    assert "wants the user to sign in, which has failed: the user does not want to sign in" in error.error


def test_a_sign_in_that_is_refused_says_so(tmp_path: Path) -> None:
    with served(GUARDED, ["3600", "refuse"]) as (url, _):
        made = toolset(url, tmp_path / "token")
        with Runtime(Agent("a", Caller(), toolsets=[made])) as runtime:
            said = []
            for event in runtime.run_stream(Session.from_user("go")):
                said.append(event)
                if isinstance(event, events.ElicitationRequest):
                    assert "not signed in" in browse(event.url)
    [error] = [each for each in said if isinstance(each, events.Error)]
    assert "the sign-in was refused: not you" in error.error


def test_where_nobody_can_be_asked_the_model_is_told(guarded: str, tmp_path: Path) -> None:
    model = Caller()
    with Runtime(Agent("a", model, toolsets=[toolset(guarded, tmp_path / "token")])) as runtime:
        said = list(runtime.run_stream(Session.from_user("go"), interactive=False))
    assert said[-1].reason == "normal"
    assert "The tools of guarded are not there" in model.system
    assert "nobody is there to be asked" in model.system


def test_without_a_stream_the_error_says_where_to_sign_in(guarded: str, tmp_path: Path) -> None:
    with pytest.raises(MCPServerError, match=r"sign in at http://127.*/authorize\?.*nobody is there to be asked"):
        toolset(guarded, tmp_path / "token").start()


def test_nobody_signs_in_in_time(guarded: str, tmp_path: Path) -> None:
    made = toolset(guarded, tmp_path / "token", timeout=0.2)
    with Runtime(Agent("a", Caller(), toolsets=[made])) as runtime:
        said = list(runtime.run_stream(Session.from_user("go")))
    [error] = [each for each in said if isinstance(each, events.Error)]
    assert "nobody has signed in within 0.2 s" in error.error


def test_a_stream_that_is_cancelled_takes_the_question_back(guarded: str, tmp_path: Path) -> None:
    made = toolset(guarded, tmp_path / "token")
    with Runtime(Agent("a", Caller(), toolsets=[made])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        asked = next(each for each in stream if isinstance(each, events.ElicitationRequest))
        stream.cancel()
        assert list(stream)[-1].reason == "canceled"
        assert eventually(lambda: is_closed(asked.url))


@pytest.mark.parametrize("steps", range(6))
def test_a_browser_that_comes_as_the_sign_in_ends_has_its_reply(tmp_path: Path, steps: int) -> None:
    """Whatever step of the loop it is that the browser comes in: it is told something, or that nobody is there."""

    async def reply() -> bytes:
        provider = Provider("http://127.0.0.1:9/mcp", OAuth(file=tmp_path / "token"), no_user)
        async with provider._listening():
            browser = socket.create_connection(("127.0.0.1", provider._kept.port_at_hand))
            browser.sendall(b"GET /callback?code=x HTTP/1.1\r\n\r\n")
            for _ in range(steps):
                await asyncio.sleep(0)
        with browser:
            browser.settimeout(LONG)
            try:
                return await asyncio.to_thread(browser.recv, 100)
            except ConnectionError:
                return b""

    said = asyncio.run(reply())
    assert not said or said.startswith(b"HTTP/1.1 404")


def no_user(url: str) -> Any:
    raise NotImplementedError


def is_closed(url: str) -> bool:
    """Whether nobody waits for the browser any more."""
    try:
        browse(url)
    except (urllib.error.URLError, ConnectionError):
        return True
    return False


def test_who_does_not_know_the_state_cannot_end_a_sign_in(guarded: str, tmp_path: Path) -> None:
    made = toolset(guarded, tmp_path / "token")
    with Runtime(Agent("a", Caller(), toolsets=[made]), permissions=EVERYTHING) as runtime:
        said = []
        for event in runtime.run_stream(Session.from_user("go")):
            said.append(event)
            if isinstance(event, events.ElicitationRequest):
                back = urllib.request.Request(event.url).selector
                port = back.partition("127.0.0.1%3A")[2].partition("%2F")[0]
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    browse(f"http://127.0.0.1:{port}/callback?code=evil&state=guess")
                browse(event.url)
    assert text(said) == "the cake is a lie"


def test_calls_with_a_good_token_do_not_wait_for_each_other(guarded: str, tmp_path: Path, threads: Any) -> None:
    """The server's answers are plain JSON, so that nothing of one comes before its end."""
    file = tmp_path / "token"
    signed_in(toolset(guarded, file), Caller())
    with running(toolset(guarded, file)) as made:
        made.start()
        context = Context()
        slow = threads.go(call, made, "slow", context, seconds=60)
        assert eventually(lambda: made._connections[-1]._in_flight or made._connections[-1]._open)
        assert call(made, "secret").content == "the cake is a lie"
        assert slow.running
        context.cancel.cancel()
        slow.raises(Cancelled)


def test_signing_out_forgets_it(guarded: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    made = toolset(guarded, file)
    signed_in(made, Caller())
    made.sign_out()
    assert not file.exists()
    with pytest.raises(MCPServerError, match="nobody is there to be asked"):
        made.start()
    with pytest.raises(TypeError, match=r"no auth=OAuth\(\)"):
        MCPToolSet(["x"]).sign_out()


class Ring:
    """A keyring."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.thread = 0

    priority = 1

    def get_password(self, service: str, name: str) -> str | None:
        self.thread = threading.get_ident()
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, password: str) -> None:
        self.kept[service, name] = password

    def delete_password(self, service: str, name: str) -> None:
        del self.kept[service, name]


def test_the_keyring_is_used_where_there_is_one(guarded: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keyring = pytest.importorskip("keyring")
    ring = Ring()
    monkeypatch.setattr(keyring, "get_keyring", lambda: ring)
    for name in ("get_password", "set_password", "delete_password"):
        monkeypatch.setattr(keyring, name, getattr(ring, name))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    made = MCPToolSet(url=f"{guarded}/mcp", name="guarded", auth=OAuth())
    assert text(signed_in(made, Caller())) == "the cake is a lie"
    [(service, name)] = ring.kept
    assert (service, name) == ("lockgate MCP sign-in", f"{guarded}/mcp")
    assert not list(tmp_path.iterdir())
    made.sign_out()
    assert not ring.kept


def test_a_file_that_is_broken_is_as_none(tmp_path: Path) -> None:
    for content in (b"\xff", b"[]", b"{", b"1" * 2_000_000):
        (tmp_path / "token").write_bytes(content)
        assert TokenStore("x", tmp_path / "token").load() == {}


def test_without_a_keyring_there_is_a_file_in_the_user_s_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(TokenStore, "_keyring", lambda self: None)
    store = TokenStore("https://example.org/mcp")
    store.save({"a": 1})
    [file] = (tmp_path / "lockgate" / "mcp").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert TokenStore("https://example.org/mcp").load() == {"a": 1}
    assert TokenStore("https://example.org/other").load() == {}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"client_secret": "s"}, "belongs to a client_id"),
        ({"client_id": 5}, "client_id must be text"),
        ({"redirect_port": 70_000}, "redirect_port"),
        ({"timeout": 0}, "timeout"),
        ({"client_metadata_url": "http://x/y"}, "client_metadata_url must be the https"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        OAuth(**options)


def test_tokens_do_not_travel_in_the_open() -> None:
    with pytest.raises(ValueError, match="needs https"):
        MCPToolSet(url="http://example.org/mcp", auth=OAuth())


def test_what_answers_a_sign_in_is_bounded() -> None:
    """The SDK reads the answers of an authorization server to their end."""
    import httpx2

    from runtime.mcp._http import Client, Remote

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=body(), headers={"content-type": "application/json"})

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    async def get() -> None:
        remote = Remote("far", "https://example.org/mcp", {}, None, "http")
        async with Client(remote, transport=httpx2.MockTransport(answer)) as client:
            await client.get("https://example.org/.well-known/oauth-authorization-server")

    with pytest.raises(httpx2.ReadError, match="more than 1 MB for a sign-in"):
        asyncio.run(get())
