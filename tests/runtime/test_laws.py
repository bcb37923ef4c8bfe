"""docs/laws.md names every law, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)


def test_all_are_there() -> None:
    assert [int(number) for number, _, _ in ROWS] == [*range(1, 26)]


def test_the_tests_exist() -> None:
    missing = []
    for _, _, tests in ROWS:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert named, tests
        assert len(named) == tests.count("`") // 2, tests
        for file, name in named:
            where = [path for path in ROOT.glob(f"tests/**/{file}") if f"def {name}(" in path.read_text("utf-8")]
            if not where:
                missing.append(f"{file}::{name}")
    assert not missing
