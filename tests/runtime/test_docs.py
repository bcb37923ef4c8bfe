"""The pages about the runtime say nothing that does not run.

The blocks of Python of a page are one program, in their order: the first says what the others share. What a block
prints is written in it, as ``# prints: ...``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.agent._hooks import HOOK_POINTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "approval.md", "context.md", "hooks.md", "limits.md", "models.md", "output.md",
    "replay.md", "steering.md", "teams.md", "tools.md",
]  # fmt: skip
EXTRAS = {"models.md": ["openai", "anthropic"]}

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", PAGES)
def test_examples(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each prints what it says."""
    for extra in EXTRAS.get(page, ()):
        pytest.importorskip(extra, reason=f"the extra {extra} is not installed")
    path = ROOT / "docs" / page
    text = path.read_text(encoding="utf-8")
    shared: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        source = "\n" * line + block[1]  # a traceback leads to the page
        exec(compile(source, str(path), "exec", dont_inherit=True), shared)
        said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert said == PRINTS.findall(block[1]), f"{page}:{line + 1}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Files that are named are there."""
    for target in LINK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
        assert (ROOT / "docs" / target).exists(), target


def test_every_feature_of_the_readme_has_a_page_and_a_test() -> None:
    """Each row of its table leads to a section with an example, and to tests."""
    rows = re.findall(
        r"^\| .* \| \[\w+\]\(docs/(\S+?)\) \| (.*) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) >= 6
    for target, tests in rows:
        page, _, section = target.partition("#")
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        part = text
        if section:
            [part] = [each for each in re.split(r"^## ", text, flags=re.MULTILINE) if _anchor(each) == section]
        assert BLOCK.search(part), target
        assert all((ROOT / test).read_text(encoding="utf-8").count("\ndef test_") for test in LINK.findall(tests))
        assert LINK.findall(tests), target


def _anchor(section: str) -> str:
    """Of its heading, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", section.partition("\n")[0].lower()).replace(" ", "-")


def test_the_table_of_hook_points_is_whole() -> None:
    """Each point, and what it takes."""
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", text, re.MULTILINE))
    assert set(rows) == set(HOOK_POINTS)
    for point, takes in HOOK_POINTS.items():
        assert sorted(re.findall(r"\b(block|context|allow|updated_\w+)\b", rows[point])) == sorted(takes), point
