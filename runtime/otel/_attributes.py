"""What spans and metrics say of a model and of an error, in the words of the semantic conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from .._errors import ModelError
from ..model import Model
from ..usage import Usage

Attributes = dict[str, Any]

#: The conventions' names of providers, by ours.
_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "moonshot": "moonshot_ai",
    "moonshotai": "moonshot_ai",
    "vertex": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "x-ai": "x_ai",
    "xai": "x_ai",
}
#: The attributes of a request, by the names that providers give to its settings.
_SETTINGS: Final = {
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", int),
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "max_completion_tokens": ("gen_ai.request.max_tokens", int),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
    "n": ("gen_ai.request.choice.count", int),
}
_PORTS: Final = {"http": 80, "https": 443}


def provider_and_model(model_id: str) -> tuple[str, str]:
    """``openai/gpt-5`` in two. A model that names no provider is its own."""
    provider, slash, name = model_id.partition("/")
    return (_PROVIDERS.get(provider.lower(), provider), name) if slash and provider else (model_id, model_id)


def of_model(model: Model) -> Attributes:
    """What is the same for all calls of a model, on spans and in metrics."""
    provider, name = provider_and_model(model.id)
    found: Attributes = {"gen_ai.provider.name": provider, "gen_ai.request.model": name}
    url = _settings(model).get("base_url")
    if isinstance(url, str):
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            return found
        if parts.hostname:
            found["server.address"] = parts.hostname
            if port is not None:
                found["server.port"] = port
    return found


def of_request(model: Model) -> Attributes:
    """What is asked of a model beside the conversation, on spans."""
    found: Attributes = {"gen_ai.request.stream": True}
    for name, value in _settings(model).items():
        attribute, kind = _SETTINGS.get(name, ("", float))
        if attribute and isinstance(value, (int, float)) and not isinstance(value, bool):
            if (name, value) != ("n", 1):  # which the conventions leave out
                found[attribute] = kind(value)
        elif name in ("stop", "stop_sequences") and isinstance(value, (str, list, tuple)):
            found["gen_ai.request.stop_sequences"] = [value] if isinstance(value, str) else list(map(str, value))
    return found


def _settings(model: Model) -> Mapping[str, Any]:
    settings = getattr(model, "settings", None)
    return settings if isinstance(settings, Mapping) else {}


def of_usage(usage: Usage) -> Attributes:
    """The tokens of one model call."""
    found: Attributes = {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    if usage.cached_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.cache_write_tokens:
        found["gen_ai.usage.cache_creation.input_tokens"] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    if usage.cost is not None:
        found["lockgate.usage.cost"] = usage.cost
    return found


def error_type(error: BaseException) -> str:
    """The class of an error, as few words for programs."""
    if isinstance(error, ModelError):
        return error.code
    if isinstance(error, TimeoutError):
        return "timeout"
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
