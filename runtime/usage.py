"""What model calls use, and what that costs: tokens, prices, dollars.

Costs are floats: a double keeps a bill of a million dollars right to less than a billionth of one, and JSON has no
decimals. An unknown cost is None, and so is every total that it is part of: unpriced is not free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from ._checks import check, is_number

_MILLION: Final = 1_000_000
_DATE: Final = re.compile(r"-(\d{8}|\d{4}-\d\d-\d\d|latest)$")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that were used, by one model call or by several, and what they cost.

    ``input_tokens`` is all that was read: ``cached_tokens`` (from the provider's cache) and ``cache_write_tokens``
    (into it) are parts of it. ``output_tokens`` is all that was written, ``reasoning_tokens`` a part of it. ``cost`` is
    in dollars; None where it is unknown, because a model has no price or nothing was reported.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        """Both together. The cost is unknown where one of them is."""
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


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in dollars per million tokens.

    ``cached_input`` is for what is read from the provider's cache, ``cache_write`` for what is put there; both are
    ``input`` by default. ``above=(tokens, price)``: a call with more input than that has the other price.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    above: tuple[int, Price] | None = None

    def __post_init__(self) -> None:
        for amount in (self.input, self.output, self.cached_input, self.cache_write):
            if amount is not None and not is_number(amount, least=0):
                raise ValueError(f"a price is a number of dollars per million tokens, 0 or more, not {amount!r}")
        if self.above is not None:
            check("above", self.above, tuple, "a pair, (tokens, Price)")

    def cost(self, usage: Usage) -> float:
        """What one call that used ``usage`` costs, in dollars."""
        if self.above is not None and usage.input_tokens > self.above[0]:
            return self.above[1].cost(usage)
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        return (
            max(plain, 0) * self.input
            + usage.cached_tokens * cached
            + usage.cache_write_tokens * written
            + usage.output_tokens * self.output
        ) / _MILLION


class Prices:
    """Prices by model id. ``own`` maps ids, or patterns as in the shell, to prices; its entries go before `BUILT_IN`.

    In ``own`` the first pattern that matches counts. Thread-safe: nothing changes.
    """

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        check("prices", own or {}, Mapping, "a mapping of model ids, or patterns, to Price objects")
        self._own = dict(own or {})
        for pattern, price in self._own.items():
            if not isinstance(price, Price):
                raise TypeError(f"prices[{pattern!r}] is a Price, not {price!r}")

    def find(self, model: str) -> Price | None:
        """The price of ``model``; None where it has none."""
        for pattern, price in self._own.items():
            if fnmatchcase(model, pattern):
                return price
        if model.startswith("local/"):  # it runs in this process
            return _FREE
        name = model.removeprefix("openai/").removeprefix("anthropic/")
        return BUILT_IN.get(name) or BUILT_IN.get(undated(name))

    def priced(self, model: str, usage: Usage) -> Usage:
        """``usage`` of one call, with its cost."""
        price = self.find(model)
        return replace(usage, cost=None if price is None else price.cost(usage))

    def __repr__(self) -> str:
        return f"<Prices {len(self._own)} own, {len(BUILT_IN)} built in>"


def undated(name: str) -> str:
    """The model that ``name`` is a version of: gpt-5-2025-08-07 costs what gpt-5 does."""
    return _DATE.sub("", name)


_FREE: Final = Price(0, 0)


def _claude(input: float, output: float, cached: float) -> Price:
    return Price(input, output, cached, 1.25 * input)  # what the five minutes' cache costs


def _gpt(input: float, output: float, cached: float) -> Price:
    """Long prompts cost twice as much to read, half as much again to answer."""
    return Price(input, output, cached, above=(272_000, Price(2 * input, 1.5 * output, 2 * cached)))


#: List prices of November 2026, without discounts for batches. They change: give yours to ``Runtime(prices=...)``.
BUILT_IN: Final[Mapping[str, Price]] = {
    "claude-fable-5-1": _claude(10, 50, 0.25),
    "claude-haiku-4-5": _claude(1, 5, 0.1),
    "claude-opus-4-5": _claude(5, 25, 0.5),
    "claude-opus-4-8": _claude(5, 25, 0.5),
    "claude-opus-5": _claude(5, 25, 0.5),
    "claude-opus-5-5": _claude(4, 20, 0.2),
    "claude-sonnet-4-6": _claude(3, 15, 0.3),
    "claude-sonnet-5": _claude(2, 10, 0.2),
    "claude-sonnet-5-5": _claude(2, 10, 0.1),
    "gpt-4.1": Price(2, 8, 0.5),
    "gpt-4.1-mini": Price(0.4, 1.6, 0.1),
    "gpt-4.1-nano": Price(0.1, 0.4, 0.025),
    "gpt-4o": Price(2.5, 10, 1.25),
    "gpt-4o-2024-05-13": Price(5, 15),
    "gpt-4o-mini": Price(0.15, 0.6, 0.075),
    "gpt-5": Price(1.25, 10, 0.125),
    "gpt-5-mini": Price(0.25, 2, 0.025),
    "gpt-5-nano": Price(0.05, 0.4, 0.005),
    "gpt-5.1": Price(1.25, 10, 0.125),
    "gpt-5.2": Price(1.75, 14, 0.175),
    "gpt-5.4": _gpt(2.5, 15, 0.25),
    "gpt-5.4-mini": Price(0.75, 4.5, 0.075),
    "gpt-5.4-nano": Price(0.2, 1.25, 0.02),
    "gpt-5.5": _gpt(5, 30, 0.5),
    "o3": Price(2, 8, 0.5),
    "o4-mini": Price(1.1, 4.4, 0.275),
}
