"""Faults are not logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of tracebacks that are meant to be, not logged: nor would anybody read them when a test fails."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
