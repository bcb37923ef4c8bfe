"""docs/architecture.md draws the rooms that there are, in the order that the import-linter holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rooms() -> set[str]:
    """The folders and modules of `runtime`, as the page names them: ``loop/``, ``events``."""
    inside = [path for path in (ROOT / "runtime").iterdir() if not path.name.startswith("__")]
    folders = {f"{path.name}/" for path in inside if (path / "__init__.py").exists()}
    return folders | {path.stem for path in inside if path.suffix == ".py"}


def drawn() -> list[set[str]]:
    """The lines of the picture, from the top."""
    picture = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1].split("```")[1]
    lines = [line for line in picture.splitlines()[1:] if line.strip(" |")]
    return [set(re.split(r" {3,}", line.strip())[0].split("  ")) for line in lines]


def test_the_picture_is_that_of_the_contract() -> None:
    """Each line is a layer, with the rooms that stand side by side in it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    layers = [set(layer.split(" | ")) for layer in reversed(contract["layers"])]
    channels, *lines = drawn()
    assert channels == {"channels"}
    assert [{name.rstrip("/") for name in line} for line in lines] == layers


def test_every_room_is_in_the_picture_and_in_the_table() -> None:
    picture = set().union(*drawn()[1:])
    assert picture == rooms()
    table = re.findall(r"^\| `([\w.]+/?)` \|", PAGE.partition("## The way of")[0], re.MULTILINE)
    assert len(set(table)) == len(table)
    assert {name.removesuffix(".py") for name in table} == rooms()


def test_what_is_added_goes_where_something_like_it_is() -> None:
    """The names that a row of the table gives stand in the file that it names."""
    part = PAGE.partition("## Where do I add")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) >= 8
    for row in rows:
        for name, file in re.findall(r"`(\w+)` in `((?:runtime|tests)/[\w/.]+)`", row):
            assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), row
        assert re.search(r"`(?:runtime|tests|docs)/", row), row
