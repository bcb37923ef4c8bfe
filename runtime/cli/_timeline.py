"""A recorded run as a timeline in the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final

from ..foreign._printable import escaped
from ..recording._timeline import Note, Span, SpanKind, Timeline, arguments_of

_BAR: Final = {"model": "=", "tool": "#", "user": ".", "hook": "~", "toolset": "~", "agent": "-", "pause": "."}
_STYLE: Final = {"user": "yellow", "pause": "yellow", "agent": "dim", "hook": "dim", "toolset": "dim"}
_NOTE: Final = {"user": ("> ", "bold"), "agent": ("", ""), "note": ("! ", "yellow"), "error": ("! ", "red")}
_NARROW: Final = 60  # characters of a line in which there is no room for bars
_VALUE: Final = 60  # characters of one argument


def timeline_lines(line: Timeline, width: int) -> Iterator[tuple[str, str]]:
    """The lines, each with its style. ``width`` is how many characters a line has room for."""
    yield from _head(line)
    label = max(min(width // 2 - 10, 56), 20)
    bar = width - label - 22 if width >= _NARROW else 0
    turn = 0
    for entry in line.entries:
        if not entry.depth and entry.turn > turn:
            turn = entry.turn
            yield f"turn {turn}", "bold"
        if isinstance(entry, Note):
            yield _said(entry, width), _NOTE[entry.kind][1]
        else:
            yield _row(entry, line, label, bar), "red" if entry.failed else _STYLE.get(entry.kind, "")
    if bar:
        yield "= model   # tool   . waits for the user   - agent inside   ~ hook, toolset", "dim"


def _head(line: Timeline) -> Iterator[tuple[str, str]]:
    ended = line.reason or "the record does not have its end"
    facts = [ended, seconds(line.seconds), f"{line.turns} turn{'' if line.turns == 1 else 's'}"]
    if line.input_tokens or line.output_tokens:
        facts.append(f"{line.input_tokens} tokens in, {line.output_tokens} out")
    if line.cost is not None:
        facts.append(f"${line.cost:.4f}")
    yield f"{escaped(line.agent_name)}: {', '.join(facts)}", "" if line.reason == "normal" else "red"
    parts = [f"{what} {seconds(spent)}" for what, spent in shares(line) if spent]
    if parts:
        yield f"time for: {', '.join(parts)}", "dim"


def shares(line: Timeline) -> list[tuple[str, float]]:
    """For how many seconds the run has waited for whom."""
    kinds: list[tuple[SpanKind, str]] = [("model", "the model"), ("tool", "tools"), ("user", "the user")]
    return [(what, line.total(kind)) for kind, what in kinds]


def _row(span: Span, line: Timeline, label: int, bar: int) -> str:
    room = label - 2 * span.depth
    name = f"{'  ' * span.depth}{fitted(_name(span), room)}"
    took = f"{seconds(span.seconds):>9}{' ' if span.whole else '+'}"
    if not bar:
        return f"{_clock(span.start)} {name}{took}".rstrip()
    scale = bar / line.seconds if line.seconds else 0.0
    at = min(int(span.start * scale), bar - 1)
    long = max(1, min(round(span.seconds * scale), bar - at))
    return f"{_clock(span.start)} {name}{took} |{' ' * at}{_BAR[span.kind] * long}{' ' * (bar - at - long)}|"


def _name(span: Span) -> str:
    if span.kind == "tool":
        said = ", ".join(f"{name}={value}" if name else value for name, value in arguments_of(span, _VALUE))
        return f"{'failed ' if span.failed else ''}{span.name}({said})"
    if span.kind == "user":
        return f"waits for the user: {span.said}"
    if span.kind == "hook":
        return f"hook {span.name} at {span.said}"
    if span.kind == "pause":
        return "is paused"
    return f"{span.kind} {span.name}{' failed' if span.failed else ''}"


def _said(note: Note, width: int) -> str:
    mark, _ = _NOTE[note.kind]
    begin = f"{_clock(note.at)} {'  ' * note.depth}{mark}"
    return begin + fitted(" ".join(note.text.split()), max(width - len(begin), 20)).rstrip()


def _clock(at: float) -> str:
    return f"{at:8.2f}" if at < 100_000 else f"{at / 3600:6.0f} h"


def seconds(spent: float) -> str:
    """A time for people."""
    if spent < 1:
        return f"{spent * 1000:.0f} ms"
    return f"{spent:.1f} s" if spent < 100 else f"{spent // 60:.0f} min {spent % 60:.0f} s"


def fitted(text: str, cells: int) -> str:
    """``text`` in so many cells of a terminal, made printable: its end is left out, or there are spaces after it."""
    text = escaped(text[: 4 * cells])
    kept: list[str] = []
    used = 0
    for each in text:
        wide = 0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        if used + wide > cells - 1:  # a blank at least stands before what follows
            while kept and used > cells - 4:
                last = kept.pop()
                used -= 2 if unicodedata.east_asian_width(last) in "WF" else 0 if unicodedata.combining(last) else 1
            return f"{''.join(kept)}...{' ' * (cells - used - 3)}"
        kept.append(each)
        used += wide
    return f"{''.join(kept)}{' ' * (cells - used)}"
