"""An answer that comes whole, though a stream of events was asked for: a gateway that does not stream, a proxy's page
for people, an error that was sent as a success.

It has been made and paid for, so it is read as an answer where it is one; what it is otherwise, its own words say.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Protocol

from .._errors import ModelError
from ._provider_errors import Account, classify, retry_after, words

LARGEST: Final = 64 << 20  # bytes
_KINDS: Final = ("application/json", "text/json", "application/problem+json", "text/html")
_UNSAID: Final = re.compile(r"<(script|style|head)\b.*?</\1>|<[^<>]*>", re.DOTALL | re.IGNORECASE)
_PAGE: Final = 4000  # characters of a page that are looked at


class _Response(Protocol):
    """The part of the library's response that is used here."""

    @property
    def headers(self) -> Mapping[str, str]: ...
    def aiter_bytes(self) -> AsyncIterator[bytes]: ...


def is_whole(response: _Response) -> bool:
    """Whether the server says that it is no stream of events. Not all say that it is one."""
    return response.headers.get("content-type", "").partition(";")[0].strip().lower() in _KINDS


async def read(response: _Response, account: Account, part: str) -> list[dict[str, Any]]:
    """The answer, a JSON object that has ``part``; or the events, where only the name of their kind is wrong.

    Raises `ModelError`: what the server says is wrong, or ``bad_response``, with the beginning of what it is.
    """
    pieces: list[bytes] = []
    size = 0
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST:
            raise account.explain("bad_response", f"more than {LARGEST >> 20} MB in one piece")
    text = b"".join(pieces).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if text.startswith(("data:", "event:", ":")):
        return _events(text)
    said = _parsed(text)
    if isinstance(said, Mapping) and said.get("error"):
        raise failure(said, account, response.headers)
    if not isinstance(said, dict) or not isinstance(said.get(part), list):
        raise account.explain("bad_response", _beginning(text))
    return [said]


def failure(body: Mapping[str, Any], account: Account, headers: Mapping[str, str]) -> ModelError:
    """The error in a body that came as a success."""
    error = body["error"]
    names = (error.get("code"), error.get("type")) if isinstance(error, Mapping) else (body.get("code"),)
    said = words(error) or words(body)
    return account.explain(classify(None, names, said), said, retry_after(headers))


def _events(text: str) -> list[dict[str, Any]]:
    """The events in the lines of data. Raises `ValueError` for one that is not JSON."""
    lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return [each for line in lines if line != "[DONE]" and isinstance(each := json.loads(line), dict)]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _beginning(text: str) -> str:
    """The first words of a page, without what only a browser reads."""
    return " ".join(html.unescape(_UNSAID.sub(" ", text[:_PAGE])).split())[:200] or "nothing"
