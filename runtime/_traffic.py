"""What is not for the consumer: what goes between a stream and its model, on the way to a record of the run, and what
happens in the background.

It travels in the channel of events, so that the record has everything in one order, and the forwarder takes it out
again: no consumer sees it. A stream that has no forwarder sends none.
"""

from __future__ import annotations

from dataclasses import dataclass

from .events import Event
from .model import Delta, ToolDefinition
from .session import Message


@dataclass(frozen=True, slots=True)
class Traffic(Event):
    """What all of it is."""


@dataclass(frozen=True, slots=True)
class ModelAsked(Traffic):
    """A model is asked. Its stream asks no other before this one is done."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...]


@dataclass(frozen=True, slots=True)
class ModelSaid(Traffic):
    """What it says."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class ModelDone(Traffic):
    """It has ended, or failed. There is no such word of a model that a cancel has cut off."""

    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class InBackground(Traffic):
    """An event of a background stream: for the record and the observers."""

    event: Event
