"""Puts `interleave` on the path, and adds up how far the explorer went."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support import figures

sys.path.insert(0, str(Path(__file__).parent))

from interleave import reports


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
