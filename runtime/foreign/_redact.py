"""Takes secrets out of what is written down: records, logs, telemetry.

The texts are anybody's, and may be long: what is done to them is linear in their length, and `re`, which holds the
GIL, is called for a piece at a time. For that every pattern here keeps to a rule: from where it begins it either fails
within `_AHEAD` characters, or takes in what it has read, so that nothing is read twice. Whether what it took in is a
secret may be for a function to say.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from .._dataclasses import dataclass

REDACTED: Final = "<redacted>"
_PIECE: Final = 32_768  # characters that a pattern is looked for in at once
_AHEAD: Final = 4096  # characters after them that it may look at, to see whether it begins there
_BEFORE: Final = 16  # and characters before them
_JSON: Final = 4_000_000  # characters of a text that is read as JSON
_DEPTH: Final = 8  # texts of JSON in texts of JSON
_SHORTEST: Final = 8  # characters that the value of an environment variable has, to be looked for in every text

#: How names of secrets end. Tokens in the plural are counted, not kept secret.
_NAME: Final = (
    r"(?:api[ _-]?keys?|access[_-]?keys?|private[_-]?keys?|auth[_-]?keys?|secrets?|passw(?:or)?ds?|pwd|passphrases?"
    r"|credentials?|authorization|cookies?|sessionid|token)"
)
Replace: TypeAlias = Callable[[re.Match[str]], str]


@dataclass(frozen=True, slots=True)
class _Rule:
    """The form of a secret. One of the ``hints`` is in every text that has such a secret, in small letters: to look
    for them takes next to nothing, and most texts have none.
    """

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    replace: Replace = lambda match: REDACTED


def _rule(hint: str, pattern: str) -> _Rule:
    return _Rule((hint.lower(),), re.compile(pattern, re.DOTALL))


_HINTS: Final = ("key", "secret", "passw", "pass", "pwd", "credential", "authorization", "cookie", "sessionid", "token")

# Made when the first text is looked at: to compile them takes as long as to import half of this package.


@functools.cache
def _secret_name() -> re.Pattern[str]:
    return re.compile(rf"{_NAME}$", re.IGNORECASE)


@functools.cache
def _rules() -> tuple[_Rule, ...]:
    """In this order: what is left by one is for the next."""
    # A name and its value in a text: JSON, also inside a JSON string, a header, a line of settings, a query.
    named = re.compile(
        rf"""({_NAME}\\?["']?\s*[:=]\s*)"""
        r"""("[^"\\]*+(?:\\.[^"\\]*+)*+"?|'[^']*+'?|\\"[^\\]*+(?:\\(?!")[^\\]*+)*+(?:\\")?"""
        r"""|\[[^\[\]]{0,2048}\]|\{[^{}]{0,2048}\}"""
        r"""|(?:(?:bearer|basic|token|digest|apikey|key|bot)\s+)?[^\s"'\\,;&}\])]+)""",
        re.IGNORECASE | re.DOTALL,
    )
    # What a list or a block of YAML says: its indented lines.
    listed = re.compile(
        rf"(?<![^\s\"'._-])([\"']?[\w.-]{{0,40}}{_NAME}[\"']?:[ \t]{{0,8}}"
        r"(?:[|>][+-]?[ \t]{0,8}\n(?=[ \t])|\n(?=[ \t]{0,40}- ))[ \t]{0,40})"
        r"[^\n]++(?:\n[ \t]++[^\n]++)*+",
        re.IGNORECASE,
    )
    return (
        _Rule(  # a JSON web token, where it has all three parts
            ("eyj",),
            re.compile(r"\beyJ[\w-]{8,}+(?:\.[\w-]++(\.[\w-]*+)?)?"),
            lambda match: match[0] if match[1] is None else REDACTED,
        ),
        _rule(
            "PRIVATE KEY-----",
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*+(?:-(?!----END [A-Z ]*PRIVATE KEY-----)[^-]*+)*+"
            r"(?:-----END [A-Z ]*PRIVATE KEY-----)?",
        ),
        _rule("sk-", r"\bsk-[\w-]{16,}"),
        *(
            _rule(hint, rf"\b{hint}\w{{16,}}")
            for hint in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_")
        ),
        _rule("glpat-", r"\bglpat-\w{16,}"),
        _rule("xox", r"\bxox[abeprs]-[\w-]{10,}"),
        _rule("AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
        _rule("ASIA", r"\bASIA[0-9A-Z]{16}\b"),
        _rule("AIza", r"\bAIza[\w-]{35}"),
        *(_rule(hint, rf"\b{hint}\w{{10,}}") for hint in ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "dckr_pat_")),
        _rule("npm_", r"\bnpm_\w{30,}"),
        _rule("SG.", r"\bSG\.[\w-]{16,64}\.[\w-]{16,}"),
        _rule("ya29.", r"\bya29\.[\w-]{20,}"),
        _rule("hooks.slack.com/", r"(?<=hooks\.slack\.com/)services/[\w/]+"),
        _rule("bearer ", r"(?i:(?<=\bbearer ))[\w.~+/=-]{8,}"),
        _Rule(  # user and password of an address, a password that has an @, or a token alone
            ("://",),
            re.compile(r"(?<=://)(?:[^\s/:@\"']{0,128}:[^\s/\"']{1,256}|[^\s/:@\"'<>]{16,256})@"),
            lambda match: f"{REDACTED}@",
        ),
        _rule("-u ", r"""(?<=\s-u )[^\s:"']{1,64}:[^\s"']+"""),
        _Rule(  # all of the cookies, and what is said of them
            ("cookie",),
            re.compile(
                r"""(cookies?\\?["']?\s{0,16}[:=]\s{0,16}\\?["']?)[\w.!#$%&*+^`|~-]{1,128}=[^\s"'\\;,]*+"""
                r"""(?:;[ \t]{0,4}[\w.-]{1,128}(?:=[^\s"'\\;,]*+)?)*+""",
                re.IGNORECASE,
            ),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # options of commands
            ("--",),
            re.compile(rf"(?<![\w-])(--[\w-]{{0,40}}{_NAME}[ \t]{{1,8}})[^\s\"'\\-][^\s\"'\\]*+", re.IGNORECASE),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # elements of XML
            ("key>", "keys>", "secret>", "secrets>", "sword>", "passwd>", "pwd>", "phrase>", "credentials>", "token>"),
            re.compile(rf"(<[\w:.-]{{0,40}}{_NAME}>)[^<]{{1,2048}}(?=</)", re.IGNORECASE),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(_HINTS, listed, lambda match: match[1] + REDACTED),
        _Rule(
            _HINTS,
            named,
            lambda match: match[1] + _in_place_of(match[1], match[2]),
        ),
    )


@functools.cache
def _hints() -> tuple[str, ...]:
    """Those of all rules."""
    return tuple(dict.fromkeys(hint for rule in _rules() for hint in rule.hints))


class Redaction:
    """Takes out what looks like a secret by its name, by its form, or by being the value of an environment variable
    whose name says so. ``more`` gets what is left of every text, and returns what may be written.

    Doing it twice changes nothing more.
    """

    def __init__(self, more: Callable[[str], str] | None = None) -> None:
        self._more = more
        values = sorted(
            {value for name, value in os.environ.items() if _keeps_a_secret(name) and len(value) >= _SHORTEST},
            key=len,
            reverse=True,  # one may be a part of another
        )
        self._values = values

    def text(self, text: str) -> str:
        """``text`` without secrets. What is JSON is JSON again."""
        text = self._text(text)
        return text if self._more is None else self._more(text)

    def _text(self, text: str, depth: int = 0) -> str:
        begin = text[:64].lstrip()[:1]
        if begin and begin in "{[" and len(text) <= _JSON and depth < _DEPTH:
            try:
                said = json.loads(text)
                clean = self._value(said, False, depth + 1)
                return text if clean == said else json.dumps(clean, ensure_ascii=False)
            except (ValueError, RecursionError):
                pass  # it only looks like it
        for value in self._values:
            text = text.replace(value, REDACTED)
        if len(text) <= _PIECE and not any(map(text.casefold().__contains__, _hints())):
            return text  # the way of most texts, which are short: names, ids, pieces of a reply
        for rule in _rules():
            text = _sub(rule, text)
        return text

    def value(self, value: Any) -> Any:
        """``value``, as JSON has it, without secrets: all that stands under a name that says so, in lists and objects
        too, but for true, false and null, which tell nothing.
        """
        return self._value(value, False, 0)

    def _value(self, value: Any, secret: bool, depth: int, schema: bool = False) -> Any:
        if isinstance(value, str):
            if secret:
                return REDACTED if value else value
            return self._text(value, depth) if depth or self._more is None else self.text(value)
        if isinstance(value, Mapping):
            # The names of a schema are those of parameters: what is said of one is no secret.
            return {
                self._name(key): self._value(
                    item,
                    secret or (_tells(key) and not (schema and isinstance(item, Mapping))),
                    depth,
                    schema=key == "properties" and not schema,
                )
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._value(item, secret, depth) for item in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return REDACTED if secret or str(value) in self._values else value
        return value

    def _name(self, key: Any) -> Any:
        """A key of an object without secrets: some objects have a secret as a key."""
        return self._text(key, _DEPTH) if isinstance(key, str) and len(key) >= 16 else key

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


def _keeps_a_secret(variable: str) -> bool:
    is_directory = variable in ("PWD", "OLDPWD")  # of the shell, and in every traceback
    return not is_directory and bool(_secret_name().search(variable))


def _tells(name: Any) -> bool:
    return bool(_secret_name().search(str(name)[-40:]))


def _in_place_of(name: str, value: str) -> str:
    """JSON shall stay JSON, also where it is a part of a text."""
    quote = next((each for each in ('\\"', '"', "'") if value.startswith(each)), "")
    if quote:
        return f"{quote}{REDACTED}{quote}" if len(value) > 2 * len(quote) else value
    if value in ("null", "true", "false", "None", "True", "False"):
        return value
    quote = next((each for each in ('\\"', '"', "'") if each in name), "")
    return f"{quote}{REDACTED}{quote}"
