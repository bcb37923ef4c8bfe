"""A model that runs in this process."""

from ..._public import publish
from ._model import LocalModel

__all__ = ["LocalModel"]

publish(__name__, globals(), __all__)
