"""`MCPToolSet`: the tools of one MCP server."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shlex
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from fnmatch import fnmatchcase
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal

from channels import Channel
from channels._exit import exit_seconds
from channels._lazy import lazy_logger
from channels.aio import LoopThread, default_loop

from .._checks import check, check_flags, check_items, check_number, check_path
from .._dataclasses import replace
from .._errors import MissingExtra
from .._public import not_copied
from ..agent._tool import Tool, ToolResult
from ..agent._tool_context import Asking, ToolContext, waiting_stream
from ..foreign._printable import escaped
from ..foreign._redact import Redaction
from ..session._message import Message
from . import _offers
from ._described import CONTEXT, Described, described
from ._oauth import OAuth, ask_to_sign_in
from ._offers import Prompt, Resource
from ._server_error import MCPServerError, SignInNeeded
from ._settings import check_auth, check_headers, checked_command, checked_roots, checked_url, refuse

if TYPE_CHECKING:
    from ._connection import Connection, Send, Way
    from ._http import Kind, Remote
    from ._stdio import Process

_STOP_TIMEOUT: Final = 10.0  # seconds; a server that resists takes half of it
_STEADY: Final = 30.0  # seconds after which a server that ends has not failed again, but for the first time
_LONGEST_PAUSE: Final = 60.0  # seconds before a server that fails again and again is started once more
_GLANCE: Final = 1.0  # seconds that a turn waits for a server that can be done without, and has failed before
_SHOWN: Final = 200  # characters of a command that its repr has
_EXIT_TIMEOUT: Final = 0.6  # seconds that all servers together have when the interpreter exits

_logger = lazy_logger("runtime.mcp")


class MCPToolSet:
    """The tools of one MCP server: a process that is started, or a server that runs somewhere else.

    ``command`` is the program with its arguments; the runtime talks to it through its standard input and output. The
    program gets HOME, LOGNAME, PATH, SHELL, TERM and USER from this process's environment, and the variables in
    ``env``. Instead, ``url`` is the address of a server that runs somewhere else. ``headers`` are sent with every
    request, ``auth`` is an `OAuth` or an ``httpx2.Auth``, and ``transport`` ("http" or "sse") says which transport the
    server has, so that it need not be found out.

    The server has ``startup_timeout`` seconds to start and to list its tools. A call is given up if the server sends
    nothing for ``call_timeout`` seconds (None: never). A progress notification restarts this time; the time that users
    take to answer questions, and in which the call waits for other calls, does not count.

    ``tools`` selects some of the server's tools, by name or by shell-style patterns; by default all. ``prefix`` is put
    before their names, to tell them from the tools of other servers. Providers accept only names of up to 64 ASCII
    letters, digits, ``_`` and ``-``, so other characters become ``_``, and longer names are cut. If a server announces
    that its tools have changed, the next turn has the new tools.

    Both generations of the protocol are supported: 2026-07-28, and the revisions before it. An older server does not
    say which call a question belongs to. Its calls therefore run at the same time only until it asks its first
    question, and one at a time from then on. If the first question comes while calls of several streams are under way,
    it is declined, with a note for the model. ``mode`` ("legacy" or "2026-07-28") says which generation the server
    supports. Without it, the server is addressed in the newer way, and in the older way if it does not answer within
    1.5 seconds; a server that ends because of that is started again.

    If the server has ended, the next call, or the next turn that needs its tools, starts it again; calls that it was
    working on fail. If it ends repeatedly, there is a pause before it is started again: one second, then two, up to a
    minute. A run that needs it for its next turn waits for the end of the pause, up to ``startup_timeout`` seconds.
    With ``required=False`` a run goes on without a server that cannot be started, and tries again at each turn. The
    server's standard error is logged by the logger ``runtime.mcp`` at level DEBUG; if the server fails, the last of it
    is part of the error.

    ``resource_tools`` and ``prompt_tools`` give the agent tools for the server's resources and prompts. ``sampling``
    lets the server send requests to the model of the agent that calls it, each of which the user has to approve.
    ``roots`` are directories of which the server is told.

    All methods may be called from any thread except the thread of ``loop``, which by default is the event loop that the
    process shares. A forked child starts a server of its own.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]] | None = None,
        *,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth: OAuth | Any = None,
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
        resource_tools: bool = False,
        prompt_tools: bool = False,
        sampling: bool = False,
        roots: Iterable[str | os.PathLike[str]] = (),
        loop: LoopThread | None = None,
    ) -> None:
        check_number("startup_timeout", startup_timeout, "seconds", above=0)
        check_number("call_timeout", call_timeout, "seconds", above=0, optional=True)
        check("mode", mode, str, '"auto", "legacy" or "2026-07-28"')
        if mode not in ("auto", "legacy") and not re.fullmatch(r"\d{4}-\d\d-\d\d", mode):
            raise ValueError(f'mode must be "auto", "legacy" or "2026-07-28", not {mode!r:.200}')
        check("prefix", prefix, str, "text")
        check("name", name, (str, NoneType), "text, or None")
        check_flags(required=required, resource_tools=resource_tools, prompt_tools=prompt_tools, sampling=sampling)
        wanted = None if tools is None else check_items("tools", tools, str, "a list of names, such as ['search']")
        if cwd is not None:
            check_path("cwd", cwd)
        check("loop", loop, (LoopThread, NoneType), "a LoopThread, or None")
        if (command is None) == (url is None):
            given = "neither is given" if command is None else "both are given"
            raise TypeError(f"an MCP server is a command to start or the url of one that runs, and {given}")
        if url is None:
            refuse("a server that is started by a command", url="", headers=headers, auth=auth)
            if transport != "auto":
                raise TypeError("a server that is started by a command reads its standard input: it has no transport=")
            self.command, default = checked_command(command, env)
        else:
            refuse("a server that runs somewhere else", env=env, cwd=cwd)
            self.command, default = (), checked_url(url)
            check("transport", transport, str, '"auto", "http" or "sse"')
            if transport not in ("auto", "http", "sse"):
                raise ValueError(f'transport must be "auto", "http" or "sse", not {transport!r:.200}')
            if transport == "sse" and mode not in ("auto", "legacy"):
                raise ValueError(
                    f"SSE is of the older generation of the protocol, so it cannot be spoken in mode {mode!r}"
                )
            check_headers(headers)
            check_auth(auth, url)
        self.url = url
        self.name = name or default
        self.headers = None if headers is None else dict(headers)
        self.auth = auth
        self.transport = transport
        self.env = None if env is None else dict(env)
        self.cwd = None if cwd is None else os.fspath(cwd)
        self.startup_timeout = startup_timeout
        self.call_timeout = call_timeout
        self.wanted = wanted
        self.prefix = prefix
        self.mode = mode
        self.required = required
        self.resource_tools = resource_tools
        self.prompt_tools = prompt_tools
        self.sampling = sampling
        self.roots = checked_roots(roots)
        self._known: tuple[object, Sequence[Described]] = (None, ())  # what was listed last, and what it describes
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

        Raises `MCPServerError` if there is no such command, if the server ended at once (with the last lines of its
        standard error), does not follow the protocol, does not answer within ``startup_timeout``, or lacks one of the
        selected tools. Nothing is left of the server then, and the next try starts it anew. Raises `MissingExtra` if
        the package ``mcp`` is not installed. A server with ``required=False`` may fail to start without an exception;
        `tools` raises it.
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
        """The tools of the server, which is started first if it does not run. Raises what `start` raises.

        After `stop`, only `start` starts it.
        """
        untold, self._untold = self._untold, None
        if untold is not None:
            raise untold
        self._sit_out()
        connection = self._connection()
        connection.wait_listed()
        listed = connection.tools
        known = self._known
        if known[0] is not listed:  # which is another list each time that the server is asked
            offers = connection.offers
            made = described(
                listed,
                self.wanted,
                self.prefix,
                self.name,
                resources=self.resource_tools and "resources" in offers,
                prompts=self.prompt_tools and "prompts" in offers,
            )
            known = self._known = (listed, made)
        return [self._tool(each, connection.version) for each in known[1]]

    def list_resources(self) -> list[Resource]:
        """The resources of the server. Raises what `start` raises, and `MCPServerError` if it has no resources."""
        return self._request("resources/list", _offers.list_resources()) or []

    def read_resource(self, uri: str) -> ToolResult:
        """The text and the images of a resource. Raises what `list_resources` raises, also if there is no such
        resource."""
        return _offers.read(self._request(f"resource {uri}", _offers.read_resource(uri)))

    def list_prompts(self) -> list[Prompt]:
        """The prompts that the server offers. Raises what `start` raises, and `MCPServerError` if it has none."""
        return self._request("prompts/list", _offers.list_prompts()) or []

    def get_prompt(self, name: str, /, **arguments: str) -> list[Message]:
        """A prompt with its arguments filled in: messages to begin a `Session` with. Raises what `list_prompts`
        raises."""
        return _offers.messages_of(self._request(f"prompt {name}", _offers.get_prompt(name, arguments)))

    def sign_out(self) -> None:
        """Delete the tokens of ``auth=OAuth()`` and end the connection. The next connection asks the user to sign
        in."""
        if not isinstance(self.auth, OAuth) or self.url is None:
            raise TypeError(f"{self!r} has no auth=OAuth(), so nobody is signed in")
        from ._sign_in import store_of

        store_of(self.url, self.auth).delete()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.request_stop()

    def stop(self) -> None:
        """End the server, and wait until nothing of it is left. Calls under way fail; a server that is starting is
        ended, too.

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

    __reduce_ex__ = not_copied("make an MCPToolSet in each process")

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
        return f"<MCPToolSet {self.name!r} {state}: {self._what}>"

    @property
    def _what(self) -> str:
        """The command or the address, without secrets: for people."""
        said = shlex.join(map(os.fspath, self.command)) if self.url is None else self.url.partition("?")[0]
        said = escaped(Redaction().text(said))
        return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."

    # -- the connection ------------------------------------------------------------------------------------------------

    def _connection(self, *, start: bool = False, context: ToolContext | None = None) -> Connection:
        """A connection that is ready, started where there is none. A call's ``context`` may cancel the wait."""
        try:
            from . import _connection
        except ImportError as error:
            raise MissingExtra("MCPToolSet", "mcp") from error
        stream: Asking | None = waiting_stream.get() if context is None else context  # type: ignore[assignment]
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
                    settings=_connection.Settings(self.sampling, self.roots),
                    startup_timeout=self.startup_timeout,
                    attended=stream is not None,
                )
                self._connections = [each for each in self._connections if not each.gone.closed]
                self._connections.append(connection)
                self._finalize(connection)
            # Who can do without does not wait each turn for what has failed before.
            patience = _GLANCE if self._failures and not self.required and not start else None
        try:
            if stream is None:
                connection.wait_ready(None, patience)
            else:
                connection.wait_ready(stream.cancel, patience, lambda each: ask_to_sign_in(each, self.name, stream))
        except _connection.NeedsSignIn as error:
            raise SignInNeeded(self.name, str(error)) from None
        except _connection.Lost as error:
            raise MCPServerError(self.name, str(error)) from None
        return connection

    def _sit_out(self) -> None:
        """Wait for the end of a pause that the server has before it is started again, where a stream needs it for its
        next turn: the stream would end. Not for longer than a start may take.
        """
        stream = waiting_stream.get()
        if stream is None or not self.required:
            return
        with self._lock:
            connection = self._connections[-1] if self._connections else None
            if self._stopped or connection is None or connection.failure is None:
                return
            left = self._pause_left(connection)
        if 0 < left <= self.startup_timeout:
            with contextlib.suppress(TimeoutError):
                Channel[None](name=f"a pause of {self.name}").recv(left, stream.cancel)

    def _pause_left(self, connection: Connection) -> float:
        """The seconds until a server that has ended may be started again; 0 or less if it may be."""
        if connection is not self._counted:
            self._counted = connection
            steady = connection.ended_at - connection.ready_at > _STEADY if connection.version else False
            self._failures = 1 if steady else self._failures + 1
            pause = 0.0 if self._failures == 1 else min(2.0 ** (self._failures - 2), _LONGEST_PAUSE)
            self._retry_at = connection.ended_at + pause
        return self._retry_at - time.monotonic()

    def _back_off(self, connection: Connection) -> None:
        """Raise `MCPServerError` where a server that ends again and again has been started too often of late."""
        left = self._pause_left(connection)
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

    def _tool(self, described: Described, protocol: str) -> Tool:
        from ._connection import MODERN

        def waits(kept: Mapping[str, Any]) -> bool:
            from ._conversation import waiting

            return waiting(kept) is not None

        def function(**arguments: Any) -> ToolResult:
            from ._conversation import Conversation

            conversation = Conversation(self.name, self.call_timeout, arguments.pop(CONTEXT, None))
            answer = conversation.request(described.name, described.send(arguments), self._connected)
            result, notes = described.result(answer), conversation.notes
            return replace(result, content="\n".join([result.content, *notes])) if notes else result

        made = copy(described.tool)
        made.function = function
        made.resumable = protocol >= MODERN  # of a call that waits for an answer, nothing is at the server
        made.resumes = waits
        made.traced = {
            "mcp.method.name": described.method,
            "mcp.protocol.version": protocol,
            "network.transport": "pipe" if self.url is None else "tcp",
            **_address(self.url),
        }
        return made

    def _request(self, what: str, send: Send) -> Any:
        """Ask the server something, outside of any stream."""
        self._connection()  # or the extra is missing
        from ._conversation import Conversation

        return Conversation(self.name, self.call_timeout, None).request(what, send, self._connected)

    def _connected(self, context: ToolContext | None) -> Connection:
        return self._connection(context=context)


def _address(url: str | None) -> dict[str, str | int]:
    """What telemetry says of where a server is."""
    from urllib.parse import urlsplit

    parts = urlsplit(url or "")
    if not parts.hostname:
        return {}
    return {"server.address": parts.hostname, "server.port": parts.port or (80 if parts.scheme == "http" else 443)}


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
