"""One run of one MCP server: its process, its session, and the task that owns both.

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
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import anyio
import janus
from mcp import Client, MCPError
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import (
    CallToolResult,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
    Tool,
    jsonrpc_message_adapter,
)

from channels import CancelToken, Channel, ChannelClosed, SupportsDone
from channels.aio import LoopThread

MODERN: Final = "2026-07-28"  # from here on it is the client that calls again with the answer; revisions are dates
LINE: Final = 64 << 20  # bytes that a message of the server may have
TAIL: Final = 8 << 10  # bytes of its standard error that are kept
INBOX: Final = 1 << 30  # the loop's thread must never wait: as good as unbounded

# Seconds.
POLITE: Final = 2.0  # a server has to end by itself when its input ends, and as long again after SIGTERM
HASTY: Final = 0.2  # the same for one that never answered
KILLED: Final = 0.3  # until the loop has seen the end of a process that was killed
LEAVING: Final = 2.0  # cancelled calls have, to tell the server
LAST_WORDS: Final = 0.1  # until what a server that has ended wrote last has arrived
SLACK: Final = 15.0  # more than all of these together

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


# -- the server's process, as the transport of a session: a line of JSON for every message -----------------------------


class _FromServer:
    """The SDK's read stream. Says when it ends: while a question is open, a modern client has no request under way that
    would fail, and the user would be left to think about an answer that nobody is there to take."""

    def __init__(
        self, stdout: asyncio.StreamReader, rubbish: Callable[[str], object], ended: Callable[[], object]
    ) -> None:
        self._stdout = stdout
        self._rubbish = rubbish
        self._ended = ended

    async def receive(self) -> SessionMessage | Exception:
        while True:
            try:
                line = await self._stdout.readline()
            except ValueError:  # longer than LINE: there is no telling where the next one begins
                line = b""
            if not line:
                self._ended()
                raise anyio.EndOfStream
            text = line.decode("utf-8", "replace")
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
            except ValueError:
                if text.strip():
                    self._rubbish(text.strip())

    def __aiter__(self) -> _FromServer:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> _FromServer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass


class _ToServer:
    """The SDK's write stream. It may be the first to notice that there is nobody at the other end."""

    def __init__(self, stdin: asyncio.StreamWriter, ended: Callable[[], object]) -> None:
        self._stdin = stdin
        self._ended = ended

    async def send(self, item: SessionMessage, /) -> None:
        try:
            if self._stdin.is_closing():
                raise BrokenPipeError
            self._stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await self._stdin.drain()
        except ConnectionError as error:
            self._ended()
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        self._stdin.close()

    async def __aenter__(self) -> _ToServer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class _Process:
    """The SDK's own transport leaves a process behind when its task is cancelled twice or its loop closed, and does not
    tell how one ended."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None, cwd: str | None) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.cwd = cwd
        self.grace = HASTY
        self.ended = False  # the connection has, by its end: it is no good any more
        self.exit_code: int | None = None  # where it ended by itself
        self.rubbish = ""
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._errors = b""
        self._parent = os.getpid()
        self._forced = False  # it did not end by itself

    @contextlib.asynccontextmanager
    async def open(self, ended: Callable[[], object]) -> AsyncIterator[tuple[_FromServer, _ToServer]]:
        """Start it; on leaving, end it. ``ended`` is called when its output ends."""

        def on_end() -> None:
            self.ended = True
            ended()

        program, *arguments = self.command
        if sys.platform == "win32":
            program = shutil.which(program) or program  # npx is npx.cmd there
        process = self._process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE,
            env=get_default_environment() | dict(self.env or {}),
            cwd=self.cwd,
            start_new_session=True,  # a Ctrl-C in the terminal is ours, and signals reach its children too
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._reading = asyncio.create_task(self._read_errors(process.stderr))
        try:
            yield _FromServer(process.stdout, self._on_rubbish, on_end), _ToServer(process.stdin, on_end)
        finally:
            try:
                process.stdin.close()
                with anyio.CancelScope(shield=True):
                    await self._end(process)
            finally:
                self._reading.cancel()
                # Else it stays open as long as a child of the server has the pipes. Nothing public closes it.
                transport = getattr(process, "_transport", None)
                if transport is not None:
                    transport.close()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Wait, ask, force. Cancelled (the loop is closed), it forces at once."""
        try:
            if not await self._exits(self.grace):
                self._forced = True
                self._signal(signal.SIGTERM)
                await self._exits(self.grace)
        finally:
            if process.returncode is None:
                self._forced = True
                self.kill()
                await self._exits(KILLED)
        await self.last_words()

    async def _exits(self, seconds: float) -> bool:
        """Whether it ends. (``Process.wait`` also waits for the pipes, which a child of the server may have.)"""
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + seconds
        pause = 0.001
        while self._process.returncode is None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.02)
        return True

    async def last_words(self) -> None:
        """Wait, not for long, for what a server that ended leaves: its exit code, the rest of its standard error."""
        assert self._process is not None
        assert self._reading is not None
        if await self._exits(LAST_WORDS) and not self._forced:
            self.exit_code = self._process.returncode
        await asyncio.wait([self._reading], timeout=LAST_WORDS)

    async def _read_errors(self, stderr: asyncio.StreamReader) -> None:
        while data := await stderr.read(1 << 16):
            self._errors = (self._errors + data)[-TAIL:]
            if _logger.isEnabledFor(logging.DEBUG):
                for line in data.decode("utf-8", "replace").splitlines():
                    _logger.debug("%s: %s", self.name, line)

    def _on_rubbish(self, text: str) -> None:
        level = logging.DEBUG if self.rubbish else logging.WARNING  # once is enough to tell
        self.rubbish = self.rubbish or text[:200]
        _logger.log(
            level, "MCP server %r wrote something other than MCP to its standard output: %.200s", self.name, text
        )

    def how(self) -> str:
        """How it ended, as far as that is known."""
        code = self.exit_code
        if code is None:
            return "closed the connection"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"

    def evidence(self) -> str:
        """What it left behind, for an error's text."""
        text = ""
        if self.rubbish:
            text += f" On its standard output, where only MCP belongs, it wrote: {self.rubbish}"
        lines = [line[:300] for line in self._errors.decode("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            text += " The last it wrote to its standard error:\n  " + "\n  ".join(lines[-10:])
        return text

    def kill(self) -> None:
        """Force it to end, with what it started, if it has not."""
        self._signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None or os.getpid() != self._parent:
            return  # a forked child leaves its parent's servers alone
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                process.terminate()
            else:
                os.killpg(process.pid, number)


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
        self._process = _Process(name, command, env, cwd)
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
            return await client.call_tool(call.name, call.arguments)
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
                result = await client.call_tool(call.name, call.arguments)
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
