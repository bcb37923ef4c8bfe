"""How long a server may be silent, where this process may stand still meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from .._standstill import PIECES, counts


class Patience:
    """`asyncio.timeout`, which a standstill of this process does not use up. Used by one task, on its loop."""

    def __init__(self, seconds: float) -> None:
        self._piece = seconds / PIECES
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None

    def begin_anew(self) -> None:
        """All of the time is left, from now on."""
        self._await_end(PIECES)

    def suspend(self) -> None:
        """There is as much time as it takes, until it begins anew."""
        if self._next is not None:
            self._next.cancel()

    def end(self) -> None:
        """The time is up. Harmless where it is, or nobody waits any more."""
        self.suspend()
        with contextlib.suppress(RuntimeError):
            self._timeout.reschedule(self._loop.time())

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._timeout.expired()

    def _await_end(self, left: int) -> None:
        self.suspend()
        due = self._loop.time() + self._piece
        self._next = self._loop.call_at(due, self._ring, left, due)

    def _ring(self, left: int, due: float) -> None:
        if counts(self._piece, self._loop.time() - due):
            left -= 1
        if left:
            self._await_end(left)
        else:
            self.end()

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self.begin_anew()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.suspend()
        await self._timeout.__aexit__(kind, error, traceback)
