"""One model call: its deltas are sent to the stream as they come, and its message is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import events
from ..agent._output import output_for
from ..execution._driver import Steps, thrown
from ..execution._reading import ReadHere, Reading, ReadOnLoop, read
from ..model import Model, ToolDefinition
from ..session._message import Message
from ..stream._core import StreamCore
from ..stream._private_events import ModelAsked, ModelDone
from ..stream._tracing import ModelTrace
from ._deltas import failed, report
from ._reply import Reply


def take_turn(core: StreamCore, messages: Sequence[Message], tools: Sequence[ToolDefinition]) -> Steps[Message]:
    """Call the model, send its deltas to the stream, record its message, and return the message.

    If the model fails, the run ends (`StopRun`, code ``model_error``). The part of the reply that arrived before a
    failure or a cancel is recorded, because the consumer has seen it.
    """
    typed = core.output is not None and core.output.schema is not None
    with core.trace.model_call(core.agent.model, messages, tools, typed=typed) as trace:
        return (yield from _take_turn(core, messages, tools, trace))


def _take_turn(
    core: StreamCore, messages: Sequence[Message], tools: Sequence[ToolDefinition], trace: ModelTrace
) -> Steps[Message]:
    model = core.agent.model
    if core.recorded:
        core.emit(ModelAsked(model.id, tuple(messages), tuple(tools), **core.tags))
    wanted = output_for(model, None if core.output is None else core.output.schema)
    asked: dict[str, Any] = {"cancel": core.token, "within": trace.context, **wanted}
    reading = read(core.calls, f"model {model.id}", model.stream, messages, tools, **asked)
    reply, whole = Reply(core, model, tools), False
    try:
        yield from _hear(core, model, reading, reply, trace)
        if core.recorded:
            core.emit(ModelDone(**core.tags))
        reply.end()
        whole = True
    finally:
        message = reply.message(whole)
        trace.said(message)
        if whole or message.content:
            core.record(message)
        elif reply.usage is not None:
            core.log.count(reply.usage)
        reading.close()
        if reply.usage is not None and not core.token.cancelled:
            report(core, reply.answering, reply.usage)
    if reply.usage is None and core.spending.is_blind(reply.answering):
        blind = f"{reply.answering} does not say what it uses, so the budget of tokens or dollars cannot be kept"
        core.emit(events.Warning(blind, **core.tags))
    return message


def _hear(core: StreamCore, model: Model, reading: Reading, reply: Reply, trace: ModelTrace) -> Steps[None]:
    """Let the reply take all deltas: on the thread of the worker where the model runs there, on the event loop those
    that come alone, else here.
    """
    take = reply.take
    heard = trace.watch(take)
    is_plain = heard is take and reply.is_plain
    if isinstance(reading, ReadOnLoop):
        reading.take = heard
        if is_plain:
            reading.take_now = reply.take_now
        thrown((yield reading))
        reading.raise_failure()
    elif isinstance(reading, ReadHere) and reading.may_be_errand:
        reading.take = reply.take_one if is_plain else lambda delta: heard((delta,))
        reply.gives_way = False  # its thread goes on to wait for the model
        thrown((yield reading))
        reading.raise_failure()
        reply.gives_way = True
    while batch := next_batch(core, model, reading):
        heard(batch)


def next_batch(core: StreamCore, model: Model, reading: Reading) -> Sequence[Any]:
    """The deltas of ``model`` that come next, none at its end. Errors of the model are raised here, apart from errors
    in sending events."""
    try:
        return reading.next_batch()
    except BaseException as error:
        raise failed(core, model, error) from error
