"""Usage and prices: the tokens that model calls use, and their cost in dollars.

Costs are floats: a double keeps a bill of a million dollars right to less than a billionth of one, and JSON has no
decimals. An unknown cost is None, and so is every total that it is part of: unpriced is not free.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ._catalog import BUILT_IN, Price, price_of
from ._checks import check
from ._dataclasses import asdict, dataclass, replace

__all__ = ["BUILT_IN", "Price", "Prices", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that one or several model calls used, and their cost.

    ``input_tokens`` includes ``cached_tokens`` (read from the provider's cache) and ``cache_write_tokens`` (written to
    it); ``output_tokens`` includes ``reasoning_tokens``. ``cost`` is in dollars; it is None if it is unknown, because a
    model has no price or reported no usage.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None

    @property
    def tokens(self) -> int:
        """The sum of input and output tokens."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        """The sum of two usages. Its cost is unknown where one of them is."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            None if self.cost is None or other.cost is None else self.cost + other.cost,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the counts that are 0."""
        return {name: value for name, value in asdict(self).items() if value or name == "cost"}


class Prices:
    """Prices by model id. ``own`` maps ids, or shell-style patterns of ids, to prices, which take precedence over
    `BUILT_IN`.

    In ``own`` the first pattern that matches counts. Immutable, and so thread-safe.
    """

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        check("prices", own or {}, Mapping, "a mapping of model ids, or patterns, to Price objects")
        self._own = dict(own or {})
        for pattern, price in self._own.items():
            if not isinstance(price, Price):
                raise TypeError(f"prices[{pattern!r}] must be a Price, not {price!r}")

    def find(self, model: str) -> Price | None:
        """The price of ``model``; None if it has none."""
        for pattern, price in self._own.items():
            if fnmatchcase(model, pattern):
                return price
        return price_of(model)

    def priced(self, model: str, usage: Usage) -> Usage:
        """``usage`` of one call of ``model``, with its cost filled in."""
        price = self.find(model)
        return replace(usage, cost=None if price is None else price.cost(usage))

    def __repr__(self) -> str:
        return f"<Prices {len(self._own)} own, {len(BUILT_IN)} built in>"
