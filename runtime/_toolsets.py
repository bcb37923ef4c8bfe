"""Starting and stopping toolsets: once each for all the streams of a runtime."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from .tool import Tool, ToolSet

_logger = logging.getLogger(__name__)


class _Start:
    """One attempt to start a toolset: who made it runs it, the others wait for its end."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.error: BaseException | None = None


class ToolSets:
    """The toolsets that have been started. Used on helper threads only: everything here may wait."""

    def __init__(self) -> None:
        self._starts: dict[int, tuple[ToolSet, _Start]] = {}

    def tools(self, toolset: ToolSet) -> Sequence[Tool]:
        """The tools of ``toolset``, which is started first where nobody has.

        Raises what ``start`` raised, to all who waited for it; the next stream tries again.
        """
        start = _Start()
        _, first = self._starts.setdefault(id(toolset), (toolset, start))
        if first is start:
            try:
                toolset.start()
            except BaseException as error:
                start.error = error
                self._starts.pop(id(toolset), None)
                raise
            finally:
                start.over.set()
        else:
            first.over.wait()
            if first.error is not None:
                raise first.error
        return toolset.tools()

    def is_started(self, toolset: ToolSet) -> bool:
        """Whether somebody has started it, or is about to."""
        return id(toolset) in self._starts

    def stop(self) -> None:
        """Stop them all. One that fails does not keep the others from it."""
        while self._starts:
            toolset, start = self._starts.popitem()[1]
            try:
                start.over.wait()
                toolset.stop()
            except Exception:
                _logger.exception("toolset %r did not stop cleanly", toolset)

    def __repr__(self) -> str:
        return f"<ToolSets {len(self._starts)} started>"
