"""The pages about the runtime say nothing that does not run.

The blocks of Python of a page are one program, in their order: the first says what the others share. What a block
prints is written in it, as ``# prints: ...``.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from runtime import HookInput
from runtime.agent._hook_points import HOOK_POINTS
from runtime.cli import _command
from runtime.cli._interrupts import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

# Every page that has examples. Those of channels.md stand each by itself, in tests/channels/test_docs.py; those of
# engines.md and recipes.md are programs: test_recipes.py in tests/runtime/remote/ and in tests/runtime/serve/.
OTHERS = ("channels.md", "engines.md", "recipes.md")
PAGES = [
    page.name
    for page in sorted((ROOT / "docs").glob("*.md"))
    if page.name not in OTHERS and BLOCK.search(page.read_text(encoding="utf-8"))
]
SERVER = {"postgres.md"}  # their examples need PostgreSQL
EXTRAS = {
    "models.md": ["openai", "anthropic"],
    "mcp.md": ["mcp"],
    "telemetry.md": ["opentelemetry.sdk"],
    "serving.md": ["werkzeug", "waitress"],
    "chat.md": ["prompt_toolkit", "rich"],
}
TEXTS = [page.relative_to(ROOT).as_posix() for page in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", PAGES)
def test_examples(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each prints what it says."""
    monkeypatch.chdir(ROOT)  # where `examples/` is
    if page in SERVER:
        request.getfixturevalue("postgres")
        server = request.getfixturevalue("postgres_server")
        monkeypatch.setenv("PGHOST", server.directory)
        monkeypatch.setenv("PGUSER", "lockgate")
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


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files_and_headings(page: str) -> None:
    """Relative links only: nothing here goes out to the network."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])  # that one tells of the past
def test_files_that_are_named_are_there(page: str) -> None:
    """`runtime/events.py` in a sentence goes stale as a link does."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w./-])(?:channels|runtime|tests|examples|docs)/[\w./-]*[\w/]", text):
        assert (ROOT / name).exists(), name


def test_the_page_of_the_command_is_whole() -> None:
    """Its options and exit statuses are those of the command, which takes every line that the page shows."""
    text = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    parser = _command._parser()
    options = set(_options(parser)) - {"--version"}
    assert options - set(re.findall(r"`(--?\w[\w-]*)", text)) == {"-h", "--help"}
    assert set(re.findall(r"`(--?\w[\w-]*)", text)) - options == {"--version"}
    statuses = set(map(int, re.findall(r"^\| (\d+) \|", text, re.MULTILINE)))
    named = {_command.OK, _command.FAILED, _command.UNUSABLE, _command.WAITING, INTERRUPTED}
    assert named < statuses
    assert statuses == named | {129, 143, 141}  # 128 and the number of SIGHUP, SIGTERM and SIGPIPE
    lines = re.findall(r"^\$ (?:.*\| )?lockgate (.*)$", text, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        parser.parse_args(shlex.split(line, comments=True))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Those of the parser, and of the commands in it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _options(command)


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
        assert FENCE.search(part), target
        assert all((ROOT / test).read_text(encoding="utf-8").count("\ndef test_") for test in LINK.findall(tests))
        assert LINK.findall(tests), target


def _anchor(section: str) -> str:
    """Of its heading, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", section.partition("\n")[0].lower()).replace(" ", "-")


def test_the_table_of_hook_points_is_whole() -> None:
    """Each point, what its hooks are told, and what they may answer."""
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    rows = {point: (told, takes) for point, told, takes in found}
    assert set(rows) == set(HOOK_POINTS)
    known = {each.name for each in fields(HookInput)}
    call = {"tool_name", "tool_use_id", "tool_input"}
    for point, (said, answers) in rows.items():
        row = HOOK_POINTS[point]
        told = set(re.findall(r"`(\w+)`", said)) & known | (call if "the call" in said else set())
        assert told == set(row.told), point
        assert sorted(re.findall(r"\b(block|context|allow|updated_\w+)\b", answers)) == sorted(row.takes), point


def test_every_page_is_found_by_its_task() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(LINK.findall(index))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == {"README.md"}
