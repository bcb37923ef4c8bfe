"""Says how many faults were injected."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from support.faults import INJECTED


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of tracebacks that are meant to be, not logged: nor would anybody read them when a test fails."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line a scenario, after the tests."""
    if INJECTED:
        terminalreporter.section("faults injected")
        for name, number in sorted(INJECTED.items()):
            terminalreporter.write_line(f"{number:6} {name}")
        terminalreporter.write_line(f"{INJECTED.total():6} in all")
