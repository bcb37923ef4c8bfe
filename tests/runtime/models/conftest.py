"""What the tests of the providers share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from channels.aio import default_loop
from support.replay import Replay
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
