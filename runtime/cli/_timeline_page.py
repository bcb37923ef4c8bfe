"""A recorded run as a timeline in one HTML file, which needs no network and runs no script.

What a record says is anybody's: all of it is escaped, and a policy in the page allows nothing but its own style.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..foreign._printable import printable
from ..foreign._sound import well_formed
from ..recording._timeline import Note, Span, Timeline, arguments_of
from ._timeline import seconds, shares

MARK: Final = "<!doctype html><!-- lockgate timeline -->\n"  # how each of these files begins
_TEXT: Final = 20_000  # characters of one text that are in the page
_LABEL: Final = 120
_TICKS: Final = 6
_KINDS: Final = {
    "model": "model",
    "tool": "tool",
    "user": "waits for the user",
    "agent": "agent inside",
    "hook": "hook",
    "toolset": "toolset",
    "pause": "paused",
}

_STYLE: Final = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #59636e; --line: #d8dee4; --track: #f3f5f7;
  --model: #2f6fd8; --tool: #1a7f4b; --user: #b26a00; --other: #7a6fb0; --bad: #c0262d; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161b; --ink: #e3e8ee; --faint: #98a3af; --line: #2d353e;
  --track: #1b2128; --model: #6aa3ff; --tool: #4cc38a; --user: #f0a63c; --other: #a99cf0; --bad: #ff7b80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
h2 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
.end { display: inline-block; padding: .05rem .55rem; border: 1px solid currentColor; border-radius: 1rem;
  font-size: .8rem; font-weight: 600; color: var(--tool); vertical-align: middle; }
.end.bad { color: var(--bad); }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: .6rem 0 1rem; padding: 0; }
.facts div { min-width: 6rem; } .facts dt { color: var(--faint); font-size: .78rem; } .facts dd { margin: 0;
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 .6rem; padding: 0; list-style: none;
  color: var(--faint); font-size: .8rem; }
.legend i { display: inline-block; position: static; width: 1.4rem; height: .6rem; margin-right: .35rem;
  border-radius: 2px; }
.row { border-bottom: 1px solid var(--line); }
summary, .note, .axis { display: grid; grid-template-columns: minmax(0, 22rem) 5rem minmax(0, 1fr); gap: .8rem;
  align-items: center; padding: .28rem 0; }
summary { cursor: pointer; list-style-position: inside; }
summary:hover { background: var(--track); }
summary:focus-visible { outline: 2px solid var(--model); outline-offset: 2px; }
.name { padding-left: calc(var(--depth, 0) * 1.1rem); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.name::before { content: "\\25B8"; display: inline-block; width: 1rem; color: var(--faint); }
details[open] .name::before { content: "\\25BE"; }
.name b { font-weight: 600; } .name span { color: var(--faint); }
.took { text-align: right; font-variant-numeric: tabular-nums; color: var(--faint); font-size: .85rem;
  white-space: nowrap; }
.track { position: relative; height: .95rem; background: var(--track); border-radius: 3px; }
i { background: var(--other); } i.model { background: var(--model); } i.tool { background: var(--tool); }
i.user, i.pause { background: repeating-linear-gradient(135deg, var(--user) 0 5px, transparent 5px 9px);
  border: 1px solid var(--user); }
i.agent { background: transparent; border: 1px solid var(--other); }
i.failed { outline: 2px solid var(--bad); outline-offset: 1px; }
.track i { position: absolute; top: 0; bottom: 0; left: var(--at); width: var(--long); min-width: 3px;
  border-radius: 3px; }
.bad { color: var(--bad); }
.axis { color: var(--faint); font-size: .75rem; border-bottom: 1px solid var(--line); }
.axis .track { background: none; height: 1.2rem; }
.axis .track span { position: absolute; left: var(--at); border-left: 1px solid var(--line); padding-left: .25rem;
  white-space: nowrap; }
.note { grid-template-columns: minmax(0, 1fr) 5rem; align-items: start; }
.note p { margin: 0; padding-left: calc(var(--depth, 0) * 1.1rem); white-space: pre-wrap; }
.note.by-user p { font-weight: 600; } .note.by-note p { color: var(--user); } .note.by-error p { color: var(--bad); }
.more { padding: .2rem 0 .7rem 1.2rem; }
.more dl { margin: 0; } .more dt { color: var(--faint); font-size: .8rem; margin-top: .4rem; } .more dd { margin: 0; }
pre { margin: 0; padding: .5rem .6rem; background: var(--track); border-radius: 4px; white-space: pre-wrap;
  font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; max-height: 30rem; overflow: auto; }
@media (max-width: 46rem) {
  summary { grid-template-columns: minmax(0, 1fr) 5rem; row-gap: .2rem; } summary .track { grid-column: 1 / -1; }
  .axis { grid-template-columns: minmax(0, 1fr); } .axis > :not(.track) { display: none; } }
@media print { summary { break-inside: avoid; } }
"""


class NotOurs(Exception):
    """There is a file in the place of the page, which is none that was written here."""


def write_page(line: Timeline, path: Path) -> None:
    """Write the page, for its owner alone to read, as the record is. A page that is there is replaced.

    Raises `NotOurs`, and `OSError`.
    """
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.read(len(MARK)) not in (MARK, ""):
                raise NotOurs(f"{path} is there, and is no timeline: name another file")
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(page(line))
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise


def page(line: Timeline) -> str:
    """The page."""
    return well_formed("\n".join(_page(line)))


def _page(line: Timeline) -> Iterator[str]:
    name = _text(line.agent_name, _LABEL)
    yield f"""{MARK}<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{name}: a run of {seconds(line.seconds)}</title>
<style>
{_STYLE}</style></head><body>"""
    bad = "" if line.reason == "normal" else " bad"
    yield f'<h1>{name} <span class="end{bad}">{_text(line.reason or "the record does not have its end")}</span></h1>'
    yield f'<dl class="facts">{"".join(_facts(line))}</dl>'
    kinds = dict.fromkeys(span.kind for span in line.spans)
    legend = "".join(f'<li><i class="{kind}"></i>{what}</li>' for kind, what in _KINDS.items() if kind in kinds)
    yield f'<ul class="legend">{legend}</ul>'
    yield f'<div class="axis"><div></div><div></div><div class="track">{"".join(_ticks(line.seconds))}</div></div>'
    turn = 0
    for entry in line.entries:
        if not entry.depth and entry.turn > turn:
            turn = entry.turn
            yield f"<h2>Turn {turn}</h2>"
        yield from _note(entry) if isinstance(entry, Note) else _row(entry, line)
    yield "</body></html>\n"


def _facts(line: Timeline) -> Iterator[str]:
    facts = [("took", seconds(line.seconds)), ("turns", str(line.turns))]
    facts += [(f"time for {what}", seconds(spent)) for what, spent in shares(line) if spent]
    if line.input_tokens or line.output_tokens:
        facts.append(("tokens", f"{line.input_tokens:,} in, {line.output_tokens:,} out"))
    if line.cost is not None:
        facts.append(("cost", f"${line.cost:.4f}"))
    if line.began is not None:
        facts.append(("began", line.began.isoformat(" ", "seconds")))
    return (f"<div><dt>{what}</dt><dd>{_text(said)}</dd></div>" for what, said in facts)


def _ticks(length: float) -> Iterator[str]:
    """Round times along the axis."""
    if length <= 0:
        return
    step = 10.0**-6
    for factor in (1, 2, 5) * 20:  # 1, 2, 5, 10, 20 ...
        if length / (step * factor) <= _TICKS:
            step *= factor
            break
        if factor == 5:
            step *= 10
    count = 0
    while count * step < length * 0.97:
        yield f'<span style="--at:{100 * count * step / length:.3f}%">{seconds(count * step) if count else "0"}</span>'
        count += 1


def _note(note: Note) -> Iterator[str]:
    said = f"<p>{_text(note.text.strip())}</p>"
    yield f'<div class="row note by-{note.kind}" style="--depth:{note.depth}">{said}<span class="took">'
    yield f"at {seconds(note.at)}</span></div>"


def _row(span: Span, line: Timeline) -> Iterator[str]:
    at = 100 * span.start / line.seconds if line.seconds else 0
    long = 100 * span.seconds / line.seconds if line.seconds else 0
    failed = " failed" if span.failed else ""
    word = ' <span class="bad">failed</span>' if span.failed else ""
    took = f"{seconds(span.seconds)}{'' if span.whole else ' +'}"
    yield f'<details class="row" style="--depth:{span.depth}"><summary><span class="name"><b>{_label(span)}</b>{word}'
    yield f'{_short_arguments(span)}</span><span class="took">{took}</span><span class="track">'
    yield f'<i class="{span.kind}{failed}" style="--at:{at:.3f}%;--long:{long:.3f}%"></i></span></summary>'
    yield f'<div class="more"><dl>{"".join(_details(span))}</dl></div></details>'


def _label(span: Span) -> str:
    if span.kind == "tool":
        return _text(span.name, _LABEL)
    if span.kind == "user":
        return "waits for the user"
    if span.kind == "pause":
        return "paused"
    return f"{span.kind} {_text(span.name, _LABEL)}"


def _short_arguments(span: Span) -> str:
    if span.kind == "user":
        return f" <span>{_text(span.said, _LABEL)}</span>"
    if span.kind != "tool":
        return ""
    said = ", ".join(f"{name}={value}" if name else value for name, value in arguments_of(span, _LABEL))
    return f" <span>{_text(said, _LABEL)}</span>" if said else ""


def _details(span: Span) -> Iterator[str]:
    whole = "" if span.whole else ", and the record does not have its end"
    yield f"<dt>from, to</dt><dd>{seconds(span.start)}, {seconds(span.end)}{whole}</dd>"
    yield f"<dt>agent</dt><dd>{_text(span.agent_name, _LABEL)}</dd>"
    if span.kind == "tool":
        for name, value in arguments_of(span, _TEXT):
            yield f"<dt>{_text(name or 'arguments', _LABEL)}</dt><dd><pre>{_text(value)}</pre></dd>"
    elif span.said:
        yield f"<dt>{'asked' if span.kind == 'user' else 'at'}</dt><dd><pre>{_text(span.said)}</pre></dd>"
    if span.result:
        yield f"<dt>{'failure' if span.failed else 'result'}</dt><dd><pre>{_text(span.result)}</pre></dd>"


def _text(text: str, most: int = _TEXT) -> str:
    if len(text) > most:
        text = f"{text[:most]} ... ({len(text)} characters)"
    return html.escape(printable(text))
