"""One model call: its deltas are sent to the stream as they come, and its message is recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final

from channels import Cancelled

from .. import events
from .._errors import describe
from ..agent._output import output_for
from ..execution._driver import Steps, thrown
from ..execution._reading import ReadHere, Reading, ReadOnLoop, read
from ..foreign._sound import TextPieces
from ..human._mailbox import Mail
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
from ..stream._private_events import ModelAsked, ModelDone, ModelSaid
from ..stream._tracing import ModelTrace
from ..toolcalls._assembler import Assembler
from ..usage import Usage

SKETCH: Final = 0.5  # seconds from one time that a store is told of a reply that is not whole to the next
LONG: Final = 1024  # characters of a piece after which no other is waited for: what is done with it takes its time


def take_turn(core: StreamCore, messages: Sequence[Message], tools: Sequence[ToolDefinition]) -> Steps[Message]:
    """Call the model, send its deltas to the stream, record its message, and return the message.

    If the model fails, the run ends (`StopRun`, code ``model_error``). The part of the reply that arrived before a
    failure or a cancel is recorded, because the consumer has seen it.
    """
    typed = core.output is not None and core.output.schema is not None
    with core.trace.model_call(core.agent.model, messages, tools, typed=typed) as trace:
        return (yield from _take_turn(core, messages, tools, trace))


def _take_turn(
    core: StreamCore,
    messages: Sequence[Message],
    tools: Sequence[ToolDefinition],
    trace: ModelTrace,
) -> Steps[Message]:
    model = core.agent.model
    answering = model.id
    out = _Outgoing(core)
    text = out.text
    speaking, thinking = TextPieces(), TextPieces()
    assembler = Assembler(core.call_ids, (tool.name for tool in tools))
    usage: Usage | None = None
    finish: str | None = None
    native: Native | None = None
    whole = False
    sketch_at = time.monotonic() + SKETCH if core.log.outbox.is_open else None
    if core.recorded:
        core.emit(ModelAsked(model.id, tuple(messages), tuple(tools), **core.tags))
    wanted = output_for(model, None if core.output is None else core.output.schema)
    asked: dict[str, Any] = {"cancel": core.token, "within": trace.context, **wanted}
    reading = read(core.calls, f"model {model.id}", model.stream, messages, tools, **asked)
    tags, recorded = core.tags, core.recorded
    add_text, add_event, emit = text.append, out.events.append, core.emit

    def take(batch: Sequence[Any]) -> None:
        nonlocal usage, finish, native, answering, sketch_at
        for delta in batch:
            kind = delta.__class__
            size = 0
            if not (kind is TextDelta and isinstance(delta.text, str)) and not _is_sound(delta):
                out.send()
                if not is_delta(core, model, delta):
                    continue
            if recorded:
                add_event(ModelSaid(delta, **tags))
            if kind is TextDelta:
                said = speaking.add(delta.text)
                size = len(said)
                add_text(said)
                add_event(events.AgentChoice(said, **tags))
            elif kind is ReasoningDelta:
                said = thinking.add(delta.text)
                size = len(said)
                add_event(events.AgentChoiceReasoning(said, **tags))
            elif kind is ToolCallDelta:
                piece = assembler.add(delta)
                if piece is not None:
                    size = len(piece.arguments)
                    add_event(events.PartialToolCall(piece, **tags))
            elif kind is UsageDelta:
                usage = highest(usage or Usage(), delta)
            elif kind is FinishDelta:
                finish = delta.reason
            elif kind is NativeDelta:
                native = Native(delta.provider, delta.content)
            elif kind is FallbackDelta:
                out.send()
                settle_usage(core, answering, usage)
                usage = None
                answering = delta.to_model
                add_event(events.ModelFallback(delta.from_model, answering, delta.reason, **tags))
            if size > LONG:
                out.send()
        out.send()
        if sketch_at is not None and time.monotonic() >= sketch_at:
            core.log.outbox.sketch("".join(text), core.agent.name)
            sketch_at = time.monotonic() + SKETCH

    def take_one(delta: Any) -> None:
        """The same for a delta that comes alone, where there is nothing to be done with it but to send it."""
        if delta.__class__ is not TextDelta or not isinstance(delta.text, str):
            take((delta,))
            return
        said = speaking.add(delta.text)
        add_text(said)
        try:
            emit(events.AgentChoice(said, **tags))
        except (Cancelled, StopRun):
            text.pop()  # a reply that is cut off here ends with what was sent
            raise

    def take_now(delta: Any) -> bool:
        """The same where nothing may wait; whether that was done."""
        if delta.__class__ is not TextDelta or not isinstance(delta.text, str) or len(delta.text) > LONG:
            return False
        before = speaking.half
        said = speaking.add(delta.text)
        if core.try_emit(events.AgentChoice(said, **tags)):
            add_text(said)
            return True
        speaking.half = before
        return False

    heard = trace.watch(take)
    try:
        alone = heard is take and not recorded and sketch_at is None
        if isinstance(reading, ReadOnLoop) and alone:
            reading.take_now = take_now
        if isinstance(reading, ReadHere) and reading.may_be_errand:
            out.gives_way = False  # the thread of the model goes on to wait for it
            reading.take = lambda delta: heard((delta,))
            if alone:
                reading.take = take_one
            thrown((yield reading))
            reading.raise_failure()
            out.gives_way = True
        while batch := next_batch(core, model, reading):
            heard(batch)
        if recorded:
            core.emit(ModelDone(**tags))
        if left := speaking.end():
            text.append(left)
            core.emit(events.AgentChoice(left, **tags))
        whole = True
    finally:
        made = assembler.calls(finish) if whole else ()  # a stream that broke has not said all of them
        text.append(speaking.end())
        if usage is not None:
            usage = core.shared.prices.priced(answering, usage)
            core.spending.add(usage)
        message = Message(
            "assistant",
            "".join(text),
            made,
            agent_name=core.agent.name,
            model=answering,
            usage=usage,
            finish_reason=finish if whole else "interrupted",
            native=native if whole else None,
        )
        trace.said(message)
        if whole or message.content:
            core.record(message)
        elif usage is not None:
            core.log.count(usage)
        reading.close()
        if usage is not None and not core.token.cancelled:
            report(core, answering, usage)
    if usage is None and core.spending.is_blind(answering):
        blind = f"{answering} does not say what it uses, so the budget of tokens or dollars cannot be kept"
        core.emit(events.Warning(blind, **core.tags))
    return message


class _Outgoing:
    """The events of a batch of deltas, which are sent together, and the text of the reply that they tell.

    Invariant: ``text`` has what the consumer was told and, while events wait to be sent, what these tell.
    """

    __slots__ = ("_core", "events", "gives_way", "text")

    def __init__(self, core: StreamCore) -> None:
        self.text: list[str] = []
        self.events: list[events.Event] = []
        self.gives_way = True  # to a consumer that has waited
        self._core = core

    def send(self) -> None:
        """Send what waits. A reply that is cut off here ends with what was sent."""
        batch = self.events.copy()
        self.events.clear()
        if not batch:
            return
        try:
            self._core.emit_many(batch, self.gives_way)
        except (Cancelled, StopRun) as error:  # after any other it is not known what was sent
            unsent = sum(event.__class__ is events.AgentChoice for event in batch[getattr(error, "sent", 0) :])
            if unsent:
                del self.text[-unsent:]
            raise


def next_batch(core: StreamCore, model: Model, reading: Reading) -> Sequence[Any]:
    """The deltas of ``model`` that come next, none at its end. Errors of the model are raised here, apart from errors
    in sending events."""
    try:
        return next(reading.batches, ())
    except BaseException as error:
        raise failed(core, model, error) from error


def is_delta(core: StreamCore, model: Model, delta: Any) -> bool:
    """Whether an object is a delta, and not what the user said meanwhile in the run that this one replays, which goes
    into the mailbox. Raises `StopRun` for an object that is neither."""
    if _is_sound(delta):
        return True
    if delta.__class__ is Mail:
        core.mailbox.take(delta)
        return False
    error = TypeError(f"a model yields deltas, such as TextDelta('hello'), not {delta!r:.200}")
    raise failed(core, model, error) from error


def failed(core: StreamCore, model: Model, error: BaseException) -> BaseException:
    """What the worker raises where the model has raised ``error``."""
    if core.token.cancelled:
        return Cancelled(core.token.cause)
    if core.recorded:
        core.emit(ModelDone(error, **core.tags))
    return StopRun("error", "model_error", f"{model.id}: {describe(error)}")


def _is_sound(delta: Any) -> bool:
    """Whether an object is a delta, with text where the rest of the turn relies on it."""
    kind = delta.__class__
    if kind is TextDelta or kind is ReasoningDelta:
        return isinstance(delta.text, str)
    if kind is ToolCallDelta:
        texts = isinstance(delta.id, str) and isinstance(delta.name, str)
        return texts and isinstance(delta.arguments, (str, Mapping)) and isinstance(delta.index, (int, NoneType))
    if kind is UsageDelta:
        read, written, *parts = _counts(delta)
        whole = isinstance(read, int) and isinstance(written, int)
        return whole and all(each is None or isinstance(each, int) for each in parts)
    if kind is FinishDelta:
        return isinstance(delta.reason, str)
    return kind is NativeDelta or kind is FallbackDelta


def settle_usage(core: StreamCore, model: str, usage: Usage | None) -> None:
    """Count the usage of a call of ``model`` that left no message, because it failed or was not for the session."""
    if usage is not None:
        usage = core.shared.prices.priced(model, usage)
        core.spending.add(usage)
        core.log.count(usage)
        if not core.token.cancelled:
            report(core, model, usage)


def highest(usage: Usage, delta: UsageDelta) -> Usage:
    """The highest counts of two usage reports: a model may report several times, None for what it does not count."""
    before = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    return Usage(*(max(known, said or 0) for known, said in zip(before, _counts(delta), strict=True)))


def _counts(delta: UsageDelta) -> tuple[int | None, ...]:
    return (
        delta.input_tokens,
        delta.output_tokens,
        delta.cached_tokens,
        delta.cache_write_tokens,
        delta.reasoning_tokens,
    )


def report(core: StreamCore, model: str, usage: Usage) -> None:
    total = core.spending.usage or usage
    core.emit(
        events.TokenUsage(
            model,
            usage.input_tokens,
            usage.output_tokens,
            total.input_tokens,
            total.output_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            usage.cost,
            total.cost,
            **core.tags,
        )
    )
