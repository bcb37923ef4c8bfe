"""The words by which sessions are found: the same for every store, whatever its database takes for a word."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_WORD: Final = re.compile(r"\w+")
_LONGEST: Final = 64  # characters of a word
_MOST: Final = 20_000  # words of a text


def words(text: str) -> list[str]:
    """The words of a text, each once, without case and accents; the first of them, where there are very many."""
    plain = text.casefold()
    if not plain.isascii():
        plain = "".join(each for each in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(each))
    found = dict.fromkeys(word[0][:_LONGEST] for word in _WORD.finditer(plain))
    return list(found)[:_MOST]
