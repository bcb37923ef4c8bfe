"""The sign-in to a remote server: the SDK's OAuth client, what it keeps between processes, and the way to the user.

Used on the thread of one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
    ProtectedResourceMetadata,
)
from pydantic import AnyUrl, ValidationError

from ._oauth import NotSignedIn, OAuth, SignIn
from ._tokens import TokenStore

PAGE: Final = (
    "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n"
    "\r\n{page}"
)
HEAD: Final = 16 << 10  # bytes that the browser's request may have
BROWSER: Final = 5.0  # seconds that the browser has to send it
EARLY: Final = 10.0  # seconds before its end a token is renewed: a request takes its time to arrive


#: Leads a `SignIn` to a user, or raises `NotSignedIn`. What it returns is left when the user has signed in, or not.
Ask = Callable[[str], contextlib.AbstractContextManager[SignIn]]


def store_of(url: str, settings: OAuth) -> TokenStore:
    """Where the sign-in to the server at ``url`` is kept."""
    parts = urlsplit(url)
    key = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return TokenStore(f"{key} as {settings.client_id}" if settings.client_id else key, settings.file)


class Provider(OAuthClientProvider):
    """The SDK's client, but for three things: it remembers when a token ends and where it is renewed, also in the next
    process; requests with a good token do not wait for each other; a token that is refused is renewed before the user
    is asked.
    """

    def __init__(self, url: str, settings: OAuth, ask: Ask) -> None:
        self._settings = settings
        self._ask_user = ask
        self._kept = _Kept(store_of(url, settings), settings)
        metadata = OAuthClientMetadata(
            client_name=settings.client_name, redirect_uris=[AnyUrl(_address(settings.redirect_port or 1))]
        )
        if settings.client_id is None or settings.client_secret is None:
            metadata.token_endpoint_auth_method = "none"
        super().__init__(
            url,
            metadata,
            self._kept,
            self._redirect,
            self._callback,
            client_metadata_url=settings.client_metadata_url,
        )
        self._kept.provider = self
        self._one = asyncio.Lock()
        self._browser: asyncio.Future[AuthorizationCodeResult] | None = None
        self._state = ""
        self._url = ""

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        used = ""
        if self._initialized and self._is_good():
            used = self._token()
            self._add_auth_header(request)
            response = yield request
            if response.status_code != 401 and not _wants_more(response):
                return
        async with self._one:
            if not self._initialized:
                await self._initialize()
            if self._is_good() and self._token() != used:  # another request has renewed it meanwhile, or it was kept
                used = self._token()
                self._add_auth_header(request)
                response = yield request
                if response.status_code != 401 and not _wants_more(response):
                    return
                if response.status_code == 401:
                    self.context.token_expiry_time = 1.0
            elif self._token() and (not used or response.status_code == 401):
                self.context.token_expiry_time = 1.0  # so that it is renewed first
            async with self._listening():
                flow = super().async_auth_flow(request)
                try:
                    outgoing = await flow.__anext__()
                    while True:
                        response = yield outgoing
                        outgoing = await flow.asend(response)
                except StopAsyncIteration:
                    return
                finally:
                    await flow.aclose()

    def _token(self) -> str:
        return self.context.current_tokens.access_token if self.context.current_tokens else ""

    def _is_good(self) -> bool:
        ends = self.context.token_expiry_time
        return bool(self._token()) and (not ends or time.time() < ends - EARLY)

    async def _initialize(self) -> None:
        await self._kept.load(self.context)
        await super()._initialize()
        self.context.token_expiry_time = self._kept.ends

    async def _handle_refresh_response(self, response: httpx2.Response) -> bool:
        before = self._token()
        if await super()._handle_refresh_response(response):
            return True
        await self._kept.load(self.context)  # another process may have renewed it, and the old one is void then
        tokens = await self._kept.get_tokens()
        if tokens is not None and tokens.access_token != before:
            self.context.current_tokens = tokens
            self.context.token_expiry_time = self._kept.ends
            return self._is_good()
        return False

    # -- the browser

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncGenerator[None, None]:
        """Be there for the browser that comes back: at the port that this client is registered with."""
        wanted = self._settings.redirect_port or self._kept.port
        try:
            server = await asyncio.start_server(self._on_browser, "127.0.0.1", wanted, limit=HEAD)
        except OSError as error:
            if self._settings.redirect_port:
                raise NotSignedIn(f"nothing can come back to port {wanted}: {error}") from None
            server = await asyncio.start_server(self._on_browser, "127.0.0.1", 0, limit=HEAD)
        port = server.sockets[0].getsockname()[1]
        if port != wanted and self._settings.client_id is None and not self.context.can_refresh_token():
            self.context.client_info = None  # it is registered with another port, and many servers insist on that
        self.context.client_metadata.redirect_uris = [AnyUrl(_address(port))]
        self._kept.port_at_hand = port
        try:
            yield
        finally:
            await _close(server)

    async def _on_browser(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status, page = "404 Not Found", "There is nothing here."
        try:
            async with asyncio.timeout(BROWSER):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            target = urlsplit(head.split(" ", 2)[1])
            query = {name: values[0] for name, values in parse_qs(target.query).items()}
            # Any page may send a browser here: only who knows the state has been sent by the server.
            if target.path == "/callback" and self._state and query.get("state") == self._state:
                status, page = "200 OK", self._come_back(query)
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, IndexError):
            status, page = "400 Bad Request", "That is no request."
        with contextlib.suppress(ConnectionError):
            page = f"<!doctype html><title>lockgate</title><p>{page}</p>"
            writer.write(PAGE.format(status=status, length=len(page), page=page).encode())
            await writer.drain()
        writer.close()

    def _come_back(self, query: dict[str, str]) -> str:
        browser = self._browser
        if browser is None or browser.done():
            return "This sign-in is over."
        if "code" in query:
            result = AuthorizationCodeResult(code=query["code"], state=query["state"], iss=query.get("iss"))
            browser.set_result(result)
            return "You are signed in, and may close this page."
        why = query.get("error_description") or query.get("error") or "no reason is given"
        browser.set_exception(NotSignedIn(f"the sign-in was refused: {why:.200}"))
        return "You are not signed in. You may close this page."

    async def _redirect(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise NotSignedIn(f"its page to sign in is none: {url:.200}")
        self._url = url
        self._state = parse_qs(parts.query).get("state", [""])[0]

    async def _callback(self) -> AuthorizationCodeResult:
        browser = self._browser = asyncio.get_running_loop().create_future()
        try:
            with self._ask_user(self._url) as sign_in:
                waiting: list[asyncio.Future[Any]] = [browser, sign_in.refused]
                await asyncio.wait(waiting, timeout=self._settings.timeout, return_when=asyncio.FIRST_COMPLETED)
                if browser.done():
                    result: AuthorizationCodeResult = browser.result()
                    sign_in.status = "granted"
                    return result
                if sign_in.refused.done():
                    raise NotSignedIn(sign_in.refused.result())
                raise NotSignedIn(f"nobody has signed in within {self._settings.timeout:g} s")
        finally:
            browser.cancel()
            self._browser, self._state = None, ""


async def _close(server: asyncio.Server) -> None:
    """Close ``server``, but serve who came a moment before: asyncio accepts a connection one step earlier than it is
    served, and leaves it open and unread if the server is closed in between. The browser would wait for ever.
    """
    try:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # a proactor
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)
    finally:
        server.close()


class _Kept:
    """The SDK's token storage: what is kept of a sign-in, in one object."""

    def __init__(self, store: TokenStore, settings: OAuth) -> None:
        self.provider: Provider | None = None
        self.ends: float | None = None  # by `time.time`
        self.port = 0  # that the client is registered with
        self.port_at_hand = 0
        self._store = store
        self._settings = settings
        self._kept: dict[str, Any] = {}

    async def load(self, context: Any) -> None:
        self._kept = await asyncio.to_thread(self._store.load)
        ends = self._kept.get("ends")
        self.ends = float(ends) if isinstance(ends, (int, float)) and not isinstance(ends, bool) else None
        port = self._kept.get("port")
        self.port = port if isinstance(port, int) and 0 < port < 65536 else 0
        context.oauth_metadata = self._read("server", OAuthMetadata) or context.oauth_metadata
        resource = self._read("resource", ProtectedResourceMetadata)
        if resource is not None:
            context.protected_resource_metadata = resource
            if resource.authorization_servers:
                context.auth_server_url = str(resource.authorization_servers[0])

    def _read(self, name: str, kind: Any) -> Any:
        try:
            return kind.model_validate(self._kept[name])
        except (KeyError, ValidationError):
            return None

    async def get_tokens(self) -> OAuthToken | None:
        tokens: OAuthToken | None = self._read("tokens", OAuthToken)
        return tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        assert self.provider is not None
        context = self.provider.context
        self._kept["tokens"] = tokens.model_dump(mode="json", exclude_none=True)
        self._kept["ends"] = self.ends = context.token_expiry_time
        for name, known in (("server", context.oauth_metadata), ("resource", context.protected_resource_metadata)):
            if known is not None:
                self._kept[name] = known.model_dump(mode="json", exclude_none=True)
        await asyncio.to_thread(self._store.save, dict(self._kept))

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        settings = self._settings
        if settings.client_id is not None:
            return OAuthClientInformationFull(
                client_id=settings.client_id,
                client_secret=settings.client_secret,
                redirect_uris=None,
                token_endpoint_auth_method="none" if settings.client_secret is None else "client_secret_post",
            )
        info: OAuthClientInformationFull | None = self._read("client", OAuthClientInformationFull)
        return info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._kept["client"] = client_info.model_dump(mode="json", exclude_none=True)
        self._kept["port"] = self.port = self.port_at_hand
        await asyncio.to_thread(self._store.save, dict(self._kept))


def _wants_more(response: httpx2.Response) -> bool:
    return response.status_code == 403 and "insufficient_scope" in response.headers.get("www-authenticate", "")


def _address(port: int) -> str:
    return f"http://127.0.0.1:{port}/callback"
