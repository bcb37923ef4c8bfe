"""Permissions: which tool calls are made, which the user is asked about, which are refused.

A pattern names a tool, and may name arguments: ``shell``, ``read_*``, ``shell:cmd=git*``, ``copy:to=/etc/*:force=*``.
Patterns are those of the shell (``*``, ``?``, ``[a-z]``; ``*`` spans everything, line breaks too) and are held against
the parsed values that the tool gets, never against the JSON that the model wrote: there is more than one way to write a
value. The tools of an MCP server are also known as ``mcp:SERVER:TOOL``, and all of them as ``mcp:SERVER``.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ._checks import check

Scope: TypeAlias = Literal["once", "tool", "session"]
Verdict: TypeAlias = Literal["allow", "ask", "deny"]

_NO_NAME = re.compile(r"[\s(),:=]")  # as in shell(rm*) or shell:rm*, which other programs understand
_ARGUMENT = re.compile(r":(\w+)=")  # where an argument begins; a colon by itself may be part of a name or a value


@dataclass(frozen=True, slots=True)
class Decision:
    """What the user said about a tool call.

    An approval holds for this call (``once``), for every call of this tool (``tool``) or for all calls (``session``),
    as long as the session lives. The model reads the ``reason`` of a rejection.
    """

    approved: bool
    scope: Scope = "once"
    reason: str = ""

    def __post_init__(self) -> None:
        if self.scope not in ("once", "tool", "session"):
            raise ValueError(f"an approval is for once, tool or session, not {self.scope!r}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern: for the tool's name, and for some of its arguments, all of which have to match."""

    tool: str
    arguments: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule that ``text`` says. Raises `ValueError` where that is not the name of a tool: a rule that never
        matches would deny nothing.
        """
        tool, *rest = _ARGUMENT.split(text)
        if not tool or (_NO_NAME.search(tool) and not tool.startswith("mcp:")):
            raise ValueError(f"a permission is TOOL or TOOL:ARGUMENT=PATTERN, such as 'shell:cmd=git*', not {text!r}")
        return cls(tool, tuple(zip(rest[::2], rest[1::2], strict=True)))

    @classmethod
    def exactly(cls, name: str) -> Rule:
        """The rule for the tool ``name``, whatever characters are in it."""
        return cls(re.sub(r"([*?[])", r"[\1]", name))

    def matches(self, names: Sequence[str], arguments: Mapping[str, Any], *, ignore_case: bool) -> bool:
        """Whether it is about a call with ``arguments`` of the tool known by ``names``."""
        if not any(_fits(name, self.tool, ignore_case) for name in names):
            return False
        return all(
            name in arguments and _fits(_text(arguments[name]), pattern, ignore_case)
            for name, pattern in self.arguments
        )

    def __str__(self) -> str:
        return self.tool + "".join(f":{name}={pattern}" for name, pattern in self.arguments)


@dataclass(frozen=True, slots=True)
class Permissions:
    """Patterns for calls that are made without asking, asked about, and refused; immutable.

    ``approve_all`` allows whatever no ``deny`` matches. ``deny`` and ``ask`` ignore case, ``allow`` does not: in doubt
    there is a question. Raises `ValueError` for what is not a pattern, `TypeError` for what is not text.
    """

    allow: Iterable[str | Rule] = ()
    ask: Iterable[str | Rule] = ()
    deny: Iterable[str | Rule] = ()
    approve_all: bool = False

    def __post_init__(self) -> None:
        for name in ("allow", "ask", "deny"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise TypeError(f"{name} is a list of patterns, such as [{given!r}], not one text")
            check(name, given, Iterable, "a list of patterns, such as ['shell:cmd=git*']")
            for each in given:
                check(f"a pattern of {name}", each, (str, Rule), "text, such as 'shell:cmd=git*'")
            rules = tuple(each if isinstance(each, Rule) else Rule.parse(each) for each in given)
            object.__setattr__(self, name, rules)
        check("approve_all", self.approve_all, bool, "True or False")  # "no" would approve everything


def decide(
    levels: Sequence[Permissions], names: Sequence[str], arguments: Mapping[str, Any], *, read_only: bool
) -> tuple[Verdict, Rule | None]:
    """What becomes of a call, and the rule that says so. ``levels`` are in order, the one that counts most first.

    A deny at any level wins, also over ``approve_all``. Then the first level that allows or asks decides; within one,
    ``allow`` comes before ``ask``. What none speaks of is free when it only reads, and asked about otherwise.
    """

    def first(rules: Iterable[Any], *, ignore_case: bool = True) -> Rule | None:
        return next((rule for rule in rules if rule.matches(names, arguments, ignore_case=ignore_case)), None)

    for level in levels:
        if rule := first(level.deny):
            return "deny", rule
    if any(level.approve_all for level in levels):
        return "allow", None
    for level in levels:
        if rule := first(level.allow, ignore_case=False):
            return "allow", rule
        if rule := first(level.ask):
            return "ask", rule
    return ("allow" if read_only else "ask"), None


def _fits(text: str, pattern: str, ignore_case: bool) -> bool:
    if ignore_case:
        text, pattern = text.casefold(), pattern.casefold()
    return fnmatch.fnmatchcase(text, pattern)


def _text(value: Any) -> str:
    """``value`` as a pattern sees it: text as it is, everything else as JSON, written in one way only."""
    if isinstance(value, str):
        return value
    return json.dumps(_canonical(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _canonical(value: Any) -> Any:
    """The same value, with 5.0 and 5e0 as 5."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value
