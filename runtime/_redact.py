"""Takes secrets out of what is written to a record.

The texts are anybody's, and may be long: what is done to them is linear in their length, and `re`, which holds the
GIL, is called for a piece at a time. For that every pattern here keeps to a rule: from where it begins it either fails
within `_AHEAD` characters, or takes in what it has read, so that nothing is read twice. Whether what it took in is a
secret may be for a function to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

REDACTED: Final = "<redacted>"
_PIECE: Final = 32_768  # characters that a pattern is looked for in at once
_AHEAD: Final = 4096  # characters after them that it may look at, to see whether it begins there
_BEFORE: Final = 16  # and characters before them
_SHORTEST: Final = 8  # characters that the value of an environment variable has, to be looked for in every text

#: How names of secrets end. Tokens in the plural are counted, not kept secret.
_NAME: Final = (
    r"(?:api[_-]?keys?|access[_-]?keys?|private[_-]?keys?|secrets?|passw(?:or)?ds?|passphrases?|credentials?"
    r"|authorization|cookies?|token)"
)
_SECRET_NAME: Final = re.compile(rf"{_NAME}$", re.IGNORECASE)
#: A name and its value in a text: JSON, also inside a JSON string, a header, a line of settings, a query.
_NAMED: Final = re.compile(
    rf"""({_NAME}\\?["']?\s*[:=]\s*)"""
    r"""("[^"\\]*+(?:\\.[^"\\]*+)*+"?|'[^']*+'?|\\"[^\\]*+(?:\\(?!")[^\\]*+)*+(?:\\")?"""
    r"""|(?:(?:bearer|basic)\s+)?[^\s"'\\,;&}\])]+)""",
    re.IGNORECASE | re.DOTALL,
)
Replace: TypeAlias = Callable[[re.Match[str]], str]


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a secret looks like. One of the ``hints`` is in every text that has such a secret, in small letters: to look
    for them takes next to nothing, and most texts have none.
    """

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    replace: Replace = lambda match: REDACTED


def _rule(hint: str, pattern: str) -> _Rule:
    return _Rule((hint.lower(),), re.compile(pattern, re.DOTALL))


#: In this order: what is left by one is for the next.
_RULES: Final = (
    _Rule(  # a JSON web token, where it has all three parts
        ("eyj",),
        re.compile(r"\beyJ[\w-]{8,}+(?:\.[\w-]++(\.[\w-]++)?)?"),
        lambda match: match[0] if match[1] is None else REDACTED,
    ),
    _rule(
        "PRIVATE KEY-----",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*+(?:-(?!----END [A-Z ]*PRIVATE KEY-----)[^-]*+)*+"
        r"(?:-----END [A-Z ]*PRIVATE KEY-----)?",
    ),
    _rule("sk-", r"\bsk-[\w-]{16,}"),
    *(_rule(hint, rf"\b{hint}\w{{16,}}") for hint in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_")),
    _rule("glpat-", r"\bglpat-\w{16,}"),
    _rule("xox", r"\bxox[abeprs]-[\w-]{10,}"),
    _rule("AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
    _rule("ASIA", r"\bASIA[0-9A-Z]{16}\b"),
    _rule("AIza", r"\bAIza[\w-]{35}"),
    _rule("bearer ", r"(?<=\b[Bb]earer )[\w.~+/=-]{8,}"),
    _rule("://", r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),  # user and password of an address
    _Rule(
        ("key", "secret", "passw", "pass", "credential", "authorization", "cookie", "token"),
        _NAMED,
        lambda match: match[1] + _in_place_of(match[2]),
    ),
)


class Redaction:
    """Takes out what looks like a secret by its name, by its form, or by being the value of an environment variable
    whose name says so. ``more`` gets what is left of every text, and returns what may be written.

    Doing it twice changes nothing more.
    """

    def __init__(self, more: Callable[[str], str] | None = None) -> None:
        self._more = more
        values = sorted(
            {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST},
            key=len,
            reverse=True,  # one may be a part of another
        )
        self._values = values

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        for rule in _RULES:
            text = _sub(rule, text)
        return text if self._more is None else self._more(text)

    def plain(self, value: Any, secret: bool = False) -> Any:
        """``value``, as JSON has it, without secrets. ``secret``: it stands under a name that says so."""
        if isinstance(value, str):
            return REDACTED if secret and value else self.text(value)
        if isinstance(value, Mapping):
            return {key: self.plain(item, bool(_SECRET_NAME.search(str(key)[-40:]))) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(item, secret) for item in value]
        return value

    def __repr__(self) -> str:
        return f"<Redaction{'' if self._more is None else f' and {self._more!r}'}>"


def _sub(rule: _Rule, text: str) -> str:
    """``text`` without the secrets that the rule is about. Lets other threads go on, unlike `re.sub`."""
    kept: list[str] = []
    at = begin = looked = 0
    pattern = rule.pattern
    while begin < len(text):
        end = begin + _PIECE
        if begin >= looked:  # not again after each match
            looked = end
            piece = text[max(begin - _BEFORE, 0) : end + _AHEAD].casefold()
            if not any(hint in piece for hint in rule.hints):
                begin = end
                continue
        match = pattern.search(text, begin, end + _AHEAD)
        if match is None or match.start() >= end:
            begin = end
            continue
        begin = match.start()
        match = pattern.match(text, begin)  # all of it
        if match is None or match.end() == begin:
            begin += 1
            continue
        kept += text[at:begin], rule.replace(match)
        at = begin = match.end()
    return "".join((*kept, text[at:])) if kept else text


def _in_place_of(value: str) -> str:
    """JSON shall stay JSON."""
    quote = next((each for each in ('\\"', '"', "'") if value.startswith(each)), "")
    return f"{quote}{REDACTED}{quote}" if len(value) > 2 * len(quote) else value
