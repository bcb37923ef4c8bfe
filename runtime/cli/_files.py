"""Why a file that the user has named cannot be written."""

from __future__ import annotations

from pathlib import Path


def why_unwritten(file: str, error: Exception) -> str:
    """What is wrong, and what to do where that is known."""
    directory = Path(file).parent
    if isinstance(error, FileNotFoundError) and not directory.is_dir():
        return f"there is no directory {directory}; make it first"
    return f"{file}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
