"""Models that come with the runtime, and models made of other models.

Each of the first is imported from its own module, for each needs an extra of its own: `runtime.models.local`,
`runtime.models.openai`, `runtime.models.anthropic`.
"""

from .fallback import Fallback
from .idle import IdleTimeout
from .retry import Retry, exponential

__all__ = ["Fallback", "IdleTimeout", "Retry", "exponential"]
