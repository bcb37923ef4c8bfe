"""Searching: an index of words (FTS5) that is brought up to date when somebody searches, not when something is said.

So an append costs nothing for it, and a file may be used in turn by a Python whose SQLite has FTS5 and one whose has
not: that one reads all messages instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from .._words import words
from ._file import Connection, first

_AT_ONCE: Final = 500  # messages: others write in between
_TABLE: Final = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS word_index USING fts5"
    " (words, content = '', tokenize = \"unicode61 remove_diacritics 0 tokenchars '_'\")"
)


def has_fts5(connection: Connection) -> bool:
    """Whether this build of SQLite can index words."""
    return bool(first(connection.execute("SELECT count(*) FROM pragma_module_list WHERE name = 'fts5'").fetchone()))


def is_behind(connection: Connection) -> bool:
    """Whether there is no index yet, or something was said since it was brought up to date."""
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'word_index'").fetchone() is None:
        return True
    said = first(connection.execute("SELECT coalesce(max(number), 0) FROM items").fetchone())
    return bool(said > _indexed(connection))


def index(connection: Connection) -> bool:
    """Add some messages to the index; whether there may be more."""
    connection.execute(_TABLE)
    at = _indexed(connection)
    rows = connection.execute(
        "SELECT number, data FROM items WHERE number > ? ORDER BY number LIMIT ?", (at, _AT_ONCE)
    ).fetchall()
    connection.executemany(
        "INSERT INTO word_index (rowid, words) VALUES (?, ?)", [(number, text_of(data)) for number, data in rows]
    )
    if rows:
        connection.execute("UPDATE search SET indexed = ?", (rows[-1][0],))
    return len(rows) == _AT_ONCE


def forget(connection: Connection, sessions: Sequence[int]) -> None:
    """Take the messages of the sessions out of the index, before they are deleted."""
    at = _indexed(connection)
    if not at:
        return
    for session in sessions:
        rows = connection.execute("SELECT number, data FROM items WHERE session = ? AND number <= ?", (session, at))
        connection.executemany(
            "INSERT INTO word_index (word_index, rowid, words) VALUES ('delete', ?, ?)",
            [(number, text_of(data)) for number, data in rows.fetchall()],
        )


def condition(query: str, fts5: bool) -> tuple[str, list[Any]]:
    """The SQL by which a session (``s``) has all words of the query, in its title or its messages."""
    wanted = words(query)
    found = (
        "s.number IN (SELECT session FROM items WHERE number IN"
        " (SELECT rowid FROM word_index WHERE word_index MATCH ?))"
        if fts5
        else "EXISTS (SELECT 1 FROM items WHERE session = s.number AND message_has_word(data, ?))"
    )
    parts = [f"(has_word(s.title, ?) OR {found})" for _ in wanted]
    values = [each for word in wanted for each in (word, f'"{word}"' if fts5 else word)]
    return "".join(f" AND {part}" for part in parts), values


def add_functions(connection: Connection) -> None:
    """What the condition calls."""
    connection.create_function("has_word", 2, lambda text, word: word in words(text), deterministic=True)
    connection.create_function(
        "message_has_word", 2, lambda data, word: word in words(json.loads(data)["content"]), deterministic=True
    )


def text_of(data: str) -> str:
    """The words of a message, as they are indexed."""
    return " ".join(words(json.loads(data)["content"]))


def _indexed(connection: Connection) -> int:
    number: int = first(connection.execute("SELECT indexed FROM search").fetchone())
    return number
