"""How many tokens a model takes is known before a call is too long, or said to be unknown."""

from __future__ import annotations

from typing import Any

import pytest

from runtime._catalog import BUILT_IN, window_of


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> Any:
    """Makes models of one provider, or the other."""
    pytest.importorskip(request.param)
    if request.param == "openai":
        from runtime.models.openai import OpenAIModel

        return OpenAIModel
    from runtime.models.anthropic import AnthropicModel

    return AnthropicModel


@pytest.mark.parametrize(
    ("model", "window"),
    [
        ("claude-haiku-4-5", 200_000),
        ("claude-haiku-4-5-20251001", 200_000),
        ("claude-opus-5-5", 1_000_000),
        ("gpt-4o-2024-08-06", 128_000),
        ("gpt-5-nano", 272_000),
        ("gpt-5-chat-latest", None),
        ("gpt-4o-audio-preview", None),
        ("a-model-of-tomorrow", None),
    ],
)
def test_what_is_documented_is_known_of_each_version_and_of_no_other_model(model: str, window: int | None) -> None:
    assert window_of(model, None) == window


def test_a_provider_says_how_much_its_model_takes(provider: Any) -> None:
    assert provider("claude-opus-4-5").context_window == 200_000
    assert provider("mine").context_window is None


def test_whoever_knows_better_says_so(provider: Any) -> None:
    assert provider("mine", context_window=5000).context_window == 5000
    assert provider("gpt-4o", context_window=5000).context_window == 5000
    with pytest.raises(ValueError, match="context_window must be a whole number of tokens, 1 or more, or None, not 0"):
        provider("mine", context_window=0)


def test_a_window_holds_the_prompt_at_which_a_price_changes() -> None:
    """Else one of the two tables is wrong."""
    for model, price in BUILT_IN.items():
        window = window_of(model, None)
        if price.above is not None and window is not None:
            assert price.above[0] < window, model
