"""What the tests of the providers share."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from channels.aio import default_loop
from runtime import Agent, Runtime, Session
from runtime.events import StreamStopped
from support.replay import Answer, Replay
from support.scripted import Stall
from support.waiting import eventually


@pytest.fixture
def server() -> Iterator[Replay]:
    """A server on loopback that answers as the test says."""
    with Replay() as replay:
        yield replay


@pytest.fixture
def tasks_of_ours() -> Callable[[], set[asyncio.Task[Any]]]:
    """The tasks on the loop that everything shares. What tests before this one have dropped is closed by tasks of the
    garbage collector's: they are over before the test begins, and not counted as its own.
    """

    def tasks() -> set[asyncio.Task[Any]]:
        # Not those in which the loop closes what the garbage collector has found, such as a library's own generators.
        every = asyncio.all_tasks(default_loop().loop)
        return {task for task in every if type(task.get_coro()).__name__ != "async_generator_athrow"}

    gc.collect()
    assert eventually(lambda: not tasks())
    return tasks


@pytest.fixture
def cancelled_while_silent(
    server: Replay, tasks_of_ours: Callable[[], set[asyncio.Task[Any]]]
) -> Callable[[Any, Sequence[Any]], float]:
    """Ask a model whose server says nothing more after ``before``, cancel that, and see how many seconds it takes."""

    def cancelled(model: Any, before: Sequence[Any]) -> float:
        with Stall() as stall, Runtime(Agent("a", model)) as runtime:
            server.answer(Answer(*before, stall))
            stream = runtime.run_stream(Session.from_user("Hi"))
            assert stall.reached.wait(10)
            started = time.monotonic()
            stream.cancel("enough")
            assert isinstance(list(stream)[-1], StreamStopped)
            took = time.monotonic() - started
            stream.close()
            assert not tasks_of_ours()
            stall.go_on.set()
            assert server.wait_for(0)  # the connection of the broken stream is closed, not kept
            return took

    return cancelled
