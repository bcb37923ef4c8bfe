"""The examples of the pages: every block of Python is a program that ends, leaves nothing behind, prints what it says.

What a block prints is written in it, in the order of the lines: ``# prints: ...``, after the statement or by itself. A
block without such a comment prints nothing, or leaves open what.
"""

from __future__ import annotations

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGES = ["docs/channels.md"]

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(#([^)]*)\)")


def anchor(heading: str) -> str:
    """As on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def examples():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            headings = HEADING.findall(BLOCK.sub("", text[: block.start()]))
            yield pytest.param(page, line, block[1], id=f"{page}:{line + 1} {headings[-1]}")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("page", "line", "source"), list(examples()))
def test_example(page, line, source, capsys):
    program = compile("\n" * line + source, str(ROOT / page), "exec")  # a traceback leads to the page
    exec(program, {"__name__": "__main__"})
    expected = PRINTS.findall(source)
    if expected:
        assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_page_lead_somewhere(page):
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    anchors = [anchor(heading) for heading in HEADING.findall(text)]
    assert len(set(anchors)) == len(anchors)
    assert set(LINK.findall(text)) <= set(anchors)


def test_every_row_of_the_table_has_an_example_that_runs():
    page = (ROOT / PAGES[0]).read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\[example\]\(#([^)]*)\) \|$", page, re.MULTILINE)
    assert len(rows) >= 20
    with_code = set()
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        if BLOCK.search(section):
            with_code.add(anchor(section.partition("\n")[0]))
    assert set(rows) <= with_code


def test_the_tests_are_not_in_the_way_of_the_package():
    """An example imports what a user would."""
    import channels

    assert pathlib.Path(sys.modules["channels"].__file__).parent == ROOT / "channels"
    assert channels.__all__
