"""One run of one MCP server: its session, and the task that owns it and the process.

The session belongs to one task, which enters and leaves it (the SDK's scopes insist on that) and takes commands from a
queue, into which any thread may put. Each call is a task of its own. What it has to say goes into the call's
inbox, a channel on which the calling thread waits: also what the server asks, and the answer comes back through the
loop.

Imported on first use: the SDK takes half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import anyio
from mcp import Client, MCPError
from mcp.types import (
    METHOD_NOT_FOUND,
    URL_ELICITATION_REQUIRED,
    CallToolResult,
    CreateMessageRequestParams,
    CreateMessageResult,
    DiscoverResult,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
    EmptyResult,
    ErrorData,
    InputRequiredResult,
    ListRootsResult,
    LoggingMessageNotificationParams,
    Root,
    SetLevelRequest,
    SetLevelRequestParams,
    Tool,
    ToolListChangedNotification,
)
from pydantic import FileUrl

from channels import CancelToken, Channel, ChannelClosed, SupportsDone, select
from channels._lazy import lazy_logger
from channels.aio import LoopThread

from .._dataclasses import dataclass
from .._standstill import PIECES, counts
from ._commands import Commands, CommandsClosed
from ._http import Kind, Remote
from ._messages import unwrap
from ._oauth import NotSignedIn, SignIn
from ._patience import Patience
from ._stdio import Process

MODERN: Final = "2026-07-28"  # from here on it is the client that calls again with the answer; revisions are dates
UNBOUNDED: Final = 1 << 30  # the loop's thread must never wait: as good as unbounded

PAGES: Final = 1000  # of one list
REJECTED: Final = -1  # the code of a sampling request that the user has refused
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emergency": logging.CRITICAL,
}
AHEAD: Final = 256  # messages that a call may have to read still, before progress is left out

# Seconds.
LEAVING: Final = 2.0  # cancelled calls have, to tell the server
CLOSING: Final = 0.3  # the same, where their loop is closed
SLACK: Final = 15.0  # more than all that starting and ending a server may take
PONG: Final = 30.0  # a server has to answer a ping, before it is believed to have nothing more to say of an old call

_logger = lazy_logger("runtime.mcp")

Params: TypeAlias = ElicitRequestFormParams | ElicitRequestURLParams


class Lost(Exception):
    """The server is lost: it has ended, or never came up. The text goes on from "MCP server 'name'"."""


class Unsent(Lost):
    """The server is lost, and has not seen the call."""


class NeedsSignIn(Lost):
    """The server does not talk to who is not signed in."""


class Visit(Exception):
    """The server refuses the call until the user has visited ``pages``: pairs of a message and an address."""

    def __init__(self, reason: str, pages: Sequence[tuple[str, str]]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pages = pages


def visit_of(error: BaseException | None) -> Visit | None:
    if not isinstance(error, MCPError) or error.code != URL_ELICITATION_REQUIRED:
        return None
    asked = error.error.data.get("elicitations") if isinstance(error.error.data, Mapping) else None
    pages = [
        (str(each.get("message") or error.message), each["url"])
        for each in (asked if isinstance(asked, list) else ())
        if isinstance(each, Mapping) and isinstance(each.get("url"), str)
    ]
    return Visit(error.message, pages)


# -- what a call says --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progressed:
    """Progress of the call, as the server reports it."""

    progress: float
    total: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Elicitation:
    """A question for the user."""

    params: Params
    state: str | None  # what the server wants back with the answer, if the call is made anew for that
    _answer: asyncio.Future[Any]

    def answer(self, action: Literal["accept", "decline", "cancel"], content: Mapping[str, Any] | None) -> None:
        """Any thread. Raises `ValueError` where ``content`` is nothing that the protocol can carry."""
        form = action == "accept" and isinstance(self.params, ElicitRequestFormParams)
        result = ElicitResult(action=action, content=dict(content or {}) if form else None)
        _send(self._answer, result)


@dataclass(frozen=True, slots=True)
class Sampling:
    """A question for a model."""

    params: CreateMessageRequestParams
    _answer: asyncio.Future[Any]

    def answer(self, result: CreateMessageResult | ErrorData) -> None:
        """Any thread."""
        _send(self._answer, result)


def _send(answer: asyncio.Future[Any], result: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        answer.get_loop().call_soon_threadsafe(_settle, answer, result)


def _settle(answer: asyncio.Future[Any], result: object) -> None:
    if not answer.done():  # the call may have been dropped meanwhile
        answer.set_result(result)


@dataclass(frozen=True, slots=True)
class Declined:
    """The server asked something that may have been for this call or for another, so nobody was asked."""

    message: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The end of the call, which is the last message to its inbox."""

    result: Any = None
    error: BaseException | None = None


class ServerCall:
    """One call of a tool, or another request that may take its time. ``send`` makes it, and returns its result."""

    def __init__(self, connection: Connection, name: str, send: Send, stream: str, state: str | None) -> None:
        self.name = name
        self.state = state  # what the server wants back, who said last that it needs an answer first
        self.send = send
        self.stream = stream  # whose user its questions are for
        self.inbox: Channel[Any] = Channel(UNBOUNDED, name=f"call of {name}")
        self.over = CancelToken()  # whoever is asked for it need not answer any more
        self.context = contextvars.copy_context()
        self._connection = connection
        # The rest is used on the loop's thread only.
        self.task: asyncio.Task[Any] | None = None
        self.begun = False
        self.heard_at: float | None = None  # by `time.monotonic`: when it began, or something was last heard of it
        self.dropped = False
        self.answers: dict[asyncio.Future[Any], object] = {}  # and what they are where nobody gives them

    def drop(self) -> None:
        """Give the call up. It is cancelled on the server, unless it has ended. Any thread; does not wait."""
        if not self.inbox.closed:
            self.inbox.close()
            self._connection.on_loop(self._drop)

    def _drop(self) -> None:
        self.dropped = True  # it may be in the command queue still
        if self.task is not None:
            self.task.cancel()

    def tell(self, message: object) -> bool:
        """Send a message to the call's inbox; False where nobody listens any more. Loop thread."""
        try:
            self.inbox.try_send(message)
        except ChannelClosed:
            return False
        return True

    async def progressed(self, progress: float, total: float | None, message: str | None) -> None:
        """Tell the call of its progress. Loop thread."""
        self.heard_at = time.monotonic()
        if len(self.inbox) < AHEAD:
            self.tell(Progressed(progress, total, message or ""))

    def finish(self, *, result: Any = None, error: BaseException | None = None) -> None:
        """Send the last message; the inbox refuses what comes later."""
        self.inbox.close(CallEnded(result, error))
        self.over.cancel("the call is over")

    def end(self) -> None:
        """End the call, so that nothing of it goes on. Loop thread."""
        if self.task is not None:
            self.task.cancel()
        for answer, unanswered in self.answers.items():  # a legacy server's question has a task that is not ours
            _settle(answer, unanswered)


#: Makes a call: it is given the client, and the call that it is.
Send: TypeAlias = Callable[["Client", "ServerCall"], Awaitable[Any]]

_sender: contextvars.ContextVar[ServerCall | None] = contextvars.ContextVar("sender", default=None)
_call: contextvars.ContextVar[ServerCall | None] = contextvars.ContextVar("call", default=None)


class Way(NamedTuple):
    """A way to speak with a server: over what, and in which generation of the protocol."""

    kind: Kind
    mode: str
    learnt: DiscoverResult | None = None  # what it has said of itself, where it was asked before


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server may have of its client."""

    sampling: bool = False
    roots: tuple[str, ...] = ()  # addresses


# -- the owner ---------------------------------------------------------------------------------------------------------


class Connection:
    """A server that is starting, runs, or has ended. It does not come back: make another one.

    Methods may be called from any thread, unless they say otherwise.
    """

    def __init__(
        self,
        loop: LoopThread,
        *,
        name: str,
        link: Callable[[Kind], Process | Remote],
        ways: Sequence[Way],
        settings: Settings,
        startup_timeout: float,
        attended: bool = False,
    ) -> None:
        self.asks: Channel[SignIn] = Channel(UNBOUNDED, name=f"{name} asks")  # whoever waits until it is ready
        self.signing_in = False  # until it is ready
        self.tools: list[Tool] = []  # complete once ready
        self.offers: frozenset[str] = frozenset()  # beside tools
        self.version = ""
        self.ready_at = self.ended_at = 0.0  # by `time.monotonic`
        self.failure: Lost | None = None  # why it is of no use any more; None: it is, or may yet be
        self.ready: Channel[None] = Channel(name=f"{name} ready")  # closes, also when it failed
        self.gone: Channel[None] = Channel(name=f"{name} gone")  # closes when nothing of it is left
        self._listing: Channel[None] | None = None  # closes when `tools` is up to date again
        self._loop_thread = loop
        self._loop = loop.loop
        self.way: Way | None = None  # that the server takes, once it is known
        self._name = name
        self._ways = ways
        self._attended = attended  # somebody is there who can be asked to sign in
        self._refused = ""  # why that has not been done
        self._settings = settings
        self._startup_timeout = startup_timeout
        self._new_link = link
        self._link = link(ways[0].kind)
        self._commands: Commands[ServerCall | None] = Commands(self._loop)  # None: end
        # The rest is used on the loop's thread only.
        self._open: dict[ServerCall, None] = {}
        self._client: Client | None = None  # once connected
        self._stale = False  # the tools have changed since they were listed
        self._stopping = False
        self._connecting: Patience | None = None
        self._background: set[asyncio.Task[None]] = set()
        # An old server does not say which call asks: so it matters which are in flight, and from its first question on
        # there is only ever one.
        self._turn = asyncio.Lock()
        self._in_flight: dict[ServerCall, None] = {}
        self._given_up: dict[ServerCall, None] = {}  # in flight still, as far as is known: a question may be on its way
        self._landed = asyncio.Event()  # there is one less
        self._asks = False
        # In a context of its own: the first caller's must not stick to all who come later.
        loop.start(self._own, on_done=self._ended, context=contextvars.Context())

    # -- any thread ----------------------------------------------------------------------------------------------------

    def wait_ready(
        self,
        cancel: SupportsDone | None = None,
        timeout: float | None = None,
        ask: Callable[[SignIn], object] | None = None,
    ) -> None:
        """Wait until the server is connected and its tools are listed. ``ask`` sends the user to sign in meanwhile.
        Raises `Lost`, also where that takes more than ``timeout`` seconds, and `Cancelled`.
        """
        self._refuse("waiting for an MCP server")
        patience = (self._startup_timeout + SLACK) / PIECES if timeout is None else timeout
        left = PIECES
        while True:
            due = time.monotonic() + patience
            try:
                asked = select(self.ready, None if ask is None else self.asks, timeout=patience, cancel=cancel)
            except TimeoutError:
                if timeout is not None:
                    raise Lost("has not started yet") from None
                if self.signing_in:
                    left = PIECES
                    continue
                if counts(patience, time.monotonic() - due):
                    left -= 1
                if left:
                    continue
                # Its own timeout comes earlier, unless the loop stands still.
                raise Lost(f"did not start: {self._loop_thread!r} has been stalled by something else") from None
            if asked.index == 0:
                break
            assert ask is not None
            ask(asked.value)
        if self.failure is not None and not self.version:
            raise type(self.failure)(str(self.failure))

    def wait_listed(self, cancel: SupportsDone | None = None) -> None:
        """Wait until the tools that the server says have changed are listed again, or cannot be."""
        listing = self._listing
        if listing is not None:
            self._refuse("listing the tools of an MCP server")
            self._wait(listing, self._startup_timeout, cancel)

    def call(self, name: str, send: Send, stream: str, state: str | None = None) -> ServerCall:
        """Begin a call. Receive from its inbox until `CallEnded`, and drop it on every other way out. ``state`` is what
        the server wants back, where it has asked in an earlier run.
        """
        self._refuse("calling a tool of an MCP server")
        call = ServerCall(self, name, send, stream, state)
        try:
            self._commands.put(call)
        except CommandsClosed:
            call.inbox.close(CallEnded(error=Unsent(str(self.failure))))
        return call

    def request_stop(self) -> None:
        """Begin to end the connection. Does not wait; harmless when it has ended."""
        self.on_loop(self._stop)

    def wait_gone(self, timeout: float) -> bool:
        """Wait until nothing of the connection is left; whether that is so within ``timeout`` seconds."""
        self._refuse("stopping an MCP server")
        return self._wait(self.gone, timeout)

    def on_loop(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)

    def _is_running(self) -> bool:
        """Whether this is the loop's thread, and the loop runs."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _refuse(self, what: str) -> None:
        if self._is_running():
            raise RuntimeError(f"{what} on the event loop's own thread would stall it: do it in another thread")

    def _wait(self, event: Channel[None], timeout: float, cancel: SupportsDone | None = None) -> bool:
        try:
            event.recv(timeout, cancel)
        except ChannelClosed:
            return True
        except TimeoutError:
            return False
        return False

    # -- the loop's thread ---------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._connecting is None:
            self._command_end()
            return
        # Not by cancelling the task: a second cancel, of the timeout at the same time, would hit it while it cleans up.
        # A timeout cancels once, whoever asks for it.
        self._connecting.end()

    def _command_end(self) -> None:
        with contextlib.suppress(CommandsClosed):
            self._commands.put(None)

    async def _own(self) -> None:
        """The owner task: the whole life of the connection."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                client = await self._connect(stack)
                self._link.settled()
                _note_states(client)
                self.version = client.protocol_version
                self.ready_at = time.monotonic()
                self.ready.close()
                changing = client.server_capabilities.tools
                if self.version >= MODERN and changing is not None and changing.list_changed:
                    self._spawn(self._listen(client))
                tasks: set[asyncio.Task[Any]] = set()
                try:
                    await self._serve(client, tasks)
                except BaseException:
                    self._link.grace = 0  # whoever cancels the owner itself is closing the loop
                    raise
                finally:
                    self._fail(self._why_over())
                    for task in self._background:
                        task.cancel()
                    if tasks:  # before their client goes
                        with anyio.CancelScope(shield=True):
                            await asyncio.wait(tasks, timeout=LEAVING if self._link.grace else CLOSING)
        except asyncio.CancelledError:
            raise  # see `_ended`
        except BaseException as error:
            if self.version:
                _logger.warning("MCP server %r did not end cleanly", self._name, exc_info=error)
            else:
                self._fail(self._start_failure(unwrap(error)))

    async def _connect(self, stack: contextlib.AsyncExitStack) -> Client:
        if self._stopping:
            raise TimeoutError
        try:
            async with Patience(self._startup_timeout) as self._connecting:
                for way in self._ways[:-1]:
                    try:
                        return await self._enter(stack, way)
                    except Exception as error:
                        if self._stopping or not (way.learnt or self._link.may_be_older(unwrap(error))):
                            raise
                return await self._enter(stack, self._ways[-1])
        finally:
            self._connecting = None

    async def _enter(self, stack: contextlib.AsyncExitStack, way: Way) -> Client:
        """Connect in one of the ways that there are, and list the tools: only then is it certain that somebody is there
        who takes it.
        """
        async with contextlib.AsyncExitStack() as attempt:
            self._link = self._new_link(way.kind)
            client = Client(
                self._link.open(self._on_end, self._on_unseen, self._asking_to_sign_in),
                mode=way.mode,
                prior_discover=way.learnt,
                elicitation_callback=self._on_elicitation,
                sampling_callback=self._on_sampling if self._settings.sampling else None,
                list_roots_callback=self._on_roots if self._settings.roots else None,
                logging_callback=self._on_log,
                log_level=_log_level(),
                message_handler=self._on_message,
                cache=None,
            )
            self._client = await attempt.enter_async_context(client)
            self.tools = await self._list(client)
            self.offers = _offers_of(client, way)
            await self._ask_for_logs(client)
            stack.push_async_exit(attempt.pop_all())
        found = client.session.discover_result
        self.way = Way(way.kind, "legacy" if found is None else client.protocol_version, found)
        return client

    def _on_end(self) -> None:
        if self.version:
            self._command_end()

    @contextlib.contextmanager
    def _asking_to_sign_in(self, url: str) -> Iterator[SignIn]:
        """Lead a sign-in to the user of the call that needs it, or of the stream for which the server starts."""
        sign_in = SignIn(url, self._loop)
        call, starting = _sender.get(), self._connecting
        if call is not None:
            told = call.tell(sign_in)
        else:
            told = self._attended and starting is not None and not self._refused
            if told:
                self.asks.try_send(sign_in)
        if not told:
            raise NotSignedIn(
                self._refused or f"the user has to sign in at {url} first, and nobody is there to be asked"
            )
        try:
            if call is None and starting is not None:
                self.signing_in = True
                starting.suspend()
            yield sign_in
        except NotSignedIn as error:
            self._refused = str(error) if call is None else ""  # the older handshake would ask once more
            raise
        finally:
            self.signing_in = False
            if call is None and starting is not None and not starting.is_over:
                starting.begin_anew()
            sign_in.over.cancel("the sign-in is over")

    def _on_unseen(self) -> None:
        """The server has not seen the request in whose context this is called: it may be sent once more."""
        if (call := _call.get()) is not None:
            call.begun = False

    async def _list(self, client: Client) -> list[Tool]:
        try:
            return await pages(client.list_tools, "tools")
        except MCPError as error:
            capabilities = client.server_capabilities
            if error.code == METHOD_NOT_FOUND and (capabilities.prompts or capabilities.resources):
                return []  # it offers something else
            raise

    async def _ask_for_logs(self, client: Client) -> None:
        """In the older generation the level of what is logged is set once."""
        level = _log_level()
        if client.protocol_version < MODERN and level and client.server_capabilities.logging:
            request = SetLevelRequest(params=SetLevelRequestParams(level=level))
            with contextlib.suppress(MCPError):
                await client.session.send_request(request, EmptyResult)

    # -- tools that change

    async def _on_message(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._on_change()

    def _on_change(self) -> None:
        """List the tools again, as they have changed. Whoever wants them meanwhile waits."""
        if self._client is None:
            return  # they are not listed yet
        self._stale = True
        if self._listing is None:
            self._listing = Channel(name="listing of tools")
            self._spawn(self._list_again(self._client, self._listing))

    async def _list_again(self, client: Client, listing: Channel[None]) -> None:
        try:
            while self._stale:
                self._stale = False
                async with Patience(self._startup_timeout):
                    self.tools = await self._list(client)
        except Exception as error:
            _logger.warning(
                "MCP server %r says that its tools have changed, and cannot list them",
                self._name,
                exc_info=unwrap(error),
            )
        finally:
            self._listing = None
            listing.close()

    async def _listen(self, client: Client) -> None:
        """Be told of changes, which a new server says only to who listens."""
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._on_change()
        except Exception as error:  # the tools are those of the beginning then
            _logger.debug("MCP server %r does not tell of changes", self._name, exc_info=error)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, context=contextvars.Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- calls

    async def _serve(self, client: Client, tasks: set[asyncio.Task[Any]]) -> None:
        """Run calls until the end is commanded, or the server ends."""
        if self._stopping or self._link.ended:
            self._command_end()
        # The runtime reads results, and not only those that keep to the schema that the server says they have. Checking
        # that would compute on the loop's thread with patterns of the server's.
        client.session.validate_tool_result = _unchecked  # type: ignore[method-assign]
        while (call := await self._commands.get()) is not None:
            if call.dropped:
                continue
            self._open[call] = None
            call.task = task = asyncio.create_task(self._run(client, call), context=call.context)
            tasks.add(task)
            # Not in the task's own `except`: one that is cancelled before its first step never gets there.
            task.add_done_callback(tasks.discard)
            task.add_done_callback(functools.partial(self._settle, call))
        if self._link.ended and not self._stopping:
            await self._link.last_words()
            self._fail(self._why_over())
        else:
            self._fail(Lost("was stopped"))

    def _why_over(self) -> Lost:
        link = self._link
        if not link.ended:
            return Lost("lost its event loop, which was closed")
        return Lost(f"{link.how()} during this call; {link.again}.{link.evidence()}")

    def _settle(self, call: ServerCall, task: asyncio.Task[Any]) -> None:
        if task.cancelled():  # by whoever dropped the call, or else with everything on the loop
            error: BaseException | None = Lost("lost its event loop, which was closed")
        else:
            error = task.exception()
        call.task = None
        if error is not None and self._link.ended and self.failure is None:
            return  # the owner, who is about to notice, knows better why
        self._open.pop(call, None)
        call.finish(result=None if error is not None else task.result(), error=unwrap(error) if error else None)
        call.end()

    def _fail(self, why: Lost) -> None:
        """The server is of no use any more. Every call hears of it, one in the queue too. The first reason stands.

        Synchronous: the owner may be in a cancelled scope, where nothing can be awaited. Or the loop is over.
        """
        if self.failure is None:
            self.ended_at = time.monotonic()
            self.failure = why
        why = self.failure
        for call in self._commands.close():
            if call is not None:
                call.finish(error=Unsent(str(why)))
        for call in list(self._open):
            call.finish(error=Lost(str(why)) if call.begun else Unsent(str(why)))
            if self._is_running():
                call.end()
        self._open.clear()

    def _ended(self, result: object, error: BaseException | None) -> None:
        """The owner task has ended, on whatever path; or its loop was closed before it began or while it waited."""
        self._fail(Lost("lost its event loop, which was closed"))
        self._link.kill()
        self.ready.close()
        self.gone.close()

    def _start_failure(self, error: BaseException) -> Lost:
        if self._stopping:
            return Lost("was stopped while it started")
        link = self._link
        if isinstance(link, Remote) and link.unsigned:
            return NeedsSignIn(link.unsigned)
        return Lost(link.why_not(error, self._startup_timeout))

    async def _run(self, client: Client, call: ServerCall) -> Any:
        _sender.set(call)
        if self.version >= MODERN:
            _call.set(call)  # a question comes up in a child of this task
            self._begin(call)
            return await call.send(client, call)
        if self._link.kind == "http" and not self._asks:  # questions come with the answer to what this task sends
            _call.set(call)
            self._begin(call)
            self._in_flight[call] = None
            try:
                return await call.send(client, call)
            finally:
                self._land(call)
        async with self._turn:  # first come, first served
            while self._given_up or (self._asks and self._in_flight):
                self._landed.clear()
                await self._landed.wait()
            self._begin(call)
            self._in_flight[call] = None
        try:
            result = await call.send(client, call)
        except asyncio.CancelledError:
            self._given_up[call] = None
            self._spawn(self._settle_given_up(client, call))
            raise
        except BaseException:
            self._land(call)
            raise
        self._land(call)
        return result

    async def _settle_given_up(self, client: Client, call: ServerCall) -> None:
        """A question of a call that was given up may be on its way, and would be taken for another one's. What the
        server sends stays in order, so nothing of the kind comes after its reply to a ping.
        """
        try:
            with contextlib.suppress(MCPError, TimeoutError):  # an error is a reply as well
                async with asyncio.timeout(PONG):
                    await client.session.send_ping()
        finally:
            self._given_up.pop(call, None)
            self._land(call)

    def _land(self, call: ServerCall) -> None:
        self._in_flight.pop(call, None)
        self._landed.set()

    def _begin(self, call: ServerCall) -> None:
        if self._link.ended:
            raise Unsent(f"has just ended; {self._link.again}")  # the owner will know more
        call.begun = True
        call.heard_at = time.monotonic()

    async def _on_elicitation(self, context: Any, params: Params) -> Any:
        return await self._ask(
            functools.partial(Elicitation, params, None if (call := _call.get()) is None else call.state),
            params.message,
            declined=ElicitResult(action="decline"),
            unanswered=ElicitResult(action="cancel"),
        )

    async def _on_sampling(self, context: Any, params: CreateMessageRequestParams) -> Any:
        refused = ErrorData(code=REJECTED, message="nobody is there who could approve of it")
        what = "for the reply of a model"
        return await self._ask(functools.partial(Sampling, params), what, declined=refused, unanswered=refused)

    async def _ask(
        self,
        question: Callable[[asyncio.Future[Any]], object],
        message: str,
        *,
        declined: object,
        unanswered: object,
    ) -> Any:
        """Lead a question of the server to the call that asks. Never raises: that would fail more than the question."""
        call = _call.get()
        if call is None and self.version < MODERN:
            self._asks = True
            call = self._who_asks(message)
            if call is None:
                return declined if self._in_flight else unanswered
        answer: asyncio.Future[Any] = self._loop.create_future()
        if call is None or not call.tell(question(answer)):
            return unanswered  # nobody waits for it
        call.answers[answer] = unanswered
        try:
            return await answer
        finally:
            call.answers.pop(answer, None)

    async def _on_roots(self, context: Any) -> Any:
        return ListRootsResult(roots=[Root(uri=FileUrl(uri)) for uri in self._settings.roots])

    async def _on_log(self, params: LoggingMessageNotificationParams) -> None:
        level = LEVELS.get(params.level, logging.INFO)
        if _logger.isEnabledFor(level):
            said = params.data if isinstance(params.data, str) else json.dumps(params.data, default=str)
            where = f"{self._name} ({params.logger})" if params.logger else self._name
            _logger.log(level, "%.100s: %.2000s", where, said)

    def _who_asks(self, message: str) -> ServerCall | None:
        """The call in flight whose user is asked: any of them, if they are all of one stream. It is certain to be the
        right one only where it is alone; where nobody can tell, the calls hear of it.
        """
        waited_for = [call for call in self._in_flight if call not in self._given_up]
        if waited_for and len({call.stream for call in self._in_flight}) == 1:
            return waited_for[0]
        for call in waited_for:
            call.tell(Declined(message))
        return None


def _offers_of(client: Client, way: Way) -> frozenset[str]:
    offers = client.server_capabilities
    if way.mode == client.protocol_version and way.learnt is None:  # it was told what it speaks, and not asked for more
        return frozenset({"resources", "prompts"})
    return frozenset(name for name in ("resources", "prompts") if getattr(offers, name) is not None)


async def pages(list_them: Callable[..., Awaitable[Any]], what: str) -> list[Any]:
    """All that a server lists, page after page."""
    found: list[Any] = []
    cursor = None
    for _ in range(PAGES):
        page = await list_them(cursor=cursor)
        found += getattr(page, what)
        if (cursor := page.next_cursor) is None:
            break
    return found


def tool_call(name: str, arguments: Mapping[str, Any]) -> Send:
    """What makes the call of a tool."""

    async def send(client: Client, call: ServerCall) -> CallToolResult:
        state = call.state
        return await client.call_tool(name, dict(arguments), progress_callback=call.progressed, request_state=state)

    return send


def _note_states(client: Client) -> None:
    """Let each call know what the server wants back with the answer to its question. The SDK makes such a call anew by
    itself, and tells nobody.
    """
    session = client.session
    call_tool = session.call_tool

    async def noting(*args: Any, **kwargs: Any) -> Any:
        result = await call_tool(*args, **kwargs)
        call = _call.get()
        if call is not None and isinstance(result, InputRequiredResult):
            call.state = result.request_state
        return result

    session.call_tool = noting  # type: ignore[method-assign]


def _log_level() -> Any:
    """The level from which on somebody reads what a server logs; None where nobody does."""
    return next((name for name, level in LEVELS.items() if _logger.isEnabledFor(level)), None)


async def _unchecked(name: str, result: object) -> None:
    """In place of `ClientSession.validate_tool_result`: results are not checked by the SDK."""
