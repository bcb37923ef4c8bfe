"""Reads the description of a function and its parameters from a docstring of Google, NumPy, Sphinx or Epydoc.

A parser of our own, for libraries that read all of them (griffe, docstring_parser) say much more than a model is told,
and would be a dependency of every program with a tool.
"""

from __future__ import annotations

import re
from typing import Final

_SECTION: Final = r"(Args|Arguments|Params|Parameters|Other Parameters|Keyword Args|Keyword Arguments):"
_NUMPY: Final = frozenset(("Parameters", "Other Parameters", "Arguments", "Keyword Arguments"))
_LINE: Final = r"-{3,}|={3,}"
_FIELD: Final = r"[:@](\w+)(?:\s+([^:]*))?:\s*(.*)"
_NAMED: Final = frozenset(("param", "parameter", "arg", "argument", "key", "keyword", "kwarg"))
_GIVEN: Final = frozenset(("return", "returns", "yield", "yields"))
_OTHER: Final = frozenset(("type", "rtype", "ytype", "vartype", "raise", "raises", "except", "exception", "meta"))
_ENTRY: Final = r"(?:[-*+] )?[`*]*(\w+)[`*]*\s*(?:\([^:]*\)|\[[^:]*\])?\s*(?::|--? |\u2013 )\s*(.*)"
_LISTED: Final = r"\s|[-*+>|`] ?|\d+[.)] "


def read(text: str) -> tuple[str, dict[str, str]]:
    """The description of the function, and those of its parameters by name. ``text`` is dedented."""
    notes: dict[str, str] = {}
    left: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        if (field := re.match(_FIELD, lines[at])) and field[1] in _NAMED | _GIVEN | _OTHER:
            at = _field(lines, at, field, notes, left)
        elif re.fullmatch(_SECTION, line) and _is_deeper(lines, at):
            at = _google(lines, at, notes)
        elif line in _NUMPY and at + 1 < len(lines) and re.fullmatch(_LINE, lines[at + 1].strip()):
            at = _numpy(lines, at + 2, notes)
        else:
            left.append(lines[at])
            at += 1
    return _paragraphs(left), {name: note for name, note in notes.items() if note}


def _field(lines: list[str], at: int, field: re.Match[str], notes: dict[str, str], left: list[str]) -> int:
    """``:param str name: text`` or ``@param name: text``, and what goes on in the lines after it."""
    said = [field[3]]
    at += 1
    while at < len(lines) and lines[at].strip() and not re.match(_FIELD, lines[at]):
        said.append(lines[at])
        at += 1
    text = _joined(said)
    if field[1] in _NAMED and field[2]:
        notes[field[2].split()[-1].lstrip("*")] = text
    elif field[1] in _GIVEN and text:
        left += ["", f"Returns: {text}", ""]
    return at


def _google(lines: list[str], at: int, notes: dict[str, str]) -> int:
    """Entries under a heading, each at the indentation of the first; what is further in goes on with one."""
    heading = _indent(lines[at])
    at += 1
    first: int | None = None
    name = ""
    while at < len(lines) and (not lines[at].strip() or _indent(lines[at]) > heading):
        line = lines[at]
        at += 1
        if not line.strip():
            continue
        first = _indent(line) if first is None else first
        entry = re.match(_ENTRY, line.strip()) if _indent(line) <= first else None
        if entry:
            name = entry[1]
            notes[name] = entry[2].strip()
        elif name:
            notes[name] = _joined([notes[name], line])
    return at


def _numpy(lines: list[str], at: int, notes: dict[str, str]) -> int:
    """``name : type``, with the text under it, up to the next heading."""
    names: list[str] = []
    while at < len(lines):
        line = lines[at]
        if at + 1 < len(lines) and line.strip() and re.fullmatch(_LINE, lines[at + 1].strip()):
            break
        at += 1
        if not line.strip():
            continue
        if _indent(line) == 0:
            names = [each.strip().lstrip("*") for each in line.partition(":")[0].split(",")]
        else:
            for name in names:
                notes[name] = _joined([notes.get(name, ""), line])
    return at


def _is_deeper(lines: list[str], at: int) -> bool:
    """Whether the next line is indented further than this one."""
    after = next((line for line in lines[at + 1 :] if line.strip()), "")
    return _indent(after) > _indent(lines[at])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _paragraphs(lines: list[str]) -> str:
    """The lines of a paragraph as one; but lists, examples and the like stay as they are."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in lines).strip("\n"))
    return "\n\n".join(
        each if any(re.match(_LISTED, line) for line in each.splitlines()) or re.search(r"^[-=]{3,}$", each, re.M)
        else _joined([each])
        for each in paragraphs
        if each.strip()
    )  # fmt: skip
