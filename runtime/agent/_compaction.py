"""`Compaction`: when and how a long conversation is made shorter for the model."""

from __future__ import annotations

from types import NoneType

from .._checks import check, is_number
from .._dataclasses import dataclass
from ..model import Model


@dataclass(frozen=True, slots=True)
class Compaction:
    """When and how the conversation that a model is shown is shortened. The session keeps every message.

    A conversation is shortened before a model call that would fill more than the fraction ``at`` of the context window,
    and after a `ModelError` with code ``context_overflow``. First, old tool results are shortened to ``result_limit``
    characters. If that is not enough, ``model`` (by default the agent's own) writes a summary of the older messages.
    The recent messages, as many as fill the fraction ``keep`` of the window, stay as they are.

    ``window`` is in tokens; by default it is the model's attribute `context_window`. If the window is unknown, only an
    overflow starts a compaction. The size of a conversation is what the model has reported, and one token for four
    characters of the messages since then.
    """

    at: float = 0.8
    keep: float = 0.3
    result_limit: int = 400
    window: int | None = None
    model: Model | None = None

    def __post_init__(self) -> None:
        numbers = is_number(self.at) and is_number(self.keep)
        if not numbers or not 0 < self.keep < self.at <= 1:
            raise ValueError(f"keep is less than at, and both from 0 to 1, not keep={self.keep!r} and at={self.at!r}")
        if self.window is not None and not is_number(self.window, least=1, whole=True):
            raise ValueError(f"a window must be a whole number of tokens, 1 or more, not {self.window!r}")
        if not is_number(self.result_limit, least=0, whole=True):
            raise ValueError(f"result_limit must be a whole number of characters, 0 or more, not {self.result_limit!r}")
        check("the model of a compaction", self.model, (Model, NoneType), "an object with an id and a stream method")
