"""A model call outside the conversation: its reply is neither sent to the consumer nor recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..execution._reading import read
from ..model import FallbackDelta, Model, TextDelta, UsageDelta
from ..session._message import Message
from ..stream._core import StreamCore
from ..stream._private_events import ModelAsked, ModelDone, ModelSaid
from ..stream._tracing import ModelTrace
from ..usage import Usage
from ._deltas import highest, is_delta, settle_usage
from ._model_call import next_batch


def ask_aside(core: StreamCore, model: Model, messages: Sequence[Message]) -> str:
    """The text that ``model`` replies. Its usage counts for the stream. Raises `StopRun` and `Cancelled`."""
    if core.recorded:
        core.emit(ModelAsked(model.id, tuple(messages), (), **core.tags))
    with core.trace.model_call(model, messages, ()) as trace:
        return _ask(core, model, messages, trace)


def _ask(core: StreamCore, model: Model, messages: Sequence[Message], trace: ModelTrace) -> str:
    text: list[str] = []
    usage: Usage | None = None
    answering = model.id
    given = messages, ()
    reading = read(core.calls, f"model {model.id}", model.stream, *given, cancel=core.token, within=trace.context)

    def take(batch: Sequence[Any]) -> None:
        nonlocal usage, answering
        for delta in batch:
            if not is_delta(core, model, delta):
                continue
            if core.recorded:
                core.emit(ModelSaid(delta, **core.tags))
            if delta.__class__ is TextDelta:
                text.append(delta.text)
            elif delta.__class__ is UsageDelta:
                usage = highest(usage or Usage(), delta)
            elif delta.__class__ is FallbackDelta:
                settle_usage(core, answering, usage)
                usage, answering = None, delta.to_model

    heard = trace.watch(take)
    try:
        while batch := next_batch(core, model, reading):
            heard(batch)
        if core.recorded:
            core.emit(ModelDone(**core.tags))
    finally:
        reading.close()
        trace.said(Message("assistant", "".join(text), model=answering, usage=usage))
        settle_usage(core, answering, usage)
    return "".join(text)
