"""The tool set of one MCP server."""

from __future__ import annotations

import atexit
import base64
import json
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from channels import Cancelled, CancelToken
from channels.aio import LoopThread, default_loop

from .._errors import MissingExtra, Portable
from .._tool_context import ToolContext
from ..session import Image, size_of
from ..tool import Answer, Tool, ToolResult

if TYPE_CHECKING:
    from mcp.types import CallToolResult

    from ._owner import Asked, Call, Connection

# The name under which a call's context comes among the tool's arguments. No server's parameter has a space in its name.
_CONTEXT: Final = "the context"
_STOP_TIMEOUT: Final = 10.0  # seconds; a server that resists takes half of it
_EXIT_TIMEOUT: Final = 0.6  # seconds that all servers together have when the interpreter exits


class MCPServerError(Portable, RuntimeError):
    """A server cannot be used, or refused a call. The text says which, what happened, and what can be done."""

    def __init__(self, server: str, problem: str) -> None:
        super().__init__(f"MCP server {server!r} {problem}")
        self.server = server


class MCPToolSet:
    """The tools of one MCP server: a process that is started, and spoken to through its standard input and output.

    ``command`` is the program and its arguments. The server sees HOME, LOGNAME, PATH, SHELL, TERM and USER of our
    environment, and what ``env`` adds. ``connect_timeout`` is how many seconds it has to start and to list its tools,
    ``call_timeout`` how many it has for one call: the time that users take to answer it, and in which it is busy with
    other calls, is not counted.

    Both generations of the protocol are spoken: 2026-07-28, and the sessions before, where only one call at a time is
    made because nothing says which call a question belongs to. ``mode`` "legacy" or "2026-07-28" spares the server the
    question which one it is.

    A server that ends is started again by the next call, or when its tools are next asked for; the calls that it was
    busy with fail. What it writes to its standard error is logged by the logger ``runtime.mcp`` at level DEBUG, and the
    last of it is part of the error when the server fails.

    All methods may be called from any thread but that of ``loop``, by default the loop that everything shares. A forked
    child has a server of its own.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        connect_timeout: float = 30.0,
        call_timeout: float | None = None,
        mode: str = "auto",
        loop: LoopThread | None = None,
    ) -> None:
        if isinstance(command, (str, bytes)):
            raise TypeError(f"the command is a list, such as {str(command).split()!r}, not one text")
        self.command = tuple(os.fspath(part) for part in command)
        if not self.command:
            raise ValueError("the command is empty")
        self.name = name or os.path.basename(self.command[0])
        self.env = None if env is None else dict(env)
        self.cwd = None if cwd is None else os.fspath(cwd)
        self.connect_timeout = connect_timeout
        self.call_timeout = call_timeout
        self.mode = mode
        self._loop = loop
        self._lock = threading.Lock()
        self._stopped = False
        self._connections: list[Connection] = []  # the last one counts, the others are about to end
        self._finalizer: weakref.finalize[Any, MCPToolSet] | None = None
        _toolsets.add(self)

    # -- ToolSet -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, unless it runs, and wait until its tools are known.

        Raises `MCPServerError`: no such command, it ended at once (with the last lines of its standard error), it does
        not speak MCP, no answer within ``connect_timeout``. Nothing is left of it then, and the next try starts anew.
        `MissingExtra` where the package ``mcp`` is not installed.
        """
        self._connection(start=True)

    def tools(self) -> list[Tool]:
        """The tools of the server, which is started first where it does not run. Raises what `start` raises.

        After `stop`, only `start` starts it.
        """
        return [self._tool(tool) for tool in self._connection().tools]

    def stop(self) -> None:
        """End the server, and wait until nothing of it is left. Calls under way fail; one that is starting is given up.

        It has 2 seconds to end by itself, then 2 to end on SIGTERM. Idempotent.
        """
        with self._lock:
            self._stopped = True
            connections = list(self._connections)
        for connection in connections:
            connection.request_stop()
        deadline = time.monotonic() + _STOP_TIMEOUT
        for connection in connections:
            if not connection.wait_gone(max(deadline - time.monotonic(), 0)):
                raise MCPServerError(self.name, f"did not end within {_STOP_TIMEOUT:g} s")

    def __repr__(self) -> str:
        connection = self._connections[-1] if self._connections else None
        if self._stopped:
            state = "stopped"
        elif connection is None:
            state = "not started"
        elif connection.failure is not None:
            state = "ended" if connection.version else "failed to start"
        elif not connection.version:
            state = "starting"
        else:
            state = f"running, MCP {connection.version}, {len(connection.tools)} tools"
        return f"<MCPToolSet {self.name!r} {state}>"

    # -- the connection ------------------------------------------------------------------------------------------------

    def _connection(self, *, start: bool = False, context: ToolContext | None = None) -> Connection:
        """A connection that is ready, started where there is none. A call's ``context`` may cancel the wait."""
        try:
            from . import _owner
        except ImportError as error:
            raise MissingExtra("MCP tool sets", "mcp") from error
        with self._lock:
            if start:
                self._stopped = False
            elif self._stopped:
                raise MCPServerError(self.name, "was stopped; start() starts it again")
            connection = self._connections[-1] if self._connections else None
            if connection is None or connection.failure is not None:
                connection = _owner.Connection(
                    self._loop or default_loop(),
                    name=self.name,
                    command=self.command,
                    env=self.env,
                    cwd=self.cwd,
                    mode=self.mode,
                    connect_timeout=self.connect_timeout,
                )
                self._connections = [each for each in self._connections if not each.gone.closed]
                self._connections.append(connection)
                self._finalize(connection)
        try:
            connection.wait_ready(None if context is None else context.cancel)
        except _owner.Lost as error:
            raise MCPServerError(self.name, str(error)) from None
        return connection

    def _finalize(self, connection: Connection) -> None:
        """A toolset that nobody has any more takes its server with it."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, connection.request_stop)
        self._finalizer.atexit = False

    def _forget(self) -> None:
        """In a forked child: the server is the parent's."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._lock = threading.Lock()
        _inherited.extend(self._connections)
        self._connections = []

    # -- tools ---------------------------------------------------------------------------------------------------------

    def _tool(self, tool: Any) -> Tool:
        name = tool.name

        def function(**arguments: Any) -> ToolResult:
            return self._call(name, arguments.pop(_CONTEXT, None), arguments)

        read_only = bool(tool.annotations and tool.annotations.read_only_hint)
        made = Tool(
            name,
            function,
            description=tool.description or tool.title or "",
            parameters=tool.input_schema,
            read_only=read_only,
            destructive=not read_only and bool(tool.annotations and tool.annotations.destructive_hint),
            server=self.name,
        )
        made.context_parameter = _CONTEXT  # not a parameter of the function's: any name may be one of the tool's own
        return made

    def _call(self, name: str, context: ToolContext | None, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool, and wait for its result. Without a context nobody is asked, and nothing cancels it."""
        from . import _owner

        try:
            try:
                outcome = self._converse(self._connection(context=context).call(name, arguments), context)
            except _owner.Unsent:  # it ended, but had not begun with the call: another one can
                outcome = self._converse(self._connection(context=context).call(name, arguments), context)
        except _owner.Lost as error:
            raise MCPServerError(self.name, str(error)) from None
        return _result(outcome)

    def _converse(self, call: Call, context: ToolContext | None) -> CallToolResult:
        """Do what the call asks for until it has ended. Leaving earlier, by an exception, cancels it on the server."""
        from ._owner import Asked, Begun, Finished, Lost, Progressed

        left: float | None = None
        try:
            while True:
                since = time.monotonic()
                try:
                    message = call.inbox.recv(left, None if context is None else context.cancel)
                except TimeoutError:
                    problem = f"has not finished {call.name} after {self.call_timeout:g} s, so the call was cancelled"
                    raise MCPServerError(self.name, problem) from None
                if left is not None:
                    left = max(left - (time.monotonic() - since), 0)
                if isinstance(message, Begun):
                    left = self.call_timeout
                elif isinstance(message, Asked):
                    try:
                        self._ask(message, context, call.over)
                    except Cancelled:
                        if not call.over.cancelled:
                            raise
                        # Why it is over is the next message.
                elif isinstance(message, Progressed):
                    if context is not None:
                        context.progress(message.message, message.progress, message.total)
                elif isinstance(message, Finished):
                    if message.result is not None:
                        return message.result
                    if isinstance(message.error, Lost):
                        raise message.error
                    raise self._failure(call.name, message.error) from message.error
        finally:
            call.drop()

    def _ask(self, question: Asked, context: ToolContext | None, over: CancelToken) -> None:
        params = question.params
        if context is None:
            answer = Answer("decline", note="nobody is there to be asked")
        elif params.mode == "url":
            answer = context.elicit(params.message, url=params.url, cancel=over)
        else:
            answer = context.elicit(params.message, params.requested_schema, cancel=over)
        try:
            question.answer(answer.action, answer.content)
        except ValueError as error:
            problem = (
                f"asked {params.message!r} and cannot be sent the answer {answer.content!r}: it is not a flat form"
            )
            raise MCPServerError(self.name, problem) from error

    def _failure(self, tool: str, error: BaseException | None) -> MCPServerError:
        code = getattr(error, "code", None)
        if isinstance(code, int):  # the SDK's MCPError: the server's own words
            return MCPServerError(self.name, f"refused to call {tool}: {error} (code {code})")
        return MCPServerError(self.name, f"failed to call {tool}: {type(error).__name__}: {error}")


def _result(outcome: CallToolResult) -> ToolResult:
    """What the model reads: the texts, and a note for everything else; and the images, where it can see."""
    parts = [_part(block) for block in outcome.content]
    images = tuple(
        Image(base64.b64decode(block.data), block.mime_type) for block in outcome.content if block.type == "image"
    )
    if outcome.structured_content is not None and not any(block.type == "text" for block in outcome.content):
        parts.append(json.dumps(outcome.structured_content, ensure_ascii=False))
    return ToolResult("\n".join(parts) or "done", outcome.is_error, images)


def _part(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type in ("image", "audio"):
        return f"[{block.type} {block.mime_type}, {size_of(len(block.data) * 3 // 4)}]"  # base64
    if block.type == "resource_link":
        return f"[resource {block.uri}{f', {block.mime_type}' if block.mime_type else ''}]"
    if block.type == "resource":
        inside = block.resource
        size = len(inside.text.encode()) if hasattr(inside, "text") else len(inside.blob) * 3 // 4
        return f"[resource {inside.uri}{f', {inside.mime_type}' if inside.mime_type else ''}, {size_of(size)}]"
    return f"[{block.type}]"


_toolsets: weakref.WeakSet[MCPToolSet] = weakref.WeakSet()
# Of the parent, in a forked child. What is let go of closes itself, and what it closes is the parent's as well.
_inherited: list[Connection] = []


def _at_exit() -> None:
    """Let the servers end by themselves. With their loop, which is closed next, they would be killed."""
    connections = [connection for toolset in list(_toolsets) for connection in toolset._connections]
    for connection in connections:
        connection.request_stop()
    deadline = time.monotonic() + _EXIT_TIMEOUT
    for connection in connections:
        connection.wait_gone(max(deadline - time.monotonic(), 0))


def _forked() -> None:
    for toolset in list(_toolsets):
        toolset._forget()


# The last to register is the first to be called, and `channels.aio` has registered the end of its loops.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
