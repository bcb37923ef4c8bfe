"""Which tool a message asks for, if any: by what it means, not by asking the model.

Asked which tool to use, a model of 135 million parameters is right about half the time; the embeddings of the same
model tell it nearly always. The message is compared with what the tools say of themselves and with some anchors that
stand for talk without a tool; the nearest wins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ...model import ToolDefinition

Vector: TypeAlias = list[float]

ANCHORS = (
    "Just talk, or answer a general question.",
    "Say hello.",
    "Answer a question about the world.",
    "Write a poem or a story.",
    "Say thank you.",
    "Talk about yourself.",
    "Say what you can do.",
    "Explain how or why something is.",
    "Agree, or say okay.",
)
_WRAPPED = 'This request: "{}" means in one word: "'
_LENGTH = 300  # characters of a message that are looked at: what it asks for stands at its beginning


def choose(tools: Sequence[ToolDefinition], message: str, embed: Callable[[str], Vector]) -> ToolDefinition | None:
    """The tool that ``message`` asks for, or None for a plain reply. ``embed`` gives the vector of a text."""
    if not tools or not message.strip():
        return None
    known = [embed(_WRAPPED.format(_said_of(tool))) for tool in tools]
    known += [embed(_WRAPPED.format(anchor)) for anchor in ANCHORS]
    asked = embed(_WRAPPED.format(message[:_LENGTH]))
    mean = [sum(column) / len(known) for column in zip(*known, strict=True)]
    centred = _centred(asked, mean)
    likeness = [_dot(centred, _centred(vector, mean)) for vector in known]
    nearest = max(range(len(known)), key=likeness.__getitem__)
    return tools[nearest] if nearest < len(tools) else None


def _said_of(tool: ToolDefinition) -> str:
    """The first sentence of the description, or the name where there is none."""
    said = re.split(r"(?<=[.!?])\s|\n", tool.description.strip(), maxsplit=1)[0]
    return (said or tool.name.replace("_", " "))[:_LENGTH]


def _centred(vector: Vector, mean: Vector) -> Vector:
    """``vector`` without what all vectors share, and of length one: then a product is the cosine."""
    rest = [value - shared for value, shared in zip(vector, mean, strict=True)]
    length = math.sqrt(_dot(rest, rest)) or 1.0
    return [value / length for value in rest]


def _dot(left: Vector, right: Vector) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
