"""Results: the return value of a tool as the model reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy

from ..agent._tool import CallContext, Tool, ToolResult
from ..foreign import _json
from ..schema._annotations import to_jsonable
from ..session._message import Image

if TYPE_CHECKING:
    import inspect
else:
    inspect = lazy("inspect")

RESULT_CHARACTERS: Final = 50_000  # of one result, for the model; ``Runtime(result_limit=)`` says otherwise


def result_of(value: Any) -> ToolResult:
    """The return value of a function as a `ToolResult`: text, images, and everything else as JSON."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str):
        return ToolResult(value)
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        raise TypeError("the tool returned a generator; it has to return a value, such as a list")
    parts = [value] if isinstance(value, Image) else value
    if isinstance(parts, (list, tuple)) and any(isinstance(each, Image) for each in parts):
        images = tuple(each for each in parts if isinstance(each, Image))
        content = "\n".join(str(each) if isinstance(each, Image) else _text(each) for each in parts)
        return ToolResult(content, images=images)
    return ToolResult(_text(value))


def run_tool(tool: Tool, values: Mapping[str, Any], context: CallContext) -> Any:
    """Call the tool's function, on a thread for foreign code. Returns its result, or an awaitable of the result."""
    value = tool.function(**tool.bind(values, context))
    if value.__class__ is str:  # as mostly
        return ToolResult(value)
    if not inspect.isawaitable(value):
        return result_of(value)
    if tool.on == "consumer":
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError(f"{tool.name} returned a coroutine, which cannot run in the consumer's thread")
    return _result_of(value)


async def run_tool_async(tool: Tool, values: Mapping[str, Any], context: CallContext) -> ToolResult:
    """Await the tool's coroutine function, and return its result."""
    return result_of(await tool.function(**tool.bind(values, context)))


async def _result_of(value: Awaitable[Any]) -> ToolResult:
    return result_of(await value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json.write(to_jsonable(value))


def cut(text: str, limit: int, where: str) -> str:
    """The beginning and the end of ``text``, ``limit`` characters together, and a note in between."""
    head = limit * 4 // 5
    tail = limit - head
    note = f"[... {len(text) - limit} of {len(text)} characters are left out here; {where} ...]"
    return f"{text[:head]}\n{note}\n{text[len(text) - tail :]}"
