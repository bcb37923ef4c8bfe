"""A hundred streams at once, by chance: every law at the end of every stream. `make soak`.

SOAK_SECONDS says how long, SOAK_SEED which load. Half of the time threads take turns every 10 us: fewer streams, more
interleavings.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Callable, Iterator

import pytest

from support.soak import Soak


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Failures by chance are not logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _soak(seconds: float, tell: Callable[[str], None]) -> None:
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1 << 32))
    before = sys.getswitchinterval()
    for interval in (before, 1e-5):
        soak = Soak(seed, seconds / 2)
        sys.setswitchinterval(interval)
        try:
            soak.run()
        finally:
            sys.setswitchinterval(before)
        tell(str(soak))
        assert not soak.wrong, f"{soak}\n" + "\n".join(soak.wrong[:5])


def test_soak_for_a_moment(tell: Callable[[str], None]) -> None:
    """What every change is tested with."""
    _soak(5, tell)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(tell: Callable[[str], None]) -> None:
    """The long one."""
    _soak(float(os.environ.get("SOAK_SECONDS", "120")), tell)
