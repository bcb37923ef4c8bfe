"""`Spending`: the tokens, dollars and seconds that a stream has used, held against its budgets."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ..usage import Usage
from ._budget import Budget


class Spending:
    """The usage and the budgets of a stream and the streams nested in it. `add` is called by their workers."""

    def __init__(self, budgets: Iterable[Budget | None], above: Spending | None) -> None:
        self.budgets = [budget for budget in budgets if budget is not None]
        self.usage: Usage | None = None
        self._above = above
        self._blind: set[str] = set()
        #: Whether there is a budget at all, of this stream or one around it.
        self.bounded: bool = bool(self.budgets) or (above is not None and above.bounded)
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float | None:
        """How long the stream may take."""
        return min((b.seconds for b in self.budgets if b.seconds is not None), default=None)

    def add(self, usage: Usage) -> None:
        """Count what a model call used, here and in the streams around."""
        with self._lock:
            self.usage = usage if self.usage is None else self.usage + usage
        if self._above is not None:
            self._above.add(usage)

    @property
    def counts_cost(self) -> bool:
        """Whether a budget, of this stream or one around it, is in dollars."""
        return any(budget.cost is not None for budget in self._all_budgets())

    def is_blind(self, model: str) -> bool:
        """Whether a budget cannot be kept because ``model`` reports no usage. True once for each model."""
        if not self.bounded or model in self._blind:
            return False
        if all(each.tokens is None and each.cost is None for each in self._all_budgets()):
            return False
        self._blind.add(model)
        return True

    def exceeded(self) -> tuple[str, float, float] | None:
        """The budget that is used up, of this stream or one around it: its kind, the limit, what was used."""
        used = self.usage or Usage(cost=0.0)
        for budget in self.budgets:
            if budget.tokens is not None and used.tokens >= budget.tokens:
                return "tokens", budget.tokens, used.tokens
            if budget.cost is not None and used.cost is not None and used.cost >= budget.cost:
                return "cost", budget.cost, used.cost
        return None if self._above is None else self._above.exceeded()

    def _all_budgets(self) -> Iterable[Budget]:
        yield from self.budgets
        if self._above is not None:
            yield from self._above._all_budgets()

    def __repr__(self) -> str:
        return f"<Spending {self.usage!r} of {self.budgets!r}>"
