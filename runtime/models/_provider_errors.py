"""Errors of providers as `ModelError`, with a code for programs and a text that says what to do.

Providers and the many servers that speak like them agree on status codes, mostly, and on little else. So the status
comes first, and the names of the error and its text only tell apart what the status leaves open.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import NoneType
from typing import Final
from urllib.parse import urlsplit

from .._checks import check, check_number
from .._dataclasses import dataclass, field
from .._errors import ModelError, ModelErrorCode

# What reading an answer raises that is no UTF-8, no JSON, or not the JSON that was expected.
MALFORMED: Final = (ValueError, LookupError, AttributeError, TypeError, RecursionError)

_RETRYABLE: Final = frozenset({"rate_limited", "overloaded", "server_error", "unreachable", "stalled"})

# Names of errors: ``type`` and ``code`` in the body.
_NAMES: Final[Mapping[str, ModelErrorCode]] = {
    "context_length_exceeded": "context_overflow",
    "exceed_context_size_error": "context_overflow",
    "model_context_window_exceeded": "context_overflow",
    "request_too_large": "context_overflow",
    "insufficient_quota": "no_credit",
    "billing_error": "no_credit",
    "model_not_found": "unknown_model",
    "not_found_error": "unknown_model",
    "content_filter": "refused",
    "content_policy_violation": "refused",
    "invalid_api_key": "unauthorized",
    "authentication_error": "unauthorized",
    "permission_error": "unauthorized",
    "rate_limit_error": "rate_limited",
    "rate_limit_exceeded": "rate_limited",
    "overloaded_error": "overloaded",
    "server_error": "server_error",
    "api_error": "server_error",
    "timeout_error": "overloaded",
    "invalid_request_error": "bad_request",
}
# These say more than the status they come with.
_PRECISE: Final = frozenset({"context_overflow", "no_credit", "unknown_model", "refused"})
_STATUSES: Final[Mapping[int, ModelErrorCode]] = {
    401: "unauthorized",
    402: "no_credit",
    403: "unauthorized",
    404: "unknown_model",
    408: "overloaded",
    409: "overloaded",
    413: "context_overflow",
    429: "rate_limited",
    503: "overloaded",
    529: "overloaded",
}
# Errors without a name of their own, told by their words. Only looked at where the request was refused as such.
_WORDS: Final[tuple[tuple[str, ModelErrorCode], ...]] = (
    ("context length", "context_overflow"),
    ("context size", "context_overflow"),
    ("context window", "context_overflow"),
    ("prompt is too long", "context_overflow"),
    ("credit balance", "no_credit"),
    ("rate limit", "rate_limited"),
    ("too many requests", "rate_limited"),
    ("overloaded", "overloaded"),
)


@dataclass(frozen=True, slots=True)
class Account:
    """The provider, model and address that an error names, and the key that no error may show."""

    provider: str
    model: str
    base_url: str
    key: str = field(repr=False)
    key_variable: str  # of the environment

    @property
    def address(self) -> str:
        """The address of the server, for people."""
        return address(self.base_url)

    def explain(self, code: ModelErrorCode, said: str = "", retry_after: float | None = None) -> ModelError:
        """The error for ``code``. ``said`` are the provider's words."""
        if len(self.key) >= 8:  # a shorter one is no secret, and may be part of any word
            said = said.replace(self.key, "***")
        said = " ".join(said.split())
        text = f"{self._advice(code)} ({said})" if said else self._advice(code)
        return ModelError(code, text, retryable=code in _RETRYABLE, retry_after=retry_after)

    def _advice(self, code: ModelErrorCode) -> str:
        where = self.address
        match code:
            case "no_key":
                return f"there is no key for {self.provider}: set {self.key_variable}, or pass api_key="
            case "unauthorized":
                return f"{where} refuses the key: check {self.key_variable} or api_key=, and what it may be used for"
            case "no_credit":
                return f"the account at {where} has no credit left: add some, or use another key"
            case "unknown_model":
                return f"{where} does not know the model {self.model!r}: check its name, and base_url="
            case "context_overflow":
                return f"the conversation is longer than {self.model} can read: shorten it, or take another model"
            case "refused":
                return f"{self.model} refuses to answer this: say it differently"
            case "rate_limited":
                return f"{where} gets too many requests with this key: wait, or ask for a higher limit"
            case "overloaded":
                return f"{where} is overloaded: try again a little later"
            case "server_error":
                return f"{where} failed: try again a little later"
            case "unreachable":
                return f"no connection to {where}: check the network, and base_url="
            case "stalled":
                return f"{where} went silent: try again"
            case "bad_response":
                return f"{where} answers with something else than its protocol: check base_url="
            case "bad_request":
                return f"{where} refuses the request: see what it says"


def classify(status: int | None, names: tuple[object, ...], text: str) -> ModelErrorCode:
    """The code for an HTTP ``status`` (None within a stream), the names of the error in the body, and its text.

    Gateways that answer 200 write the status that it was among the names.
    """
    named = next((_NAMES[name] for name in names if isinstance(name, str) and name in _NAMES), None)
    if named in _PRECISE:
        return named
    if status is None:
        status = next((int(str(name)) for name in names if re.fullmatch("[45][0-9][0-9]", str(name))), None)
    if status is not None and status in _STATUSES:
        return _STATUSES[status]
    if status is not None and status >= 500:
        return "server_error"
    lowered = text.lower()
    for words, code in _WORDS:
        if words in lowered:
            return code
    return named or ("server_error" if status is None else "bad_request")


def words(body: object) -> str:
    """The words of an error, which servers put in different places. Of a page for people, the beginning."""
    if isinstance(body, Mapping):
        for name in ("message", "detail", "error"):
            if name in body:
                return words(body[name])
    return body[:200] if isinstance(body, str) else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as ``retry-after-ms`` or ``retry-after`` says, which may be a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def address(url: str) -> str:
    """``url`` without what may be secret in it: a user, a password, a query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def checked_url(url: str) -> str:
    """Raises `ValueError` unless it is an http or https address."""
    check("base_url", url, str, "text, such as 'https://example.org/v1'")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"base_url must be an http:// or https:// address, not {address(url)!r}")
    return url


def check_settings(model: object, max_tokens: object, timeout: object, options: object) -> None:
    """Check what every client of a provider takes. Raises `TypeError` and `ValueError`."""
    check("model", model, str, "the name of a model, as the provider spells it")
    check_number("max_tokens", max_tokens, "tokens", least=1, whole=True, optional=True)
    check_number("timeout", timeout, "seconds", above=0)
    check("options", options, (Mapping, NoneType), "a mapping of request fields")


def checked_key(key: str | None) -> str:
    """The key without white space around it. Raises `ValueError` if it cannot be one; the text does not show it."""
    if key is not None and not isinstance(key, str):  # which is not shown: it may be the key
        raise TypeError(f"api_key must be text, or None, not {type(key).__name__}")
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key holds characters that no key has: line breaks, or letters that are not ASCII")
    return key
