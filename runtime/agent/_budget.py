"""`Budget`: how many tokens, dollars and seconds a run may use."""

from __future__ import annotations

from .._checks import is_number
from .._dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one stream may use, with the streams nested in it: tokens (input and output), dollars, seconds.

    Tokens and cost are looked at between the model's calls, so the last one may go over; time ends a stream wherever
    it waits. None is no limit.
    """

    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "cost", "seconds"):
            limit = getattr(self, name)
            if limit is not None and not is_number(limit, above=0):
                raise ValueError(f"a budget's {name} is a number above 0, or None for no limit, not {limit!r}")
