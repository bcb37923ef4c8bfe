"""Starting and stopping toolsets: once each for all the streams of a runtime."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from .tool import Tool, ToolSet

_logger = logging.getLogger(__name__)


class _Start:
    """One attempt to start a toolset: who made it runs it, the others wait for its end."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.error: BaseException | None = None
        self.late = [None]  # whoever deletes the element: who could not wait for the start, or its end


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
            if not _take(start.late):
                toolset.stop()
                raise RuntimeError("the runtime was closed while the toolset was starting")
        else:
            first.over.wait()
            if first.error is not None:
                raise first.error
        return toolset.tools()

    def is_started(self, toolset: ToolSet) -> bool:
        """Whether somebody has started it, or is about to."""
        return id(toolset) in self._starts

    def stop(self, timeout: float) -> None:
        """Stop them all. One that fails does not keep the others from it.

        One whose start does not end within ``timeout`` seconds is stopped when it does, by the thread that starts it.
        """
        deadline = time.monotonic() + timeout
        while self._starts:
            toolset, start = self._starts.popitem()[1]
            try:
                if start.over.wait(max(0.0, deadline - time.monotonic())) or not _take(start.late):
                    toolset.stop()
            except Exception:
                _logger.exception("toolset %r did not stop cleanly", toolset)

    def __repr__(self) -> str:
        return f"<ToolSets {len(self._starts)} started>"


def _take(ticket: list[None]) -> bool:
    """Whether this call took the one element: a single step."""
    try:
        del ticket[0]
    except IndexError:
        return False
    return True
