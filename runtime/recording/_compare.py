"""Two recorded runs compared: which tools were called with what, what was said in the end, and how the run ended."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from .. import events
from .._dataclasses import dataclass
from ..session._message import canonical
from ._recording import Recording

#: A word, or a character of a script that is written without spaces.
_WORD: Final = re.compile(r"[^\W\u3040-\u9fff\uac00-\ud7af]+|[\u3040-\u9fff\uac00-\ud7af]")
_CALLS: Final = 20_000  # calls that are compared, which takes more than linear time; those after them count as others
_CALLS_SHOWN: Final = 100  # calls in which a difference is looked for, to be shown
_LINES: Final = 40  # of a difference
_CONTEXT: Final = 1  # calls of a difference that are the same


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a run came to."""

    calls: tuple[str, ...]  # each with its agent, where that is not the one that the run began with
    text: str  # of the last reply
    reason: str  # why it ended


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much a run is like the recorded one; 1.0 is the same."""

    recorded: Trajectory
    now: Trajectory
    tools: float  # the share of the calls that both have, in the same order: 2 * common / (all of both)
    text: float  # ROUGE-1: the F1 of the words that both texts have

    @property
    def same_end(self) -> bool:
        """Whether both ended for the same reason."""
        return self.recorded.reason == self.now.reason

    def difference(self) -> list[str]:
        """What differs in the calls, for people, line by line, from the first difference on; nothing where they are the
        same.
        """
        before, after = self.recorded.calls, self.now.calls
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
        begin = max(alike - _CONTEXT, 0)
        shown = before[begin : begin + _CALLS_SHOWN], after[begin : begin + _CALLS_SHOWN]
        titles = "tool calls in the record", "tool calls now"
        lines = difflib.unified_diff(*shown, *titles, n=_CONTEXT, lineterm="")
        said = [line for line in lines if not line.startswith("@@")]
        return said if len(said) <= _LINES else [*said[:_LINES], f"... {len(said) - _LINES} more lines"]


def trajectory(recording: Recording) -> Trajectory:
    """What the recorded run came to. Raises `ValueError` for a file that is no record, and `OSError`."""
    calls: list[str] = []
    said: list[str] = []
    root = reason = ""
    for event in recording.events():
        root = root or event.session_id
        mine = event.session_id == root
        if isinstance(event, events.ToolCallStarted):
            who = "" if event.agent_name == recording.agent_name else f"{event.agent_name}: "
            calls.append(f"{who}{event.tool_call.name}({canonical(event.tool_call, event.tool_call.parsed)})")
            if mine:
                said.clear()
        elif isinstance(event, events.AgentChoice) and mine:
            said.append(event.content)
        elif isinstance(event, events.StreamStopped) and mine:
            reason = event.reason
    return Trajectory(tuple(calls), "".join(said).strip(), reason)


def compare(recorded: Trajectory, now: Trajectory) -> Comparison:
    """How much ``now`` is like ``recorded``."""
    return Comparison(recorded, now, _likeness(recorded.calls, now.calls), _rouge(recorded.text, now.text))


def _likeness(recorded: Sequence[str], now: Sequence[str]) -> float:
    total = len(recorded) + len(now)
    return 2 * _common(recorded[:_CALLS], now[:_CALLS]) / total if total else 1.0


def _common(some: Sequence[str], others: Sequence[str]) -> int:
    """The length of the longest common subsequence, with a bit for each of ``some`` (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for at, each in enumerate(some):
        places[each] = places.get(each, 0) | 1 << at
    all_of_them = rest = (1 << len(some)) - 1
    for each in others:
        found = rest & places.get(each, 0)
        rest = ((rest + found) | (rest - found)) & all_of_them
    return len(some) - rest.bit_count()


def _rouge(recorded: str, now: str) -> float:
    """The F1 of ROUGE-1 (https://aclanthology.org/W04-1013)."""
    if recorded == now:
        return 1.0
    before, after = Counter(_WORD.findall(recorded.casefold())), Counter(_WORD.findall(now.casefold()))
    common = sum((before & after).values())
    total = sum(before.values()) + sum(after.values())
    return 2 * common / total if total else 0.0
