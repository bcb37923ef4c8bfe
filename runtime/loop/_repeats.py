"""Detection of runs that repeat the same tool calls with the same results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..agent._tool import Tool
from ..session._message import Message, ToolCall


class Repeats:
    """Counts successive turns that make the same tool calls and get the same results.

    A call that a model makes twice in one turn, before it has seen a result, counts once. Polling tools do not count.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._last: frozenset[tuple[str, str, str]] | set[tuple[str, str, str]] = frozenset()
        self._times = 0

    def look(
        self,
        calls: Sequence[ToolCall],
        compared: Mapping[str, str],
        results: Iterable[Message],
        tools: Mapping[str, Tool],
    ) -> list[str]:
        """Count the calls of a turn, whose arguments are ``compared`` as these texts. Returns the names of the tools
        that were called once too often.
        """
        if self._limit is None:
            return []
        said = {result.tool_call_id: result.content for result in results}
        made = set()
        for call in calls:
            tool = tools.get(call.name)
            if tool is None or not tool.polling:
                made.add((call.name, compared[call.id], said.get(call.id, "")))
        if not made:
            return []
        self._times = self._times + 1 if made == self._last else 1
        self._last = made
        return sorted({name for name, _, _ in made}) if self._times >= self._limit else []
