"""Resolving a tool call: finding the tool that it names, and reading its arguments. A call and the schema that it is
checked against may contain anything, so the worker rests while all of this is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from channels import CancelToken
from channels._lazy import lazy

from .._dataclasses import dataclass, replace
from .._errors import BadArguments, describe
from ..agent._tool import Tool, ToolResult
from ..foreign._sound import sound
from ..foreign._spelling import spelled
from ..session._journal import CallState
from ..session._message import Message, ToolCall, canonical
from ._assembler import cut_off

if TYPE_CHECKING:
    import json
else:
    json = lazy("json")


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that can be made: its arguments as the model, or a hook, gave them; the ``values`` that the tool gets; and
    these as patterns and the user see them, ``shown``. What is asked about is what runs: all three are made at once,
    and ``text`` with them, the arguments in JSON, from which they could be made again.
    """

    tool: Tool
    arguments: Mapping[str, Any]
    values: Mapping[str, Any]
    shown: Mapping[str, Any]
    text: str


_FLAT: Final = frozenset((str, int, float, bool, type(None)))
_LONG: Final = 10_000  # characters of arguments; longer ones are held against each other as they are written

Resolved: TypeAlias = Ready | ToolResult  # or the result of a call that cannot be made


@dataclass(frozen=True, slots=True)
class Read:
    """What has been read of the calls of a reply, by id: what those mean that are to be made, and how the arguments of
    all of them are written where they are compared with those of other turns.
    """

    resolved: Mapping[str, Resolved]
    compared: Mapping[str, str]


def read(
    reply: Message,
    calls: Sequence[ToolCall],
    tools: Mapping[str, Tool],
    states: Mapping[str, CallState],
    cancel: CancelToken,
) -> Read:
    """Read the calls of a reply, of which ``calls`` are to be made. One that was shown to the user before, in another
    process it may be, means what was shown.
    """
    to_make = {call.id for call in calls}
    resolved: dict[str, Resolved] = {}
    compared: dict[str, str] = {}
    for call in reply.tool_calls:
        arguments = call.parsed
        compared[call.id] = _compared(call, arguments)  # first: what a tool makes of its arguments may change them
        if call.id in to_make:
            made = _as_shown(call, states)
            means = arguments if made is call else made.parsed
            resolved[call.id] = _resolve(made, means, reply.finish_reason, tools, cancel)
    return Read(resolved, compared)


def _compared(call: ToolCall, arguments: Mapping[str, Any] | None) -> str:
    """A text that is the same for calls that say the same."""
    if len(call.arguments) >= _LONG:
        return call.arguments
    if arguments is not None and _FLAT.issuperset(map(type, arguments.values())):
        return repr(sorted(arguments.items()))  # in a fifth of the time
    return canonical(call, arguments)


def _as_shown(call: ToolCall, states: Mapping[str, CallState]) -> ToolCall:
    shown = states[call.id].arguments if call.id in states else None
    return call if shown is None else replace(call, arguments=shown)


def _resolve(
    call: ToolCall,
    arguments: Mapping[str, Any] | None,
    finish: str | None,
    tools: Mapping[str, Tool],
    cancel: CancelToken,
) -> Resolved:
    """The tool and its ``arguments``, which belong to it from then on. If the call is wrong or was cut off, an error
    with which the model can correct it.
    """
    if too_early := cut_off(call, finish):
        return ToolResult(too_early, is_error=True)
    tool = tools.get(call.name)
    if tool is None:
        known = ", ".join(sorted(tools)) or "none"
        return ToolResult(f"there is no tool {call.name!r:.200}; there are: {known}", is_error=True)
    if arguments is None:
        return ToolResult(call.problem, is_error=True)
    return given(tool, arguments, cancel, call.sound_arguments)


def given(tool: Tool, arguments: Mapping[str, Any], cancel: CancelToken, text: str | None = None) -> Resolved:
    """The arguments, checked against the tool's schema and converted to what it takes; or an error that says what is
    wrong."""
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
    text = json.dumps(sound(arguments)) if text is None else text
    return Ready(tool, arguments, values, spelled({**tool.defaults, **values}), text)
