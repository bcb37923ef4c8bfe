"""`Fallback`: a model with others to stand in for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from channels import CancelToken

from .._checks import check_function, check_number
from .._errors import ModelError
from ..model import FallbackDelta, Model
from ._wrapper import Attempt, Steps, Wrapper

__all__ = ["Fallback", "is_no_answer"]


def is_no_answer(error: Exception) -> bool:
    """Whether another model may do better: yes, unless it is about what was asked."""
    return not (isinstance(error, ModelError) and error.code in ("bad_request", "refused", "context_overflow"))


class Fallback(Wrapper):
    """Calls ``model``, and if it fails before any of the reply has arrived, the ``others`` in turn until one answers.

    Each change of the model sends a `ModelFallback` event. A model that has failed is skipped for ``cooldown`` seconds,
    or for as long as its provider asks (`ModelError.retry_after`), by all streams that share this object; if all models
    are to be skipped, all are tried. An error after a piece of the reply has arrived is passed on. ``when`` takes an
    error and returns whether another model is to be tried. If no model answers, the error names them all.

    Thread-safe: several streams may share it. ``clock`` returns the time in seconds.
    """

    def __init__(
        self,
        model: Model,
        *others: Model,
        cooldown: float = 60.0,
        when: Callable[[Exception], bool] = is_no_answer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_number("cooldown", cooldown, "seconds", least=0)
        check_function("when", when, "from an exception to whether another model is to be tried")
        check_function("clock", clock, "that returns the time in seconds")
        super().__init__(model, *others)
        self._models = (model, *others)
        self._cooldown = cooldown
        self._when = when
        self._clock = clock
        self._rests_until: dict[int, float] = {}  # by identity: a model need not be hashable

    @property
    def id(self) -> str:
        """The id of the first model. A reply of another model is recorded and priced under that model's id."""
        return self._models[0].id

    def _steps(self, cancel: CancelToken) -> Steps:
        failures: list[Exception] = []
        for model, change in self._candidates(failures):
            if change is not None:
                yield change
            attempt = Attempt(model)
            try:
                yield attempt
                self._rests_until.pop(id(model), None)
                return
            except Exception as error:
                if cancel.cancelled or not self._failed(model, error) or attempt.said:
                    raise
                failures.append(error)

    def _candidates(self, failures: list[Exception]) -> Iterator[tuple[Model, FallbackDelta | None]]:
        """The models to ask, each with the change that it is. The caller adds to ``failures`` before it goes on."""
        now = self._clock()
        ready = [model for model in self._models if self._rests_until.get(id(model), now) <= now] or list(self._models)
        before, reason = self._models[0], "it failed a short while ago"
        for model in ready:
            yield model, None if model is self._models[0] else FallbackDelta(before.id, model.id, reason)
            before, reason = model, str(failures[-1]) or type(failures[-1]).__name__
        raise _none_answered(ready, failures)

    def _failed(self, model: Model, error: Exception) -> bool:
        """Whether another one may do better. Then this one rests."""
        if not self._when(error):
            return False
        asked = error.retry_after if isinstance(error, ModelError) else None
        self._rests_until[id(model)] = self._clock() + max(self._cooldown, asked or 0.0)
        return True

    def __repr__(self) -> str:
        return f"Fallback({', '.join(map(repr, self._models))}, cooldown={self._cooldown:g})"


def _none_answered(models: list[Model], failures: list[Exception]) -> Exception:
    last = failures[-1]
    if len(failures) == 1:
        return last
    each = "; ".join(f"{model.id}: {error}" for model, error in zip(models, failures, strict=True))
    known = [error for error in failures if isinstance(error, ModelError)]
    waits = [error.retry_after for error in known if error.retry_after is not None]
    together = ModelError(
        last.code if isinstance(last, ModelError) else "server_error",
        f"no model answered: {each}",
        retryable=any(error.retryable for error in known),
        retry_after=min(waits, default=None),
    )
    together.__cause__ = last
    return together
