"""`IdleTimeout`: a model whose silence is an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from functools import partial

from channels import Cancelled, CancelToken

from .._checks import check_number
from .._errors import ModelError
from ..execution import _threads
from ..execution._pump import Pump
from ..model import Delta, Model, OutputSchema
from ._wrapper import Messages, Tools, Wrapper, on_loop, on_thread

__all__ = ["IdleTimeout"]

AHEAD = 256  # how many deltas a synchronous model may run ahead


class IdleTimeout(Wrapper):
    """Calls ``model``, and gives the call up if no delta arrives for ``seconds``: a retryable `ModelError` with the
    code ``stalled``.

    The time also runs before the first delta. Only deltas count, not pings of the connection.

    A synchronous model runs in an additional thread, which cannot be interrupted. If the model has stalled, it is asked
    to stop through its ``cancel`` token, and whatever it still returns is dropped.
    """

    def __init__(self, model: Model, seconds: float) -> None:
        check_number("the idle timeout", seconds, "seconds", above=0)
        super().__init__(model)
        self._model = model
        self._seconds = seconds

    @property
    def id(self) -> str:
        """The id of the model."""
        return self._model.id

    async def _on_loop(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> AsyncIterator[Delta]:
        async with on_loop(self._model, messages, tools, cancel, output) as deltas:
            while True:
                limit = asyncio.timeout(self._seconds)
                try:
                    async with limit:
                        delta = await anext(deltas)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if limit.expired():
                        raise self._stalled() from None
                    raise  # the model's own
                yield delta

    def _on_thread(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> Iterator[Delta]:
        pump: Pump[Delta] = Pump(AHEAD, f"{self.id} deltas")
        inner = CancelToken(cancel)
        stalled = False

        def late() -> ModelError:
            nonlocal stalled
            stalled = True
            return self._stalled()

        run = partial(copy_context().run, pump.run, on_thread(self._model, messages, tools, inner, output))
        thread = _threads.start(run, f"lockgate-patience {self.id}")
        try:
            yield from pump.take(cancel, timeout=self._seconds, late=late)
        except Cancelled:
            if not cancel.cancelled:
                raise
        finally:
            inner.cancel("nobody waits for this reply any more")
            pump.close()
            if not stalled:
                thread.join()  # a stream that is cancelled waits for its threads, and names the one that is stuck

    def _stalled(self) -> ModelError:
        return ModelError("stalled", f"{self.id} has said nothing for {self._seconds:g} s: try again", retryable=True)

    def __repr__(self) -> str:
        return f"IdleTimeout({self._model!r}, {self._seconds:g})"
