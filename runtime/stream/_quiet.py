"""Streams that nobody watches: their consumer only wants the result, and is asked what the run needs.

Such a consumer may be busy with something else for long. The events that it would only throw away are not sent to it,
so a full channel does not hold the run up meanwhile, and no event wakes its thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from channels import Cancelled

from ..events import ElicitationRequest, Event, MaxIterationsReached, ToolCallConfirmation
from ._core import StreamCore
from ._private_events import ConsumerCall

WANTED: Final = (ElicitationRequest, ToolCallConfirmation, MaxIterationsReached, ConsumerCall)


class QuietCore(StreamCore):
    """A stream whose consumer gets only what asks something of it, and the last event."""

    def emit(self, event: Event) -> None:
        """As `StreamCore.emit`. With observers the forwarder needs every event, and drops those that are not wanted."""
        if self.observed or isinstance(event, WANTED):
            super().emit(event)
            return
        if self._outbox.unwritten:  # what the worker does next is done only after the store has what it did before
            self.commit()
        if self.token.cancelled:  # a send would have ended the run here
            raise Cancelled(self.token.cause)

    def try_emit(self, event: Event) -> bool:
        """As `StreamCore.try_emit`."""
        if self.observed or isinstance(event, WANTED):
            return super().try_emit(event)
        return not (self._outbox.unwritten or self.token.cancelled)

    def emit_many(self, batch: Sequence[Event], gives_way: bool = True) -> None:
        """As `StreamCore.emit_many`."""
        if self.observed:
            super().emit_many(batch, gives_way)
            return
        for sent, event in enumerate(batch):
            try:
                self.emit(event)
            except Cancelled as error:
                error.sent = sent  # type: ignore[attr-defined]
                raise
