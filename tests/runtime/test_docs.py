"""The pages about the runtime say nothing that does not run.

The blocks of Python of a page are one program, in their order: the first says what the others share. What a block
prints is written in it, as ``# prints: ...``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["hooks.md", "limits.md"]

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", PAGES)
def test_examples(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each prints what it says."""
    path = ROOT / "docs" / page
    text = path.read_text(encoding="utf-8")
    shared: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(path), "exec"), shared)  # a traceback leads to the page
        said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert said == PRINTS.findall(block[1]), f"{page}:{line + 1}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Files that are named are there."""
    for target in LINK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
        assert (ROOT / "docs" / target).exists(), target
