"""A model that says what a test wrote down, and ways to stall. For failure paths; the real model has tests of its
own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

from channels import CancelToken
from runtime import Agent, Delta, Message, Permissions, Runtime, TextDelta, ToolCallDelta, ToolDefinition
from runtime.stream import _at_exit

Step = Delta | Callable[[], Any] | BaseException


class Scripted:
    """A synchronous model. Each turn is a list of deltas; a callable is called, an exception raised, where it
    stands.
    """

    def __init__(self, *turns: Iterable[Step]) -> None:
        self.id = "scripted"
        self.turns = [list(turn) for turn in turns]
        self.seen: list[Sequence[Message]] = []

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        self.seen.append(messages)
        for step in self.turns.pop(0):
            if isinstance(step, BaseException):
                raise step
            if callable(step):
                step()
            else:
                yield step


class AsyncScripted(Scripted):
    """The same, asynchronous. What a callable returns is awaited if it can be."""

    async def stream(  # type: ignore[override]
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> AsyncIterator[Delta]:
        self.seen.append(messages)
        for step in self.turns.pop(0):
            if isinstance(step, BaseException):
                raise step
            if callable(step):
                done = step()
                if asyncio.iscoroutine(done):
                    await done
            else:
                yield step


def say(*texts: str) -> list[Step]:
    """A turn that says something."""
    return [TextDelta(text) for text in texts]


def call(name: str, arguments: str = "{}", *, id: str = "call-1", index: int = 0) -> ToolCallDelta:
    """A tool call in one piece."""
    return ToolCallDelta(index, id, name, arguments)


class Stall:
    """A call that stands still until the test lets it go on; ``reached`` tells that it got there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, *_: Any, **__: Any) -> None:
        self.reached.set()
        self.go_on.wait(30)

    def __enter__(self) -> Stall:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()


def approving(agent: Agent, **more: Any) -> Runtime:
    """A runtime that makes every tool call without asking anybody: for tests about something else."""
    return Runtime(agent, permissions=Permissions(approve_all=True), **more)


def worker_rests() -> bool:
    """In foreign code: whether the worker of the stream that called it rests, so that another thread could take it over
    while this stands still. Of the only stream that is live.
    """
    [core] = _at_exit.live
    return core.driver is not None and core.driver.rest is not None
