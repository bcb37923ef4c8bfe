"""Tools: functions that a model may call, and toolsets that have to be started."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MethodType, NoneType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, overload, runtime_checkable

from channels._lazy import lazy

from .._checks import check, check_flags, check_items, is_number
from .._dataclasses import dataclass, field, short_repr
from .._errors import BadArguments, describe
from ..foreign._sound import sound, well_formed
from ..model import ToolDefinition
from ..schema._annotations import hints_of, is_method, signature_of
from ..schema._checking import Schema, properties_of
from ..schema._docstrings import read as read_docstring
from ..session._message import Image

if TYPE_CHECKING:
    import copy
    import inspect
else:
    inspect = lazy("inspect")
    copy = lazy("copy")

Action = Literal["accept", "decline", "cancel"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question (elicitation). ``content`` is set with the action ``accept``; ``note`` says why, if
    nobody was asked.
    """

    action: Action
    content: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ValueError(f"an answer must be one of {', '.join(get_args(Action))}, not {self.action!r:.200}")
        check("the content of an answer", self.content, Mapping, "a mapping, such as {'size': 'large'}")
        check("the note of an answer", self.note, str, "text")

    @property
    def accepted(self) -> bool:
        """Whether the user accepted, so that there is ``content``."""
        return self.action == "accept"

    __repr__ = short_repr


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
    """The result of a tool call, as the model will see it.

    ``images`` are attached to the message, for models that can read images; for other models, ``content`` should say in
    words what they show.
    """

    content: str
    is_error: bool = False
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        check("the content of a ToolResult", self.content, str, "text")
        if self.is_error is not True and self.is_error is not False:
            check_flags(is_error=self.is_error)
        if self.images or type(self.images) is not tuple:
            images = check_items("the images of a ToolResult", self.images, Image, "a tuple of images")
            object.__setattr__(self, "images", images)

    __repr__ = short_repr


class CallContext(Protocol):
    """What a tool may take beside its arguments. It is known by its base class, and says nothing here: the one that
    there is, `ToolContext`, names agents, which have tools.
    """


class Tool:
    """A tool: what the model sees (``definition``), and the function that is called.

    ``function`` takes the arguments by name. A plain function runs on a thread of the runtime, a coroutine function as
    a task on the event loop's thread. It returns text, an `Image`, a list of both, a `ToolResult`, or any value that
    can be written as JSON. ``convert`` turns the arguments, after they were checked against ``parameters``, into the
    values that the function takes. With ``on="consumer"`` the function runs in the thread of the stream's consumer,
    while that iterates.

    Unless the tool is ``read_only`` or permissions say otherwise, the user has to approve a call. ``destructive`` (its
    effect cannot be undone) and ``open_world`` (it reaches things outside) are shown to the user. A call that takes
    longer than ``timeout`` seconds ends with an error that the model reads; the time that users take to answer
    questions does not count. A result of more than ``result_limit`` characters (by default the runtime's limit) is
    shortened.

    ``server`` is the name of the MCP server that the tool belongs to, which permissions may use. ``version`` identifies
    the server's definition of the tool: an approval of the tool holds for this definition only.

    If the process dies during a call, a store cannot know whether the call took effect, so the call is not made again.
    There are three exceptions: a ``read_only`` tool; a ``repeatable`` tool, for which calling it twice has no more
    effect than calling it once, because it uses `ToolContext.call_id` as an idempotency key; and a ``resumable`` tool,
    which is called again from its beginning, gets the answers that the user has already given, and protects steps that
    must not be done twice with `ToolContext.once`.
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
        timeout: float | None = None,
        result_limit: int | None = None,
        on: Literal["helper", "consumer"] = "helper",
        server: str = "",
        version: str = "",
        open_world: bool = False,
        convert: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        repeatable: bool = False,
        resumable: bool = False,
    ) -> None:
        check("the name of a tool", name, str, "text")
        if not name:
            raise ValueError("a tool needs a name, by which the model calls it")
        check(f"the function of tool {name!r}", function, Callable, "callable")  # type: ignore[arg-type]
        check(f"the description of tool {name!r}", description, str, "text")
        check(f"the parameters of tool {name!r}", parameters, (Mapping, NoneType), "a JSON schema of type object")
        check(f"the server of tool {name!r}", server, str, "text")
        check(f"the version of tool {name!r}", version, str, "text")
        if convert is not None:
            check(f"convert of tool {name!r}", convert, Callable, "a function of the arguments, or None")  # type: ignore[arg-type]
        check_flags(  # read_only="no" would spare the user the question
            read_only=read_only,
            destructive=destructive,
            parallel=parallel,
            polling=polling,
            open_world=open_world,
            repeatable=repeatable,
            resumable=resumable,
        )
        if read_only and destructive:
            raise ValueError(f"tool {name!r} cannot be both read_only and destructive")
        if timeout is not None and not is_number(timeout, above=0):
            raise ValueError(f"the timeout of tool {name!r} must be a number of seconds above 0, not {timeout!r}")
        if result_limit is not None and not is_number(result_limit, least=1, whole=True):
            raise ValueError(
                f"the result_limit of tool {name!r} must be a whole number of characters, not {result_limit!r}"
            )
        if name.startswith("mcp:") or ":" in server:  # it would pass for a tool of another server
            raise ValueError(f"no tool is named 'mcp:...', and no server has a colon in its name: {server!r}, {name!r}")
        self.name = name
        self.function = function
        self.description = well_formed(description)
        #: Without what JSON cannot say, such as a default of infinity: no request could be sent.
        self.parameters: Mapping[str, Any] = sound(parameters) or {"type": "object", "properties": {}}
        self.schema = Schema(self.parameters)
        self._definition: ToolDefinition | None = None  # made once, and not for every turn
        properties = properties_of(self.parameters).items()
        self._defaults = {name: each["default"] for name, each in properties if "default" in each}
        self.read_only = read_only
        self.destructive = destructive
        self.parallel = parallel
        self.polling = polling
        self.timeout = timeout
        self.result_limit = result_limit
        self.on = on
        self.server = server
        self.version = version
        self.open_world = open_world
        self.convert = convert
        self.repeatable = repeatable
        self.resumable = resumable
        #: Whether a resumable call can be made again, by what its steps have kept; None: always.
        self.resumes: Callable[[Mapping[str, Any]], bool] | None = None
        self.nullable: frozenset[str] = frozenset()  # arguments that may be null beside what `parameters` says
        self.unbound = False  # a method, without the object that it is called on
        self.given: Mapping[str, Any] = {}  # what its own code gives to arguments that a call leaves out
        self.traced: Mapping[str, str | int] = {}  # what telemetry says of its calls beside their names
        self.is_async = inspect.iscoroutinefunction(function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"tool {name!r} is a generator: let it return a list, and say how far it has come with"
                " ToolContext.progress"
            )
        if on not in ("helper", "consumer"):
            raise ValueError(f"on must be 'helper' or 'consumer', not {on!r:.200}")
        if on == "consumer" and self.is_async:
            raise TypeError(f"tool {name!r} is a coroutine function, which cannot run in the consumer's thread")
        self.context_parameter = _context_parameter(function)

    @property
    def definition(self) -> ToolDefinition:
        """The tool as a model sees it."""
        made = self._definition
        if (
            made is None
            or (made.name, made.description) != (self.name, self.description)
            or made.parameters is not self.parameters
        ):
            made = self._definition = ToolDefinition(self.name, self.description, self.parameters)
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which permissions may refer to the tool; the last is the most exact."""
        return (self.name, f"mcp:{self.server}", f"mcp:{self.server}:{self.name}") if self.server else (self.name,)

    @property
    def owner(self) -> str:
        """The owner of the tool: its server, or the function it is made from. Tools of the same name may have different
        owners.
        """
        if self.server:
            return f"mcp:{self.server}#{self.version}" if self.version else f"mcp:{self.server}"
        code = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{code.__module__}.{code.__qualname__}"

    @property
    def defaults(self) -> dict[str, Any]:
        """The default values of the arguments that a call leaves out, as far as they are known."""
        return {**self._defaults, **self.given}

    def values(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, converted to what the function takes. This runs foreign code. Raises `BadArguments`."""
        try:
            return dict(arguments) if self.convert is None else self.convert(arguments)
        except Exception as error:
            said = describe(error).removeprefix(f"{type(error).__name__}: ")  # which the model cannot do anything about
            raise BadArguments(f"wrong arguments for {self.name}: {said}") from error

    def bind(self, values: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """The keyword arguments of the call: the `values`, and the context if the function takes one."""
        return dict(values) if self.context_parameter is None else {**values, self.context_parameter: context}

    def may_begin_again(self, kept: Mapping[str, Any]) -> bool:
        """Whether a call may be made that had begun before its process died, with the steps that are ``kept`` of it."""
        resumes = self.resumable and (self.resumes is None or self.resumes(kept))
        return self.read_only or self.repeatable or resumes

    def __get__(self, instance: object, owner: type | None = None) -> Tool:
        """Bind a tool that is marked in a class to an object: ``Shop().sell``."""
        if instance is None or not self.unbound:
            return self
        bound = copy.copy(self)
        bound.function = MethodType(self.function, instance)
        bound.unbound = False
        return bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, as if it were not a tool."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.name}({', '.join(properties_of(self.parameters))})>"


@runtime_checkable
class ToolSet(Protocol):
    """Tools that have to be started before use, such as those of a server.

    The methods are called on helper threads. ``tools`` is called before every turn and may return other tools each
    time. If ``start`` or ``tools`` raises, the stream that needs the tools ends with an error, and the next stream
    tries again. If the tool set has an attribute ``required`` that is False, the run goes on without its tools, and
    tries again at the next turn.
    """

    def start(self) -> None:
        """Get ready to serve tools. Called before the first `tools`, and again where it has raised."""

    def tools(self) -> Sequence[Tool]:
        """The tools that there are now."""
        ...

    def stop(self) -> None:
        """Let go of everything that `start` has begun. Called when the last runtime that uses the tools is closed."""


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
    timeout: float | None = None,
    result_limit: int | None = None,
    on: Literal["helper", "consumer"] = "helper",
    repeatable: bool = False,
    resumable: bool = False,
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
    timeout: float | None = None,
    result_limit: int | None = None,
    on: Literal["helper", "consumer"] = "helper",
    repeatable: bool = False,
    resumable: bool = False,
) -> Any:
    """Make a tool of a typed function. The model sees its name, its docstring and its annotations.

    The docstring may describe the parameters, in the style of Google (``Args:``), NumPy, Sphinx or Epydoc.
    ``read_only``: the tool changes nothing, so the user need not approve its calls. ``destructive``: its effect cannot
    be undone. ``parallel=False``: it must not run at the same time as other calls of the turn. ``polling``: it is meant
    to be called until something has happened, so repeated calls do not count as a loop. ``timeout`` (seconds),
    ``result_limit`` (characters), ``on``, ``repeatable`` and ``resumable`` are as for `Tool`.

    If a method is decorated in its class, each object has its own tool: ``Shop().sell``. The model is not asked for an
    argument that a `functools.partial` has fixed. Raises `TypeError` for a function that a model cannot call: a
    generator function, a function without a name, a parameter whose type JSON cannot represent.
    """

    def make(function: Callable[..., Any]) -> Tool:
        if isinstance(function, Tool):
            raise TypeError(f"{function!r} is a tool already")
        check("what tool() makes a tool of", function, Callable, "a function")  # type: ignore[arg-type]
        summary, notes = _docstring(function)
        signature = signature_of(function, notes, _is_context)
        made = Tool(
            _name_of(function) if name is None else name,
            function,
            description=summary if description is None else description,
            parameters=signature.parameters,
            convert=signature.convert,
            read_only=read_only,
            destructive=destructive,
            parallel=parallel,
            polling=polling,
            timeout=timeout,
            result_limit=result_limit,
            on=on,
            repeatable=repeatable,
            resumable=resumable,
        )
        made.nullable = signature.nullable
        made.unbound = is_method(function)
        made.given = {
            each.name: each.default
            for each in inspect.signature(function).parameters.values()
            if each.default is not each.empty and each.name in signature.kinds
        }
        return made

    return make if function is None else make(function)


def _context_parameter(function: Callable[..., Any]) -> str | None:
    for name, annotation in hints_of(function).items():
        if _is_context(annotation):
            return name
    return None


def _is_context(annotation: object) -> bool:
    return isinstance(annotation, type) and CallContext in annotation.__mro__


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description of the function, and the notes on its parameters."""
    while isinstance(function, functools.partial):  # whose own says what a partial is
        function = function.func
    text = inspect.getdoc(function) or ""
    if not (inspect.isroutine(function) or isinstance(function, type)):
        text = inspect.getdoc(type(function).__call__) or text
    return read_docstring(text)


def _name_of(function: Callable[..., Any]) -> str:
    """The name of a tool that is given none: that of its function. Raises `TypeError` where the function has none."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise TypeError(f"{function!r} has no name that a model could call: tool(name=...)(...) gives it one")
    return str(name)
