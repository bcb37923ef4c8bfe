"""A run in a file, with secrets left out."""

from ._recording import Recording

__all__ = [
    "Recording",
]
