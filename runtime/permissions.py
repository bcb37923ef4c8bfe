"""Permissions: which tool calls are allowed, which the user is asked about, which are denied.

A pattern names a tool, and may name arguments: ``shell``, ``read_*``, ``shell:cmd=git*``, ``copy:to=/etc/*:force=*``.
Patterns are those of the shell (``*``, ``?``, ``[a-z]``; ``*`` spans everything, line breaks too) and are held against
the values that the tool gets, in the one spelling of `foreign/_spelling`, never against the model's own text: there is
more than one way to write a value. Where ``:NAME=`` is part of a value, it is written ``[:]NAME=``. The tools of an MCP
server are also known as ``mcp:SERVER:TOOL``, and all of them as ``mcp:SERVER``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from channels._lazy import made_later

from ._checks import check, check_flags
from ._dataclasses import dataclass
from .foreign._spelling import as_text

Scope: TypeAlias = Literal["once", "tool", "session"]
Verdict: TypeAlias = Literal["allow", "ask", "deny"]

#: As in shell(rm*) or shell:rm*, which other programs understand.
_NO_NAME = made_later(lambda: re.compile(r"[\s(),:=]"))
#: Where an argument begins; a colon by itself may be part of a name or a value.
_ARGUMENT = made_later(lambda: re.compile(r":([\w.$-]+)="))
_PAIRS = "pairs of a name and a pattern, such as ('cmd', 'git*')"


@dataclass(frozen=True, slots=True)
class Decision:
    """The user's decision about a tool call.

    An approval holds for this call (``once``), for every call of this tool (``tool``) or for all calls (``session``),
    as long as the session lives. The model reads the ``reason`` of a rejection.
    """

    approved: bool
    scope: Scope = "once"
    reason: str = ""

    def __post_init__(self) -> None:
        check_flags(approved=self.approved)  # "no" would approve
        if self.scope not in ("once", "tool", "session"):
            raise ValueError(f"an approval must be for once, tool or session, not {self.scope!r:.200}")
        check("the reason of a decision", self.reason, str, "text")


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern for the tool's name, with patterns for some of its arguments, all of which have to match.

    With ``owner`` it matches only the tool of this owner (`Tool.owner`), so that an approval of one tool does not hold
    for a tool of the same name that belongs to a sub-agent or a server.
    """

    tool: str
    arguments: tuple[tuple[str, str], ...] = ()
    owner: str = ""

    def __post_init__(self) -> None:
        check("the tool of a rule", self.tool, str, "text, such as 'shell'")
        check("the owner of a rule", self.owner, str, "text")
        check("the arguments of a rule", self.arguments, (tuple, list), _PAIRS)
        for pair in self.arguments:
            if not isinstance(pair, (tuple, list)) or [isinstance(each, str) for each in pair] != [True, True]:
                raise TypeError(f"the arguments of a rule must be {_PAIRS}; {pair!r:.200} is none")
        object.__setattr__(self, "arguments", tuple((name, pattern) for name, pattern in self.arguments))

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule that is written as ``text``. Raises `ValueError` if no tool can have such a name, because a rule
        that never matches would deny nothing.
        """
        tool, *rest = _ARGUMENT.split(text)
        if not tool or (_NO_NAME.search(tool) and not tool.startswith("mcp:")) or "=" in tool:
            raise ValueError(
                f"a permission must be TOOL or TOOL:ARGUMENT=PATTERN, such as 'shell:cmd=git*', not {text!r}"
            )
        return cls(tool, tuple(zip(rest[::2], rest[1::2], strict=True)))

    @classmethod
    def exactly(cls, name: str, owner: str = "") -> Rule:
        """The rule for the tool ``name``, whatever characters are in it."""
        return cls(re.sub(r"([*?[])", r"[\1]", name), owner=owner)

    def matches(
        self, names: Sequence[str], arguments: Mapping[str, Any], *, owner: str = "", ignore_case: bool
    ) -> bool:
        """Whether the rule matches a call with `spelled` ``arguments``, of a tool of ``owner`` known by ``names``."""
        if self.owner and self.owner != owner:
            return False
        if not any(_fits(name, self.tool, ignore_case) for name in names):
            return False
        return all(
            any(
                _is(each, name, ignore_case) and _fits(as_text(value), pattern, ignore_case)
                for each, value in arguments.items()
            )
            for name, pattern in self.arguments
        )

    def __str__(self) -> str:
        said = self.tool + "".join(f":{name}={pattern}" for name, pattern in self.arguments)
        return f"{said} (of {self.owner})" if self.owner else said

    def check(self, name: str, known: Collection[str], *, ignore_case: bool) -> None:
        """Raise `ValueError` if the rule is for the tool ``name`` and has a pattern for an argument that the tool does
        not have: it would match no call, and so deny nothing.
        """
        for each, _ in self.arguments:
            if _is(self.tool, name, ignore_case) and not any(_is(each, other, ignore_case) for other in known):
                raise ValueError(
                    f"the permission {str(self)!r} matches no call: {name} has no argument {each!r}; it has:"
                    f" {', '.join(known) or 'none'} (where ':{each}=' is part of a value, write '[:]{each}=')"
                )


@dataclass(frozen=True, slots=True)
class Permissions:
    """Patterns for the tool calls that are allowed without asking, asked about, and denied. Immutable.

    ``approve_all`` allows every call that no ``deny`` pattern matches. ``deny`` and ``ask`` ignore upper and lower
    case, ``allow`` does not, so that in case of doubt the user is asked. Raises `ValueError` for a text that is not a
    pattern, and `TypeError` for a value that is not text.
    """

    allow: Iterable[str | Rule] = ()
    ask: Iterable[str | Rule] = ()
    deny: Iterable[str | Rule] = ()
    approve_all: bool = False

    def __post_init__(self) -> None:
        for name in ("allow", "ask", "deny"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise TypeError(f"{name} must be a list of patterns, such as [{given!r:.200}], not one text")
            check(name, given, Iterable, "a list of patterns, such as ['shell:cmd=git*']")
            for each in given:
                check(f"a pattern of {name}", each, (str, Rule), "text, such as 'shell:cmd=git*'")
            rules = tuple(each if isinstance(each, Rule) else Rule.parse(each) for each in given)
            object.__setattr__(self, name, rules)
        check_flags(approve_all=self.approve_all)

    def check(self, name: str, known: Collection[str]) -> None:
        """Raise `ValueError` for a pattern that matches no call of the tool ``name``, whose arguments are known."""
        for rules, ignore_case in ((self.allow, False), (self.ask, True), (self.deny, True)):
            for rule in rules:
                assert isinstance(rule, Rule)
                rule.check(name, known, ignore_case=ignore_case)


def decide(
    levels: Sequence[Permissions],
    names: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    owner: str = "",
    read_only: bool,
) -> tuple[Verdict, Rule | None]:
    """The decision about a call, and the rule that made it. ``levels`` are in order, the one that counts most first.
    ``arguments`` are `spelled`.

    A deny at any level wins, also over ``approve_all``. Then the first level that allows or asks decides; within one,
    ``allow`` comes before ``ask``. What none speaks of is free when it only reads, and asked about otherwise.
    """

    def first(rules: Iterable[Any], *, ignore_case: bool = True) -> Rule | None:
        call = names, arguments
        return next((rule for rule in rules if rule.matches(*call, owner=owner, ignore_case=ignore_case)), None)

    approved = False
    for level in levels:
        if level.deny and (rule := first(level.deny)):
            return "deny", rule
        approved = approved or level.approve_all
    if approved:
        return "allow", None
    for level in levels:
        if level.allow and (rule := first(level.allow, ignore_case=False)):
            return "allow", rule
        if level.ask and (rule := first(level.ask)):
            return "ask", rule
    return ("allow" if read_only else "ask"), None


def _is(name: str, other: str, ignore_case: bool) -> bool:
    return name == other or (ignore_case and name.casefold() == other.casefold())


def _fits(text: str, pattern: str, ignore_case: bool) -> bool:
    if ignore_case:
        text, pattern = text.casefold(), pattern.casefold()
    return fnmatch.fnmatchcase(text, pattern)
