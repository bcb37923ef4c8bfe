"""Faults are not logged, and what they may hit of the interpreter's own is no fault."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from support.faults import Thrown


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of tracebacks that are meant to be, not logged: nor would anybody read them when a test fails."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def thrown_into_a_callback(nothing_left_behind: None) -> Iterator[None]:
    """Where it was thrown into a thread just as that called back for a weak reference, the interpreter tells of it, and
    goes on. Without the GIL, that is where threads do such work, at the points where they look for exceptions.
    """
    tell = sys.unraisablehook

    def unraisable(args: Any) -> None:
        if not isinstance(args.exc_value, Thrown):
            tell(args)

    sys.unraisablehook = unraisable
    yield
    sys.unraisablehook = tell
