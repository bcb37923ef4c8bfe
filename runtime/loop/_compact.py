"""Compaction: old tool results are shortened for the model, then a summary replaces the older messages.

Sizes are in tokens as this file counts them; `StreamCore.density` is the number of the model's own tokens for one of
them. The model is never shown more than the window: if no summary can be made, the older messages are left out, and if
the last messages alone are too long, the longest of them are shortened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from .. import events
from .._dataclasses import dataclass, replace
from .._errors import ModelError
from ..agent._compaction import Compaction
from ..agent._view import clipped, fitted, level, recent, shortened, sizes_of, text_tokens, tokens, view
from ..model import Model, ToolDefinition
from ..session._message import Message
from ..session._session import Compacted
from ..stream._core import StreamCore
from ..stream._end_reason import StopRun
from ._side_call import ask_aside

_INSTRUCTIONS: Final = (
    "You are given a conversation between a user and an assistant. Sum it up for the assistant, who goes on with it and"
    " sees nothing else of it: what the user wants, what was decided and found out, what was done with which result,"
    " what is still to do. Keep names, numbers, paths and quotes exactly. Answer with the summary alone."
)
_RESULT: Final = 2000  # characters of a tool result that are read for a summary
_LEAST: Final = 80  # characters of each message: where there is no room for as much, the oldest are not read
_OVERHEAD: Final = 1000  # tokens that a provider adds of its own
_DENSEST: Final = 8.0  # tokens of a model for one of ours: who says more has counted something else
_LESS: Final = 0.6  # of what a model has refused: it does not say by how much it was too long
OVERFLOWS: Final = 4  # times that one call is made again, with less


@dataclass(frozen=True, slots=True)
class _Room:
    """The room for the conversation besides the instructions and tools, in tokens as this file counts them."""

    full: float  # more than this is to be made shorter
    keep: float  # as much of the last messages stays as it is
    most: float  # more than this is not shown

    @property
    def enough(self) -> float:
        """The size to shorten the conversation to, so that it does not fill the window again at once."""
        return (self.full + self.keep) / 2


def conversation(core: StreamCore, system: str, tools: Sequence[ToolDefinition]) -> list[Message]:
    """The messages to show to the model, after a compaction if they would fill the window."""
    compaction, window = core.agent.compaction, _window(core)
    if compaction is None or window is None:
        return _shown(core, system, None)
    fixed = text_tokens(system) + tokens((), tools)
    size = _size(core, compaction, fixed)  # which finds out the density, too
    room = _room(core, compaction, window, fixed)
    if size > room.full and not _compact(core, compaction, "full", size, room, window):
        return _shown(core, system, None)
    return _shown(core, system, room)


def after_overflow(
    core: StreamCore, failure: StopRun, before: int, shown: Sequence[Message], tools: Sequence[ToolDefinition]
) -> list[Message] | None:
    """The messages to show to the model after it refused longer ones; None where its call failed for another reason.

    ``before`` is how many messages there were: a model that has said something is not asked again.
    """
    compaction = core.agent.compaction
    if not _is_overflow(failure) or compaction is None or len(core.session._messages) != before:
        return None
    system = shown[0].content if shown and shown[0].role == "system" else ""
    fixed, refused = text_tokens(system) + tokens((), tools), tokens(shown, tools)
    if _window(core) is None or core.window is not None:
        core.window = int(_LESS * refused * core.density)
    else:  # it was the whole window, at the least
        core.density = max(core.density, (_window(core) or 1) / max(refused, 1)) / _LESS
    window = _window(core) or 1
    room = _room(core, compaction, window, fixed)
    if not _compact(core, compaction, "overflow", refused - fixed, room, window):
        return None
    less = _shown(core, system, room)
    return less if tokens(less, tools) < refused else None


def _is_overflow(failure: StopRun) -> bool:
    cause = failure.__cause__
    return isinstance(cause, ModelError) and cause.code == "context_overflow"


def _window(core: StreamCore) -> int | None:
    """The context window of the model in tokens, if it is known."""
    compaction = core.agent.compaction
    if compaction is not None and compaction.window is not None:
        return compaction.window
    return _window_of(core.agent.model) or core.window


def _window_of(model: Model) -> int | None:
    window = getattr(model, "context_window", None)
    return window if isinstance(window, int) and window > 0 else None


def _room(core: StreamCore, compaction: Compaction, window: int, fixed: int) -> _Room:
    ours = window / core.density
    full = max(compaction.at * ours - fixed, ours / 10)  # instructions may take nearly all of it
    return _Room(full, full * compaction.keep / compaction.at, max(ours - fixed, full))


def _size(core: StreamCore, compaction: Compaction, fixed: int) -> float:
    """The size of the conversation as it would be shown. For most of it this is the model's own count in the last call,
    if that call showed the same messages.
    """
    session, limit = core.session, compaction.result_limit
    messages, compacted = session._messages, session.compacted
    first = max(compacted.at, compacted.start)
    counted = _counted(core, limit, compacted)
    last = next((at for at in range(len(messages) - 1, first - 1, -1) if messages[at].role == "assistant"), None)
    usage = None if last is None else messages[last].usage
    if usage is None or not usage.input_tokens:
        return counted
    asked = _counted(core, limit, compacted, last)
    said: int = usage.input_tokens
    core.density = min(max((said - _OVERHEAD) / max(asked + fixed, 1), 1.0), _DENSEST)
    return said / core.density - fixed + counted - asked  # its reply, and what came after that


def _shown(core: StreamCore, system: str, room: _Room | None) -> list[Message]:
    """The messages to show to the model, in no more tokens than there is ``room`` for."""
    compaction, session = core.agent.compaction, core.session
    limit = compaction.result_limit if compaction is not None else 0
    messages = view(session, limit)
    if messages and messages[-1].finish_reason == "interrupted":
        messages = messages[:-1]  # what broke off is said anew: many providers refuse to go on with a reply of theirs
    if room is not None and _counted(core, limit, session.compacted) > room.most:
        messages = fitted(messages, int(room.full))
        text = "the last messages are longer than what the model can read: the middle of the longest is not shown to it"
        core.emit(events.Warning(text, **core.tags))
        # What the model will have counted then is not what there is: its next number does not count.
        core.log.compact(replace(session.compacted, at=len(session._messages) + 1))
    if system:
        messages.insert(0, Message("system", system))
    return messages


def _counted(core: StreamCore, limit: int, compacted: Compacted, end: int | None = None) -> int:
    """The size of the conversation before message ``end``, in tokens as this file counts them."""
    return sizes_of(core.session).shown(core.session, limit, compacted, end) + text_tokens(compacted.summary)


def _compact(
    core: StreamCore, compaction: Compaction, reason: Literal["full", "overflow"], size: float, room: _Room, window: int
) -> bool:
    """Compact the conversation. Returns False if a hook blocks it."""
    messages, before, limit = core.session._messages, core.session.compacted, compaction.result_limit
    begin = recent(messages, room.keep, before.start)
    if begin <= before.start:
        return True  # there is nothing older than the last that was said
    blocked = core.fire("before_compaction", reason=reason)
    if blocked.block:
        core.emit(events.HookBlocked("before_compaction", blocked.reason, **core.tags))
        return False
    core.emit(events.SessionCompaction("started", **core.tags))
    after = Compacted(before.summary, before.start, begin, len(messages))
    saved = _counted(core, limit, before) - _counted(core, limit, after)
    if begin <= before.shortened or size - saved > room.enough:
        older = messages[before.start : begin]
        summary = _summary(core, compaction, older, window)
        if not summary and size <= room.most and reason == "full":
            core.emit(events.SessionCompaction("failed", **core.tags))
            return True  # it may fit all the same, and the next turn tries again
        if not summary:
            note = "(Older messages are left out here: they could not be summed up.)"
            summary = before.summary if before.summary.endswith(note) else f"{before.summary}\n\n{note}".strip()
            core.emit(events.Warning(f"{len(older)} older messages are not shown to the model any more", **core.tags))
        dense = max(4 * text_tokens(summary) / len(summary), 1.0)
        summary = clipped(summary, max(int(4 * (room.enough - room.keep) / dense), _LEAST))
        after = replace(after, summary=summary, start=begin)
        core.emit(events.SessionSummary(summary, **core.tags))
    core.log.compact(after)
    core.emit(events.SessionCompaction("completed", **core.tags))
    core.fire("after_compaction", reason=reason, response=after.summary)
    return True


def _summary(core: StreamCore, compaction: Compaction, messages: Sequence[Message], window: int) -> str:
    """A model's summary of these messages and of the summary before them; empty if it fails, which does not end the
    run."""
    model = compaction.model or core.agent.model
    if compaction.model is not None:
        window = _window_of(compaction.model) or window
    room = int((compaction.at * window / core.density - text_tokens(_INSTRUCTIONS) - 20) * 4)
    summary = problem = ""
    for _ in range(OVERFLOWS):
        text = _to_sum_up(core.session.compacted.summary, messages, room)
        try:
            summary = ask_aside(core, model, [Message("system", _INSTRUCTIONS), Message("user", text)]).strip()
            problem = "" if summary else "it says nothing"
            break
        except StopRun as error:
            problem = str(error)
            if not _is_overflow(error):
                break
            room = int(room * _LESS * _LESS)
    if problem:
        core.emit(events.Warning(f"{model.id} could not sum up the conversation: {problem}", **core.tags))
    return summary


def _to_sum_up(before: str, messages: Sequence[Message], room: int) -> str:
    """The text for the request for a summary, at most ``room`` ASCII characters: the longest messages are shortened
    first, then the oldest are left out.
    """
    text = [f"Summed up before: {clipped(before, room // 3)}"] if before else []
    room -= sum(map(_characters, text))
    said = []
    for message in messages:
        if message.content:
            content = shortened(message, _RESULT).content if message.role == "tool" else message.content
            said.append(f"{message.role}: {content}")
        said += [f"{message.role} calls {call.name}({call.sound_arguments})" for call in message.tool_calls]
    sizes = list(map(_characters, said))
    most = max(level(sizes, room), _LEAST)
    first = len(said)
    while first and room >= min(sizes[first - 1], most):
        first -= 1
        room -= min(sizes[first], most)
    if first:
        text.append(f"[{first} older messages are left out here]")
    for part, size in zip(said[first:], sizes[first:], strict=True):
        text.append(part if size <= most else clipped(part, int((most - 8) * len(part) / size)))
    return "\n\n".join(text)


def _characters(text: str) -> int:
    """How many characters of ASCII are as many tokens as ``text`` and what stands between it and the next."""
    return 4 * text_tokens(text) + 6
