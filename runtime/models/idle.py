"""`IdleTimeout`: a model whose silence is an error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context

from channels import Cancelled, CancelToken, Channel, ChannelClosed

from .._checks import check_number
from .._errors import ModelError
from ..model import Delta, Model, OutputSchema
from ._wrapper import Messages, Tools, Wrapper, on_loop, on_thread

__all__ = ["IdleTimeout"]

AHEAD = 256  # how many deltas a synchronous model may run ahead


class IdleTimeout(Wrapper):
    """``model``, given up when it says nothing for ``seconds``: `ModelError` ``stalled``, worth another attempt.

    The time runs while the model is waited for, also for its first delta. Only deltas are signs of life.

    A synchronous model runs in a thread more. A thread cannot be interrupted: one that has stalled is told to stop, by
    the ``cancel`` it was given, and ends when it listens. What it says late is dropped.
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
        deltas: Channel[Delta] = Channel(AHEAD, name=f"{self.id} deltas")
        failures: list[BaseException] = []
        inner = CancelToken(cancel)

        def feed() -> None:
            try:
                with on_thread(self._model, messages, tools, inner, output) as source:
                    for delta in source:
                        try:
                            deltas.send(delta)
                        except ChannelClosed:
                            return
            except BaseException as error:  # raised again where the deltas are taken
                failures.append(error)
            finally:
                deltas.close()

        context = copy_context()
        thread = threading.Thread(target=lambda: context.run(feed), name=f"lockgate-idle {self.id}", daemon=True)
        thread.start()
        stalled = False
        try:
            while True:
                try:
                    delta = deltas.recv(timeout=self._seconds, cancel=cancel)
                except TimeoutError:
                    stalled = True
                    raise self._stalled() from None
                except (ChannelClosed, Cancelled):
                    break
                yield delta
        finally:
            inner.cancel("nobody waits for this reply any more")
            deltas.close()
            if not stalled:
                thread.join()  # a stream that is cancelled waits for its threads, and names the one that is stuck
        if failures:
            raise failures[0]

    def _stalled(self) -> ModelError:
        return ModelError("stalled", f"{self.id} has said nothing for {self._seconds:g} s: try again", retryable=True)

    def __repr__(self) -> str:
        return f"IdleTimeout({self._model!r}, {self._seconds:g})"
