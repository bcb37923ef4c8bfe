"""The process of an MCP server, as the transport of a session: a line of JSON for every message.

Used on the thread of one event loop, but for `Process.kill`, which any thread may call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
from mcp import MCPError
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

from .._orphans import tied
from ._child import KILLED, Child
from ._messages import ANSWER, failed, has_many_values, mended, refused
from ._sound import sound
from ._streams import Closing, Reading

TAIL: Final = 8 << 10  # bytes of its standard error that are kept

# Seconds.
POLITE: Final = 2.0  # a server has to end by itself when its input ends, and as long again after SIGTERM
HASTY: Final = 0.2  # the same for one that never answered
LAST_WORDS: Final = 0.1  # until what a server that has ended wrote last has arrived
MUTE: Final = 1.5  # a server has to answer the newer handshake, before it is asked in the older one

_logger = logging.getLogger("runtime.mcp")


class _FromServer(Reading):
    """The SDK's read stream. Says when it ends: while a question is open, a modern client has no request under way that
    would fail, and the user would be left to think about an answer that nobody is there to take."""

    def __init__(self, stdout: asyncio.StreamReader, process: Process, ended: Callable[[], object]) -> None:
        self.waiting: dict[int | str, None] = {}  # the ids of requests that are not answered
        self.last = 0  # the highest of all ids so far
        self.probe: int | str | None = None  # the id of the newer handshake's request, until something is said
        self._stdout = stdout
        self._process = process
        self._ended = ended
        self._spoken = False

    async def receive(self) -> SessionMessage | Exception:
        while True:
            try:
                async with asyncio.timeout(None if self._spoken else MUTE) as patience:
                    line = await self._stdout.readline()
            except TimeoutError:
                if not patience.expired():
                    raise
                if self.probe is not None:
                    # Old servers drop what they do not know, and new ones may only be slow to start. With this answer
                    # the SDK tries the older handshake, and comes back to the newer one if the server says so.
                    self._spoken = True
                    return SessionMessage(failed(self.probe, "the server does not answer"))
                continue
            except ValueError:  # longer than ANSWER: there is no telling where the next one begins
                line = b""
                self._process.babbles = True
            if not line:
                self._ended()
                raise anyio.EndOfStream
            text = line.decode("utf-8", "replace")
            if has_many_values(line):
                self._spoken = True
                if (answer := refused(text)) is not None:
                    return SessionMessage(answer)
                self._process.on_rubbish(text[:200])
                continue
            try:
                message: SessionMessage | None = SessionMessage(
                    jsonrpc_message_adapter.validate_json(text, by_name=False)
                )
            except ValueError:
                message = mended(text)
            if message is not None:
                self._spoken = True
                if isinstance(message.message, JSONRPCResponse | JSONRPCError):
                    message = self._answer(message, message.message)
                return message
            if text.strip():
                self._process.on_rubbish(text.strip())

    def _answer(self, message: SessionMessage, answer: JSONRPCResponse | JSONRPCError) -> SessionMessage:
        """The answer of a request. Where it says another id than that of the only one that waits, it is the error of
        that one, which nothing else would ever end; one that comes after its request was given up is let through.
        """
        id = answer.id
        if isinstance(id, str) and id.isdecimal() and len(id) < 16:
            id = int(id)
        if (isinstance(id, int) and 0 < id <= self.last) or id in self.waiting:
            self.waiting.pop(id, None)
            if isinstance(answer, JSONRPCResponse):
                answer.result = sound(answer.result)
            return message
        problem = f"the server answered a call that nobody made: id {answer.id!r:.50}"
        if len(self.waiting) != 1:
            self._process.on_rubbish(problem)
            return message
        [waiting] = self.waiting
        self.waiting.clear()
        said = answer.error.message if isinstance(answer, JSONRPCError) else ""
        return SessionMessage(failed(waiting, f"{problem}: {said}" if said else problem))


class _ToServer(Closing):
    """The SDK's write stream, which may be the first to notice that the server has gone."""

    def __init__(self, stdin: asyncio.StreamWriter, source: _FromServer, ended: Callable[[], object]) -> None:
        self._stdin = stdin
        self._source = source
        self._ended = ended

    async def send(self, item: SessionMessage, /) -> None:
        self._note(item.message)
        try:
            if self._stdin.is_closing():
                raise BrokenPipeError
            self._stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await self._stdin.drain()
        except ConnectionError as error:
            self._ended()
            raise anyio.BrokenResourceError from error

    def _note(self, message: object) -> None:
        """Who waits for an answer now."""
        source = self._source
        if isinstance(message, JSONRPCRequest):
            if message.method == "server/discover":
                source.probe = message.id
            if isinstance(message.id, int):
                source.last = max(source.last, message.id)
            if message.method != "subscriptions/listen":  # which lasts
                source.waiting[message.id] = None
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            source.waiting.pop((message.params or {}).get("requestId", ""), None)

    async def aclose(self) -> None:
        self._stdin.close()


class Process:
    """The SDK's own transport leaves a process behind when its task is cancelled twice or its loop closed, and does not
    tell how one ended."""

    kind: Final = "stdio"
    again: Final = "the next call starts it again"

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None, cwd: str | None) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.cwd = cwd
        self.grace = HASTY
        self.ended = False  # the connection has, by its end: it is no good any more
        self.exit_code: int | None = None  # where it ended by itself
        self.rubbish = ""
        self.babbles = False  # more than can be read
        self._child: Child | None = None
        self._reading: asyncio.Task[None] | None = None
        self._errors = b""
        self._forced = False  # it did not end by itself

    @contextlib.asynccontextmanager
    async def open(
        self, ended: Callable[[], object], unseen: Callable[[], object], ask: object
    ) -> AsyncIterator[tuple[_FromServer, _ToServer]]:
        """Start the process; on leaving, end it. ``ended`` is called when its output ends."""

        def on_end() -> None:
            self.ended = True
            ended()

        env = get_default_environment() | dict(self.env or {})
        program, *arguments = tied(self.command, env)
        if sys.platform == "win32":
            program = shutil.which(program) or program  # npx is npx.cmd there
        child = self._child = Child([program, *arguments], env, self.cwd, ANSWER)
        await child.start()
        self._reading = asyncio.create_task(self._read_errors(child.stderr))
        try:
            source = _FromServer(child.stdout, self, on_end)
            yield source, _ToServer(child.stdin, source, on_end)
        finally:
            try:
                child.stdin.close()
                with anyio.CancelScope(shield=True):
                    await self._end(child)
            finally:
                self._reading.cancel()
                child.close()

    async def _end(self, child: Child) -> None:
        """End the process: wait, ask, force. Cancelled (the loop is closed), it forces at once."""
        try:
            if not await child.exits(self.grace):
                self._forced = True
                child.signal(signal.SIGTERM)
                await child.exits(self.grace)
        finally:
            if child.returncode is None:
                self._forced = True
                child.kill()
                await child.exits(KILLED)
        await self.last_words()

    async def last_words(self) -> None:
        """Wait, not for long, for what a server that ended leaves: its exit code, the rest of its standard error."""
        assert self._child is not None
        assert self._reading is not None
        if await self._child.exits(LAST_WORDS) and not self._forced:
            self.exit_code = self._child.returncode
        await asyncio.wait([self._reading], timeout=LAST_WORDS)

    async def _read_errors(self, stderr: asyncio.StreamReader) -> None:
        while data := await stderr.read(1 << 16):
            self._errors = (self._errors + data)[-TAIL:]
            if _logger.isEnabledFor(logging.DEBUG):
                for line in data.decode("utf-8", "replace").splitlines():
                    _logger.debug("%s: %s", self.name, line)

    def on_rubbish(self, text: str) -> None:
        level = logging.DEBUG if self.rubbish else logging.WARNING  # once is enough to tell
        self.rubbish = self.rubbish or text[:200]
        _logger.log(
            level, "MCP server %r wrote something other than MCP to its standard output: %.200s", self.name, text
        )

    def how(self) -> str:
        """How the process ended, as far as that is known."""
        code = self.exit_code
        if self.babbles:
            return f"sent more than {ANSWER >> 20} MB in one message"
        if code is None:
            return "closed the connection"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"

    def evidence(self) -> str:
        """The exit code and last words of the process, for an error's text."""
        text = ""
        if self.rubbish:
            text += f" On its standard output, where only MCP belongs, it wrote: {self.rubbish}"
        lines = [line[:300] for line in self._errors.decode("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            text += " The last it wrote to its standard error:\n  " + "\n  ".join(lines[-10:])
        return text

    def settled(self) -> None:
        """It has answered: it gets more time to end."""
        self.grace = POLITE

    def may_be_older(self, error: BaseException) -> bool:
        """Whether the server may have ended because it was asked in the newer way: all that are made with the Rust SDK
        take that for their end.
        """
        return self.ended

    def why_not(self, error: BaseException, timeout: float) -> str:
        """Why it could not be started, for an error's text."""
        program = self.command[0]
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            if self.cwd is not None and not Path(self.cwd).is_dir():
                return f"did not start: there is no directory {self.cwd!r} to start it in"
            if isinstance(error, FileNotFoundError):
                return f"did not start: there is no command {program!r}; install it, or give its path"
            return f"did not start: {program!r} cannot be run: {error}"
        if self.ended:
            return f"did not start: it {self.how()} before it had answered.{self.evidence()}"
        if isinstance(error, TimeoutError):
            return (
                f"did not start: no answer within {timeout:g} s. Does {program!r} speak MCP on its standard input and"
                f" output? If it is only slow, give it more startup_timeout.{self.evidence()}"
            )
        if isinstance(error, MCPError):
            return f"did not start: it answered {error.message!r} where an MCP server introduces itself"
        return f"did not start: {type(error).__name__}: {error}.{self.evidence()}"

    def kill(self) -> None:
        """Kill the process, with what it started, if it has not ended. Any thread."""
        if self._child is not None:
            self._child.kill()
