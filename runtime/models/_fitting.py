"""Names and ids as providers take them, whatever a model made up: one that is refused spoils the conversation."""

from __future__ import annotations

import hashlib
import re
from typing import Final

_OTHER: Final = re.compile(r"[^a-zA-Z0-9_-]")


def fitting(text: str, longest: int) -> str:
    """``text`` in the letters, digits, ``_`` and ``-`` that all providers take, at most ``longest`` of them.

    What has to be changed ends with a digest of the original, so that two of them stay two.
    """
    if text and len(text) <= longest and not _OTHER.search(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{_OTHER.sub('_', text[: longest - 9])}_{digest}"
