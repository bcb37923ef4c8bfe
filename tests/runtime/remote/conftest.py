"""Engines for runs on workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from support.remote_agents import Processes


@pytest.fixture(scope="package")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two worker processes, which are up."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for warm in [pool.submit(max, 1, 2) for _ in range(4)]:
            warm.result(30)
        yield pool


@pytest.fixture
def processes() -> Iterator[Processes]:
    """A process for each job."""
    with Processes() as engine:
        yield engine
