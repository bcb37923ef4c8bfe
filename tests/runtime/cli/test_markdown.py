"""Markdown that is rendered while it streams in."""

from __future__ import annotations

import re
import time

import pytest

pytest.importorskip("rich", reason="needs the extra chat")

from runtime.cli._markdown import MarkdownStream, Paint, PlainStream

DOCUMENT = """\
# A title with *emphasis*

A paragraph with **bold**, `code`, a [link](https://example.org/x) and <b>no HTML</b>,
which goes on.

Text:
- one
- two
  goes on
- three

  in the third

  ```python
  def f(x):
      return x
  ```
  behind the code
- four

1. first
2. second
   - nested
10. tenth

```python
text = '''two
lines'''
# no heading
```

| name | number |
|------|-------:|
| a    |      1 |
| b    |     20 |

> quoted
> twice

    indented

Underlined
==========
---
[name]: https://example.org/name
*the end"""

SHOWN = """\
A title with emphasis

A paragraph with bold, code, a link (https://example.org/x) and <b>no HTML</b>,
which goes on.

Text:
 • one
 • two
   goes on
 • three
   in the third

--- python -------------------------------------------------
def f(x):
    return x
------------------------------------------------------------
behind the code
 • four

 1 first
 2 second
    • nested
 10 tenth

--- python -------------------------------------------------
text = '''two
lines'''
# no heading
------------------------------------------------------------

 name  number
 ────────────
 a          1
 b         20

▌ quoted
▌ twice

indented

Underlined
-------------------------------------------------------------------------------
[name]: https://example.org/name
*the end"""


def plain(lines: list[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


def paint(*, colour: bool = True, width: int = 80) -> Paint:
    made = Paint(colour=colour)
    made.width = width
    return made


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
def test_a_text_is_the_same_in_whatever_pieces_it_comes(size: int) -> None:
    stream = MarkdownStream(paint())
    lines = []
    for at in range(0, len(DOCUMENT), size):
        stream.feed(DOCUMENT[at : at + size])
        lines += stream.take()
        stream.tail()
    assert plain(lines + stream.finish()) == SHOWN


def test_a_block_is_finished_as_soon_as_the_next_begins_and_shown_before() -> None:
    stream = MarkdownStream(paint())
    stream.feed("- one\n- t")
    assert plain(stream.take()) == ""
    assert plain(stream.tail()) == " • one\n • t"
    stream.feed("wo\n")
    assert plain(stream.take()) == " • one"
    assert plain(stream.tail()) == " • two"
    stream.feed("\n```\nx = 1\ny")
    assert plain(stream.take()).splitlines()[::3] == [" • two", "x = 1"]
    assert plain(stream.tail()) == "y"
    assert plain(stream.finish()) == "y"


@pytest.mark.parametrize("text", [
    "word " * 16_000,
    "x" * 80_000,
    "- item **bold** `code`\n" * 2_000,
    "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 2_000,
    "```python\n" + "x = [1, 2, 3]  # a comment\n" * 2_000,
    "> quoted\n" * 4_000,
    "* " * 20_000,
    "**" * 20_000,
    "[" * 20_000,
], ids=["words", "x", "list", "table", "code", "quote", "bullets", "stars", "brackets"])  # fmt: skip
def test_what_a_piece_costs_does_not_grow_with_the_text(text: str) -> None:
    """The last tenth of a long text takes about as long as the second: what is under way is bounded."""
    stream = MarkdownStream(paint())
    took = []
    step = len(text) // 40
    for tenth in range(10):
        begun = time.process_time()
        for at in range(4):
            begin = (tenth * 4 + at) * step
            stream.feed(text[begin : begin + step])
            stream.take()
            stream.tail()
        took.append(time.process_time() - begun)
    stream.finish()
    assert min(took[7:]) < 4 * max(took[1:4]) + 0.02, took


def test_the_rows_of_a_long_table_have_its_head_and_none_is_lost() -> None:
    stream = MarkdownStream(paint())
    stream.feed("| n | m |\n|---|---|\n" + "".join(f"| r{n} | x |\n" for n in range(150)))
    shown = plain(stream.finish())
    assert re.findall(r"^ r(\d+) ", shown, re.MULTILINE) == [str(n) for n in range(150)]
    assert shown.count(" n     m") + shown.count(" n    m") >= 2


def test_a_cell_that_is_too_wide_is_folded_and_loses_nothing() -> None:
    stream = MarkdownStream(paint())
    columns = ["item", "1000000", "9999999", "abcdefghij", "klmnopqrst", "uvwxyz0123", "4567890"]
    stream.feed(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n| {' | '.join(columns)} |\n")
    stream.paint.width = 30
    shown = plain(stream.finish())
    assert max(map(len, shown.splitlines())) < 30
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    written = "".join(shown.split()).replace("\N{BOX DRAWINGS LIGHT HORIZONTAL}", "")
    assert sorted(written) == sorted("".join(columns * 2))


def test_what_is_foreign_is_made_printable_whatever_it_is_in() -> None:
    evil = "\x1b[2J\x1b]0;title\x07\u202e&#x202e;&#27;[2J\x9b31m [red]x[/red] [link=file:///]y[/link] :smile:"
    for frame in ("{}", "**{}**", "`{}`", "# {}", "- {}", "> {}", "[{}](http://x/{})", "```\n{}\n```", "```{}\nx\n```",
                  "| {} |\n|---|\n| {} |", "![{}](http://x)", "<b title='{}'>{}</b>", "    {}"):  # fmt: skip
        for kind in (MarkdownStream, PlainStream):
            stream = kind(paint())
            stream.feed(frame.replace("{}", evil))
            tail = stream.tail()
            shown = "\n".join([*stream.take(), *stream.tail(), *tail, *stream.finish()])
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", re.sub(r"\x1b\[[0-9;]*m", "", shown))
            if kind is PlainStream or frame in ("{}", "- {}"):
                assert "[red]x[/red] [link=file:///]y[/link]" in plain([shown])
                assert ":smile:" in shown


def test_reasoning_is_set_off_and_is_no_markdown() -> None:
    stream = PlainStream(paint(width=30))
    stream.feed("I **think** that it is\n# 1 2 3 4 5 6 7 8 9 10 11 12 13 14\n\nso")
    assert plain(stream.take() + stream.finish()) == (
        "| I **think** that it is\n| # 1 2 3 4 5 6 7 8 9 10 11\n| 12 13 14\n|\n| so"
    )


def test_without_colours_there_are_none() -> None:
    stream = MarkdownStream(paint(colour=False))
    stream.feed(DOCUMENT)
    lines = stream.finish()
    assert "\x1b" not in "".join(lines)
    assert "\n".join(lines) == SHOWN
