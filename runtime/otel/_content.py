"""What was said, as attributes: JSON in the form of the semantic conventions, secrets left out.

All of it is computed on the helper that ends the span, and only where content is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..foreign._redact import Redaction
from ..model import ToolDefinition
from ..session._message import Message
from ._attributes import Attributes

VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
#: Of its values, those that ask for content in spans. The others ask for none, or for events, which are not sent.
_IN_SPANS: Final = ("true", "span_only", "span_and_event")


def is_wanted() -> bool:
    """Whether the environment asks for content."""
    return os.environ.get(VARIABLE, "").strip().lower() in _IN_SPANS


class Content:
    """Makes attributes of what was said."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction

    def asked(self, messages: Iterable[Message], tools: Sequence[ToolDefinition] = ()) -> Attributes:
        """What a model, or an agent, was told."""
        system = [_text(each.content) for each in messages if each.role == "system"]
        said = [_message(each) for each in messages if each.role != "system"]
        found: Attributes = {"gen_ai.input.messages": self._json(said)}
        if system:
            found["gen_ai.system_instructions"] = self._json(system)
        if tools:
            found["gen_ai.tool.definitions"] = self._json([_definition(each) for each in tools])
        return found

    def answered(self, reply: Message) -> Attributes:
        """What it has answered."""
        message = _message(reply) | {"finish_reason": reply.finish_reason or "stop"}
        return {"gen_ai.output.messages": self._json([message])}

    def arguments(self, arguments: Mapping[str, Any]) -> Attributes:
        return {"gen_ai.tool.call.arguments": self._json(dict(arguments))}

    def result(self, text: str) -> Attributes:
        return {"gen_ai.tool.call.result": self._redaction.text(text)}

    def _json(self, value: Any) -> str:
        return json.dumps(self._redaction.value(value), ensure_ascii=False, default=str)

    def __repr__(self) -> str:
        return f"<Content {self._redaction!r}>"


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        part = {"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}
        return {"role": "tool", "parts": [part, *map(_image, message.images)]}
    parts = [_text(message.content)] if message.content else []
    parts += map(_image, message.images)
    for call in message.tool_calls:
        arguments = call.parsed
        said = call.arguments if arguments is None else arguments
        parts.append({"type": "tool_call", "id": call.id, "name": call.name, "arguments": said})
    return {"role": message.role, "parts": parts}


def _image(image: Any) -> dict[str, Any]:
    """What kind of picture it is. The picture itself is too much for a span."""
    return {"type": "image", "mime_type": image.media_type, "bytes": len(image.data)}


def _definition(tool: ToolDefinition) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
