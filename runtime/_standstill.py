"""Telling that this process stood still, stopped or on a computer that was closed, from the silence of somebody else.

A time is counted in pieces. One that ends much too late does not count: nobody could be heard meanwhile.
"""

from __future__ import annotations

from typing import Final

PIECES: Final = 4  # in which a time is counted
_LATE: Final = 1.0  # seconds; less is a busy machine's way


def counts(piece: float, late: float) -> bool:
    """Whether a piece of so many seconds counts that has ended so many seconds late: not where it is late by as much as
    itself.
    """
    return late < max(piece, _LATE)
