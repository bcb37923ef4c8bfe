"""Takes secrets out of what is written down: records, logs, telemetry.

The texts are anybody's, and may be long: what is done to them is linear in their length, and `re`, which holds the
GIL, is called for a piece at a time. For that every pattern here keeps to a rule: from where it begins it either fails
within `_AHEAD` characters, or takes in what it has read, so that nothing is read twice. Whether what it took in is a
secret may be for a function to say.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from channels._lazy import lazy, made_later

from .._dataclasses import dataclass

if TYPE_CHECKING:
    import json
else:
    json = lazy("json")

REDACTED: Final = "<redacted>"
_PIECE: Final = 32_768  # characters that a pattern is looked for in at once
_AHEAD: Final = 4096  # characters after them that it may look at, to see whether it begins there
_BEFORE: Final = 16  # and characters before them
_JSON: Final = 4_000_000  # characters of a text that is read as JSON
_DEPTH: Final = 8  # texts of JSON in texts of JSON
_SHORTEST: Final = 8  # characters that the value of an environment variable has, to be looked for in every text

#: How names of secrets end. Tokens in the plural are counted, not kept secret. By first letters, which are looked at
#: before anything else: this is tried at every character of long texts.
_NAME: Final = (
    r"(?=[acekmpst])(?:a(?:(?:pi|ccess|uth|ccount)[ _-]?keys?|uthorization)|c(?:redentials?|ookies?)"
    r"|encryption[ _-]?keys?|kennwort|master[ _-]?keys?|p(?:a(?:ssw(?:or)?[dt]s?|ss word|ssphrases?|sscodes?)"
    r"|rivate[ _-]?keys?|wd|gpass|(?<=[_-]p)ass)"
    r"|s(?:e(?:cret[ _-]?keys?|crets?|ssionid)|igning[ _-]?keys?|sh[ _-]?keys?)|token)"
    r"(?:[_-]?(?:\d{1,3}|hash|value|confirm(?:ation)?|old|new|prod|dev|test|base))?"
)
#: Names that tell by themselves, but are too short to be looked for in a text.
_SHORT_NAMES: Final = frozenset(("bearer", "cvc", "cvv", "jwt", "otp", "pass", "pin"))
#: What is a number under such a name is a count: of tests that pass.
_COUNTED: Final = made_later(lambda: re.compile(r"pass[\"']?[\s:=>]*$", re.IGNORECASE))
#: The members of an object that is about one thing of a name: a header, a variable, a field of a form.
_NAMES: Final = ("name", "key", "field", "header", "Name", "Key")
_VALUES: Final = ("value", "Value", "default")
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


_HINTS: Final = (
    *("key", "secret", "pass", "kennwort", "pwd", "credential", "authorization", "cookie", "sessionid", "token"),
)

# Made when the first text is looked at: to compile them takes as long as to import half of this package.


@functools.cache
def _secret_name() -> re.Pattern[str]:
    return re.compile(rf"{_NAME}$", re.IGNORECASE)


@functools.cache
def _rules() -> tuple[_Rule, ...]:
    """In this order: what is left by one is for the next."""
    # A name and its value in a text: JSON, also inside a JSON string, a header, a line of settings, a query.
    named = re.compile(
        rf"""({_NAME}\\{{0,15}}["']?\s*(?:=>|:=|[:=]|%3D|(?:%22)?%3A(?:%20)?(?:%22)?)\s*)"""
        r"""("[^"\\]*+(?:(?:\\.|"")[^"\\]*+)*+"?|'[^']*+(?:''[^']*+)*+'?"""
        r"""|\\"[^\\]*+(?:\\(?!")[^\\]*+)*+(?:\\")?|\\{2,15}"[^\\"]*+(?:\\{2,15}")?"""
        r"""|\[[^\[\]]{0,2048}\]|\{[^{}]{0,2048}\}"""
        r"""|(?:(?:bearer|basic|token|digest|apikey|key|bot)\s+)?[^\s"'\\,;&}\])]+)""",
        re.IGNORECASE | re.DOTALL,
    )
    # What a list or a block of YAML says: its indented lines.
    listed = re.compile(
        rf"(?<![^\s\"'._-])([\"']?[\w.-]{{0,40}}{_NAME}[\"']?:[ \t]{{0,8}}"
        r"(?:(?:![\w-]{1,40}[ \t]{1,8})?[|>][+-]?[ \t]{0,8}\n(?=[ \t])"
        r"|\n(?=[ \t]{0,40}- |[ \t]{1,40}[\w.-]{1,40}:[ \t]))[ \t]{0,40})"
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
            "PRIVATE KEY",
            r"-----? ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-----?"
            r"[^-]*+(?:-(?!---? ?-?END [A-Z0-9 ]{0,40}PRIVATE KEY)[^-]*+)*+"
            r"(?:-----? ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-----?)?",
        ),
        _Rule(  # of PuTTY
            ("private-lines",),
            re.compile(r"(Private-Lines:[^\n]{0,16}\n)[\w+/=\s]++(?=Private-|$)?", re.IGNORECASE),
            lambda match: match[1] + REDACTED + "\n",
        ),
        _rule("AGE-SECRET-KEY-", r"AGE-SECRET-KEY-1[0-9A-Z]{16,}"),
        _rule("sk-", r"\bsk-[\w-]{16,}"),
        *(
            _rule(hint, rf"\b{hint}\w{{16,}}")
            for hint in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_")
        ),
        *(
            _rule(hint, rf"\b{re.escape(hint)}[\w-]{{10,}}")
            for hint in (
                *("glpat-", "gldt-", "glrt-", "glsa_", "xapp-", "xai-", "gsk_", "GOCSPX-", "pypi-AgE", "shpat_"),
                *("shpss_", "hvs.", "hvb.", "dop_v1_", "lin_api_", "sbp_", "figd_", "ntn_", "tvly-", "pplx-"),
                *("whsec_", "ATATT3"),
            )
        ),
        _rule("r8_", r"\br8_\w{30,}"),
        _rule(":AA", r"(?<!\d)\d{8,10}:AA[\w-]{32,}"),  # of a bot of Telegram
        _rule("/webhooks/", r"(?<=/webhooks/)\d{6,24}/[\w-]{16,}"),
        _rule("xox", r"\bxox[abceprs]-[\w-]{10,}"),
        _rule("$", r"\$(?:[156y]|2[abxy]|argon2(?:id?|d))\$[\w./$=,+-]{13,}"),  # hashes of passwords
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
            re.compile(
                r"(?<=://)(?:[^\s/:@\"']{0,128}:(?!\d{1,5}[/?#])[^\s/\"']{1,256}(?:/[^\s/\"'@]{1,128})?"
                r"|[^\s/:@\"'<>]{16,256})@"
            ),
            lambda match: f"{REDACTED}@",
        ),
        _Rule(  # what is signed, and what a sign-in brings back, in the query of an address
            ("sig=", "signature=", "code=", "key="),
            re.compile(r"([?&](?:sig|(?:x-\w{1,8}-)?signature|code|key)=)[\w%.~+/=-]{10,}", re.IGNORECASE),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(
            ("-u", "--user", "--proxy-user"),
            re.compile(r"""((?<=\s)(?:-u ?|--(?:proxy-)?user[ =]))(?!\d+:\d+(?!\S))[^\s:"']{1,64}:[^\s"']+"""),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # passwords that commands are given
            ("sshpass", "mysql", "mariadb", " login "),
            re.compile(
                r"(\b(?:sshpass\s{1,8}-p\s{0,8}|(?:mysql|mariadb)\w{0,16}\b[^\n|;&]{0,200}?\s-p(?=[^\s\"'<])"
                r"|(?:docker|podman|nerdctl|registry|oc) login\b[^\n|;&]{0,200}?\s-p\s{1,8}))[^\s\"']+"
            ),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # and schemes of the header that have parameters
            ("authorization",),
            re.compile(
                r"(authorization:\s{0,8})(?:digest|aws4-\S{1,24}|hawk|oauth|signature|mac)\s[^\r\n\\]*+", re.IGNORECASE
            ),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # .netrc
            ("password",),
            re.compile(r"(\b(?:login|user)\s{1,16}\S{1,128}\s{1,16}password\s{1,16})\S+", re.IGNORECASE),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # what people say; words without a digit are most often a remark
            (" is", " was"),
            re.compile(
                r"((?:password|passphrase|passcode|token|api key) (?:is|was)[: ]{1,2})"
                r"(?=[^\s]{0,128}\d)(?=[^\s]{0,128}[^\W\d])[^\s\"']{6,}",
                re.IGNORECASE,
            ),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # tokens in the plural are counted, unless there they are
            ("tokens",),
            re.compile(
                r"""(tokens["']?\s{0,8}[:=]\s{0,8}["']?)(?=[^\s"']{0,64}[^\W\d])(?=[^\s"']{0,64}\d)[\w.+/=~-]{16,}"""
            ),
            lambda match: match[1] + REDACTED,
        ),
        _Rule(  # ENV of a Dockerfile, setx of Windows, pairs as Python shows them, attributes of XML
            ("env ", "env\t", "arg ", "setx ", "('", '("', "(b", "name=", "key=", "id="),
            re.compile(
                rf"(\b(?:ENV|ARG|setx)[ \t]{{1,8}}\w{{0,40}}{_NAME}[ \t]{{1,8}}"
                rf"|\(b?[\"'][\w-]{{0,40}}{_NAME}[\"'],[ ]?b?[\"']"
                rf"|\b(?:name|key|id)=[\"'][\w.:-]{{0,40}}{_NAME}[\"'][ ]{{1,8}}value=[\"'])[^\s\"'<>]+",
                re.IGNORECASE,
            ),
            lambda match: match[1] + REDACTED,
        ),
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
            re.compile(rf"(?<![\w-])(--[\w-]{{0,40}}{_NAME}[ \t]{{1,8}}[\"']?)[^\s\"'\\-][^\s\"'\\]*+", re.IGNORECASE),
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
        # Not its `items`, which fail where another thread deletes a variable meanwhile.
        kept = {os.environ.get(name, "") for name in list(os.environ) if _keeps_a_secret(name)}
        values = sorted(
            {value for value in kept if len(value) >= _SHORTEST},
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
        if len(text) > _JSON:  # one call about all of it would take long
            for rule in _rules():
                text = _sub(rule, text)
            return text
        folded = text.casefold()
        if len(text) <= _PIECE and not any(map(folded.__contains__, _hints())):
            return text  # the way of most texts, which are short: names, ids, pieces of a reply
        for rule in _rules():
            if any(map(folded.__contains__, rule.hints)):
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
            if not secret and not schema and _names_a_secret(value):
                value = {key: REDACTED if key in _VALUES and item else item for key, item in value.items()}
            # The names of a schema are those of parameters: what is said of one is no secret.
            return {
                self._name(key): self._value(
                    item,
                    secret or (_tells(key, item) and not (schema and isinstance(item, Mapping))),
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


def _tells(name: Any, value: Any = "") -> bool:
    """Whether what stands under ``name`` is a secret."""
    name = str(name)[-40:].strip()
    if name.casefold() in _SHORT_NAMES:
        return isinstance(value, str) and (name.casefold() != "pass" or not value.isdigit())
    if not _secret_name().search(name):
        return False
    return not (_COUNTED.search(name) and isinstance(value, (int, float)))


def _names_a_secret(said: Mapping[Any, Any]) -> bool:
    """Whether an object is a name and its value, such as a header, and the name is that of a secret."""
    if not any(key in said for key in _VALUES):
        return False
    return any(isinstance(name := said.get(key), str) and _tells(name) for key in _NAMES)


def _in_place_of(name: str, value: str) -> str:
    """JSON shall stay JSON, also where it is a part of a text."""
    quote = next((each for each in ('\\"', '"', "'") if value.startswith(each)), "")
    if quote:
        return f"{quote}{REDACTED}{quote}" if len(value) > 2 * len(quote) else value
    if value in ("null", "true", "false", "None", "True", "False") or (value.isdigit() and _COUNTED.search(name)):
        return value
    quote = next((each for each in ('\\"', '"', "'") if each in name), "")
    return f"{quote}{REDACTED}{quote}"
