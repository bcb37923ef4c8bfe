"""What a model is shown of a session, and how much that is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from .model import ToolDefinition
from .session import Message, Session

_CHARACTERS: Final = 4  # that make a token, about; fewer in most languages other than English, and in numbers
_IMAGE: Final = 1000  # tokens, about


def view(session: Session, result_limit: int) -> list[Message]:
    """The messages that the model is shown: what is left of the session, behind its summary."""
    messages, compacted = session.messages, session.compacted
    shown = [
        shortened(message, result_limit) if i < compacted.shortened else message
        for i, message in enumerate(messages)
        if i >= compacted.start
    ]
    if not compacted.summary:
        return shown
    text = f"This is what was said before, summed up:\n{compacted.summary}"
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    if users and users[-1] < compacted.start:  # the task that is worked on
        text += f"\n\nWhat the user said last:\n{messages[users[-1]].content}"
    return [Message("user", text), *shown]


def shortened(message: Message, limit: int) -> Message:
    """``message``, with no more than ``limit`` characters of what a tool gave back."""
    if message.role != "tool" or (len(message.content) <= limit and not message.images):
        return message
    left = len(message.content) - limit
    text = f"{message.content[:limit]} [{left} characters more were shown before]" if left > 0 else message.content
    return replace(message, content=text, images=())


def tokens(messages: Iterable[Message], tools: Iterable[ToolDefinition] = ()) -> int:
    """How many tokens they are, about."""
    count = 0
    for message in messages:
        size = len(message.content) + sum(len(call.name) + len(call.sound_arguments) for call in message.tool_calls)
        count += 4 + size // _CHARACTERS + _IMAGE * len(message.images)
    for tool in tools:
        count += (len(tool.name) + len(tool.description) + len(json.dumps(tool.parameters, default=str))) // _CHARACTERS
    return count


def tokens_shown(session: Session, shown: Sequence[Message], tools: Sequence[ToolDefinition]) -> int:
    """How many tokens the next call is. The model has counted most of them at the last, if that was shown the same."""
    messages = session.messages
    for i in range(len(messages) - 1, session.compacted.at - 1, -1):
        usage = messages[i].usage
        if usage is not None and usage.input_tokens:
            return usage.tokens + tokens(messages[i + 1 :])
    return tokens(shown, tools)


def recent(messages: Sequence[Message], budget: int) -> int:
    """Where the last messages begin that are no more than ``budget`` tokens. A call keeps its results, and there is
    always something: the last that was said.
    """
    begin, size = len(messages), 0
    for i in range(len(messages) - 1, -1, -1):
        size += tokens(messages[i : i + 1])
        if size > budget and begin < len(messages):
            break
        if messages[i].role != "tool":
            begin = i
    return begin
