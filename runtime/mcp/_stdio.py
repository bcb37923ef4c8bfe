"""The process of an MCP server, as the transport of a session: a line of JSON for every message.

Used on the thread of one event loop, but for `Process.kill`, which any thread may call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

import anyio
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

from .._orphans import tied
from ._sound import sound

LINE: Final = 64 << 20  # bytes that a message of the server may have
VALUES: Final = 100_000  # that it may be made of, about: to read more holds the GIL, and with it every thread
TAIL: Final = 8 << 10  # bytes of its standard error that are kept

# Seconds.
POLITE: Final = 2.0  # a server has to end by itself when its input ends, and as long again after SIGTERM
HASTY: Final = 0.2  # the same for one that never answered
# Until the loop has seen the end of a process that was killed. On a busy machine that takes its time, and asyncio warns
# on standard error of a transport that is closed before.
KILLED: Final = 1.0
LAST_WORDS: Final = 0.1  # until what a server that has ended wrote last has arrived
MUTE: Final = 1.5  # a server has to answer the newer handshake, before it is asked in the older one

# The beginning of a reply, as most servers write it; those made with the TypeScript SDK say the result first.
_REPLY: Final = re.compile(r'\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,15})\s*,')
#: To the end too, or a line of quotes would take time that is quadratic.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_REPLIED: Final = re.compile(r'"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,15})\s*\}\s*$')  # or the end
_SURROGATES: Final = re.compile("[\ud800-\udfff]")

_logger = logging.getLogger("runtime.mcp")


class _FromServer:
    """The SDK's read stream. Says when it ends: while a question is open, a modern client has no request under way that
    would fail, and the user would be left to think about an answer that nobody is there to take."""

    def __init__(
        self, stdout: asyncio.StreamReader, rubbish: Callable[[str], object], ended: Callable[[], object]
    ) -> None:
        self.probe: int | str | None = None  # the id of the newer handshake's request, until something is said
        self._stdout = stdout
        self._rubbish = rubbish
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
                    return SessionMessage(_failed(self.probe, "the server does not answer"))
                continue
            except ValueError:  # longer than LINE: there is no telling where the next one begins
                line = b""
            if not line:
                self._ended()
                raise anyio.EndOfStream
            text = line.decode("utf-8", "replace")
            if _has_many_values(line):
                self._spoken = True
                if (refused := _refused(text)) is not None:
                    return refused
                self._rubbish(text[:200])
                continue
            try:
                message: SessionMessage | None = SessionMessage(
                    jsonrpc_message_adapter.validate_json(text, by_name=False)
                )
            except ValueError:
                message = _mended(text)
            if message is not None:
                self._spoken = True
                if isinstance(message.message, JSONRPCResponse):
                    message.message.result = sound(message.message.result)
                return message
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


def _has_many_values(line: bytes) -> bool:
    """Whether a message is made of so many values that it cannot be read without holding up the process."""
    return line.count(b",") > VALUES and _STRING.sub(b"", line).count(b",") > VALUES


def _answered(text: str) -> int | None:
    """The id of the request that an unreadable message answers."""
    reply = _REPLY.match(text) or _REPLIED.search(text[-100:])
    return None if reply is None else int(reply[1])


def _refused(text: str) -> SessionMessage | None:
    """The error of the call that a message answers which is not read. None where it answers none."""
    id = _answered(text)
    if id is None:
        return None
    return SessionMessage(_failed(id, f"the answer of the server has more than {VALUES:,} values"))


def _mended(text: str) -> SessionMessage | None:
    """What a message says that the SDK cannot read. A call whose answer were dropped would wait in vain: what cannot be
    read at all is an error of the call that it answers. None where it is nothing of the kind.
    """
    id: object = None
    try:
        read = json.loads(text)
        id = read["id"] if "method" not in read else None
        # Half a character, which JavaScript writes where a text was cut; JSON allows it, UTF-8 does not.
        whole = json.loads(_SURROGATES.sub("\ufffd", json.dumps(read, ensure_ascii=False)))
        return SessionMessage(jsonrpc_message_adapter.validate_python(whole, by_name=False))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        if id is None:
            id = _answered(text)
        if isinstance(id, (int, str)) and not isinstance(id, bool):
            return SessionMessage(_failed(id, f"the answer of the server cannot be read: {type(error).__name__}"))
        return None


def _failed(id: int | str, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=id, error=ErrorData(code=-32603, message=message))


class _ToServer:
    """The SDK's write stream, which may be the first to notice that the server has gone."""

    def __init__(self, stdin: asyncio.StreamWriter, source: _FromServer, ended: Callable[[], object]) -> None:
        self._stdin = stdin
        self._source = source
        self._ended = ended

    async def send(self, item: SessionMessage, /) -> None:
        if isinstance(item.message, JSONRPCRequest) and item.message.method == "server/discover":
            self._source.probe = item.message.id
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


class Process:
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
        """Start the process; on leaving, end it. ``ended`` is called when its output ends."""

        def on_end() -> None:
            self.ended = True
            ended()

        env = get_default_environment() | dict(self.env or {})
        program, *arguments = tied(self.command, env)
        if sys.platform == "win32":
            program = shutil.which(program) or program  # npx is npx.cmd there
        process = self._process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE,
            env=env,
            cwd=self.cwd,
            start_new_session=True,  # a Ctrl-C in the terminal is ours, and signals reach its children too
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._reading = asyncio.create_task(self._read_errors(process.stderr))
        try:
            source = _FromServer(process.stdout, self._on_rubbish, on_end)
            yield source, _ToServer(process.stdin, source, on_end)
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
        """End the process: wait, ask, force. Cancelled (the loop is closed), it forces at once."""
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
        """How the process ended, as far as that is known."""
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
        """The exit code and last words of the process, for an error's text."""
        text = ""
        if self.rubbish:
            text += f" On its standard output, where only MCP belongs, it wrote: {self.rubbish}"
        lines = [line[:300] for line in self._errors.decode("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            text += " The last it wrote to its standard error:\n  " + "\n  ".join(lines[-10:])
        return text

    def kill(self) -> None:
        """Kill the process, with what it started, if it has not ended."""
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
