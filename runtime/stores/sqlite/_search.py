"""Searching: an index of words (FTS5) that is brought up to date when somebody searches, not when something is said.

So an append costs nothing for it, and a file may be used in turn by a Python whose SQLite has FTS5 and one whose has
not: that one reads all messages instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from .._search_terms import words
from ._file import Connection, first
from ._rows import SHIFT

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
    left = "SELECT 1 FROM search WHERE stale UNION ALL SELECT 1 FROM sessions WHERE indexed < messages LIMIT 1"
    return connection.execute(left).fetchone() is not None


def index(connection: Connection) -> bool:
    """Add some messages to the index; whether there may be more."""
    if first(connection.execute("SELECT stale FROM search").fetchone()):
        connection.execute("DROP TABLE IF EXISTS word_index")
        connection.execute("UPDATE sessions SET indexed = 0")
        connection.execute("UPDATE search SET stale = 0")
    connection.execute(_TABLE)
    room = _AT_ONCE
    for session, indexed, messages in connection.execute(
        "SELECT number, indexed, messages FROM sessions WHERE indexed < messages ORDER BY number LIMIT ?", (_AT_ONCE,)
    ).fetchall():
        until = min(messages, indexed + room)
        room -= until - indexed
        rows = _items(connection, session, indexed, until)
        connection.executemany("INSERT INTO word_index (rowid, words) VALUES (?, ?)", rows)
        connection.execute("UPDATE sessions SET indexed = ? WHERE number = ?", (until, session))
        if not room:
            return True
    return False


def forget(connection: Connection, sessions: Sequence[int], fts5: bool) -> None:
    """Take the messages of the sessions out of the index, before they are deleted."""
    for session in sessions:
        indexed = first(connection.execute("SELECT indexed FROM sessions WHERE number = ?", (session,)).fetchone())
        if indexed and fts5:
            connection.executemany(
                "INSERT INTO word_index (word_index, rowid, words) VALUES ('delete', ?, ?)",
                _items(connection, session, 0, indexed),
            )
        elif indexed:  # whoever can makes it anew
            connection.execute("UPDATE search SET stale = 1")


def condition(query: str, fts5: bool) -> tuple[str, list[Any]]:
    """The SQL by which a session (``s``) has all words of the query, in its title or its messages."""
    wanted = words(query)
    found = (
        f"s.number IN (SELECT rowid >> {SHIFT} FROM word_index WHERE word_index MATCH ?)"
        if fts5
        else f"EXISTS (SELECT 1 FROM items WHERE number >= s.number << {SHIFT} AND number < s.number + 1 << {SHIFT}"
        " AND message_has_word(data, ?))"
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


def _items(connection: Connection, session: int, start: int, end: int) -> list[tuple[int, str]]:
    """The numbers of some messages, and their words as they are indexed."""
    above = session << SHIFT
    rows = connection.execute(
        "SELECT number, data FROM items WHERE number >= ? AND number < ?", (above + start, above + end)
    ).fetchall()
    return [(number, " ".join(words(json.loads(data)["content"]))) for number, data in rows]
