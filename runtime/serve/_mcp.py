"""Agents as the tools of an MCP server: over standard input and output, or over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import secrets
import signal
import socket
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy_logger

from .._checks import check, check_number
from .._dataclasses import dataclass
from .._errors import MissingExtra
from .._public import not_copied
from ..agent._agent import Agent, Team
from ..runtime import Runtime
from ..session._session import Session
from ._backend import checked_agents
from ._served_run import Done, Message, Progress, Question, ServedRun
from ._wire import Wire, standard_streams

if TYPE_CHECKING:
    from mcp.server import Server

MODERN: Final = "2026-07-28"  # from here on a client is answered with what it has to ask, and calls again
KEPT: Final = 200  # conversations
NAME: Final = 64  # characters that a tool's name may have
END: Final = 5.0  # seconds that runs have to end, when the server does

_logger = lazy_logger("runtime.serve")


@dataclass(frozen=True, slots=True)
class _Served:
    """An agent, or a team, as a tool."""

    name: str
    description: str
    runtime: Runtime


def mcp(agents: Agent | Team | Iterable[Agent | Team], *, name: str = "lockgate", **settings: Any) -> MCPServer:
    """An MCP server with one tool for each agent. For a team, it is a tool that runs the team's first agent.

    A tool takes a ``prompt``, and the id of a ``conversation`` to continue, which is in every result. Questions of the
    agents and approvals of their tool calls are sent to the client's user, as elicitations. If the client cannot ask,
    questions are declined, and calls that need approval are refused. The events of an agent are reported as the
    progress of the call.

    ``settings`` are those of `Runtime`, such as ``permissions`` and ``store``. ``instructions`` tell the client's model
    what the server is for. At most ``max_runs`` runs may be under way at a time. A client that was asked a question has
    ``idle_timeout`` seconds to call again with the answer. Raises `MissingExtra` without the package ``mcp``.
    """
    return MCPServer(agents, name=name, **settings)


class MCPServer:
    """Agents as tools, for MCP clients of both generations of the protocol. See `mcp`.

    `run` and `run_http` serve, and return when that is over; `app` is for a server of your own. Use the server in a
    ``with`` block, or call `close`, where neither of the two has done so.
    """

    def __init__(
        self,
        agents: Agent | Team | Iterable[Agent | Team],
        *,
        name: str = "lockgate",
        instructions: str = "",
        max_runs: int = 16,
        idle_timeout: float = 900.0,
        **settings: Any,
    ) -> None:
        try:
            import mcp as _sdk  # noqa: F401
        except ImportError as error:
            raise MissingExtra("serving MCP", "mcp") from error
        check("name", name, str, "text")
        check("instructions", instructions, str, "text")
        check_number("max_runs", max_runs, "runs", above=0)
        check_number("idle_timeout", idle_timeout, "seconds", above=0)
        given = checked_agents(agents)
        self.name = name
        self.instructions = instructions
        self.max_runs = max_runs
        self.idle_timeout = idle_timeout
        self._closed = False
        self._lock = threading.Lock()
        self._served: dict[str, _Served] = {}
        self._runs: set[ServedRun] = set()
        self._waiting: dict[str, ServedRun] = {}  # for a client of the newer generation to come back
        self._expiry: dict[str, asyncio.TimerHandle] = {}
        self._conversations: OrderedDict[str, tuple[str, Session]] = OrderedDict()
        for each in given:
            root = each if isinstance(each, Agent) else each.root
            tool = re.sub(r"[^a-zA-Z0-9_-]", "_", root.name)[:NAME]
            if tool in self._served:
                raise ValueError(f"two agents are named {root.name!r}, and so would be their tools")
            description = root.description or f"Ask the agent {root.name}."
            self._served[tool] = _Served(tool, description, Runtime(each, **settings))

    # -- serving -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve one client on standard input and output, until it closes them. Then everything is closed.

        What agents and tools print goes to standard error meanwhile.
        """
        from mcp.server.stdio import stdio_server

        async def serve(descriptors: tuple[int, int]) -> None:
            server, wire = self._server(), Wire(*descriptors)
            try:
                async with stdio_server(wire, wire) as (source, sink):  # type: ignore[arg-type]
                    await server.run(source, sink, server.create_initialization_options())
            finally:
                wire.close()

        with standard_streams() as descriptors:
            self._run(lambda: serve(descriptors))

    def run_http(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        path: str = "/mcp",
        token: str | None = None,
        ready: Callable[[str], object] | None = None,
    ) -> None:
        """Serve clients over streamable HTTP, until SIGINT or SIGTERM. Then everything is closed.

        With a ``token``, clients have to send ``Authorization: Bearer TOKEN``. ``ready`` is called with the address
        once it can be asked (with port 0 the system chooses the port). Raises `ValueError` where there is no token and
        ``host`` is not this machine alone: everybody in reach could have the agents work. Raises `OSError` if the
        address cannot be had.
        """
        if token is None and host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(f"on {host!r} everybody in reach could use the agents: token= says who may")
        import uvicorn

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:  # its own end the process before anything is closed
                yield

        config = uvicorn.Config(
            self.app(path=path, host=host, token=token),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=2,
        )
        server = Server(config)

        def stop() -> None:
            server.should_exit = True

        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            # Not left to uvicorn, which exits where it cannot have the address, with a status that says something else.
            sockets = [stack.enter_context(each) for each in _listening(host, port)]
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{sockets[0].getsockname()[1]}{path}"
            self._run(lambda: server.serve(sockets), stop, None if ready is None else lambda: ready(address))

    def app(self, *, path: str = "/mcp", host: str = "127.0.0.1", token: str | None = None) -> Any:
        """An ASGI application, for a server of your own. When that has ended, call `close`."""
        if token is not None:
            check("token", token, str, "text")
            if not token:
                raise ValueError("the token is empty: everybody would know it")
        app = self._server().streamable_http_app(streamable_http_path=path, host=host)
        return app if token is None else _Guard(app, token)

    def _run(
        self,
        serve: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], None] | None = None,
        ready: Callable[[], object] | None = None,
    ) -> None:
        """Serve, until that ends or a signal ends it. Then everything is closed. ``ready`` is called before, when a
        signal would end it in good order.
        """

        async def until_told() -> None:
            told = False

            def tell() -> None:
                nonlocal told
                told = True
                (stop or task.cancel)()

            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
                    loop.add_signal_handler(number, tell)
            if ready is not None:
                ready()
            task = asyncio.ensure_future(serve())
            try:
                await task
            except (Exception, asyncio.CancelledError) as error:
                if not told:
                    raise
                _logger.debug("the server did not end cleanly", exc_info=error)

        try:
            asyncio.run(until_told())
        finally:
            self.close()

    def close(self) -> None:
        """End all runs, and stop what the agents use. Idempotent."""
        self._closed = True
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.cancel("the server ends")
        for run in runs:
            run.join(END)
        for served in self._served.values():
            served.runtime.close()

    def __enter__(self) -> MCPServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    __reduce_ex__ = not_copied("make an MCPServer in each process")

    def __repr__(self) -> str:
        return f"<MCPServer {self.name!r}: {', '.join(self._served)}>"

    # -- the protocol: the loop's thread -------------------------------------------------------------------------------

    def _server(self) -> Server[Any]:
        from importlib.metadata import PackageNotFoundError, version

        from mcp.server import Server

        try:
            ours = version("lockgate")
        except PackageNotFoundError:
            ours = ""

        @contextlib.asynccontextmanager
        async def lifespan(server: object) -> AsyncIterator[dict[str, Any]]:
            yield {}

        return Server(
            self.name,
            version=ours,
            instructions=self.instructions or None,
            lifespan=lifespan,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    async def _list_tools(self, context: Any, params: Any) -> Any:
        from mcp.types import ListToolsResult, Tool, ToolAnnotations

        schema = {
            "type": "object",
            "properties": {
                "prompt": {"type": "string", "description": "What to say to the agent, with all that it has to know"},
                "conversation": {
                    "type": "string",
                    "description": "The conversation to go on with, as a result names it; left out, a new one begins",
                },
            },
            "required": ["prompt"],
        }
        output = {
            "type": "object",
            "properties": {"conversation": {"type": "string"}},
            "required": ["conversation"],
        }
        annotations = ToolAnnotations(open_world_hint=True)
        return ListToolsResult(
            tools=[
                Tool(
                    name=each.name,
                    description=each.description,
                    input_schema=schema,
                    output_schema=output,
                    annotations=annotations,
                )
                for each in self._served.values()
            ]
        )

    async def _call_tool(self, context: Any, params: Any) -> Any:
        try:
            run = self._resumed(params) if params.request_state else self._begun(context, params)
        except _Refused as refused:
            return _result(Done(str(refused), is_error=True))
        try:
            if context.protocol_version >= MODERN:
                return await self._converse_in_rounds(context, run)
            return await self._converse(context, run)
        except BaseException:
            run.cancel("the client does not want it any more")
            self._forget(run)
            raise

    def _begun(self, context: Any, params: Any) -> ServedRun:
        served = self._served.get(params.name)
        if served is None:
            raise _Refused(f"there is no agent {params.name!r:.100}; there are: {', '.join(self._served)}")
        arguments = params.arguments or {}
        prompt, conversation = arguments.get("prompt"), arguments.get("conversation")
        if not isinstance(prompt, str) or not prompt.strip():
            raise _Refused("prompt is what to say to the agent, as text")
        if self._closed:
            raise _Refused("the server ends")
        if len(self._runs) >= self.max_runs:
            raise _Refused(f"{self.max_runs} runs are under way, which are as many as may be: try again later")
        if conversation is None or conversation == "":
            session = Session.from_user(prompt)
        else:
            name, session = self._conversations.get(str(conversation), ("", None))  # type: ignore[assignment]
            if session is None or name != served.name:
                raise _Refused(f"there is no conversation {conversation!r:.100} with {served.name}: leave it out")
            try:
                session.add_user(prompt)
            except Exception as error:
                raise _Refused(f"the conversation cannot go on: {error}") from None
        try:
            run = ServedRun(served.runtime, session, interactive=_can_ask(context))
        except Exception as error:
            raise _Refused(f"{served.name} cannot be asked: {error}") from None
        with self._lock:
            self._runs.add(run)
        self._conversations[session.id] = served.name, session
        self._conversations.move_to_end(session.id)
        while len(self._conversations) > KEPT:
            self._conversations.popitem(last=False)
        return run

    def _resumed(self, params: Any) -> ServedRun:
        """The run to which a client brings the answers that it was told to ask for."""
        run = self._waiting.pop(params.request_state, None)
        if run is None:
            raise _Refused("this call has ended meanwhile: make it anew")
        self._expiry.pop(run.state).cancel()
        answers = params.input_responses or {}
        for id, question in list(run.open.items()):
            answer = answers.get(id)
            action = getattr(answer, "action", "cancel")
            run.answer(question, action, getattr(answer, "content", None))
        return run

    async def _converse_in_rounds(self, context: Any, run: ServedRun) -> Any:
        """Serve a client that calls again with each answer: its run waits for it, for a while."""
        from mcp.types import InputRequiredResult

        while not isinstance(message := await run.next(), Done):
            if isinstance(message, Progress):
                await self._progress(context, run, message)
                continue
            for question in [message, *run.asked_too()]:
                if question.url and not _can_open(context):
                    run.answer(question, "decline", None)
                else:
                    run.open[question.id] = question
            if run.open:
                self._waiting[run.state] = run
                loop = asyncio.get_running_loop()
                self._expiry[run.state] = loop.call_later(self.idle_timeout, self._expire, run)
                requests = {id: _request(question) for id, question in run.open.items()}
                return InputRequiredResult(input_requests=requests, request_state=run.state)
        self._forget(run)
        return _result(message)

    def _expire(self, run: ServedRun) -> None:
        self._waiting.pop(run.state, None)
        self._expiry.pop(run.state, None)
        run.cancel(f"its client has not come back within {self.idle_timeout:g} s")
        self._forget(run)

    async def _converse(self, context: Any, run: ServedRun) -> Any:
        """Serve a client that is asked in the middle of its call."""
        asking: set[asyncio.Task[None]] = set()
        try:
            while not isinstance(message := await run.next(), Done):
                if isinstance(message, Progress):
                    await self._progress(context, run, message)
                else:
                    task = asyncio.create_task(self._ask(context, run, message))
                    asking.add(task)
                    task.add_done_callback(asking.discard)
        finally:
            for task in list(asking):
                task.cancel()
        self._forget(run)
        return _result(message)

    async def _ask(self, context: Any, run: ServedRun, question: Question) -> None:
        if question.url and not _can_open(context):
            run.answer(question, "decline", None)
            return
        session, id = context.session, context.request_id
        try:
            if question.url:
                answer = await session.elicit_url(question.message, question.url, question.id, id)
            else:
                answer = await session.elicit_form(question.message, dict(question.schema), id)
        except Exception as error:  # the client cannot, or has gone
            _logger.debug("a question could not be asked", exc_info=error)
            run.answer(question, "decline", None)
            return
        run.answer(question, answer.action, answer.content)

    async def _progress(self, context: Any, run: ServedRun, message: Progress) -> None:
        run.steps += 1
        with contextlib.suppress(Exception):  # the client may have gone, which the call itself will tell
            await context.session.report_progress(run.steps, None, message.text)

    def _forget(self, run: ServedRun) -> None:
        with self._lock:
            self._runs.discard(run)


def _listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at all addresses of ``host``. Raises `OSError`."""
    found: list[socket.socket] = []
    failed: OSError | None = None
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in known:
            try:
                found.append(socket.create_server(address[:2], family=family, backlog=2048))
            except OSError as error:
                failed = error
                if error.errno == errno.EADDRINUSE:
                    raise
        if not found:
            raise failed or OSError(f"{host} has no address")
    except BaseException:
        for each in found:
            each.close()
        raise
    return found


class _Refused(Exception):
    """The call is not made, and why: for the client to read."""


class _Guard:
    """Lets nobody in who does not know the token."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            sent = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(sent, self._wanted):
                headers = [(b"content-length", b"0"), (b"www-authenticate", b"Bearer")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)


def _can_ask(context: Any) -> bool:
    from mcp.types import ClientCapabilities, ElicitationCapability

    return bool(context.session.check_client_capability(ClientCapabilities(elicitation=ElicitationCapability())))


def _can_open(context: Any) -> bool:
    """Whether the client can send its user to a page."""
    capabilities = context.session.client_capabilities
    elicitation = None if capabilities is None else capabilities.elicitation
    return elicitation is not None and elicitation.url is not None


def _request(question: Question) -> Any:
    from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitRequestURLParams

    if question.url:
        params: Any = ElicitRequestURLParams(message=question.message, url=question.url, elicitation_id=question.id)
    else:
        params = ElicitRequestFormParams(message=question.message, requested_schema=dict(question.schema))
    return ElicitRequest(params=params)


def _result(done: Message) -> Any:
    from mcp.types import CallToolResult, TextContent

    assert isinstance(done, Done)
    structured = dict(done.structured) or None
    return CallToolResult(
        content=[TextContent(type="text", text=done.text)], structured_content=structured, is_error=done.is_error
    )
