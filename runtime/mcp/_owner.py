"""One run of one MCP server: its session, and the task that owns it and the process.

The session belongs to one task, which enters and leaves it (the SDK's scopes insist on that) and takes commands from a
janus queue, into which any thread may put. Each call is a task of its own. What it has to say goes into the call's
inbox, a channel on which the calling thread waits: also what the server asks, and the answer comes back through the
loop.

Imported on first use: the SDK takes half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import anyio
import janus
from mcp import Client, MCPError
from mcp.types import CallToolResult, ElicitRequestFormParams, ElicitRequestURLParams, ElicitResult, Tool

from channels import CancelToken, Channel, ChannelClosed, SupportsDone
from channels.aio import LoopThread

from ._process import KILLED, POLITE, Process

MODERN: Final = "2026-07-28"  # from here on it is the client that calls again with the answer; revisions are dates
INBOX: Final = 1 << 30  # the loop's thread must never wait: as good as unbounded

# Seconds.
LEAVING: Final = 2.0  # cancelled calls have, to tell the server
SLACK: Final = 15.0  # more than all that starting and ending a server may take

_logger = logging.getLogger("runtime.mcp")

Params: TypeAlias = ElicitRequestFormParams | ElicitRequestURLParams


class Lost(Exception):
    """There is no server to answer. The text goes on from "MCP server 'name'"."""


class Unsent(Lost):
    """The same, and it has not seen the call."""


# -- what a call says --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """The call is about to be sent; until now it waited for others."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far the server says it has come."""

    progress: float
    total: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Asked:
    params: Params
    _answer: asyncio.Future[ElicitResult]

    def answer(self, action: Literal["accept", "decline", "cancel"], content: Mapping[str, Any] | None) -> None:
        """Any thread. Raises `ValueError` where ``content`` is nothing that the protocol can carry."""
        form = action == "accept" and isinstance(self.params, ElicitRequestFormParams)
        result = ElicitResult(action=action, content=dict(content or {}) if form else None)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._answer.get_loop().call_soon_threadsafe(_settle, self._answer, result)


def _settle(answer: asyncio.Future[ElicitResult], result: ElicitResult) -> None:
    if not answer.done():  # the call may have been dropped meanwhile
        answer.set_result(result)


@dataclass(frozen=True, slots=True)
class Finished:
    """The last message."""

    result: CallToolResult | None = None
    error: BaseException | None = None


class Call:
    """One call of a tool."""

    def __init__(self, connection: Connection, name: str, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self.arguments = dict(arguments)
        self.inbox: Channel[Any] = Channel(INBOX, name=f"call of {name}")
        self.over = CancelToken()  # whoever is asked for it need not answer any more
        self.context = contextvars.copy_context()
        self._connection = connection
        # The rest is used on the loop's thread only.
        self.task: asyncio.Task[CallToolResult] | None = None
        self.begun = False
        self.dropped = False
        self.answers: set[asyncio.Future[ElicitResult]] = set()

    def drop(self) -> None:
        """Any thread: nobody waits for it any more. Cancelled on the server, unless it has ended. Does not wait."""
        if not self.inbox.closed:
            self.inbox.close()
            self._connection.on_loop(self._drop)

    def _drop(self) -> None:
        self.dropped = True  # it may be in the command queue still
        if self.task is not None:
            self.task.cancel()

    def tell(self, message: object) -> bool:
        """Loop thread. False: nobody listens any more."""
        try:
            self.inbox.try_send(message)
        except ChannelClosed:
            return False
        return True

    async def progressed(self, progress: float, total: float | None, message: str | None) -> None:
        """Loop thread."""
        self.tell(Progressed(progress, total, message or ""))

    def finish(self, *, result: CallToolResult | None = None, error: BaseException | None = None) -> None:
        """What comes later is refused."""
        self.inbox.close(Finished(result, error))
        self.over.cancel("the call is over")

    def end(self) -> None:
        """Loop thread: nothing of it goes on."""
        if self.task is not None:
            self.task.cancel()
        for answer in self.answers:  # a legacy server's question has a task that is not ours to cancel
            _settle(answer, ElicitResult(action="cancel"))


_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("call", default=None)


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
        command: Sequence[str],
        env: Mapping[str, str] | None,
        cwd: str | None,
        mode: str,
        connect_timeout: float,
    ) -> None:
        self.tools: list[Tool] = []  # complete once ready
        self.version = ""
        self.failure: Lost | None = None  # why it is of no use any more; None: it is, or may yet be
        self.ready: Channel[None] = Channel(name=f"{name} ready")  # closes, also when it failed
        self.gone: Channel[None] = Channel(name=f"{name} gone")  # closes when nothing of it is left
        self._loop_thread = loop
        self._loop = loop.loop
        self._mode = mode
        self._connect_timeout = connect_timeout
        self._process = Process(name, command, env, cwd)
        self._commands: janus.Queue[Call | None] = janus.Queue()  # None: end
        # The rest is used on the loop's thread only.
        self._open: dict[Call, None] = {}
        self._stopping = False
        self._connecting: asyncio.Timeout | None = None
        self._turn = asyncio.Lock()
        self._asking: Call | None = None  # legacy: the one call in flight
        self._unsettled = False  # legacy: the last call did not end by its own reply
        # In a context of its own: the first caller's must not stick to all who come later.
        loop.start(self._own, on_done=self._ended, context=contextvars.Context())

    # -- any thread ----------------------------------------------------------------------------------------------------

    def wait_ready(self, cancel: SupportsDone | None = None) -> None:
        """Until it is connected and its tools are listed. Raises `Lost`, and `Cancelled`."""
        self._refuse("waiting for an MCP server")
        self._wait(self.ready, self._connect_timeout + SLACK, cancel)
        if self.failure is not None and not self.version:
            raise Lost(str(self.failure))

    def call(self, name: str, arguments: Mapping[str, Any]) -> Call:
        """Begin a call. Receive from its inbox until `Finished`, and drop it on every other way out."""
        self._refuse("calling a tool of an MCP server")
        call = Call(self, name, arguments)
        try:
            self._commands.sync_q.put_nowait(call)
        except janus.SyncQueueShutDown:
            call.inbox.close(Finished(error=Unsent(str(self.failure))))
        return call

    def request_stop(self) -> None:
        """Begin to end it. Does not wait; harmless when it has ended."""
        self.on_loop(self._stop)

    def wait_gone(self, timeout: float) -> bool:
        """Whether nothing of it is left after ``timeout`` seconds."""
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
            if event is self.ready:  # its own timeout comes earlier, unless the loop stands still
                raise Lost(f"did not start: {self._loop_thread!r} has been stalled by something else") from None
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
        with contextlib.suppress(RuntimeError):  # expired already
            self._connecting.reschedule(self._loop.time())

    def _command_end(self) -> None:
        with contextlib.suppress(janus.SyncQueueShutDown):
            self._commands.sync_q.put_nowait(None)

    async def _own(self) -> None:
        """The owner: the whole life of the connection."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                client = await self._connect(stack)
                self._process.grace = POLITE
                self.version = client.protocol_version
                self.ready.close()
                tasks: set[asyncio.Task[CallToolResult]] = set()
                try:
                    await self._serve(client, tasks)
                except BaseException:
                    self._process.grace = 0  # whoever cancels the owner itself is closing the loop
                    raise
                finally:
                    self._fail(Lost("lost its event loop, which was closed"))
                    if tasks:  # before their client goes
                        with anyio.CancelScope(shield=True):
                            await asyncio.wait(tasks, timeout=LEAVING if self._process.grace else KILLED)
        except asyncio.CancelledError:
            raise  # see `_ended`
        except BaseException as error:
            if self.version:
                _logger.warning("MCP server %r did not end cleanly", self._process.name, exc_info=error)
            else:
                self._fail(self._start_failure(_unwrap(error)))

    async def _connect(self, stack: contextlib.AsyncExitStack) -> Client:
        if self._stopping:
            raise TimeoutError
        transport = self._process.open(self._command_end)
        client = Client(transport, mode=self._mode, elicitation_callback=self._on_question)
        try:
            async with asyncio.timeout(self._connect_timeout) as self._connecting:
                await stack.enter_async_context(client)
                cursor = None
                while True:  # inside the timeout: only now is it certain that somebody is there
                    page = await client.list_tools(cursor=cursor)
                    self.tools += page.tools
                    if (cursor := page.next_cursor) is None:
                        return client
        finally:
            self._connecting = None

    async def _serve(self, client: Client, tasks: set[asyncio.Task[CallToolResult]]) -> None:
        """Run calls until the end is commanded, or the server ends."""
        if self._stopping:
            self._command_end()
        while (call := await self._commands.async_q.get()) is not None:
            if call.dropped:
                continue
            self._open[call] = None
            call.task = task = asyncio.create_task(self._run(client, call), context=call.context)
            tasks.add(task)
            # Not in the task's own `except`: one that is cancelled before its first step never gets there.
            task.add_done_callback(tasks.discard)
            task.add_done_callback(functools.partial(self._settle, call))
        if self._process.ended and not self._stopping:
            await self._process.last_words()
            how = self._process.how()
            self._fail(Lost(f"{how} during this call; the next call starts it again.{self._process.evidence()}"))
        else:
            self._fail(Lost("was stopped"))

    def _settle(self, call: Call, task: asyncio.Task[CallToolResult]) -> None:
        if task.cancelled():  # by whoever dropped the call, or else with everything on the loop
            error: BaseException | None = Lost("lost its event loop, which was closed")
        else:
            error = task.exception()
        call.task = None
        if error is not None and self._process.ended and self.failure is None:
            return  # the owner, who is about to notice, knows better why
        self._open.pop(call, None)
        call.finish(result=None if error is not None else task.result(), error=_unwrap(error) if error else None)
        call.end()

    def _fail(self, why: Lost) -> None:
        """It is of no use any more. Every call hears of it, one in the queue too. The first reason stands.

        Synchronous: the owner may be in a cancelled scope, where nothing can be awaited. Or the loop is over.
        """
        if self.failure is None:
            self.failure = why
        why = self.failure
        self._commands.shutdown()  # refuses new ones, and keeps what is there
        with contextlib.suppress(janus.SyncQueueEmpty, janus.SyncQueueShutDown):
            while True:
                call = self._commands.sync_q.get_nowait()
                if call is not None:
                    call.finish(error=Unsent(str(why)))
        for call in list(self._open):
            call.finish(error=Lost(str(why)) if call.begun else Unsent(str(why)))
            if self._is_running():
                call.end()
        self._open.clear()

    def _ended(self, result: object, error: BaseException | None) -> None:
        """The owner has, on whatever path; or its loop was closed before it began, or while it stood still."""
        self._fail(Lost("lost its event loop, which was closed"))
        self._process.kill()
        self.ready.close()
        self.gone.close()

    def _start_failure(self, error: BaseException) -> Lost:
        process = self._process
        if self._stopping:
            return Lost("was stopped while it started")
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            if process.cwd is not None and not Path(process.cwd).is_dir():
                return Lost(f"did not start: there is no directory {process.cwd!r} to start it in")
            if isinstance(error, FileNotFoundError):
                return Lost(f"did not start: there is no command {process.command[0]!r}; install it, or give its path")
            return Lost(f"did not start: {process.command[0]!r} cannot be run: {error}")
        if process.ended:
            return Lost(f"did not start: it {process.how()} before it had answered.{process.evidence()}")
        if isinstance(error, TimeoutError):
            return Lost(
                f"did not start: no answer within {self._connect_timeout:g} s. Does {process.command[0]!r} speak MCP on"
                " its standard input and output? If it is only slow, give it more connect_timeout."
                f"{process.evidence()}"
            )
        if isinstance(error, MCPError):
            return Lost(f"did not start: it answered {error.message!r} where an MCP server introduces itself")
        return Lost(f"did not start: {type(error).__name__}: {error}.{process.evidence()}")

    async def _run(self, client: Client, call: Call) -> CallToolResult:
        if self.version >= MODERN:
            _call.set(call)  # a question comes up in a child of this task
            self._begin(call)
            return await client.call_tool(call.name, call.arguments, progress_callback=call.progressed)
        async with self._turn:  # on this wire nothing says which call asks, so there is only ever one
            self._begin(call)
            if self._unsettled:
                # The call before was given up, and a question of it may be on its way, which would be taken for ours.
                # What the server sends stays in order, so nothing of the kind comes after its reply to a ping.
                with contextlib.suppress(MCPError):  # a reply as well; if it is the end, the call will tell
                    await client.session.send_ping()
            self._unsettled = True
            self._asking = call
            try:
                result = await client.call_tool(call.name, call.arguments, progress_callback=call.progressed)
                self._unsettled = False
                return result
            finally:
                self._asking = None

    def _begin(self, call: Call) -> None:
        if self._process.ended:
            raise Unsent("has just ended; the next call starts it again")  # the owner will know more
        call.begun = True
        call.tell(Begun())

    async def _on_question(self, context: Any, params: Params) -> ElicitResult:
        """The server asks. Never raises: that would fail more than the question."""
        call = _call.get() or self._asking
        answer: asyncio.Future[ElicitResult] = self._loop.create_future()
        if call is None or not call.tell(Asked(params, answer)):
            return ElicitResult(action="cancel")  # nobody waits for it
        call.answers.add(answer)
        try:
            return await answer
        finally:
            call.answers.discard(answer)


def _unwrap(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # errors come in nested groups
        error = error.exceptions[0]
    return error
