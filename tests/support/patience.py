"""What the command says on standard error when something takes longer than a second."""

from __future__ import annotations

import re

STILL = re.compile(r"^still .+ \.\.\. \d+ s\n", re.MULTILINE)


def without_patience(errors: str) -> str:
    """Standard error, without that."""
    return STILL.sub("", errors)
