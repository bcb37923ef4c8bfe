"""How much models behind a network read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .._checks import check_number
from ..usage import undated


def window_of(model: str, given: int | None) -> int | None:
    """``given``, else what is known of ``model``; None where nothing is. Raises `ValueError` for less than a token."""
    check_number("context_window", given, "tokens", least=1, whole=True, optional=True)
    return given or KNOWN.get(model) or KNOWN.get(undated(model))


_MILLION: Final = 1_000_000
# A reply of GPT-5 and later has 128,000 tokens of its own: a prompt that needs some of these is refused.
_GPT_5: Final = 400_000 - 128_000
_GPT_5_LONG: Final = 1_050_000 - 128_000

#: As far as known in November 2026: from the providers' pages, and for some models only from gateways that list them. A
#: wrong one makes the conversation shorter too soon, or too late, which an overflow mends. Others: ``context_window=``.
KNOWN: Final[Mapping[str, int]] = {
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
