"""The README says nothing that does not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("source", [block for block in BLOCKS if "__main__" not in block])
def test_program(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints what it says."""
    exec(compile(source, "README.md", "exec"), {"__name__": "__main__"})
    said = re.findall(r"# prints: (.*)$", source, re.MULTILINE)
    assert said
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == said


def test_the_program_is_the_example() -> None:
    """What is shown is what `test_end_to_end` runs."""
    [shown] = [block for block in BLOCKS if "__main__" in block]
    assert (ROOT / "examples" / "booking.py").read_text(encoding="utf-8").endswith(shown)


def test_make_knows_its_targets() -> None:
    """Those that are named. (Links are for test_docs.)"""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)", README):
        if target not in ("is", "and"):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
