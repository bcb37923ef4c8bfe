"""Makes text from outside safe to show to people, especially on a terminal."""

from __future__ import annotations

# What a model or a server says must not move the cursor, retitle the window or hide what stood there before.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
# Nor may it change the order of what is read, or end a line where none ends.
_CONTROLS |= dict.fromkeys(
    (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF), "\N{REPLACEMENT CHARACTER}"
)


def printable(text: str) -> str:
    """``text`` without terminal control characters."""
    return text.translate(_CONTROLS)


def escaped(text: str) -> str:
    """``text`` in one line, where everything that cannot be seen is written as an escape: for what is decided on."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
