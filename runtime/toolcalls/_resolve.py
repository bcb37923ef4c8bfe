"""What a call means: which tool it names, and what the tool is given. Anything may stand in a call, and in the schema
it is held against: all of this is for a helper thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from channels import CancelToken

from .._errors import BadArguments, describe
from ..agent._tool import Tool, ToolResult
from ..foreign._spelling import spelled
from ..session._message import Message, ToolCall
from ._assembler import cut_off


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that can be made: its arguments as the model, or a hook, gave them; the ``values`` that the tool gets; and
    these as patterns and the user see them, ``shown``. What is asked about is what runs: all three are made at once.
    """

    tool: Tool
    arguments: Mapping[str, Any]
    values: Mapping[str, Any]
    shown: Mapping[str, Any]


Resolved: TypeAlias = Ready | ToolResult  # or the result of a call that cannot be made


def resolve(reply: Message, tools: Mapping[str, Tool], cancel: CancelToken) -> dict[str, Resolved]:
    """The calls of the reply, by id."""
    return {call.id: _resolve(call, reply.finish_reason, tools, cancel) for call in reply.tool_calls}


def _resolve(call: ToolCall, finish: str | None, tools: Mapping[str, Tool], cancel: CancelToken) -> Resolved:
    """The tool and its arguments; where the model got them wrong, or was cut off, an error that it can mend."""
    if too_early := cut_off(call, finish):
        return ToolResult(too_early, is_error=True)
    tool = tools.get(call.name)
    if tool is None:
        known = ", ".join(sorted(tools)) or "none"
        return ToolResult(f"there is no tool {call.name!r:.200}; there are: {known}", is_error=True)
    arguments = call.parsed
    if arguments is None:
        return ToolResult(call.problem, is_error=True)
    return given(tool, arguments, cancel)


def given(tool: Tool, arguments: Mapping[str, Any], cancel: CancelToken) -> Resolved:
    """The arguments, held against the schema of the tool and made into what it takes; or what is wrong with them."""
    checked = arguments
    if tool.nullable:
        checked = {k: v for k, v in arguments.items() if v is not None or k not in tool.nullable}
    found = tool.schema.problems(checked, cancel=cancel)
    if found:
        return ToolResult(f"wrong arguments for {tool.name}: {'; '.join(found)}", is_error=True)
    try:
        values = tool.values(arguments)
    except BadArguments as error:
        return ToolResult(describe(error), is_error=True)
    return Ready(tool, arguments, values, spelled({**tool.defaults, **values}))
