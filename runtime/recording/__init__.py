"""Records of runs: files with the events and the model traffic, secrets left out."""

from ._recording import Recording

__all__ = [
    "Recording",
]
