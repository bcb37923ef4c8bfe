"""The messages that a model is shown of a session, and how many tokens they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from channels._lazy import lazy

from .._dataclasses import replace
from ..model import ToolDefinition
from ..session._message import Message, ToolCall
from ..session._session import Compacted, Session

if TYPE_CHECKING:
    import json
else:
    json = lazy("json")

_CHARACTERS: Final = 4  # that make a token, about
_IMAGE: Final = 1000  # tokens, about
_TASK: Final = 4000  # characters of what the user said last, where that stands beside a summary


def view(session: Session, result_limit: int, compacted: Compacted | None = None) -> list[Message]:
    """The messages that the model is shown: what is left of the session, behind its summary. A list of its own."""
    messages, compacted = session._messages, compacted or session.compacted
    start, cut = compacted.start, max(compacted.start, compacted.shortened)
    shown = messages[start:]
    shown[: cut - start] = [shortened(message, result_limit) for message in shown[: cut - start]]
    if not compacted.summary:
        return shown
    text = f"This is what was said before, summed up:\n{compacted.summary}"
    if not any(message.role == "user" for message in shown):  # the task that is worked on
        task = next((messages[i].content for i in range(start - 1, -1, -1) if messages[i].role == "user"), "")
        text += f"\n\nWhat the user said last:\n{clipped(task, _TASK)}" if task else ""
    return [Message("user", text), *shown]


def shortened(message: Message, limit: int) -> Message:
    """``message``, with no more than ``limit`` characters of what a tool gave back."""
    if message.role != "tool" or (len(message.content) <= limit and not message.images):
        return message
    left = len(message.content) - limit
    text = f"{message.content[:limit]} [{left} characters more were shown before]" if left > 0 else message.content
    return replace(message, content=text, images=())


def clipped(text: str, limit: int) -> str:
    """The beginning and the end of ``text``: ``limit`` characters, with the note that says what is left out."""
    if len(text) <= limit:
        return text
    note = f" [... {len(text) - limit} characters or more are left out here ...] "
    room = max(limit - len(note), 0)
    tail = room // 5
    return f"{text[: room - tail]}{note}{text[len(text) - tail :]}"[:limit]


def fitted(messages: Sequence[Message], budget: int) -> list[Message]:
    """``messages`` in no more than ``budget`` tokens: the longest are cut, all to the same length."""
    sizes = [tokens((message,)) for message in messages]
    most = level(sizes, budget)
    return [each if size <= most else _cut(each, most) for each, size in zip(messages, sizes, strict=True)]


def level(sizes: Iterable[int], budget: int) -> int:
    """The highest size each item may have so that all together are no more than ``budget``."""
    ordered = sorted(sizes)
    for i, size in enumerate(ordered):
        share = max(budget, 0) // (len(ordered) - i)
        if size > share:
            return share
        budget -= size
    return ordered[-1] if ordered else 0


def _cut(message: Message, most: int) -> Message:
    """The message in no more than ``most`` tokens, where there is something in it that can be cut."""
    calls = message.tool_calls
    if calls and tokens((replace(message, content="", images=()),)) > most:
        # JSON that is cut is none: the arguments are left out as a whole, and what the provider has said in its form.
        message = replace(message, tool_calls=tuple(map(_without_arguments, calls)), native=None)
    if _IMAGE * len(message.images) > most // 2:
        message = replace(message, images=())
    room = most - tokens((replace(message, content=""),))
    dense = max(text_tokens(message.content) * _CHARACTERS / max(len(message.content), 1), 1.0)
    return replace(message, content=clipped(message.content, int(max(room, 0) * _CHARACTERS / dense)), native=None)


def _without_arguments(call: ToolCall) -> ToolCall:
    note = json.dumps({"left_out": f"{len(call.sound_arguments)} characters"})
    return replace(call, arguments=min(call.sound_arguments, note, key=len))


def text_tokens(text: str) -> int:
    """How many tokens a text is, about: one for four characters of ASCII, one for an ideograph."""
    count = len(text) // _CHARACTERS
    return count if text.isascii() else count + (len(text.encode("utf-8", "surrogatepass")) - len(text)) * 3 // 8


def tokens(messages: Iterable[Message], tools: Iterable[ToolDefinition] = ()) -> int:
    """How many tokens the messages are, about."""
    count = 0
    for message in messages:
        calls = sum(len(call.name) + text_tokens(call.sound_arguments) * _CHARACTERS for call in message.tool_calls)
        count += 4 + text_tokens(message.content) + calls // _CHARACTERS + _IMAGE * len(message.images)
    for tool in tools:
        count += (len(tool.name) + len(tool.description) + len(json.dumps(tool.parameters, default=str))) // _CHARACTERS
    return count


def sizes_of(session: Session) -> Sizes:
    """Those of the messages of the session, as far as its streams have come."""
    if session._sizes is None:
        session._sizes = Sizes()
    return session._sizes  # type: ignore[no-any-return]


class Sizes:
    """How many tokens the messages of a session are, in running sums: a turn looks at what is new in it. Used by the
    worker that holds the lease of the session.
    """

    def __init__(self) -> None:
        self._first = 0  # the message that the sums begin with: those before it are not shown any more
        self._whole = [0]
        self._short = [0]
        self._limit = -1
        self._last: Message | None = None

    def shown(self, session: Session, limit: int, compacted: Compacted, end: int | None = None) -> int:
        """How many tokens the messages before ``end`` are, as ``compacted`` shows them, without its summary."""
        messages = session._messages
        self._extend(messages, limit, compacted.start)
        end = len(messages) if end is None else end
        cut = min(max(compacted.start, compacted.shortened), end)
        start = min(compacted.start, cut)
        return self._sum(self._short, start, cut) + self._sum(self._whole, cut, end)

    def _sum(self, sums: list[int], begin: int, end: int) -> int:
        return sums[end - self._first] - sums[begin - self._first]

    def _extend(self, messages: Sequence[Message], limit: int, start: int) -> None:
        known = self._first + len(self._whole) - 1
        changed = known > len(messages) or (known > self._first and messages[known - 1] is not self._last)
        if changed or limit != self._limit or start < self._first:
            self._first, self._whole, self._short, self._limit, known = start, [0], [0], limit, start
        for i in range(known, len(messages)):
            self._whole.append(self._whole[-1] + tokens((messages[i],)))
            self._short.append(self._short[-1] + tokens((shortened(messages[i], limit),)))
            self._last = messages[i]


def recent(messages: Sequence[Message], budget: float, first: int = 0) -> int:
    """Where the last messages begin that are no more than ``budget`` tokens, at ``first`` or after it. A call keeps its
    results, and there is always something: the last that was said.
    """
    begin, size = len(messages), 0
    for i in range(len(messages) - 1, first - 1, -1):
        size += tokens((messages[i],))
        if size > budget and begin < len(messages):
            break
        if messages[i].role != "tool":
            begin = i
    return begin
