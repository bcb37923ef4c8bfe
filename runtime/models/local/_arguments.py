"""Finding the arguments of a tool call in a message. A parameter only gets values that are in the message itself.

A small model that is asked for arguments invents them. So its choice is limited: for every parameter, the pieces of the
message that could be its value are collected (`Candidate`), and a grammar makes the model choose among them. No two
arguments may use the same piece. A value that is not in the message is left out, even if it is required; the tool then
asks for it or names what is missing.

A piece of text has up to four words, or is a quotation, or goes to the end of its sentence. The words for dates, times
and numbers are English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from ..._dataclasses import dataclass
from ...model import ToolDefinition
from ...schema._refs import resolved

Scalar: TypeAlias = str | int | float
Schema: TypeAlias = Mapping[str, Any]

SPAN_WORDS = 4
MESSAGE_WORDS = 100  # what stands after these is not looked at: every word costs candidates, and so time


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD = re.compile(r"[\w'\u2019/.@:+&#%=?~-]+")
_MARKS = ".,?!:'\u2019"  # at an edge of a word they are no part of it
_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”')
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_NUMBER_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_NUMBER_WORDS |= {"ten": 10, "eleven": 11, "twelve": 12}
_EMAIL = re.compile(r"\S+@\S+\.\S+")
_URL = re.compile(r"\w+://\S+|www\.\S+")

# A piece of text neither begins nor ends with the first, and does not end with the second.
_NEVER_FIRST = _set(
    "a about an and are at by called can could for from how in into is named of on or please saying that to what which "
    "who will with would"
)
_NEVER_LAST = _NEVER_FIRST | _set("i my the this your")

_MONTHS = _set("january february march april may june july august september october november december")
_DAYS = _set("monday tuesday wednesday thursday friday saturday sunday today tonight tomorrow weekend")
_HOURS = _set("morning noon midday afternoon evening midnight")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?/\d\d?(/\d+)?|\d\d?(st|nd|rd|th)", re.IGNORECASE)
_CLOCK = re.compile(r"\d\d?:\d\d([ap]m)?|\d\d?[ap]m", re.IGNORECASE)
_AFTER_AN_HOUR = _set("am pm a.m p.m o'clock")
_BETWEEN_TIMES = _set("at on in of the next this")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value that is in the message, and the characters that it is made of."""

    value: Scalar
    start: int
    end: int

    def overlaps(self, other: Candidate) -> bool:
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter and its candidates. With ``must`` it gets one of them; otherwise it may get none."""

    candidates: tuple[Candidate, ...]
    must: bool
    many: bool = False

    def without(self, taken: Sequence[Candidate]) -> Slot:
        free = tuple(c for c in self.candidates if not any(c.overlaps(t) for t in taken))
        return Slot(free, self.must, self.many)

    def place(self, picked: Any, taken: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that the model has picked and that no other parameter uses."""
        placed: list[Candidate] = []
        for value in picked if self.many else [picked]:
            for candidate in self.candidates:
                if candidate.value == value and not any(candidate.overlaps(t) for t in (*taken, *placed)):
                    placed.append(candidate)
                    break
        return placed


def extract(tool: ToolDefinition, message: str, pick: Callable[[Schema], Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of ``tool`` that are in ``message``.

    ``pick(schema)`` makes the model choose: it returns an object that fits the schema, in which every property is an
    enumeration. It is called again, with fewer candidates, if the model gives one piece to two parameters, and not at
    all if there is nothing to choose.
    """
    required = set(tool.parameters.get("required", ()))
    waiting = slots(tool, message)
    taken: list[Candidate] = []
    arguments: dict[str, Any] = {}
    while waiting := {name: slot for name, slot in waiting.items() if slot.candidates}:
        picked = pick(_schema_of(waiting))
        # Who has the least to choose from, chooses first.
        for name in sorted(waiting, key=lambda name: (name not in required, len(waiting[name].candidates))):
            slot = waiting.pop(name)
            placed = slot.place(picked[name], taken) if name in picked else []
            if placed:
                taken += placed
                arguments[name] = [c.value for c in placed] if slot.many else placed[0].value
            elif name in picked:
                waiting[name] = slot
        waiting = {name: slot.without(taken) for name, slot in waiting.items()}
    return {name: arguments[name] for name in tool.parameters.get("properties", {}) if name in arguments}


def _schema_of(waiting: Mapping[str, Slot]) -> Schema:
    properties: dict[str, Any] = {}
    for name, slot in waiting.items():
        choice: dict[str, Any] = {"enum": list(dict.fromkeys(c.value for c in slot.candidates))}
        properties[name] = {"type": "array", "items": choice, "minItems": 1, "maxItems": 4} if slot.many else choice
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, slot in waiting.items() if slot.must],
        "additionalProperties": False,
    }


def slots(tool: ToolDefinition, message: str) -> dict[str, Slot]:
    """The candidates of each parameter of ``tool``; there are none for a parameter that the message does not
    mention."""
    properties: Mapping[str, Schema] = tool.parameters.get("properties", {})
    required = set(tool.parameters.get("required", ()))
    wanted = {name: resolved(schema, tool.parameters) for name, schema in properties.items()}
    about = {name: _about(name, schema) for name, schema in wanted.items()}
    kinds = {kind for kind in about.values() if kind}
    # Where a parameter holds a time, the words that tell one belong to it, and to no other; and no number is an hour.
    words = _words(message, timed=bool(kinds))
    untimed = [word for word in words if not word.kind]
    ordinary = _ordinary_words(tool)
    counted = _counted(words, [n for n, schema in wanted.items() if schema.get("type") in ("integer", "number")])
    found: dict[str, Slot] = {}
    for name, schema in wanted.items():
        many = schema.get("type") == "array"
        item = resolved(schema.get("items"), tool.parameters) if many else schema
        timed = bool(about[name])
        must = True
        if "enum" in item:
            candidates = _options(item["enum"], message)
        elif item.get("type") in ("integer", "number"):
            mine = [w for w in (words if timed else untimed) if counted.get(w.start, name) == name]
            candidates = _numbers(mine, whole=item["type"] == "integer", timed=timed)
        elif item.get("type") != "string":
            candidates = iter(())
        elif timed:
            candidates = _times(words, message, about[name], kinds)
        elif shape := _shape(name, item):
            candidates = (Candidate(w.text, w.start, w.end) for w in words if shape.fullmatch(w.text))
        else:
            candidates = _spans(untimed if kinds else words, message, ordinary)
            must = name in required
        found[name] = Slot(tuple(candidates), must, many)
    return found


# -- what a parameter is -------------------------------------------------------------------------------------------


def _about(name: str, schema: Schema) -> str:
    """Which times a parameter takes: ``date``, ``clock``, ``date clock``, or none."""
    if schema.get("format") in ("date", "time", "date-time"):
        return {"date": "date", "time": "clock", "date-time": "date clock"}[schema["format"]]
    parts = set(_parts(name))
    if parts & {"date", "day", "month"}:
        return "date"
    if parts & {"time", "hour", "minute", "clock"}:
        return "clock"
    if parts & {"when", "datetime", "due", "deadline"}:
        return "date clock"
    return ""


def _shape(name: str, schema: Schema) -> re.Pattern[str] | None:
    parts = set(_parts(name))
    if schema.get("format") == "email" or "email" in parts:
        return _EMAIL
    if schema.get("format") in ("uri", "url") or parts & {"url", "uri"}:
        return _URL
    return None


def _parts(name: str) -> list[str]:
    """The words of an identifier: ``bookTable`` and ``book_table`` are both book and table."""
    return re.sub(r"([a-z])([A-Z])", r"\1 \2", name).replace("_", " ").replace("-", " ").lower().split()


def _ordinary_words(tool: ToolDefinition) -> frozenset[str]:
    """Words that name the subject of the tool (book, table, restaurant), with which no value begins or ends."""
    first, *rest = tool.description.split() or [""]
    words = [first.lower(), *(w for w in rest if w.islower()), *_parts(tool.name)]
    for name in tool.parameters.get("properties", {}):
        words += _parts(name)
    return frozenset(w.strip(_MARKS + "();") for w in words)


# -- what a message holds ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    start: int
    end: int
    kind: str = ""  # "date" or "clock" when it tells a time

    @property
    def lower(self) -> str:
        return self.text.lower().replace("\u2019", "'")


def _words(message: str, *, timed: bool) -> list[_Word]:
    words = []
    for found in _WORD.finditer(message):
        text = found[0].rstrip(_MARKS)
        bare = text.lstrip(_MARKS)
        if bare:
            start = found.start() + len(text) - len(bare)
            words.append(_Word(bare, start, start + len(bare)))
    words = words[:MESSAGE_WORDS]
    return [_Word(word.text, word.start, word.end, _kind(words, place, timed)) for place, word in enumerate(words)]


def _kind(words: Sequence[_Word], place: int, timed: bool) -> str:
    """Whether a word is part of a date or a time, by itself or because of its neighbours (5 March, 7 pm).

    A number after "at" is a time only if the tool takes one (``timed``): the volume, too, is set at 7.
    """
    lower = words[place].lower
    before = words[place - 1] if place else None
    after = words[place + 1] if place + 1 < len(words) else None
    months = [w for w in (before, after) if w and w.lower in _MONTHS]
    if _NUMBER.fullmatch(lower) or lower in _NUMBER_WORDS:
        if months:
            return "date"
        hour = (after and after.lower in _AFTER_AN_HOUR) or (timed and before and before.lower == "at")
        return "clock" if hour else ""
    if lower in _AFTER_AN_HOUR and before and _NUMBER.fullmatch(before.text):
        return "clock"
    if lower in ("may", "march"):  # words of their own, too
        numbers = [w for w in (before, after) if w and re.fullmatch(r"\d+(st|nd|rd|th)?", w.lower)]
        return "date" if numbers or (before and before.lower in ("in", "next")) else ""
    if lower in _DAYS or lower in _MONTHS or _DATE.fullmatch(lower):
        return "date"
    return "clock" if lower in _HOURS or _CLOCK.fullmatch(lower) else ""


def _spans(words: Sequence[_Word], message: str, ordinary: frozenset[str]) -> Iterator[Candidate]:
    """The pieces of text that may be a value."""
    for found in _QUOTED.finditer(message):
        group = 1 if found[1] else 2
        yield Candidate(found[group], *found.span(group))
    ordinary_at = {
        n
        for n, word in enumerate(words)
        if word.lower in ordinary and (word.text.islower() or n == 0 or _apart(words[n - 1], word, message))
    }
    for first in range(len(words)):
        if first in ordinary_at or words[first].lower in _NEVER_FIRST:
            continue
        for last in range(first, len(words)):
            if last > first and _apart(words[last - 1], words[last], message):
                break
            ends = last + 1 == len(words) or _apart(words[last], words[last + 1], message)
            if last - first >= SPAN_WORDS and not ends:
                continue
            if last not in ordinary_at and words[last].lower not in _NEVER_LAST:
                yield Candidate(message[words[first].start : words[last].end], words[first].start, words[last].end)


def _apart(left: _Word, right: _Word, message: str) -> bool:
    """Whether a sentence ends between the two words, or a word between them belongs to another parameter."""
    between = message[left.end : right.start]
    return any(mark in between for mark in '.?!;\n"“”') or bool(_WORD.search(between.strip(_MARKS)))


def _counted(words: Sequence[_Word], names: Sequence[str]) -> dict[int, str]:
    """The numbers, by their position, that the next word assigns to a parameter: "two guests" are ``guests``."""
    return {
        number.start: name
        for number, noun in pairwise(words)
        for name in names
        if noun.lower.rstrip("s") in (part.rstrip("s") for part in _parts(name))
    }


def _numbers(words: Sequence[_Word], *, whole: bool, timed: bool) -> Iterator[Candidate]:
    for word in words:
        if timed and word.kind:
            for digits in re.finditer(r"\d+", word.text):
                yield Candidate(int(digits[0]), word.start + digits.start(), word.start + digits.end())
        elif _NUMBER.fullmatch(word.text):
            if "." not in word.text:
                yield Candidate(int(word.text), word.start, word.end)
            elif not whole:
                yield Candidate(float(word.text), word.start, word.end)
        elif word.lower in _NUMBER_WORDS:
            yield Candidate(_NUMBER_WORDS[word.lower], word.start, word.end)


def _times(words: Sequence[_Word], message: str, kind: str, kinds: set[str]) -> Iterator[Candidate]:
    """The runs of words that are a date or time: "next Friday at 7 pm", or its parts if the tool takes them
    separately."""
    apart = "date" in kinds and "clock" in kinds
    mine = kind.split() if apart else ["date", "clock"]
    place = 0
    while place < len(words):
        if words[place].kind not in mine:
            place += 1
            continue
        first = last = place
        while first and words[first - 1].lower in ("next", "this"):
            first -= 1
        while True:
            ahead = last + 1
            while ahead < len(words) and words[ahead].lower in _BETWEEN_TIMES:
                ahead += 1
            if ahead == len(words) or words[ahead].kind not in mine:
                break
            last = ahead
        run = words[first : last + 1]
        if any(word.kind in kind.split() for word in run):
            yield Candidate(message[run[0].start : run[-1].end], run[0].start, run[-1].end)
        place = last + 1


def _options(options: Sequence[Any], message: str) -> Iterator[Candidate]:
    """The ``options`` that are named in the message."""
    for option in options:
        if isinstance(option, bool) or not isinstance(option, str | int | float):
            continue
        spelled = r"[\s_-]+".join(re.escape(part) for part in re.split(r"[\s_-]+", str(option)) if part)
        for found in re.finditer(rf"(?<!\w){spelled}(?!\w)", message, re.IGNORECASE) if spelled else ():
            yield Candidate(option, *found.span())
