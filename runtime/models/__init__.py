"""Models that wrap other models. The models of providers are in modules of their own.

Each of these needs an extra: `runtime.models.local`, `runtime.models.openai`, `runtime.models.anthropic`.
"""

from .._public import publish
from .fallback import Fallback
from .idle import IdleTimeout
from .retry import Retry, exponential

__all__ = ["Fallback", "IdleTimeout", "Retry", "exponential"]

publish(__name__, globals(), __all__)
