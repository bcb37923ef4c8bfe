"""What a server's answers are made of, made readable piece by piece: one tool, or one block of a result, that is not
what the protocol says must not cost all the others, or the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from channels._lazy import lazy_logger

_DEEPEST: Final = 60  # levels of a tool's schema; the SDK, and providers, go wrong on much deeper ones
_BINARY: Final = {"image": "image/png", "audio": "audio/wav"}

_logger = lazy_logger("runtime.mcp")


def sound(result: dict[str, Any]) -> dict[str, Any]:
    """A result, where it is that of ``tools/list`` or ``tools/call``; others as they are."""
    if isinstance(result.get("tools"), list):
        return {**result, "tools": [made for each in result["tools"] if (made := _tool(each)) is not None]}
    content = result.get("content")
    if isinstance(content, str):
        return {**result, "content": [{"type": "text", "text": content}]}
    if isinstance(content, list):
        return {**result, "content": [_block(each) for each in content]}
    return result


def _tool(tool: Any) -> dict[str, Any] | None:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        _logger.warning("a tool of an MCP server is left out: it has no name")
        return None
    texts = ("title", "description")
    made = {name: each for name, each in tool.items() if name not in texts or isinstance(each, str)}
    output = made.get("outputSchema")
    is_object = isinstance(output, dict) and output.get("type", "object") == "object"
    if output is not None and (not is_object or _is_deep(output)):
        _logger.warning("the results of the tool %.100r are not checked: its outputSchema is none", tool["name"])
        del made["outputSchema"]
    elif isinstance(output, dict):
        made["outputSchema"] = {**output, "type": "object"}
    schema = made.get("inputSchema")
    problem = ""
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        problem = "is no schema of an object"
    elif _is_deep(schema):
        problem = f"is nested more than {_DEEPEST} levels deep"
    if problem:
        _logger.warning("the tool %.100r of an MCP server takes anything: its inputSchema %s", tool["name"], problem)
        schema = {}
    assert isinstance(schema, dict)
    made["inputSchema"] = {name: each for name, each in schema.items() if each is not None} | {"type": "object"}
    if not isinstance(made.get("annotations"), (dict, type(None))):
        del made["annotations"]
    return made


def _is_deep(schema: Any) -> bool:
    level = [schema]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _block(block: Any) -> dict[str, Any]:
    """A block of a result; one that cannot be read is a text that says so."""
    kind = block.get("type") if isinstance(block, dict) else None
    match block:
        case {"type": "text", "text": str()} | {"type": "resource_link", "uri": str(), "name": str()}:
            return dict(block)
        case {"type": "resource_link", "uri": str() as uri}:
            return {**block, "name": uri}
        case {"type": "image" | "audio", "data": str()}:
            return {"mimeType": _BINARY[block["type"]], **block}
        case {"type": "resource", "resource": {"uri": str(), "text": str()} | {"uri": str(), "blob": str()}}:
            return dict(block)
        case str():
            return {"type": "text", "text": block}
    said = block.get("text") if isinstance(block, Mapping) else None
    return {"type": "text", "text": said if isinstance(said, str) else f"[{str(kind)[:50]}, which cannot be read]"}
