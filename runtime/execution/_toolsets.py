"""Starting and stopping toolsets: one that several runtimes use is started once, and stopped by the last of them."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from channels import CancelToken, Channel
from channels._lazy import lazy_logger

from ..agent._tool import Tool, ToolSet
from ._calls import Calls
from ._helpers import HelperPool

if TYPE_CHECKING:
    from channels.aio import LoopThread

_logger = lazy_logger("runtime")


class _Use:
    """A toolset in use, from before its start until after its stop."""

    def __init__(self, toolset: ToolSet) -> None:
        self.toolset = toolset
        self.name: str = getattr(toolset, "name", None) or type(toolset).__name__
        self.runtimes: weakref.WeakSet[ToolSets] = weakref.WeakSet()
        self.leaving = False  # the last runtime has left it: whoever comes now waits for `gone` and starts it anew
        self.started = threading.Event()  # set as well when it could not be: `error` says why
        self.error: BaseException | None = None
        self.gone = threading.Event()

    def end(self) -> None:
        """Stop the toolset, once its start has ended. Called by the last to leave."""
        self.started.wait()
        if self.error is not None:
            return
        try:
            self.toolset.stop()
        except BaseException:
            _logger.exception("toolset %s did not stop cleanly", self.name)
        finally:
            self.gone.set()


# Held by the runtimes: a runtime that is dropped without being closed lets go of its toolsets, which may clean up then.
_uses: weakref.WeakValueDictionary[int, _Use] = weakref.WeakValueDictionary()
_lock = threading.RLock()  # for `_uses` and `_Use.runtimes`, not while anything is called


class ToolSets:
    """The toolsets of one runtime. Used on helper threads only, but for `stop`: everything here may wait."""

    def __init__(self) -> None:
        self._mine: dict[int, _Use] = {}
        self._closed = False

    def tools(self, toolset: ToolSet) -> Sequence[Tool]:
        """The tools of ``toolset``, which is started first if no runtime has started it.

        Raises what ``start`` raised, in every thread that waited for it; the next stream tries again.
        """
        use = self._mine.get(id(toolset)) or self._join(toolset)
        use.started.wait()
        if use.error is not None:
            with _lock:
                if self._mine.get(id(toolset)) is use:  # or another stream is trying again already
                    del self._mine[id(toolset)]
            raise use.error
        if self not in use.runtimes:
            raise RuntimeError("the runtime was closed while the toolset was starting")
        return toolset.tools()

    def is_started(self, toolset: ToolSet) -> bool:
        """Whether some runtime has started ``toolset``, or is about to."""
        use = _uses.get(id(toolset))
        return use is not None and not use.leaving

    def _join(self, toolset: ToolSet) -> _Use:
        while True:
            with _lock:
                if self._closed:  # a call that comes late would start what nobody stops
                    raise RuntimeError("the runtime is closed")
                use = _uses.get(id(toolset))
                first = use is None or use.gone.is_set()
                if use is None or first:
                    use = _uses[id(toolset)] = _Use(toolset)
                use.runtimes.add(self)  # before looking: a finalizer that closes another runtime may come in between
                if not use.leaving:
                    self._mine[id(toolset)] = use
                    break
                use.runtimes.discard(self)
            use.gone.wait()
        if first:
            self._start(use)
        return use

    def _start(self, use: _Use) -> None:
        try:
            use.toolset.start()
        except BaseException as error:
            use.error = error
            use.leaving = True
            use.gone.set()
        finally:
            use.started.set()

    def stop(self, timeout: float, loop: Callable[[], LoopThread]) -> None:
        """Release all toolsets, and stop those that no other runtime uses, at the same time and within ``timeout``
        seconds.

        A toolset that takes longer is logged, with its stack, and no longer waited for. If the start of a toolset has
        not ended, it is stopped when it has.
        """
        with _lock:
            self._closed = True
        helpers = HelperPool()  # not the user's executor, which may be full, or shut down by now
        calls = Calls(CancelToken(), helpers, loop, contextvars.copy_context())
        while self._mine:
            use = self._mine.popitem()[1]
            if self._is_last(use):
                try:
                    calls.start(f"toolset {use.name}.stop", Channel(1), use.end)
                except RuntimeError:  # no thread can be started
                    _logger.exception("toolset %s could not be stopped", use.name)
        helpers.close()
        stuck = calls.join(timeout)
        for call in stuck:
            _logger.warning("%s did not end within %g s, and is left to itself\n%s", call.what, timeout, call.stack())
        if not stuck:
            helpers.join(timeout)

    def _is_last(self, use: _Use) -> bool:
        """Release the toolset. Returns whether no other runtime uses it."""
        with _lock:
            use.runtimes.discard(self)
            if not use.runtimes:
                use.leaving = True
            return use.leaving

    def __repr__(self) -> str:
        return f"<ToolSets {len(self._mine)} started>"


def _in_child() -> None:
    """In a forked child: the threads that were starting or stopping a toolset are not here."""
    global _lock
    _lock = threading.RLock()
    for key, use in list(_uses.items()):
        if use.leaving or not use.started.is_set():
            _uses.pop(key, None)
            for runtime in list(use.runtimes):
                runtime._mine.pop(key, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
