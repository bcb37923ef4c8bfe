"""Puts `interleave` on the path, and adds up how far the explorer went."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime._log import LOGGERS
from support import figures

sys.path.insert(0, str(Path(__file__).parent))

from interleave import reports


@pytest.fixture(autouse=True)
def filters() -> Iterator[None]:
    """The explored copy of `runtime` logs where the other does: what it adds to the loggers goes with it."""
    before = {name: logging.getLogger(name).filters[:] for name in LOGGERS}
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters[:] = filters


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Before the figures of this process are handed over."""
    section = figures.INTERLEAVINGS
    for report in reports:
        figures.details[section].append(str(report))
        figures.counted[section].update(
            schedules=report.schedules,
            scenarios=1,
            unfinished=not report.complete,
            thrown=report.thrown,
            nested=report.nested,
            steps=report.steps,
            seconds=report.seconds,  # type: ignore[arg-type]
        )
