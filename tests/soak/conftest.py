"""Prints what the soak and the leak tests measured."""

from __future__ import annotations

from typing import Any

import pytest

measured = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Any:
    """Adds a line to the summary."""
    return request.config.stash.setdefault(measured, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The lines, after the tests."""
    lines = config.stash.get(measured, [])
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)
