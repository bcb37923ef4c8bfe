"""What the tests of the providers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.replay import Replay


@pytest.fixture
def server() -> Iterator[Replay]:
    """A server on loopback that answers as the test says."""
    with Replay() as replay:
        yield replay
