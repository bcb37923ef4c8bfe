"""`MCPToolSet`: the tools of one MCP server."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from fnmatch import fnmatchcase
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from channels import Cancelled, CancelToken
from channels._exit import exit_seconds
from channels._lazy import lazy_logger
from channels.aio import LoopThread, default_loop

from .._checks import check, check_number
from .._dataclasses import replace
from .._errors import MissingExtra, Portable
from ..agent._tool import Answer, Tool, ToolResult
from ..agent._tool_context import ToolContext
from ._content import result_of

if TYPE_CHECKING:
    from mcp.types import CallToolResult

    from ._connection import Connection, Elicitation, ServerCall, Visit, Way
    from ._http import Kind, Remote
    from ._stdio import Process

# The name under which a call's context comes among the tool's arguments. No server's parameter has a space in its name.
_CONTEXT: Final = "the context"
_STOP_TIMEOUT: Final = 10.0  # seconds; a server that resists takes half of it
_VISITS: Final = 3  # times that a user is sent to the pages that one call needs
_NAME: Final = 64  # characters that a tool's name may have
_STEADY: Final = 30.0  # seconds after which a server that ends has not failed again, but for the first time
_LONGEST_PAUSE: Final = 60.0  # seconds before a server that fails again and again is started once more
_GLANCE: Final = 1.0  # seconds that a turn waits for a server that can be done without, and has failed before
_EXIT_TIMEOUT: Final = 0.6  # seconds that all servers together have when the interpreter exits

_logger = lazy_logger("runtime.mcp")


class MCPServerError(Portable, RuntimeError):
    """A server cannot be used, or refused a call. The text says which, what happened, and what can be done."""

    def __init__(self, server: str, problem: str) -> None:
        super().__init__(f"MCP server {server!r} {problem}")
        self.server = server
        self.problem = problem


class MCPToolSet:
    """The tools of one MCP server: a process that is started, or a server that runs somewhere else.

    ``command`` is the program and its arguments, spoken to through its standard input and output. The server sees HOME,
    LOGNAME, PATH, SHELL, TERM and USER of our environment, and what ``env`` adds. Or ``url`` is the address of a
    server, to which ``headers`` go with every request; ``auth`` is an ``httpx2.Auth``. ``transport`` "http" or "sse"
    spares it the question which of the two it speaks.

    ``startup_timeout`` is how many seconds the server has to start and to list its tools.
    A call from which nothing is heard for ``call_timeout`` seconds is given up (None: never). Progress that the server
    reports starts the time anew; the time that users take to answer it, and in which the call waits for others, is not
    counted.

    ``tools`` are the names of those that are wanted of the server's tools, or patterns as in the shell; by default all
    are. ``prefix`` goes before their names, to tell them from those of other servers. Providers take only names of
    up to 64 ASCII letters, digits, ``_`` and ``-``: other characters become ``_``, and what is too long is cut. A
    server may say that its tools have changed: the next turn has the new ones.

    Both generations of the protocol are spoken: 2026-07-28, and the sessions before. These do not say which call a
    question belongs to. So calls of a server of the old kind run side by side only until it has asked a question, and
    one at a time from then on. Its first question, if it comes while calls of several streams are under way, is
    declined, with a note for the model. ``mode`` "legacy" or "2026-07-28" spares the server the question which one it
    is: by default it is asked in the newer way, then in the older one if it does not answer for 1.5 seconds; one that
    ends is started again.

    A server that ends is started again by the next call, or when its tools are next asked for; the calls that it was
    busy with fail. One that ends again and again is given a pause first, of a second, then two, up to a minute. With
    ``required`` False a run goes on without a server that does not start, and looks each turn whether it is there. What
    a server writes to its standard error is logged by the logger ``runtime.mcp`` at level DEBUG, and the last of it is
    part of the error when the server fails.

    All methods may be called from any thread but that of ``loop``, by default the loop that everything shares. A forked
    child has a server of its own.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]] | None = None,
        *,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Any = None,
        transport: Literal["auto", "http", "sse"] = "auto",
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        startup_timeout: float = 30.0,
        call_timeout: float | None = 300.0,
        tools: Iterable[str] | None = None,
        prefix: str = "",
        mode: str = "auto",
        required: bool = True,
        loop: LoopThread | None = None,
    ) -> None:
        check_number("startup_timeout", startup_timeout, "seconds", above=0)
        check_number("call_timeout", call_timeout, "seconds", above=0, optional=True)
        check("mode", mode, str, '"auto", "legacy" or "2026-07-28"')
        if mode not in ("auto", "legacy") and not re.fullmatch(r"\d{4}-\d\d-\d\d", mode):
            raise ValueError(f'mode is "auto", "legacy" or "2026-07-28", not {mode!r}')
        check("prefix", prefix, str, "text")
        check("required", required, bool, "True or False")
        if isinstance(tools, str):
            raise TypeError(f"tools is a list of names, such as [{tools!r}], not one text")
        if (command is None) == (url is None):
            given = "neither is given" if command is None else "both are given"
            raise TypeError(f"an MCP server is a command to start or the url of one that runs, and {given}")
        if url is None:
            _refuse("a server that is started by a command", url="", headers=headers, auth=auth)
            if transport != "auto":
                raise TypeError("a server that is started by a command reads its standard input: it has no transport=")
            self.command, default = _checked_command(command, env)
        else:
            _refuse("a server that runs somewhere else", env=env, cwd=cwd)
            self.command, default = (), checked_url(url)
            check("transport", transport, str, '"auto", "http" or "sse"')
            if transport not in ("auto", "http", "sse"):
                raise ValueError(f'transport is "auto", "http" or "sse", not {transport!r}')
            if transport == "sse" and mode not in ("auto", "legacy"):
                raise ValueError(
                    f"SSE is of the older generation of the protocol, so it cannot be spoken in mode {mode!r}"
                )
            _check_headers(headers)
            _check_auth(auth)
        self.url = url
        self.name = name or default
        self.headers = None if headers is None else dict(headers)
        self.auth = auth
        self.transport = transport
        self.env = None if env is None else dict(env)
        self.cwd = None if cwd is None else os.fspath(cwd)
        self.startup_timeout = startup_timeout
        self.call_timeout = call_timeout
        self.wanted = None if tools is None else tuple(tools)
        self.prefix = prefix
        self.mode = mode
        self.required = required
        self._known: tuple[Sequence[Any], Mapping[str, Tool]] = ((), {})  # what was listed last, and what it describes
        self._loop = loop
        self._lock = threading.Lock()
        self._stopped = False
        self._way: Way | None = None  # that the server took
        self._untold: MCPServerError | None = None  # of a start, where the server is not required: for `tools` to say
        self._counted: Connection | None = None  # the last one whose end is counted
        self._failures = 0  # in a row
        self._retry_at = 0.0  # when it may be started again, by `time.monotonic`
        self._connections: list[Connection] = []  # the last one counts, the others are about to end
        self._finalizer: weakref.finalize[Any, MCPToolSet] | None = None
        _toolsets.add(self)

    # -- ToolSet -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, unless it runs, and wait until its tools are known.

        Raises `MCPServerError`: no such command, it ended at once (with the last lines of its standard error), it does
        not speak MCP, no answer within ``startup_timeout``. Nothing is left of it then, and the next try starts anew.
        The same where it lacks one of the wanted tools; `MissingExtra` where the package ``mcp`` is not installed. One
        that is not ``required`` may fail to start: `tools` says so.
        """
        try:
            listed = [tool.name for tool in self._connection(start=True).tools]
        except MCPServerError as error:
            if self.required:
                raise
            self._untold = error
            return
        missing = [name for name in self.wanted or () if not any(fnmatchcase(each, name) for each in listed)]
        if missing and not self.required:
            _logger.warning("MCP server %r has no tool %s", self.name, " or ".join(map(repr, missing)))
        elif missing:
            self.stop()
            problem = f"has no tool {' or '.join(map(repr, missing))}; it has: {', '.join(sorted(listed)) or 'none'}"
            raise MCPServerError(self.name, problem)

    def tools(self) -> list[Tool]:
        """The tools of the server, which is started first where it does not run. Raises what `start` raises.

        After `stop`, only `start` starts it.
        """
        untold, self._untold = self._untold, None
        if untold is not None:
            raise untold
        connection = self._connection()
        connection.wait_listed()
        listed = connection.tools
        known = self._known
        if known[0] is not listed:  # which is another list each time that the server is asked
            known = self._known = (listed, self._describe(listed))
        return [self._tool(name, described) for name, described in known[1].items()]

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
            from . import _connection
        except ImportError as error:
            raise MissingExtra("MCP tool sets", "mcp") from error
        with self._lock:
            if start:
                self._stopped = False
            elif self._stopped:
                raise MCPServerError(self.name, "was stopped; start() starts it again")
            connection = self._connections[-1] if self._connections else None
            if connection is None or connection.failure is not None:
                if connection is not None and not start:
                    self._back_off(connection)
                self._way = self._way if connection is None else connection.way
                connection = _connection.Connection(
                    self._loop or default_loop(),
                    name=self.name,
                    link=self._link(),
                    ways=self._ways(),
                    startup_timeout=self.startup_timeout,
                )
                self._connections = [each for each in self._connections if not each.gone.closed]
                self._connections.append(connection)
                self._finalize(connection)
            # Who can do without does not wait each turn for what has failed before.
            patience = _GLANCE if self._failures and not self.required and not start else None
        try:
            connection.wait_ready(None if context is None else context.cancel, patience)
        except _connection.Lost as error:
            raise MCPServerError(self.name, str(error)) from None
        return connection

    def _back_off(self, connection: Connection) -> None:
        """Raise `MCPServerError` where a server that ends again and again has been started too often of late."""
        if connection is not self._counted:
            self._counted = connection
            steady = connection.ended_at - connection.ready_at > _STEADY if connection.version else False
            self._failures = 1 if steady else self._failures + 1
            pause = 0.0 if self._failures == 1 else min(2.0 ** (self._failures - 2), _LONGEST_PAUSE)
            self._retry_at = connection.ended_at + pause
        left = self._retry_at - time.monotonic()
        if left > 0:
            times = f"{self._failures} times in a row; it is started again in {left:.0f} s at the earliest"
            raise MCPServerError(self.name, f"has failed {times}. The last time it {connection.failure}")

    def _link(self) -> Callable[[Kind], Process | Remote]:
        """What makes a new link to the server. It does not hold this toolset."""
        from ._http import Remote
        from ._stdio import Process

        name, command, env, cwd = self.name, self.command, self.env, self.cwd
        url, headers, auth = self.url, self.headers or {}, self.auth

        def link(kind: Kind) -> Process | Remote:
            return Process(name, command, env, cwd) if url is None else Remote(name, url, headers, auth, kind)

        return link

    def _ways(self) -> list[Way]:
        """The ways to speak with the server, in the order in which they are tried: first that which it took before."""
        from ._connection import Way

        known = [] if self._way is None else [self._way]
        older = self.mode in ("auto", "legacy")
        if self.url is None:
            return [*known, Way("stdio", self.mode), *([Way("stdio", "legacy")] if self.mode == "auto" else [])]
        http = [] if self.transport == "sse" else [Way("http", self.mode)]
        sse = [] if self.transport == "http" or not older else [Way("sse", "legacy")]
        return [*known, *http, *sse]

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

    def _describe(self, listed: Sequence[Any]) -> dict[str, Tool]:
        """The tools by the server's names, without the functions that call them, which would hold this toolset."""
        wanted: dict[str, Any] = {}
        for tool in listed:
            if self.wanted is None or any(fnmatchcase(tool.name, pattern) for pattern in self.wanted):
                wanted.setdefault(tool.name, tool)  # of namesakes only one could be called
        names = {name: _sound_name(self.prefix + name) for name in wanted}
        taken: dict[str, str] = {}  # by the name that models are given, the server's
        for name in sorted(names, key=lambda name: names[name] != self.prefix + name):  # who can keep it, keeps it
            if taken.setdefault(names[name], name) != name:
                names[name] = _distinct(names[name], name)
        return {name: _described(tool, names[name], self.name) for name, tool in wanted.items()}

    def _tool(self, name: str, described: Tool) -> Tool:
        def function(**arguments: Any) -> ToolResult:
            return self._call(name, arguments.pop(_CONTEXT, None), arguments)

        made = copy(described)
        made.function = function
        return made

    def _call(self, name: str, context: ToolContext | None, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool, and wait for its result. Without a context nobody is asked, and nothing cancels it."""
        from . import _connection

        notes: list[str] = []
        try:
            for attempt in count(1):
                try:
                    outcome = self._attempt(name, context, arguments, notes)
                    break
                except _connection.Visit as visit:
                    self._visit(name, visit, context, attempt)
        except _connection.Lost as error:
            raise MCPServerError(self.name, str(error)) from None
        except MCPServerError as error:
            if not notes:
                raise
            raise MCPServerError(self.name, "\n".join([error.problem, *notes])) from error
        result = result_of(outcome)
        return replace(result, content="\n".join([result.content, *notes])) if notes else result

    def _attempt(
        self, name: str, context: ToolContext | None, arguments: Mapping[str, Any], notes: list[str]
    ) -> CallToolResult:
        from ._connection import Unsent

        # Calls without a context are nobody's: none of them is like another.
        stream = uuid4().hex if context is None else context.session_id
        try:
            return self._converse(self._connection(context=context).call(name, arguments, stream), context, notes)
        except Unsent:  # it ended, but had not begun with the call: another one can
            return self._converse(self._connection(context=context).call(name, arguments, stream), context, notes)

    def _visit(self, tool: str, visit: Visit, context: ToolContext | None, attempt: int) -> None:
        """Ask the user to visit the pages that the call needs first. Raises `MCPServerError` where that is no help."""
        pages = ", ".join(url for _, url in visit.pages)
        if attempt > _VISITS or not visit.pages:
            problem = f"refused to call {tool}: {visit.reason}; the user has to finish at {pages or 'a page'} first"
            raise MCPServerError(self.name, problem)
        for message, url in visit.pages:
            answer = Answer("decline") if context is None else context.elicit(message, url=url)
            if not answer.accepted:
                why = answer.note or f"the user's answer is {answer.action!r}"
                raise MCPServerError(self.name, f"refused to call {tool} before the user visits {url}: {why}")

    def _converse(self, call: ServerCall, context: ToolContext | None, notes: list[str]) -> CallToolResult:
        """Answer the messages of a call until it has ended. Leaving earlier, by an exception, cancels it there."""
        from ._connection import Begun, CallEnded, Declined, Elicitation, Lost, Progressed, visit_of

        left: float | None = None
        try:
            while True:
                since = time.monotonic()
                try:
                    message = call.inbox.recv(left, None if context is None else context.cancel)
                except TimeoutError:
                    problem = (
                        f"has not finished {call.name} after {self.call_timeout:g} s, so the call was cancelled;"
                        " call_timeout= gives it more time"
                    )
                    raise MCPServerError(self.name, problem) from None
                if left is not None:
                    left = max(left - (time.monotonic() - since), 0)
                if isinstance(message, Begun):
                    left = self.call_timeout
                elif isinstance(message, Elicitation):
                    try:
                        self._ask(message, context, call.over)
                    except Cancelled:
                        if not call.over.cancelled:
                            raise
                        # Why it is over is the next message.
                elif isinstance(message, Declined):
                    notes.append(
                        f"(The server asked {message.message!r} while calls of several conversations were under way,"
                        " and does not say which one it is for, so nobody was asked. Calls of this server are made one"
                        " at a time from now on: call again to have the user asked.)"
                    )
                elif isinstance(message, Progressed):
                    left = self.call_timeout
                    if context is not None:
                        context.progress(message.message, message.progress, message.total)
                elif isinstance(message, CallEnded):
                    if message.result is not None:
                        return message.result
                    if isinstance(message.error, Lost):
                        raise message.error
                    if (visit := visit_of(message.error)) is not None:
                        raise visit
                    raise self._failure(call.name, message.error) from message.error
        finally:
            call.drop()

    def _ask(self, question: Elicitation, context: ToolContext | None, over: CancelToken) -> None:
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


def _refuse(what: str, **given: Any) -> None:
    """Raise `TypeError` for a setting that the server cannot have."""
    for name, value in given.items():
        if value:
            raise TypeError(f"{what} has no {name}=")


def _checked_command(
    command: Sequence[str | os.PathLike[str]] | None, env: Mapping[str, str] | None
) -> tuple[tuple[str, ...], str]:
    """The command, and the name that it gives to the server."""
    for name, value in (env or {}).items():
        if not isinstance(value, str):  # which is not shown: it may be a secret
            raise TypeError(f"env[{name!r}] is text, not {type(value).__name__}")
    if isinstance(command, (str, bytes)):
        raise TypeError(f"the command is a list, such as {str(command).split()!r}, not one text")
    parts = tuple(os.fspath(part) for part in command or ())
    if not parts:
        raise ValueError("the command is empty")
    return parts, os.path.basename(parts[0])


def checked_url(url: str) -> str:
    """The name that the address gives to the server. Raises `ValueError` where no server can be there."""
    check("url", url, str, "text, such as 'https://example.org/mcp'")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url is no address of a server: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"url begins with https:// or http://, and names a host; it is {url!r:.200}")
    if any(each.isspace() or not each.isprintable() for each in url):
        raise ValueError(f"url has a space or a control character in it: {url!r:.200}")
    return host.replace(":", "_")


def _check_headers(headers: Mapping[str, str] | None) -> None:
    """Raise an error for a header that cannot be sent. Its value is not shown: it may be a secret."""
    if headers is not None:
        check("headers", headers, Mapping, "a mapping, such as {'Authorization': 'Bearer ...'}")
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"{name!r:.100} is not the name of a header")
        if not isinstance(value, str):
            raise TypeError(f"headers[{name!r}] is text, not {type(value).__name__}")
        if not value.isascii() or any(each < " " or each == "\x7f" for each in value):
            raise ValueError(f"headers[{name!r}] has characters in it that no header can have")


def _check_auth(auth: Any) -> None:
    if auth is not None and not hasattr(auth, "async_auth_flow"):
        raise TypeError(f"auth is an httpx2.Auth, not {type(auth).__name__}; a token goes into headers=")


def _described(tool: Any, name: str, server: str) -> Tool:
    read_only = bool(tool.annotations and tool.annotations.read_only_hint)
    made = Tool(
        name,
        _uncalled,
        description=tool.description or tool.title or "",
        parameters=tool.input_schema,
        read_only=read_only,
        destructive=not read_only and bool(tool.annotations and tool.annotations.destructive_hint),
        server=server,
        version=_version(tool),
    )
    made.context_parameter = _CONTEXT  # not a parameter of the function's: any name may be one of the tool's own
    return made


def _version(tool: Any) -> str:
    """What tells one definition of a tool from every other: all of it that a user may have read, or a model does."""
    said = {"name": tool.name, "title": tool.title, "description": tool.description, "schema": tool.input_schema}
    said["annotations"] = tool.annotations and tool.annotations.model_dump(mode="json")
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _uncalled(**arguments: Any) -> ToolResult:
    raise NotImplementedError


def _sound_name(name: str) -> str:
    """``name`` as providers take it: they refuse a request in which one is otherwise, with all that is in it."""
    sound = re.sub(r"[^a-zA-Z0-9_-]", "_", name) or "_"
    return sound if len(sound) <= _NAME else _distinct(sound, name)


def _distinct(sound: str, name: str) -> str:
    """``sound``, made different from all that are made of other names. The same each time: sessions outlive servers."""
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{sound[: _NAME - len(mark) - 1]}_{mark}"


_toolsets: weakref.WeakSet[MCPToolSet] = weakref.WeakSet()
# Of the parent, in a forked child. What is let go of closes itself, and what it closes is the parent's as well.
_inherited: list[Connection] = []


def _at_exit() -> None:
    """Let the servers end by themselves. With their loop, which is closed next, they would be killed."""
    connections = [connection for toolset in list(_toolsets) for connection in toolset._connections]
    for connection in connections:
        connection.request_stop()
    deadline = time.monotonic() + exit_seconds(_EXIT_TIMEOUT)
    for connection in connections:
        connection.wait_gone(max(deadline - time.monotonic(), 0))


def _forked() -> None:
    for toolset in list(_toolsets):
        toolset._forget()


# The last to register is the first to be called, and `channels.aio` has registered the end of its loops.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
