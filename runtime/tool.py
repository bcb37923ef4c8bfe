"""Tools: functions that a model may call."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload, runtime_checkable

from channels import CancelToken

from .model import ToolDefinition

if TYPE_CHECKING:
    from .agent import Agent
    from .session import Session
    from .stream import RunResult

F = TypeVar("F", bound=Callable[..., Any])
Action = Literal["accept", "decline", "cancel"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the user said to a question. ``content`` belongs to ``accept``; ``note`` says why nobody was asked."""

    action: Action
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the user gave what was asked for."""
        return self.action == "accept"


@dataclass(frozen=True, slots=True)
class Question:
    """Something a tool asks the user: a form (``schema``) or a page to visit (``url``)."""

    message: str
    schema: Mapping[str, Any] | None = None
    mode: Literal["form", "url"] = "form"
    url: str = ""
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gives back, as the model will see it."""

    content: str
    is_error: bool = False


class ToolContext(Protocol):
    """What a running tool may use. A tool gets one by having a parameter annotated `ToolContext`."""

    @property
    def call_id(self) -> str:
        """The id of this call."""

    @property
    def session_id(self) -> str:
        """The session that the call belongs to."""

    @property
    def agent_name(self) -> str:
        """The agent that makes the call."""

    @property
    def cancel(self) -> CancelToken:
        """Cancelled when the stream is: pass it as ``cancel=``, or look at ``cancel.cancelled``."""

    def elicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        """Ask the user of this stream, and wait for the answer.

        ``schema`` is the JSON schema of the form, or ``url`` a page to visit. After ``timeout`` seconds (by default the
        runtime's) the answer is ``decline``, as it is at once where there is nobody to ask. Raises `Cancelled` when the
        stream ends first, or ``cancel`` is cancelled, which takes the question back. For synchronous tools; see
        `aelicit`.
        """

    async def aelicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """`elicit`, for asynchronous tools. Cancelling the task that waits takes the question back."""

    def run_agent(self, agent: Agent, task: str | Session) -> RunResult:
        """Run another agent inside this call, on a new session that begins with ``task``, or on a session.

        Its events reach the consumer of this stream, marked with its own session id, and so do its questions. It is
        cancelled when this stream is. Raises `RunError` when it ends other than normally. For synchronous tools.
        """


class Tool:
    """A tool: what the model sees (``definition``), and the function that is called.

    ``function`` takes the arguments by name. A plain function runs on a helper thread, a coroutine function as a task
    on the event loop's thread. It returns text, a `ToolResult`, or anything that JSON can write. A tool that is not
    ``read_only`` is called after the user's approval, unless permissions say otherwise; ``destructive`` is for the user
    to know. ``server`` is the MCP server that it belongs to, which permissions may name.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        description: str = "",
        parameters: Mapping[str, Any] | None = None,
        read_only: bool = False,
        destructive: bool = False,
        parallel: bool = True,
        polling: bool = False,
        server: str = "",
    ) -> None:
        if read_only and destructive:
            raise ValueError(f"tool {name!r} cannot be both read_only and destructive")
        self.name = name
        self.function = function
        self.description = description
        self.parameters: Mapping[str, Any] = parameters or {"type": "object", "properties": {}}
        self.read_only = read_only
        self.destructive = destructive
        self.parallel = parallel
        self.polling = polling
        self.server = server
        self.is_async = inspect.iscoroutinefunction(function)
        self.context_parameter = _context_parameter(function)

    @property
    def definition(self) -> ToolDefinition:
        """The tool as a model sees it."""
        return ToolDefinition(self.name, self.description, self.parameters)

    @property
    def names(self) -> tuple[str, ...]:
        """What permissions may call it; the last is the most exact."""
        return (self.name, f"mcp:{self.server}", f"mcp:{self.server}:{self.name}") if self.server else (self.name,)

    @property
    def defaults(self) -> dict[str, Any]:
        """What the arguments are that a call leaves out, as far as that is known."""
        properties = self.parameters.get("properties", {})
        return {name: schema["default"] for name, schema in properties.items() if "default" in schema}

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """The keyword arguments of the call."""
        bound = dict(arguments)
        if self.context_parameter is not None:
            bound[self.context_parameter] = context
        return bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, as if it were not a tool."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.name}({', '.join(self.parameters.get('properties', {}))})>"


@runtime_checkable
class ToolSet(Protocol):
    """Tools that have to be started, such as those of a server.

    ``start`` may raise: a stream that needs the tools then ends with an error, and the next one tries again. The
    methods are called on helper threads. ``tools`` is asked before every turn, and may answer differently each time.
    """

    def start(self) -> None: ...
    def tools(self) -> Sequence[Tool]: ...
    def stop(self) -> None: ...


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    read_only: bool = False,
    destructive: bool = False,
    parallel: bool = True,
    polling: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    read_only: bool = False,
    destructive: bool = False,
    parallel: bool = True,
    polling: bool = False,
) -> Any:
    """Make a tool of a typed function: its name, its docstring and its annotations are what the model sees.

    ``Args:`` in the docstring describes the parameters. ``read_only`` says that the tool changes nothing, so that the
    user need not approve its calls; ``destructive`` that what it does cannot be undone; ``parallel=False`` that it must
    not run beside other calls of the same turn; ``polling`` that it is called again and again until something has
    happened, so that identical calls of it are no loop.
    """

    def make(function: Callable[..., Any]) -> Tool:
        summary, notes = _docstring(function)
        return Tool(
            name or function.__name__,
            function,
            description=summary if description is None else description,
            parameters=_parameters(function, notes),
            read_only=read_only,
            destructive=destructive,
            parallel=parallel,
            polling=polling,
        )

    return make if function is None else make(function)


def result_of(value: Any) -> ToolResult:
    """What a function returned, as a result."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str):
        return ToolResult(value)
    if value is None:
        return ToolResult("done")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return ToolResult(json.dumps(value, ensure_ascii=False, default=str))


def _context_parameter(function: Callable[..., Any]) -> str | None:
    for name, annotation in _hints(function).items():
        if annotation is ToolContext:
            return name
    return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise TypeError(f"the annotations of {function!r} cannot be resolved: {error}") from error


def _parameters(function: Callable[..., Any], notes: Mapping[str, str]) -> dict[str, Any]:
    hints = _hints(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"a tool's parameters are passed by name, so {parameter} of {function!r} cannot be one")
        annotation = hints.get(parameter.name, str)
        if annotation is ToolContext:
            continue
        schema = _schema(annotation)
        if parameter.name in notes:
            schema = {**schema, "description": notes[parameter.name]}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif parameter.default is not None:
            schema = {**schema, "default": parameter.default}
        properties[parameter.name] = schema
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    dict: {"type": "object"},
    list: {"type": "array"},
    Any: {},
}


def _schema(annotation: Any) -> dict[str, Any]:
    if annotation in _PLAIN:
        return dict(_PLAIN[annotation])
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        note = next((extra for extra in args[1:] if isinstance(extra, str)), None)
        return {**_schema(args[0]), **({"description": note} if note else {})}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return _schema(options[0])  # Optional: left out, rather than null
        return {"anyOf": [_schema(option) for option in options]}
    if origin in (list, Sequence, typing.get_origin(Sequence[str])):
        return {"type": "array", "items": _schema(args[0])}
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, str])):
        return {"type": "object", "additionalProperties": _schema(args[1])}
    raise TypeError(
        f"a tool's parameter cannot be annotated {annotation!r}; use str, int, float, bool, list, dict or Literal"
    )


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before ``Args:``, and the notes on the parameters after it."""
    text = inspect.getdoc(function) or ""
    head, _, rest = text.partition("\nArgs:\n")
    notes: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        match = re.match(r" +\*{0,2}(\w+)(?: *\([^)]*\))?: *(.*)", line)
        if match:
            name = match[1]
            notes[name] = match[2]
        elif name and line.strip():
            notes[name] += " " + line.strip()
    return " ".join(head.split()), notes
