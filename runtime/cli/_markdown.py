"""Markdown, rendered for a terminal while it streams in.

A reply is cut into blocks (a paragraph, an item of a list, a line of code, a table), each of which is rendered once, as
soon as it is complete, and never again. Only the block under way is rendered anew as it grows, and its size is bounded,
so the cost of a piece of text does not depend on how much text came before.

The text is foreign: markup of rich is not interpreted, HTML is text, links show where they lead, and what is rendered
is made printable once more, as an entity such as ``&#x202e;`` becomes a character only there.
"""

from __future__ import annotations

import re
import shutil
from collections import deque
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import ClassVar, Final

from markdown_it import MarkdownIt
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Heading, Markdown, MarkdownElement, TableElement, TextElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from ..foreign._printable import printable
from ._terminal import bounded

_WIDEST: Final = 110  # characters of a line of prose: longer ones are hard to read
_BLOCK: Final = 60  # lines of a block; what is longer is rendered in parts
_LINE: Final = 2_000  # characters of a block, and of a line
_CONTEXT: Final = 40  # lines of code that the colours of the next depend on
_COLOURED: Final = 500  # characters of a line of code that gets colours
_TAIL: Final = 1_000  # characters of a line under way that are shown

_FENCE = re.compile(r"( *)(`{3,}|~{3,})[ \t]*([^`\n]*)")
_HEADING = re.compile(r" {0,3}#{1,6}([ \t]|$)")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
_ITEM = re.compile(r"( *)([-*+]|\d{1,9}[.)])([ \t]+|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_NAMED_LINK = re.compile(r" {0,3}\[[^\]]*\]:")
_TABLE_RULE = re.compile(r" {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")

_THEME = Theme(
    {
        "markdown.h1": "bold underline",
        "markdown.h2": "bold",
        "markdown.h3": "bold",
        "markdown.h4": "bold dim",
        "markdown.h5": "bold dim",
        "markdown.h6": "bold dim",
        "markdown.code": "cyan",
        "markdown.block_quote": "dim",
        "markdown.hr": "dim",
        "markdown.item.bullet": "cyan",
        "markdown.item.number": "cyan",
        "markdown.link": "underline",
        "markdown.link_url": "dim",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
    }
)


class Paint:
    """Turns renderables of rich into text for the terminal, with no other sequences in it than those of colours."""

    def __init__(self, *, colour: bool) -> None:
        self._console = Console(
            file=StringIO(),
            force_terminal=True,
            color_system="standard" if colour else None,
            no_color=not colour,
            theme=_THEME,
            markup=False,
            emoji=False,
            highlight=False,
            legacy_windows=False,
        )
        self._colour = colour
        self.width = 80

    def measure(self) -> bool:
        """Look how wide the terminal is; whether that has changed."""
        width = max(shutil.get_terminal_size((80, 24)).columns, 10)
        changed, self.width = width != self.width, width
        return changed

    def lines(self, what: RenderableType, *, width: int | None = None) -> list[str]:
        """The lines of a renderable, without spaces at their ends."""
        options = self._console.options.update(width=width or min(self.width - 1, _WIDEST), height=None)
        return [self._line(line) for line in self._console.render_lines(what, options, pad=False)]

    def _line(self, segments: Iterable[Segment]) -> str:
        kept = [segment for segment in segments if not segment.control and segment.text]
        while kept and not kept[-1].text.strip():
            kept.pop()
        if kept:
            kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
        return "".join(self.styled(segment.text, segment) for segment in kept)

    def styled(self, text: str, segment: Segment) -> str:
        """The text of a segment in its style."""
        text = printable(text).replace("\n", " ")
        if segment.style is None or not self._colour:
            return text
        return segment.style.render(text, color_system=self._console._color_system)

    def text(self, text: str, style: str = "") -> str:
        """One line of text in a style of rich, as long as it is."""
        return self.styled(text, Segment(text, self._console.get_style(style) if style else None))

    def wrapped(self, text: str, style: str = "") -> list[str]:
        """The lines of a text, wrapped where the terminal ends."""
        return self.lines(Text(printable(bounded(text)).expandtabs(4), style=style, overflow="fold"))

    def cut(self, text: str, room: int) -> str:
        """The beginning of a line that fits into so many columns."""
        text = printable(text).replace("\n", " ").replace("\t", " ")
        return text if cell_len(text) <= room else f"{set_cell_size(text, max(room - 3, 1)).rstrip()}..."

    def code(self, lines: Sequence[str], before: Sequence[str], language: str) -> list[str]:
        """Lines of code in colours; ``before`` are the lines before them. Not wrapped: they are to be copied."""
        shown = [printable(bounded(line)).expandtabs(4) for line in lines]
        if not self._colour or not language or any(len(line) > _COLOURED for line in (*before, *lines)):
            return [self.text(line) for line in shown]
        known = [printable(line).expandtabs(4) for line in before]
        syntax = Syntax("", language, theme="ansi_dark", background_color="default")
        if syntax.lexer is None:  # no language of that name
            return [self.text(line) for line in shown]
        text = syntax.highlight("\n".join([*known, *shown]))
        coloured = list(text.split("\n", allow_blank=True))[len(known) : len(known) + len(shown)]
        if [line.plain for line in coloured] != shown:  # a lexer that changes what it reads
            return [self.text(line) for line in shown]
        return [self._line(line.render(self._console)) for line in coloured]


class _Heading(Heading):
    """A heading at the left, as the text below it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Code(TextElement):
    """Code within another block, in lines that are not changed."""

    style_name = "markdown.code"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.text.plain.rstrip("\n").expandtabs(4), style="cyan", overflow="fold")


class _Table(TableElement):
    """A table whose cells are folded where they are too wide: a number without its last digits is another one."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            for column in table.columns if isinstance(table, Table) else ():
                column.overflow = "fold"
            yield table


class _Block(Markdown):
    """A block of Markdown, whose HTML is text."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "table_open": _Table,
    }
    _parser: ClassVar[MarkdownIt] = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = self._parser.parse(source)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":  # a model that ends a line means it
                    child.type = "hardbreak"


class Stream:
    """A text that streams in. `feed` takes pieces of it, `take` returns the lines that are finished by now."""

    def __init__(self, paint: Paint) -> None:
        self.paint = paint
        self._pieces: list[str] = []
        self._partial = ""  # the line under way
        self._out: list[str] = []

    def feed(self, text: str) -> None:
        """Take a piece of text. Costs next to nothing."""
        self._pieces.append(text)

    def take(self) -> list[str]:
        """The lines that were finished since the last call, rendered."""
        if self._pieces:
            *lines, self._partial = (self._partial + "".join(self._pieces)).split("\n")
            self._pieces.clear()
            for line in lines:
                self._line(line.rstrip("\r"))
            self._bound()
        out, self._out = self._out, []
        return out

    def finish(self) -> list[str]:
        """The rest, as the text is at its end."""
        out = self.take()
        if self._partial:
            self._line(self._partial)
            self._partial = ""
        self._end()
        out += self._out
        self._out = []
        return out

    def tail(self) -> list[str]:
        """The lines that may still change, rendered."""
        raise NotImplementedError

    def _line(self, line: str) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        """The text has ended."""

    def _bound(self) -> None:
        """Cut the line under way where it grows without end, best between two words."""
        while len(self._partial) > _LINE:
            at = self._partial.rfind(" ", _LINE // 2, _LINE) + 1 or _LINE
            line, self._partial = self._partial[:at], self._partial[at:]
            self._line(line.rstrip())
            self._end()


class PlainStream(Stream):
    """Text without markup, such as reasoning: dimmed, set off by a bar."""

    def _rendered(self, line: str) -> list[str]:
        wrapped = self.paint.lines(Text(printable(line).expandtabs(4), "dim", overflow="fold"), width=self._width())
        return [self.paint.text("| " if each else "|", "dim") + each for each in wrapped or [""]]

    def _width(self) -> int:
        return max(min(self.paint.width - 3, _WIDEST), 8)

    def _line(self, line: str) -> None:
        if line.strip() or self._out:
            self._out += self._rendered(line)

    def tail(self) -> list[str]:
        return self._rendered(self._partial[-_TAIL:]) if self._partial.strip() else []


class MarkdownStream(Stream):
    """Text in Markdown."""

    def __init__(self, paint: Paint) -> None:
        super().__init__(paint)
        self._block: list[str] = []  # the lines of the block under way
        self._size = 0
        self._head_again = False  # whether it begins with the head of a table whose first rows are rendered already
        self._gap = False  # whether a blank line came before
        self._begun = False
        self._list: int | None = None  # how far the text of a list is indented, while in one
        self._blank = False  # whether the block under way, an item, has a blank line at its end
        self._fence: tuple[str, int, str] | None = None  # the characters that end the code, its indent, its language
        self._code: list[str] = []  # lines of code that are not rendered yet
        self._known: deque[str] = deque(maxlen=_CONTEXT)  # lines of code before them

    def take(self) -> list[str]:
        out = super().take()
        self._flush_code()
        out += self._out
        self._out = []
        return out

    def tail(self) -> list[str]:
        partial = self._partial[-_TAIL:]
        if self._fence is not None:
            return self.paint.code([partial], self._known, self._fence[2]) if partial else []
        source = [*self._block, partial] if partial.strip() else self._block
        if not source:
            return []
        gap = [""] if self._gap and self._begun else []
        return gap + self._rendered(source)

    # -- line by line --------------------------------------------------------------------------------------------------

    def _line(self, line: str) -> None:
        if self._fence is not None:
            self._line_of_code(line)
            return
        if not line.strip():
            if self._list is not None and self._block:
                self._blank = True
            else:
                self._commit()
                self._gap = True
            return
        indent = len(line) - len(line.lstrip(" "))
        if self._list is not None and not self._goes_on(line, indent):
            self._commit()
            self._list = None
            self._gap |= self._blank
            self._blank = False
        elif self._blank:
            self._blank = False
            self._add("")
        if (fence := _FENCE.match(line)) and (indent <= 3 or self._list is not None):
            self._open(fence)
        elif self._list is not None:
            self._line_of_list(line, indent)
        elif (item := _ITEM.match(line)) and indent <= 3 and self._may_begin(item[2]):
            self._commit()
            self._list = item.end() if item[3] else item.end(2) + 1
            self._add(line)
        elif _HEADING.match(line) or (not self._block and _RULE.match(line)):
            self._commit()
            self._add(line)
            self._commit()
        elif self._block and _UNDERLINE.match(line):  # of a heading
            self._add(line)
            self._commit()
        elif not self._block and _NAMED_LINK.match(line):  # no text in Markdown, and nothing is to be lost
            self._add("\\" + line.lstrip())
        else:
            self._add(line)
            self._limit()

    def _goes_on(self, line: str, indent: int) -> bool:
        """Whether a line belongs to the list."""
        assert self._list is not None
        if indent >= min(self._list, 2) or (_ITEM.match(line) and not _RULE.match(line)):
            return True
        # Without a blank line between, a line that begins nothing of its own belongs to the paragraph of the item.
        begins = _HEADING.match(line) or _FENCE.match(line) or _RULE.match(line)
        return bool(self._block) and not self._blank and not begins

    def _line_of_list(self, line: str, indent: int) -> None:
        assert self._list is not None
        item = _ITEM.match(line)
        if item and indent < min(self._list, 2):  # the next item, by which the one before is complete
            self._commit()
            self._list = item.end() if item[3] else item.end(2) + 1
        elif not self._block:  # behind code that was in the item: the rest of it, by itself
            line = line[min(indent, self._list) :]
        self._add(line)
        self._limit()

    def _may_begin(self, marker: str) -> bool:
        """Whether a list may begin here: in the middle of a paragraph, only one that begins with 1."""
        return not self._block or not marker[0].isdigit() or marker[:-1] == "1"

    def _add(self, line: str) -> None:
        self._block.append(line)
        self._size += len(line) + 1

    def _limit(self) -> None:
        """Render a block that has become long, as far as it is there."""
        if len(self._block) < _BLOCK and self._size < _LINE:
            return
        head = self._block[:2]
        table = len(head) == 2 and "|" in head[0] and bool(_TABLE_RULE.match(head[1]))
        self._commit()
        if table:
            for line in head:
                self._add(line)
            self._head_again = True

    def _commit(self) -> None:
        """Render the block under way: it is complete."""
        block, self._block, self._size = self._block, [], 0
        gap = block[-1:] == [""]
        while block and not block[-1].strip():
            block.pop()
        if not block:
            return
        head, self._head_again = self._head_again, False
        if head and len(block) == 2:  # the head of a table of which no rows are left
            return
        self._emit(self._rendered(block))
        self._gap = gap

    def _emit(self, lines: list[str]) -> None:
        if self._gap and self._begun:
            self._out.append("")
        self._gap, self._begun = False, True
        self._out += lines

    def _rendered(self, block: Sequence[str]) -> list[str]:
        source = "\n".join(block)
        lines = self.paint.lines(_Block(printable(source)))
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        # What is no text in Markdown, such as where a link leads that is named elsewhere: nothing is left out.
        return lines or self.paint.wrapped(source)

    def _end(self) -> None:
        if self._fence is not None:
            self._flush_code()
        else:
            self._commit()

    # -- code ----------------------------------------------------------------------------------------------------------

    def _open(self, fence: re.Match[str]) -> None:
        self._commit()
        language = fence[3].strip().partition(" ")[0][:30]
        self._fence = fence[2], len(fence[1]), language
        self._known.clear()
        self._emit([self._edge(language)])

    def _edge(self, title: str = "") -> str:
        room = min(self.paint.width - 1, 60)
        text = self.paint.cut(f"--- {title} " if title else "", room)
        return self.paint.text(text + "-" * (room - cell_len(text)), "dim")

    def _line_of_code(self, line: str) -> None:
        assert self._fence is not None
        marks, indent, _ = self._fence
        end = line.strip()
        if len(end) >= len(marks) and set(end) == {marks[0]} and len(line) - len(line.lstrip()) <= indent + 3:
            self._flush_code()
            self._out.append(self._edge())
            self._fence = None
            return
        self._code.append(line[min(indent, len(line) - len(line.lstrip(" "))) :])
        if len(self._code) >= 10 * _CONTEXT:
            self._flush_code()

    def _flush_code(self) -> None:
        if self._code and self._fence is not None:
            self._out += self.paint.code(self._code, self._known, self._fence[2])
            self._known.extend(self._code)
            self._code = []
