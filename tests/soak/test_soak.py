"""A hundred streams at once, by chance: every law at the end of every stream. `make soak`.

SOAK_SECONDS says how long, SOAK_SEED which load.
"""

from __future__ import annotations

import logging
import os
import random
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
    soak = Soak(seed, seconds)
    soak.run()
    tell(str(soak))
    assert not soak.wrong, f"{soak}\n" + "\n".join(soak.wrong[:5])


@pytest.mark.usefixtures("switching")
def test_soak_for_a_moment(tell: Callable[[str], None]) -> None:
    """What every change is tested with."""
    _soak(5, tell)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.usefixtures("switching")
def test_soak(tell: Callable[[str], None]) -> None:
    """The long one."""
    _soak(float(os.environ.get("SOAK_SECONDS", "120")), tell)
