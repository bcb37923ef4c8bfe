"""Makes text and values from outside valid: text that UTF-8 can represent, values that JSON can represent.

Nothing here raises, recurses without a bound, or takes more than linear time, whatever it is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from channels._lazy import made_later

from ._json import DEEPEST

_HALF: Final = made_later(lambda: re.compile("[\ud800-\udfff]"))


def well_formed(text: str) -> str:
    """``text`` without lone surrogates, which UTF-8 cannot represent, so that no request with one of them could be
    sent.

    Two halves of one character are joined (servers that count in UTF-16 split them). A byte of a file name that is not
    valid UTF-8, which Python keeps as a surrogate, becomes ``\\xe9``; any other half becomes U+FFFD.
    """
    if text.isascii() or not _HALF.search(text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return _HALF.sub(_spelt, joined)


def _spelt(half: re.Match[str]) -> str:
    byte = ord(half[0]) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else "\ufffd"


class TextPieces:
    """Makes a text valid that comes in pieces: half of a character is kept until the other half arrives."""

    __slots__ = ("half",)

    def __init__(self) -> None:
        self.half = ""

    def add(self, piece: str) -> str:
        """Add a piece. Returns the text that is valid so far."""
        if not self.half and piece.isascii():
            return piece
        piece, self.half = self.half + piece, ""
        if piece and "\ud800" <= piece[-1] <= "\udbff":
            piece, self.half = piece[:-1], piece[-1]
        return well_formed(piece)

    def end(self) -> str:
        """The text that is left at the end."""
        left, self.half = self.half, ""
        return well_formed(left)


def sound(value: Any, depth: int = DEEPEST) -> Any:
    """``value`` with only the types and numbers that every JSON parser accepts.

    Infinite numbers and values that are nested too deeply are left out of objects, and become null in lists.
    """
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        if not depth:
            return None
        return {
            well_formed(key) if isinstance(key, str) else key: sound(each, depth - 1)
            for key, each in value.items()
            if not _is_endless(each)
        }
    if isinstance(value, (list, tuple)):
        if not depth:
            return None
        return [sound(each, depth - 1) for each in value]
    return None if _is_endless(value) else value


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
