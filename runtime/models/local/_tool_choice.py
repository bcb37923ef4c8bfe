"""Choosing the tool that a message needs, if any, by embeddings.

If it is asked which tool to use, a model with 135 million parameters is right about half the time; the embeddings of
the same model are right nearly always. The message is compared with the descriptions of the tools, and with some
sentences that need no tool; the nearest one wins.
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
    """The tool that ``message`` needs, or None for a plain reply. ``embed`` returns the embedding of a text."""
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
    """The first sentence of the tool's description, or its name if it has none."""
    said = re.split(r"(?<=[.!?])\s|\n", tool.description.strip(), maxsplit=1)[0]
    return (said or tool.name.replace("_", " "))[:_LENGTH]


def _centred(vector: Vector, mean: Vector) -> Vector:
    """``vector`` minus the mean of all vectors, with length one, so that the product of two vectors is their cosine."""
    rest = [value - shared for value, shared in zip(vector, mean, strict=True)]
    length = math.sqrt(_dot(rest, rest)) or 1.0
    return [value / length for value in rest]


def _dot(left: Vector, right: Vector) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
