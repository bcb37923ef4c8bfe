"""Results: what a tool returned, as the model reads it; and where the whole of a result is that is too long for it."""

from __future__ import annotations

import inspect
import os
import re
import threading
import uuid
import weakref
from collections.abc import Awaitable, Mapping
from typing import Any, Final

from . import _json
from ._annotations import plain
from .session import Image
from .tool import CallContext, Tool, ToolResult

LIMIT: Final = 50_000  # characters of one result that a model is given, unless somebody says otherwise


def result_of(value: Any) -> ToolResult:
    """What a function returned, as a result: text, images, and everything else as JSON."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str):
        return ToolResult(value)
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        raise TypeError("the tool returned a generator, which is no value: let it return a list")
    parts = [value] if isinstance(value, Image) else value
    if isinstance(parts, (list, tuple)) and any(isinstance(each, Image) for each in parts):
        images = tuple(each for each in parts if isinstance(each, Image))
        content = "\n".join(str(each) if isinstance(each, Image) else _text(each) for each in parts)
        return ToolResult(content, images=images)
    return ToolResult(_text(value))


def run_tool(tool: Tool, values: Mapping[str, Any], context: CallContext) -> Any:
    """Call the tool's function, where foreign code may run; its result, or an awaitable of it."""
    value = tool.function(**tool.bind(values, context))
    if not inspect.isawaitable(value):
        return result_of(value)
    if tool.on == "consumer":
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError(f"{tool.name} returned a coroutine, which cannot run in the consumer's thread")
    return _result_of(value)


async def run_tool_async(tool: Tool, values: Mapping[str, Any], context: CallContext) -> ToolResult:
    """The same for a coroutine function."""
    return result_of(await tool.function(**tool.bind(values, context)))


async def _result_of(value: Awaitable[Any]) -> ToolResult:
    return result_of(await value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json.write(plain(value))


def cut(text: str, limit: int, where: str) -> str:
    """The beginning and the end of ``text``, ``limit`` characters together, and a note in between."""
    head = limit * 4 // 5
    tail = limit - head
    note = f"[... {len(text) - limit} of {len(text)} characters are left out here; {where} ...]"
    return f"{text[:head]}\n{note}\n{text[len(text) - tail :]}"


class ResultFiles:
    """The full texts of results that were cut: a file each, in a directory for each session, for their owner only.

    In ``directory``, where they stay, or else in a temporary one, which `close` removes.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._given = None if directory is None else os.fspath(directory)
        self._temporary = ""
        self._owner = 0  # the process that made it
        self._lock = threading.Lock()  # for _temporary: two results may be the first
        self._finalizer: weakref.finalize[Any, ResultFiles] | None = None

    def keep(self, session_id: str, tool: str, text: str) -> str:
        """Write ``text`` to a new file; its path. Raises `OSError`."""
        folder = os.path.join(self._root(), _safe(session_id))
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, f"{_safe(tool)}-{uuid.uuid4().hex[:12]}.txt")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)
        return path

    def _root(self) -> str:
        if self._given is not None:
            return self._given
        with self._lock:
            if not self._temporary:
                import tempfile  # slow, and rarely needed

                self._temporary = tempfile.mkdtemp(prefix="lockgate-results-")
                self._owner = os.getpid()
                self._finalizer = weakref.finalize(self, _remove, self._temporary, self._owner)
            return self._temporary

    def close(self) -> None:
        """Remove what is temporary. What is kept later gets a new directory."""
        # Without the lock: it takes its time, and a signal handler that closes the runtime may come in between. Then it
        # is removed there, and nothing is left to be done here.
        folder, finalizer = self._temporary, self._finalizer
        if finalizer is not None:
            _remove(folder, self._owner)
            finalizer.detach()
            if self._finalizer is finalizer:
                self._temporary, self._finalizer = "", None

    def __repr__(self) -> str:
        return f"<ResultFiles in {self._given or self._temporary or 'no directory yet'}>"


def _remove(folder: str, owner: int) -> None:
    import shutil

    if os.getpid() == owner:  # a forked child leaves its parent's files alone
        shutil.rmtree(folder, ignore_errors=True)


def _safe(name: str) -> str:
    """``name`` as that of a file: a session's id is anybody's to choose."""
    return re.sub(r"[^\w-]", "_", name)[:80] or "_"
