"""`Retry`: a model that is asked again when it fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

from channels import CancelToken
from channels._lazy import lazy_logger

from .._checks import check_function, check_number, is_number
from .._errors import ModelError
from ..model import Model
from ._wrapper import Attempt, Pause, Steps, Used, Wrapper

__all__ = ["Retry", "exponential", "is_passing"]

_logger = lazy_logger("runtime")


def exponential(
    first: float = 0.5, longest: float = 30.0, *, random: Callable[[], float] = random.random
) -> Callable[[int], float]:
    """The seconds to wait after attempt 1, 2, 3 ...: ``first``, doubled each time, at most ``longest``. The actual wait
    is a random part of that, at least half, so that clients which failed together do not try again together.
    """

    check_number("first", first, "seconds", least=0)
    check_number("longest", longest, "seconds", least=0)
    check_function("random", random, "that returns a number from 0 to 1")

    def wait(attempt: int) -> float:
        return float(min(longest, first * 2 ** min(attempt - 1, 64)) * (1 + random()) / 2)

    return wait


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed a little later: what a `ModelError` says of itself; a connection that broke or
    took too long.
    """
    return error.retryable if isinstance(error, ModelError) else isinstance(error, (ConnectionError, TimeoutError))


class Retry(Wrapper):
    """Calls ``model``, up to ``attempts`` times in all, as long as it fails before any of the reply has arrived.

    An error after a piece of the reply has arrived is passed on, because another attempt would send that piece twice.
    Between attempts it waits ``backoff(attempt)`` seconds, or as long as the provider asks (`ModelError.retry_after`)
    if that is longer. If the provider asks for more than ``patience`` seconds, the error is passed on. A cancel ends
    the wait at once. ``when`` takes an error and returns whether to try again.

    Thread-safe: several streams may share it, and wait independently. Failed attempts are logged at level INFO.
    """

    def __init__(
        self,
        model: Model,
        *,
        attempts: int = 4,
        backoff: Callable[[int], float] | None = None,
        patience: float = 60.0,
        when: Callable[[Exception], bool] = is_passing,
    ) -> None:
        if not is_number(attempts, least=1, whole=True):
            raise ValueError(f"attempts must be a whole number, 1 or more, not {attempts!r:.200}")
        check_number("patience", patience, "seconds", least=0)
        if backoff is not None:
            check_function("backoff", backoff, "from the number of an attempt to the seconds to wait after it")
        check_function("when", when, "from an exception to whether to try again")
        super().__init__(model)
        self._model = model
        self._attempts = attempts
        self._backoff = exponential() if backoff is None else backoff
        self._patience = patience
        self._when = when

    @property
    def id(self) -> str:
        """The id of the model."""
        return self._model.id

    def _steps(self, cancel: CancelToken) -> Steps:
        used = Used(self._model)
        for number in count(1):
            attempt = Attempt(self._model, used)
            try:
                yield attempt
                return
            except Exception as error:
                wait = None if attempt.said or cancel.cancelled else self._wait(number, error)
                if wait is None:
                    raise
                reason = str(error) or type(error).__name__
            yield Pause(wait)
            yield from used.again(reason)

    def _wait(self, attempt: int, error: Exception) -> float | None:
        """Seconds until the next attempt; None where there is none."""
        if attempt >= self._attempts or not self._when(error):
            return None
        asked = error.retry_after if isinstance(error, ModelError) else None
        if asked is not None and asked > self._patience:
            return None
        wait = max(self._backoff(attempt), asked or 0.0)
        _logger.info("%s: attempt %d of %d, the next in %.1f s: %s", self.id, attempt, self._attempts, wait, error)
        return wait

    def __repr__(self) -> str:
        return f"Retry({self._model!r}, attempts={self._attempts})"
