"""Tools of MCP servers, called without a runtime, and what a test finds of servers that are left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from channels import CancelToken, Channel
from channels.aio import default_loop
from runtime.agent import Answer, Tool, ToolResult
from runtime.agent._tool import Question
from runtime.mcp import MCPToolSet


class Context:
    """What a dispatcher gives to a tool. Without ``reply`` the user never answers."""

    call_id = agent_name = "test"
    model: Any = None

    def __init__(self, reply: Callable[[Question], Answer] | None = None, session_id: str = "test") -> None:
        self.session_id = session_id
        self.cancel = CancelToken()
        self.asked: list[Question] = []
        self.told: list[tuple[str, float | None, float | None]] = []
        self.threads: list[int] = []
        self.question_came = threading.Event()
        self.answers: Channel[Answer] = Channel(1)
        self.kept: dict[str, Any] = {}
        self._reply = reply

    def progress(self, output: str = "", progress: float | None = None, total: float | None = None) -> None:
        self.told.append((output, progress, total))

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        return self.kept.setdefault(key, function())

    def elicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        question = Question(message, schema, "url" if url else "form", url, timeout)
        self.asked.append(question)
        self.threads.append(threading.get_ident())
        self.question_came.set()
        if self._reply is not None:
            return self._reply(question)
        either = CancelToken(self.cancel)
        with contextlib.nullcontext() if cancel is None else cancel.on_cancel(either.cancel):
            return self.answers.recv(cancel=either)

    async def aelicit(self, *args: Any, **kwargs: Any) -> Answer:
        raise NotImplementedError

    def run_agent(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def books(date: str = "2026-12-24", people: int = 2) -> Callable[[Question], Answer]:
    """A user who answers the booking desk."""

    def reply(question: Question) -> Answer:
        assert question.schema is not None
        if "confirm" in question.schema["properties"]:
            return Answer("accept", {"confirm": True})
        return Answer("accept", {"date": date, "people": people})

    return reply


def call(toolset: MCPToolSet, name: str, context: Context | None = None, /, **arguments: Any) -> ToolResult:
    """As the dispatcher does it."""
    tool = next(tool for tool in toolset.tools() if tool.name == name)
    return use(tool, context, **arguments)


def use(tool: Tool, context: Context | None = None, /, **arguments: Any) -> ToolResult:
    result = tool.function(**tool.bind(arguments, context or Context()))
    assert isinstance(result, ToolResult)
    return result


def children() -> set[int]:
    """Processes of ours that run."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat=,comm="], capture_output=True, text=True, check=True)
    lines = [line.split(None, 3) for line in listed.stdout.splitlines()]
    return {int(pid) for pid, parent, _, name in lines if int(parent) == os.getpid() and name != "ps"}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while its file is read
        return False


def tasks() -> set[asyncio.Task[Any]]:
    with contextlib.suppress(RuntimeError):  # the set changed meanwhile
        return asyncio.all_tasks(default_loop().loop)
    return tasks()


@contextlib.contextmanager
def running(toolset: MCPToolSet) -> Iterator[MCPToolSet]:
    try:
        yield toolset
    finally:
        toolset.stop()
