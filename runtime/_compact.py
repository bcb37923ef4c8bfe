"""Makes what the model is shown shorter: old tool results first, then a summary in place of the older messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from . import events
from ._aside import ask_aside
from ._core import StopRun, StreamCore
from ._errors import ModelError
from ._view import recent, shortened, tokens, tokens_shown, view
from .model import ToolDefinition
from .session import Compacted, Message

_INSTRUCTIONS: Final = (
    "You are given a conversation between a user and an assistant. Sum it up for the assistant, who goes on with it and"
    " sees nothing else of it: what the user wants, what was decided and found out, what was done with which result,"
    " what is still to do. Keep names, numbers, paths and quotes exactly. Answer with the summary alone."
)
_RESULT: Final = 2000  # characters of a tool result that are read for a summary


def conversation(core: StreamCore, system: str, tools: Sequence[ToolDefinition]) -> list[Message]:
    """What the model is shown, made shorter where it would fill the window."""
    window = _window(core)
    shown = _shown(core, system)
    compaction = core.agent.compaction
    if compaction is not None and window is not None:
        size = tokens_shown(core.session, shown, tools)
        if size > compaction.at * window and _compact(core, "full", size, window):
            return _shown(core, system)
    return shown


def after_overflow(core: StreamCore, failure: StopRun, before: int, system: str) -> list[Message] | None:
    """What to show to the model instead of what was too long for it; None where the call failed for another reason.

    ``before`` is how many messages there were: a model that has said something is not asked again.
    """
    cause = failure.__cause__
    overflow = isinstance(cause, ModelError) and cause.code == "context_overflow"
    if not overflow or core.agent.compaction is None or len(core.session.messages) != before:
        return None
    size = tokens(view(core.session, core.agent.compaction.result_limit))
    return _shown(core, system) if _compact(core, "overflow", size, min(size, _window(core) or size)) else None


def _window(core: StreamCore) -> int | None:
    """How many tokens the model takes, if anybody knows."""
    compaction = core.agent.compaction
    if compaction is not None and compaction.window is not None:
        return compaction.window
    window = getattr(core.agent.model, "context_window", None)
    return window if isinstance(window, int) else None


def _shown(core: StreamCore, system: str) -> list[Message]:
    limit = core.agent.compaction.result_limit if core.agent.compaction is not None else 0
    messages = view(core.session, limit)
    return [Message("system", system), *messages] if system else messages


def _compact(core: StreamCore, reason: Literal["full", "overflow"], size: int, window: int) -> bool:
    """Show the model less from now on; whether there was something to leave out."""
    compaction = core.agent.compaction
    assert compaction is not None
    messages, before = core.session.messages, core.session.compacted
    begin = recent(messages, int(compaction.keep * window))
    if begin <= before.start:
        return False  # the recent messages alone are too long
    blocked = core.fire("before_compaction", reason=reason)
    if blocked.block:
        core.emit(events.HookBlocked("before_compaction", blocked.reason, **core.tags))
        return False
    core.emit(events.SessionCompaction("started", **core.tags))
    after = Compacted(before.summary, before.start, begin, len(messages))
    limit = compaction.result_limit
    kept = tokens(shortened(each, limit) if i < begin else each for i, each in enumerate(messages) if i >= before.start)
    whole = tokens(messages[before.start :])
    if size - (whole - kept) > (compaction.at + compaction.keep) / 2 * window or begin <= before.shortened:
        summary = _summary(core, messages[before.start : begin])
        if not summary:
            core.emit(events.SessionCompaction("failed", **core.tags))
            return False
        after = replace(after, summary=summary, start=begin)
        core.emit(events.SessionSummary(summary, **core.tags))
    core.log.compact(after)
    core.emit(events.SessionCompaction("completed", **core.tags))
    core.fire("after_compaction", reason=reason, response=after.summary)
    return True


def _summary(core: StreamCore, messages: Sequence[Message]) -> str:
    """What a model makes of these and of the summary before them; empty where it fails, which the run survives."""
    compaction = core.agent.compaction
    assert compaction is not None
    model = compaction.model or core.agent.model
    said = [f"Summed up before: {core.session.compacted.summary}"] if core.session.compacted.summary else []
    for message in messages:
        if message.content:
            said.append(f"{message.role}: {shortened(message, _RESULT).content}")
        said += [f"{message.role} calls {call.name}({call.sound_arguments})" for call in message.tool_calls]
    try:
        summary = ask_aside(core, model, [Message("system", _INSTRUCTIONS), Message("user", "\n\n".join(said))]).strip()
        problem = "" if summary else "it says nothing"
    except StopRun as error:
        summary, problem = "", str(error)
    if problem:
        core.emit(events.Warning(f"{model.id} could not sum up the conversation: {problem}", **core.tags))
    return summary
