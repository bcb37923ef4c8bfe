"""`Budget`: how many tokens, dollars and seconds a run may use."""

from __future__ import annotations

from .._checks import is_number
from .._dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one stream, including the streams nested in it, may use: ``tokens`` (input and output), ``cost``
    (dollars), ``seconds``. None is no limit.

    Tokens and cost are checked between model calls, so the last call may exceed them. When the time is up, the stream
    ends wherever it is waiting.
    """

    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "cost", "seconds"):
            limit = getattr(self, name)
            if limit is not None and not is_number(limit, above=0):
                raise ValueError(f"a budget's {name} must be a number above 0, or None for no limit, not {limit!r}")
