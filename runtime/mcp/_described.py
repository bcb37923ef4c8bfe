"""The tools of a server, as the runtime knows them: their names, and what they say of themselves."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy_logger

from .._dataclasses import dataclass, replace
from ..agent._tool import Tool, ToolResult
from ..schema._checking import Schema
from . import _offers
from ._content import result_of

if TYPE_CHECKING:
    from ._connection import Send

# The name under which a call's context comes among the tool's arguments. No server's parameter has a space in its name.
CONTEXT: Final = "the context"
NAME: Final = 64  # characters that a tool's name may have

_logger = lazy_logger("runtime.mcp")


@dataclass(frozen=True, slots=True)
class Described:
    """A tool without the function that calls it, which would hold its toolset: how it is called, and what is made of
    the answer.
    """

    tool: Tool
    name: str  # as the server knows it
    send: Callable[[Mapping[str, Any]], Send]
    result: Callable[[Any], ToolResult]
    method: str = "tools/call"  # of the protocol


def described(
    listed: Sequence[Any],
    patterns: Sequence[str] | None,
    prefix: str,
    server: str,
    *,
    resources: bool = False,
    prompts: bool = False,
) -> list[Described]:
    """Those of the tools ``listed`` by a server that ``patterns`` want, and ours for what else it offers."""
    wanted: dict[str, Any] = {}
    for tool in listed:
        if patterns is None or any(fnmatchcase(tool.name, pattern) for pattern in patterns):
            wanted.setdefault(tool.name, tool)  # of namesakes only one could be called
    ours = [*(_resource_tools(server) if resources else ()), *(_prompt_tools(server) if prompts else ())]
    names = {name: _sound_name(prefix + name) for name in wanted}
    taken: dict[str, str] = {}  # by the name that models are given, the server's
    for name in sorted(names, key=lambda name: names[name] != prefix + name):  # who can keep it, keeps it
        if taken.setdefault(names[name], name) != name:
            names[name] = _distinct(names[name], name)
    made = [_described(tool, names[name], server) for name, tool in wanted.items()]
    for each in ours:
        name = each.tool.name = _sound_name(prefix + each.name)
        if name in taken:  # the server has a tool of that name
            each.tool.name = _distinct(name, f"our {name}")
    return [*made, *ours]


def _described(tool: Any, name: str, server: str) -> Described:
    hints = tool.annotations
    read_only = bool(hints and hints.read_only_hint)
    made = Tool(
        name,
        _uncalled,
        description=tool.description or tool.title or "",
        parameters=tool.input_schema,
        read_only=read_only,
        destructive=not read_only and bool(hints and hints.destructive_hint),
        open_world=bool(hints and hints.open_world_hint),
        server=server,
        version=_version(tool),
    )
    made.context_parameter = CONTEXT  # not a parameter of the function's: any name may be one of the tool's own
    output = None if tool.output_schema is None else Schema(tool.output_schema)

    def send(arguments: Mapping[str, Any]) -> Send:
        from ._connection import tool_call

        return tool_call(tool.name, arguments)

    return Described(made, tool.name, send, functools.partial(_checked, output, tool.name))


def _checked(output: Schema | None, name: str, answer: Any) -> ToolResult:
    """The result of a call. Where its structured content is not what the tool says that it returns, the model is told
    so, and has it all the same: many servers are careless with their schemas, and their results are as good.
    """
    result = result_of(answer)
    if output is None or answer.is_error or answer.structured_content is None:
        return result
    problems = output.problems(answer.structured_content)
    if not problems:
        return result
    _logger.warning("%.100s returned something other than its outputSchema says: %.500s", name, "; ".join(problems))
    note = f"(This is not what {name} says that it returns: {'; '.join(problems)})"
    return replace(result, content=f"{result.content}\n{note}")


def _resource_tools(server: str) -> list[Described]:
    uri = {"uri": {"type": "string", "description": "The address, as list_resources shows it"}}
    return [
        _ours(
            "list_resources",
            f"List what {server} lets you read. What stands in {{braces}} in an address is for you to fill in.",
            {},
            lambda arguments: _offers.list_resources(),
            lambda found: ToolResult(_offers.listed(found)),
            server,
            "resources/list",
        ),
        _ours(
            "read_resource",
            f"Read a resource of {server}.",
            uri,
            lambda arguments: _offers.read_resource(arguments["uri"]),
            _offers.read,
            server,
            "resources/read",
        ),
    ]


def _prompt_tools(server: str) -> list[Described]:
    parameters = {
        "name": {"type": "string", "description": "The name, as list_prompts shows it"},
        "arguments": {"type": "object", "additionalProperties": {"type": "string"}, "default": {}},
    }
    return [
        _ours(
            "list_prompts",
            f"List the prompts that {server} has ready. Arguments with a question mark may be left out.",
            {},
            lambda arguments: _offers.list_prompts(),
            lambda found: ToolResult(_offers.listed_prompts(found)),
            server,
            "prompts/list",
        ),
        _ours(
            "get_prompt",
            f"Get a prompt of {server}, filled in.",
            parameters,
            lambda arguments: _offers.get_prompt(arguments["name"], arguments.get("arguments") or {}),
            lambda answer: ToolResult(_offers.said(_offers.messages_of(answer))),
            server,
            "prompts/get",
        ),
    ]


def _ours(
    name: str,
    description: str,
    properties: Mapping[str, Any],
    send: Callable[[Mapping[str, Any]], Send],
    result: Callable[[Any], ToolResult],
    server: str,
    method: str,
) -> Described:
    required = [each for each, schema in properties.items() if "default" not in schema]
    parameters = {"type": "object", "properties": properties, "required": required}
    tool = Tool(name, _uncalled, description=description, parameters=parameters, read_only=True, server=server)
    tool.context_parameter = CONTEXT
    return Described(tool, name, send, result, method)


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
    return sound if len(sound) <= NAME else _distinct(sound, name)


def _distinct(sound: str, name: str) -> str:
    """``sound``, made different from all that are made of other names. The same each time: sessions outlive servers."""
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{sound[: NAME - len(mark) - 1]}_{mark}"
