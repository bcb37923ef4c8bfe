"""What the soak and the leak tests measured is printed after the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import figures


@pytest.fixture
def tell() -> Callable[[str], None]:
    """Adds a line."""
    return figures.lines[figures.MEASURED].append
