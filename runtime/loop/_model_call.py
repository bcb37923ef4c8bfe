"""One model call: its deltas are sent to the stream as they come, and its message is recorded."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from types import NoneType
from typing import Any, Final

from channels import Cancelled

from .. import events
from .._errors import describe
from ..agent._output import output_for
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
from ..stream._private_events import ModelAsked, ModelDone, ModelSaid
from ..stream._tracing import ModelTrace
from ..toolcalls._assembler import Assembler
from ..usage import Usage

END: Final[Any] = object()
SKETCH: Final = 0.5  # seconds from one time that a store is told of a reply that is not whole to the next


def take_turn(core: StreamCore, messages: Sequence[Message], tools: Sequence[ToolDefinition]) -> Message:
    """Call the model, send its deltas to the stream, record its message, and return the message.

    If the model fails, the run ends (`StopRun`, code ``model_error``). The part of the reply that arrived before a
    failure or a cancel is recorded, because the consumer has seen it.
    """
    typed = core.output is not None and core.output.schema is not None
    with core.trace.model_call(core.agent.model, messages, tools, typed=typed) as trace:
        return _take_turn(core, messages, tools, trace)


def _take_turn(
    core: StreamCore, messages: Sequence[Message], tools: Sequence[ToolDefinition], trace: ModelTrace
) -> Message:
    model = core.agent.model
    answering = model.id
    text: list[str] = []
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
    produced = core.calls.iterate(
        f"model {model.id}", model.stream, messages, tools, cancel=core.token, within=trace.context, **wanted
    )
    deltas = trace.watch(produced)
    try:
        while (delta := next_delta(core, model, deltas)) is not END:
            kind = delta.__class__
            if kind is TextDelta:
                said = speaking.add(delta.text)
                text.append(said)
                core.emit(events.AgentChoice(said, **core.tags))
                if sketch_at is not None and time.monotonic() >= sketch_at:
                    core.log.outbox.sketch("".join(text), core.agent.name)
                    sketch_at = time.monotonic() + SKETCH
            elif kind is ReasoningDelta:
                core.emit(events.AgentChoiceReasoning(thinking.add(delta.text), **core.tags))
            elif kind is ToolCallDelta:
                piece = assembler.add(delta)
                if piece is not None:
                    core.emit(events.PartialToolCall(piece, **core.tags))
            elif kind is UsageDelta:
                usage = highest(usage or Usage(), delta)
            elif kind is FinishDelta:
                finish = delta.reason
            elif kind is NativeDelta:
                native = Native(delta.provider, delta.content)
            elif kind is FallbackDelta:
                settle_usage(core, answering, usage)
                usage = None
                answering = delta.to_model
                core.emit(events.ModelFallback(delta.from_model, answering, delta.reason, **core.tags))
        if left := speaking.end():
            text.append(left)
            core.emit(events.AgentChoice(left, **core.tags))
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
        deltas.close()
        if usage is not None and not core.token.cancelled:
            report(core, answering, usage)
    if usage is None and core.spending.is_blind(answering):
        blind = f"{answering} does not say what it uses, so the budget of tokens or dollars cannot be kept"
        core.emit(events.Warning(blind, **core.tags))
    return message


def next_delta(core: StreamCore, model: Model, deltas: Generator[Any, None, None]) -> Any:
    """The next delta of ``model``, or `END`. Errors of the model are raised here, apart from errors in sending
    events."""
    try:
        delta = next(deltas, END)
        if delta is not END and not _is_sound(delta):
            raise TypeError(f"a model yields deltas, such as TextDelta('hello'), not {delta!r:.200}")
    except BaseException as error:
        if core.token.cancelled:
            raise Cancelled(core.token.cause) from error
        if core.recorded:
            core.emit(ModelDone(error, **core.tags))
        raise StopRun("error", "model_error", f"{model.id}: {describe(error)}") from error
    if core.recorded:
        core.emit(ModelDone(**core.tags) if delta is END else ModelSaid(delta, **core.tags))
    return delta


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
