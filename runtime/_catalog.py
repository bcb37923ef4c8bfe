"""The catalog: what is known of models by their id, without asking anybody. What they cost, and how much they read.

Ids are those of the providers, exact, with or without the date of a version; nothing is known by resemblance.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from ._checks import check, check_number, is_number
from ._dataclasses import dataclass

_MILLION: Final = 1_000_000
_DATE: Final = r"-(\d{8}|\d{4}-\d\d-\d\d|latest)$"


def undated(name: str) -> str:
    """The model that ``name`` is a version of: gpt-5-2025-08-07 costs what gpt-5 does."""
    return re.sub(_DATE, "", name)


def window_of(model: str, given: int | None) -> int | None:
    """``given``, else what is known of ``model``; None where nothing is. Raises `ValueError` for less than a token."""
    check_number("context_window", given, "tokens", least=1, whole=True, optional=True)
    return given or WINDOWS.get(model) or WINDOWS.get(undated(model))


# -- prices ------------------------------------------------------------------------------------------------------------


class Counted(Protocol):
    """Tokens as they are priced: a `Usage`."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model, in dollars per million tokens.

    ``cached_input`` is the price of input that is read from the provider's cache, ``cache_write`` of input that is
    written to it; both are ``input`` by default. ``above=(tokens, price)`` is another price for calls with more input
    than ``tokens``.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    above: tuple[int, Price] | None = None

    def __post_init__(self) -> None:
        for amount in (self.input, self.output, self.cached_input, self.cache_write):
            if amount is not None and not is_number(amount, least=0):
                raise ValueError(f"a price must be a number of dollars per million tokens, 0 or more, not {amount!r}")
        if self.above is not None:
            check("above", self.above, tuple, "a pair, (tokens, Price)")

    def cost(self, usage: Counted) -> float:
        """The cost in dollars of a call with this usage."""
        if self.above is not None and usage.input_tokens > self.above[0]:
            return self.above[1].cost(usage)
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        uncached = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        return (
            max(uncached, 0) * self.input
            + usage.cached_tokens * cached
            + usage.cache_write_tokens * written
            + usage.output_tokens * self.output
        ) / _MILLION


def price_of(model: str) -> Price | None:
    """The list price of ``model``, with or without its provider; None where none is known."""
    if model.startswith("local/"):  # it runs in this process
        return Price(0, 0)
    name = model.removeprefix("openai/").removeprefix("anthropic/")
    return BUILT_IN.get(name) or BUILT_IN.get(undated(name))


def _claude(input: float, output: float, cached: float) -> Price:
    return Price(input, output, cached, 1.25 * input)  # what the five minutes' cache costs


def _gpt(input: float, output: float, cached: float) -> Price:
    """Long prompts cost twice as much to read, half as much again to answer."""
    return Price(input, output, cached, above=(272_000, Price(2 * input, 1.5 * output, 2 * cached)))


class _Prices(Mapping[str, Price]):
    """A table of prices, which are made when somebody looks for one."""

    @functools.cached_property
    def _known(self) -> dict[str, Price]:
        return _list_prices()

    def __getitem__(self, model: str) -> Price:
        return self._known[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return repr(self._known)


#: List prices of November 2026, without discounts for batches. They change: give yours to ``Runtime(prices=...)``.
BUILT_IN: Final[Mapping[str, Price]] = _Prices()


def _list_prices() -> dict[str, Price]:
    return {
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


# -- windows -----------------------------------------------------------------------------------------------------------

# A reply of GPT-5 and later has 128,000 tokens of its own: a prompt that needs some of these is refused.
_GPT_5: Final = 400_000 - 128_000
_GPT_5_LONG: Final = 1_050_000 - 128_000

#: As far as known in November 2026: from the providers' pages, and for some models only from gateways that list them. A
#: wrong one makes the conversation shorter too soon, or too late, which an overflow mends. Others: ``context_window=``.
WINDOWS: Final[Mapping[str, int]] = {
    "claude-fable-5": _MILLION,
    "claude-fable-5-1": _MILLION,
    "claude-fable-5-2": _MILLION,
    "claude-haiku-4-5": 200_000,
    "claude-haiku-5-5": _MILLION,
    "claude-opus-4-5": 200_000,
    "claude-opus-4-6": _MILLION,
    "claude-opus-4-7": _MILLION,
    "claude-opus-4-8": _MILLION,
    "claude-opus-5": _MILLION,
    "claude-opus-5-5": _MILLION,
    "claude-sonnet-4-5": 200_000,
    "claude-sonnet-4-6": _MILLION,
    "claude-sonnet-5": _MILLION,
    "claude-sonnet-5-5": _MILLION,
    "gpt-3.5-turbo": 16_385,
    "gpt-4": 8_192,
    "gpt-4.1": 1_047_576,
    "gpt-4.1-mini": 1_047_576,
    "gpt-4.1-nano": 1_047_576,
    "gpt-4o": 128_000,
    "gpt-4o-mini": 128_000,
    "gpt-5": _GPT_5,
    "gpt-5-mini": _GPT_5,
    "gpt-5-nano": _GPT_5,
    "gpt-5.1": _GPT_5,
    "gpt-5.2": _GPT_5,
    "gpt-5.4": _GPT_5_LONG,
    "gpt-5.4-mini": _GPT_5,
    "gpt-5.5": _GPT_5_LONG,
    "gpt-5.6-luna": _GPT_5_LONG,
    "o3": 200_000,
    "o4-mini": 200_000,
}
