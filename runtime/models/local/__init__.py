"""A model that runs in this process."""

from ._model import LocalModel

__all__ = [
    "LocalModel",
]
