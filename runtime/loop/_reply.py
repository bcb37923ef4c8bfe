"""The reply of a model, as far as it has come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from channels import Cancelled

from .. import events
from ..foreign._sound import TextPieces
from ..model import (
    FallbackDelta,
    FinishDelta,
    Model,
    NativeDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
    UsageDelta,
)
from ..session._message import Message, Native
from ..stream._core import StreamCore
from ..stream._end_reason import StopRun
from ..stream._private_events import ModelSaid
from ..toolcalls._assembler import Assembler
from ..usage import Usage
from ._deltas import highest, is_delta, is_sound, settle_usage

SKETCH: Final = 0.5  # seconds from one time that a store is told of a reply that is not whole to the next
LONG: Final = 1024  # characters of a piece after which no other is waited for: what is done with it takes its time


class Reply:
    """What the deltas of one model call have said, and the events that tell of it. Those of a batch are sent together.

    Invariant: ``text`` has what the consumer was told and, while events wait to be sent, what these tell. By the
    worker; `take_now` by another thread while the worker waits.
    """

    __slots__ = (
        "_assembler",
        "_core",
        "_events",
        "_finish",
        "_model",
        "_native",
        "_recorded",
        "_sketch_at",
        "_speaking",
        "_tags",
        "_thinking",
        "answering",
        "gives_way",
        "text",
        "usage",
    )

    def __init__(self, core: StreamCore, model: Model, tools: Sequence[ToolDefinition]) -> None:
        self.text: list[str] = []
        self.usage: Usage | None = None
        self.answering = model.id  # the model, which is another one after a fallback
        self.gives_way = True  # to a consumer that has waited
        self._core = core
        self._model = model
        self._tags = core.tags
        self._recorded = core.recorded
        self._speaking, self._thinking = TextPieces(), TextPieces()
        self._assembler = Assembler(core.call_ids, (tool.name for tool in tools))
        self._events: list[events.Event] = []
        self._finish: str | None = None
        self._native: Native | None = None
        self._sketch_at = time.monotonic() + SKETCH if core.log.outbox.is_open else None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to be done with text but to send it."""
        return not self._recorded and self._sketch_at is None

    def take(self, batch: Sequence[Any]) -> None:
        """Take deltas that have come together. Raises `StopRun` for an object that is none, and `Cancelled`."""
        core, tags, recorded, speaking = self._core, self._tags, self._recorded, self._speaking
        add_text, add_event = self.text.append, self._events.append
        for delta in batch:
            kind = delta.__class__
            size = 0
            if not (kind is TextDelta and isinstance(delta.text, str)) and not is_sound(delta):
                self._send()
                if not is_delta(core, self._model, delta):
                    continue
            if recorded:
                add_event(ModelSaid(delta, **tags))
            if kind is TextDelta:
                said = delta.text
                if speaking.half or not said.isascii():
                    said = speaking.add(said)
                size = len(said)
                add_text(said)
                add_event(events.AgentChoice(said, **tags))
            elif kind is ReasoningDelta:
                said = self._thinking.add(delta.text)
                size = len(said)
                add_event(events.AgentChoiceReasoning(said, **tags))
            elif kind is ToolCallDelta:
                piece = self._assembler.add(delta)
                if piece is not None:
                    size = len(piece.arguments)
                    add_event(events.PartialToolCall(piece, **tags))
            elif kind is UsageDelta:
                self.usage = highest(self.usage or Usage(), delta)
            elif kind is FinishDelta:
                self._finish = delta.reason
            elif kind is NativeDelta:
                self._native = Native(delta.provider, delta.content)
            elif kind is FallbackDelta:
                self._send()
                settle_usage(core, self.answering, self.usage)
                self.usage = None
                self.answering = delta.to_model
                add_event(events.ModelFallback(delta.from_model, self.answering, delta.reason, **tags))
            if size > LONG:
                self._send()
        self._send()
        if self._sketch_at is not None and time.monotonic() >= self._sketch_at:
            core.log.outbox.sketch("".join(self.text), core.agent.name)
            self._sketch_at = time.monotonic() + SKETCH

    def take_one(self, delta: Any) -> None:
        """`take` for a delta that comes alone, if the reply is plain."""
        if delta.__class__ is not TextDelta or not isinstance(said := delta.text, str):
            self.take((delta,))
            return
        if self._speaking.half or not said.isascii():
            said = self._speaking.add(said)
        self.text.append(said)
        try:
            self._core.emit(events.AgentChoice(said, **self._tags))
        except (Cancelled, StopRun):
            self.text.pop()  # a reply that is cut off here ends with what was sent
            raise

    def take_now(self, delta: Any) -> bool:
        """The same where nothing may wait. Returns whether the delta was taken."""
        if delta.__class__ is not TextDelta or not isinstance(delta.text, str) or len(delta.text) > LONG:
            return False
        before = self._speaking.half
        said = self._speaking.add(delta.text)
        if self._core.try_emit(events.AgentChoice(said, **self._tags)):
            self.text.append(said)
            return True
        self._speaking.half = before
        return False

    def end(self) -> None:
        """All deltas have come: send what is left of the text."""
        if left := self._speaking.end():
            self.text.append(left)
            self._core.emit(events.AgentChoice(left, **self._tags))

    def message(self, whole: bool) -> Message:
        """The reply as a message, which is interrupted unless it is ``whole``. Its usage counts from now on."""
        made = self._assembler.calls(self._finish) if whole else ()  # a stream that broke has not said all of them
        self.text.append(self._speaking.end())
        core = self._core
        if self.usage is not None:
            self.usage = core.shared.prices.priced(self.answering, self.usage)
            core.spending.add(self.usage)
        return Message(
            "assistant",
            "".join(self.text),
            made,
            agent_name=core.agent.name,
            model=self.answering,
            usage=self.usage,
            finish_reason=self._finish if whole else "interrupted",
            native=self._native if whole else None,
        )

    def _send(self) -> None:
        """Send the events that wait. A reply that is cut off here ends with what was sent."""
        batch = self._events.copy()
        self._events.clear()
        if not batch:
            return
        try:
            self._core.emit_many(batch, self.gives_way)
        except (Cancelled, StopRun) as error:  # after any other it is not known what was sent
            unsent = sum(event.__class__ is events.AgentChoice for event in batch[getattr(error, "sent", 0) :])
            if unsent:
                del self.text[-unsent:]
            raise
