"""A remote MCP server, as the transport of a session: the SDK's clients for streamable HTTP and SSE, within bounds.

The SDK's clients read whole bodies whatever their size, and let a connection that fails take the session and every call
in it along. So they are given an HTTP client that answers such a request with an error of its own.

Used on the thread of one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp.client.auth import OAuthFlowError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCResponse

from channels._lazy import lazy_logger

from ._messages import ANSWER, VALUES, failed, has_many_values, refused, unwrap, written
from ._oauth import NotSignedIn, OAuth
from ._sound import sound
from ._streams import Reading

Kind: TypeAlias = Literal["stdio", "http", "sse"]

ASIDE: Final = 1 << 20  # bytes of an answer that is not one of MCP
NOTE: Final = 64 << 10  # bytes of an error's body that are looked at
#: Of a server that does not know this transport, or this path.
NO_SUCH: Final = frozenset({400, 404, 405, 406, 415, 501})

# Seconds.
DIAL: Final = 10.0  # to connect, and to write
FAREWELL: Final = 1.0  # to end a session

_EVENT: Final = re.compile(rb"\r\n\r\n|\r\n\n|\n\r\n|\n\n|\r\r")

_logger = lazy_logger("runtime.mcp")


class Remote:
    """One session with a remote server. See `Process` for what the methods are for."""

    again: Final = "the next call connects again"

    def __init__(
        self, name: str, url: str, headers: Mapping[str, str], auth: httpx2.Auth | OAuth | None, kind: Kind
    ) -> None:
        self.name = name
        self.url = url
        self.kind = kind
        self.grace = FAREWELL
        self.ended = False
        self.status = 0  # of the last response that was an error
        self._headers = {"accept-encoding": "identity", **headers}  # `Events` looks at what comes over the wire
        self._auth = auth
        self.unsigned = ""  # why it does not talk to us
        self._said = ""  # by that response, or by what kept it away
        self._how = ""
        self._on_end: Callable[[], object] = lambda: None
        self._on_unseen: Callable[[], object] = lambda: None

    @contextlib.asynccontextmanager
    async def open(
        self, ended: Callable[[], object], unseen: Callable[[], object], ask: Any
    ) -> AsyncIterator[tuple[FromServer, Any]]:
        """Connect; on leaving, end the session. ``ended`` is called when it is over, ``unseen`` in the context of a
        request that the server has refused unseen, and ``ask`` in the one of a request for which a user has to sign in.
        """
        self._on_end, self._on_unseen = ended, unseen
        auth = self._auth
        if isinstance(auth, OAuth):
            from ._sign_in import Provider

            auth = Provider(self.url, auth, ask)
        if self.kind == "sse":
            made = sse_client(self.url, httpx_client_factory=self._client, auth=auth, sse_read_timeout=86_400)
            async with made as (source, sink):
                yield FromServer(source, self), sink
        else:
            async with self._client(auth=auth) as client:
                made = streamable_http_client(self.url, http_client=client, max_sse_event_size=ANSWER)
                async with made as (source, sink):
                    yield FromServer(source, self), sink

    def _client(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> Client:
        # A server may take its time over a call, as long as the call has.
        patience = httpx2.Timeout(DIAL, read=None, pool=None)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=8)
        return Client(self, headers=self._headers, auth=auth, timeout=patience, limits=limits)

    def noted(self, status: int, said: str) -> None:
        self.status, self._said = status, said

    def lost(self, how: str) -> None:
        """The session is over, or never was."""
        self._how = self._how or how
        self.ended = True
        self._on_end()

    def refused_unseen(self) -> None:
        self._on_unseen()

    async def last_words(self) -> None:
        pass

    def how(self) -> str:
        return self._how or "closed the connection"

    def evidence(self) -> str:
        return ""

    def kill(self) -> None:
        pass

    def settled(self) -> None:
        pass

    def may_be_older(self, error: BaseException) -> bool:
        """Whether the server may be one of those that speak SSE only."""
        return self.kind == "http" and self.status in NO_SUCH

    def why_not(self, error: BaseException, timeout: float) -> str:
        """Why the session could not be had, for an error's text."""
        if isinstance(error, TimeoutError):
            return (
                f"did not start: no answer from {shown(self.url)} within {timeout:g} s. If it is only slow, give it"
                " more startup_timeout."
            )
        if self.status in (401, 403):
            return (
                f"did not start: {self._said}. It wants to know who you are: auth=OAuth() signs in, headers="
                "{'Authorization': ...} sends what you have."
            )
        if self.status or self._said:
            return f"did not start: {self._said} at {shown(self.url)}"
        if isinstance(error, MCPError):
            return f"did not start: it answered {error.message!r} where an MCP server introduces itself"
        return f"did not start: {shown(self.url)}: {type(error).__name__}: {error}"


def shown(url: str) -> str:
    """``url`` for people to read: what is secret in it is left out."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class FromServer(Reading):
    """The SDK's read stream, with answers made sound. Says when it ends."""

    def __init__(self, source: Any, remote: Remote) -> None:
        self._source = source
        self._remote = remote

    @property
    def last_context(self) -> Any:
        """The context of the request that the last message belongs to, which the SDK hands to what it calls."""
        return self._source.last_context

    async def receive(self) -> SessionMessage | Exception:
        try:
            item: SessionMessage | Exception = await self._source.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._remote.lost("closed the connection")
            raise
        if isinstance(item, SessionMessage) and isinstance(item.message, JSONRPCResponse):
            item.message.result = sound(item.message.result)
        return item

    async def aclose(self) -> None:
        await self._source.aclose()


class Client(httpx2.AsyncClient):
    """An HTTP client whose answers have bounds, and which answers a call itself where the server cannot."""

    def __init__(self, remote: Remote, **options: Any) -> None:
        super().__init__(event_hooks={"response": [_bounded]}, **options)
        self._remote = remote

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if request.method == "DELETE":  # the end of a session: a server that is mute then is not waited for
            try:
                async with asyncio.timeout(FAREWELL):
                    return await super().send(request, **options)
            except TimeoutError as error:
                raise httpx2.ReadTimeout("no answer to the end of the session", request=request) from error
        asked = _asked(request)
        try:
            response = await super().send(request, **options)
        except Exception as error:
            return self._unreached(request, asked, error)
        try:
            return await self._within_bounds(request, asked, response)
        except Exception as error:
            await response.aclose()
            return self._unreached(request, asked, error)
        except BaseException:
            await response.aclose()
            raise

    def _unreached(self, request: httpx2.Request, asked: Any, error: Exception) -> httpx2.Response:
        """Nothing came, or not all of it. Raised, that would end the session from inside, and every other call."""
        inner = unwrap(error)
        error = inner if isinstance(inner, Exception) else error
        if isinstance(error, NotSignedIn | OAuthFlowError):
            text = self._remote.unsigned = f"wants the user to sign in, which has failed: {error}"
        elif isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            text = f"cannot be reached: {_words(error)}"
        else:
            text = f"did not answer: {_words(error)}"
        self._remote.noted(0, text)
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
            self._remote.refused_unseen()
            self._remote.lost(text)
        if request.method != "POST":
            raise error
        return _error(request, asked, 503, text)

    async def _within_bounds(self, request: httpx2.Request, asked: Any, response: httpx2.Response) -> httpx2.Response:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code >= 400:
            return await self._refusal(request, asked, response)
        if response.is_redirect:
            self._remote.noted(response.status_code, f"it answered HTTP {response.status_code}, a redirect elsewhere")
            return response
        if kind == "text/event-stream" and "content-encoding" not in response.headers:
            response.stream = Events(response.stream)
            return response
        if kind == "application/json" and asked is not None:
            body = await _read(response, ANSWER)
            if body is None:
                return _error(request, asked, 200, f"its answer has more than {ANSWER >> 20} MB")
            if has_many_values(body):
                return _error(request, asked, 200, f"its answer has more than {VALUES:,} values")
            answer = written(_answer_to(body, asked)).encode()
            headers = {"content-type": "application/json", **_session(response)}
            return httpx2.Response(200, content=answer, request=request, headers=headers)
        return response

    async def _refusal(self, request: httpx2.Request, asked: Any, response: httpx2.Response) -> httpx2.Response:
        status = response.status_code
        body = await _read(response, NOTE) or b""
        text = f"it answered HTTP {status} {_phrase(status)}"
        said = _error_of(body)
        words = said["message"] if said else _plain(body.decode("utf-8", "replace"), response)
        if words:
            text += f": {words}"
        if request.method == "POST":  # many servers have nothing to stream beside their answers, and refuse to
            self._remote.noted(status, text)
        is_in_session = request.method == "POST" and "mcp-session-id" in request.headers
        if is_in_session and (status == 404 or (status == 400 and re.search(r"session", words, re.IGNORECASE))):
            self._remote.refused_unseen()
            self._remote.lost("has ended the session")
        if said is not None:  # its own error: the SDK reads it, and what it says of the protocol
            answer = {"jsonrpc": "2.0", "id": asked, "error": said}
            return httpx2.Response(status, json=answer, request=request, headers=_session(response))
        return _error(request, asked, status, text)


class Events(httpx2.AsyncByteStream):
    """A stream of server-sent events, of which none is made of more than can be read."""

    def __init__(self, source: Any) -> None:
        self._source = source

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held = bytearray()
        begin = 0  # where to look for the end of the event
        async for chunk in self._source:
            held += chunk
            while (end := _EVENT.search(held, max(begin - 3, 0))) is not None:
                event = bytes(held[: end.end()])
                del held[: end.end()]
                begin = 0
                yield _readable(event)
            begin = len(held)
            if len(held) > ANSWER:  # the SDK, which counts too, says so
                yield bytes(held)
                held.clear()
                begin = 0
        if held:
            yield bytes(held)

    async def aclose(self) -> None:
        await self._source.aclose()


class Bounded(httpx2.AsyncByteStream):
    """A body that is not read any further than a sign-in needs."""

    def __init__(self, source: Any, request: httpx2.Request) -> None:
        self._source = source
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = ASIDE
        async for chunk in self._source:
            left -= len(chunk)
            if left < 0:
                raise httpx2.ReadError(f"more than {ASIDE >> 20} MB for a sign-in", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._source.aclose()


async def _bounded(response: httpx2.Response) -> None:
    """Bound what is answered to the requests of a sign-in, which the SDK reads to their end."""
    if "text/event-stream" not in response.request.headers.get("accept", ""):
        response.stream = Bounded(response.stream, response.request)


def _readable(event: bytes) -> bytes:
    """An event that the SDK can read; one that it cannot is an error of the call that it answers."""
    if has_many_values(event):
        answer = refused(_data(event)) or failed(0, f"its answer has more than {VALUES:,} values")
        return _with_data(event, answer.model_dump_json(by_alias=True))
    if b"\\ud" in event.lower():  # half a character, it may be
        with contextlib.suppress(ValueError, RecursionError):
            return _with_data(event, written(json.loads(_data(event))))
    return event


def _data(event: bytes) -> str:
    lines = (line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(lines).decode("utf-8", "replace")


def _with_data(event: bytes, data: str) -> bytes:
    kept = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
    return b"\n".join([*kept, b"data: " + data.encode(), b"\n"])


async def _read(response: httpx2.Response, most: int) -> bytes | None:
    """The body; None where it is longer than ``most`` bytes. Not read to its end then."""
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > most:
                return None
    finally:
        await response.aclose()
    return bytes(body)


def _asked(request: httpx2.Request) -> Any:
    """The id of the call that is posted; None where it is none."""
    if request.method != "POST":
        return None
    try:
        message = json.loads(request.content)
    except (ValueError, httpx2.RequestNotRead):
        return None
    return message.get("id") if isinstance(message, dict) and "method" in message else None


def _answer_to(body: bytes, asked: Any) -> dict[str, Any]:
    """The answer in ``body`` to the call ``asked``, with its id. The SDK would wait for ever for the answer to a call
    whose id it is not; some servers send lists, of one answer.
    """
    try:
        read = json.loads(body.decode("utf-8", "replace"), parse_constant=lambda name: None)  # NaN, which is no JSON
    except (ValueError, RecursionError) as error:
        return _failure(asked, f"its answer cannot be read: {type(error).__name__}")
    answers = read if isinstance(read, list) else [read]
    answers = [each for each in answers if isinstance(each, dict) and ("result" in each or "error" in each)]
    for each in answers:
        if each.get("id") == asked or str(each.get("id")) == str(asked):
            return {**each, "jsonrpc": "2.0", "id": asked}
    for each in answers:
        if each.get("id") is None and "error" in each:
            return {**each, "jsonrpc": "2.0", "id": asked}
    if answers:
        return _failure(asked, f"it answered a call that nobody made: id {answers[0].get('id')!r:.50}")
    return _failure(asked, "its answer is not one of MCP")


def _failure(asked: Any, text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": asked, "error": {"code": -32603, "message": text}}


def _error(request: httpx2.Request, asked: Any, status: int, text: str) -> httpx2.Response:
    if asked is None:  # a notification, which nobody waits for
        return httpx2.Response(202 if request.method == "POST" else status, request=request)
    return httpx2.Response(status, json=_failure(asked, text), request=request)


def _error_of(body: bytes) -> dict[str, Any] | None:
    """The error of the protocol that ``body`` says, where it says one."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = read.get("error") if isinstance(read, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    if not isinstance(error.get("code"), int) or isinstance(error.get("code"), bool):
        return None
    return {"code": error["code"], "message": error["message"], "data": error.get("data")}


def _plain(text: str, response: httpx2.Response) -> str:
    """The first words of a body that is for people."""
    if "html" in response.headers.get("content-type", ""):
        text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(text.split())[:200]


def _session(response: httpx2.Response) -> dict[str, str]:
    id = response.headers.get("mcp-session-id")
    return {} if id is None else {"mcp-session-id": id}


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
