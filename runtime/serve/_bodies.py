"""What the user says, as the bodies of requests have it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..session._message import Image
from ..session._session import Session
from ._http import Problem, field

_IMAGE: Final = re.compile(r"data:(image/[\w.+-]{1,60});base64,")


def messages_of(given: Sequence[Any]) -> list[tuple[str, list[Image]]]:
    """What the user says, of the messages in a body: texts, and images. Raises `Problem`."""
    said: list[tuple[str, list[Image]]] = []
    for each in given:
        if not isinstance(each, dict):
            raise Problem(400, "bad_request", 'a message is an object: {"role": "user", "content": "hello"}')
        role = field(each, "role", str, "user")
        if role == "assistant":  # docker-agent's client sends what it has of the conversation: we have it ourselves
            continue
        if role != "user":  # an instruction, or a reply that no model has made
            raise Problem(400, "bad_request", f"a message here is the user's: its role is user, not {role[:100]!r}")
        text = field(each, "content", str, "")
        texts, images = [text] if text else [], []
        for part in field(each, "multi_content", list, []):
            if not isinstance(part, dict):
                raise Problem(400, "bad_request", "multi_content is a list of objects")
            if part.get("type") == "text":
                piece = field(part, "text", str, required=True)
                texts += [piece] if piece != text else []
            elif part.get("type") == "image_url":
                images.append(_image(field(part, "image_url", dict, required=True)))
            else:
                raise Problem(400, "bad_request", "a part of multi_content is of the type text or image_url")
        if not texts and not images:
            raise Problem(400, "bad_request", "a message has content, which is not empty")
        said.append(("\n".join(texts), images))
    return said


def new_messages(said: Sequence[tuple[str, list[Image]]], session: Session) -> Sequence[tuple[str, list[Image]]]:
    """What is new of the messages that a client has sent: docker-agent's sends all that its user has said each time."""
    known = [each.content for each in session.messages if each.role == "user"]
    again = 0 < len(known) < len(said) and [text for text, _ in said[: len(known)]] == known
    return said[len(known) :] if again else said


def _image(said: Mapping[str, Any]) -> Image:
    url = field(said, "url", str, required=True)
    match = _IMAGE.match(url)
    if match is None:
        raise Problem(400, "bad_request", "an image is given in its URL: data:image/png;base64,...")
    try:
        return Image(base64.b64decode(url[match.end() :], validate=True), match[1])
    except (binascii.Error, ValueError):
        raise Problem(400, "bad_request", "the data of an image is base64") from None
