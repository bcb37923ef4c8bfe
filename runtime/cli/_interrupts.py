"""Ctrl-C and the other signals that end a run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from ..dump import dump
from ..stream._event_stream import EventStream
from ._ask import Read
from ._terminal import Terminal

INTERRUPTED: Final = 130


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP: the first ends the stream, the second the process."""

    def __init__(self) -> None:
        self.pressed = 0
        self.status = INTERRUPTED
        self.cause = "interrupted by the user"
        self._stream: EventStream | None = None
        self._reading = False
        self._before: dict[int, Any] = {}
        self._handler: Callable[[int], None] | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # Ignored: as in the background of a script, or under nohup.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
                self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, _show_dump)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._handler is not None:
            self._handler(number)
            if self._reading:
                raise KeyboardInterrupt
            return
        self.pressed += 1
        if self.pressed > 1:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, b"\n")
            os._exit(128 + number)
        self.status = 128 + number
        if number != signal.SIGINT:
            self.cause = f"ended by {signal.Signals(number).name}"
        if self._stream is not None:
            self._stream.cancel(self.cause)
        if self._stream is None or self._reading:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def ending(self, stream: EventStream) -> Iterator[None]:
        """Within, Ctrl-C ends ``stream`` and nothing else."""
        self._stream = stream
        try:
            yield
        finally:
            self._stream = None

    @contextlib.contextmanager
    def handled_by(self, handler: Callable[[int], None]) -> Iterator[None]:
        """Within, ``handler`` is called with the number of each signal, and says what it ends."""
        self._handler = handler
        try:
            yield
        finally:
            self._handler = None

    def reading(self, terminal: Terminal) -> Read:
        """`Terminal.read`, which Ctrl-C leaves."""

        def read(prompt: str, over: Callable[[], bool]) -> str:
            self._reading = True
            try:
                return terminal.read(prompt, over)
            finally:
                self._reading = False

        return read


def _show_dump(number: int, frame: FrameType | None) -> None:
    """The handler of SIGUSR1: what the streams wait for, on standard error. It comes into the middle of anything, also
    of a line that is being written, so it goes round `Terminal`; nothing in it can end the run.
    """
    with contextlib.suppress(Exception):
        text = f"\n{dump()}\n".encode("utf-8", "replace")
        while text:
            text = text[os.write(2, text) :]
