"""One budget for everything that ends when the interpreter exits: streams, servers, event loops, threads of libraries.

Each part has a limit of its own. Were they only added up, an exit where all of them are stuck would take five seconds
and more; so what the first have used, the others have not.
"""

from __future__ import annotations

from typing import Final

from ._park import monotonic

SECONDS: Final = 1.6  # for all together: people wait two, and the interpreter takes some for itself
LEAST: Final = 0.05  # for each, also for the last: most end at once when they are asked to

_deadline: float | None = None


def exit_seconds(most: float) -> float:
    """How many seconds the caller may take, at most ``most``. The first call begins the exit."""
    global _deadline
    now = monotonic()
    if _deadline is None:
        _deadline = now + SECONDS
    return min(most, max(_deadline - now, LEAST))
