"""Writes the record of a stream on a helper thread, so that the stream does not wait for a disk."""

from __future__ import annotations

import threading
from typing import Final, Protocol

from channels import Channel, ChannelClosed, WouldBlock
from channels._lazy import lazy_logger

from .. import events
from .._errors import describe
from ..execution._calls import Call, Calls

_logger = lazy_logger("runtime")
QUEUE: Final = 4096  # events that wait to be written; then the run waits for the disk, within the grace time
_PATIENCE: Final = 10  # grace times that the end of a run waits for a record that does not go on


class Recorder(Protocol):
    """Writes events to a file, one after the other. Used by one thread at a time."""

    @property
    def written(self) -> int:
        """The number of lines that were written."""

    def on_event(self, event: events.Event) -> None:
        """Write the event, or keep it until the text that it is a piece of is complete."""

    def close(self) -> None:
        """Close the file. Doing it twice is harmless."""


class RecordWriter:
    """Queues the events of a stream for its recorder. A helper writes them one after the other, and runs as long as
    there are some; the stream waits for it only at its end. Used by the forwarder.
    """

    def __init__(self, recorder: Recorder, calls: Calls, grace: float) -> None:
        self._recorder = recorder
        self._calls = calls
        self._grace = grace
        self._waiting: Channel[events.Event] = Channel(QUEUE, name="events to be recorded")
        self._lock = threading.Lock()  # for _call: whether there is one that will see what is waiting
        self._call: Call | None = None
        self._over = False

    def tell(self, event: events.Event) -> None:
        """Queue the event. If an event cannot be written, this is logged, the record ends there, and the run goes
        on."""
        if self._over:
            return
        try:
            self._waiting.send(event, self._grace)
            with self._lock:
                if self._call is not None:
                    return
                call = self._call = Call("record", Channel(1, name="record"))
            try:
                self._calls.launch(call, self._write)
            except BaseException:
                self._call = None
                self._calls.withdraw(call)  # or the stream waits for what was never begun
                raise
        except TimeoutError:
            self._give_up("the disk is too slow for it")
        except BaseException as error:
            self._give_up(describe(error))

    def _write(self) -> None:
        """Write the queued events. Runs on a helper thread."""
        while True:
            with self._lock:
                try:
                    event = self._waiting.try_recv()
                except (WouldBlock, ChannelClosed):
                    self._call = None
                    if self._over:
                        self._recorder.close()
                    return
            if self._over:
                continue
            try:
                self._recorder.on_event(event)
            except BaseException as error:
                self._give_up(describe(error), error)

    def finish(self) -> None:
        """Wait until all events are written, as long as the writing makes progress."""
        patience = _PATIENCE * self._grace
        while not self._over and (call := self._call) is not None:
            before = self._recorder.written
            try:
                call.done.recv(timeout=patience)
            except TimeoutError:
                if self._recorder.written == before:
                    self._give_up(f"nothing was written for {patience:g} s")
            except ChannelClosed:
                pass
        with self._lock:
            self._over = True
            if self._call is None:  # else it is in use, and closed by the call that uses it
                self._recorder.close()

    def _give_up(self, reason: str, error: BaseException | None = None) -> None:
        if not self._over:
            self._over = True
            _logger.error("%r ends before its run: %s", self._recorder, reason, exc_info=error)

    def __repr__(self) -> str:
        return f"<RecordWriter of {self._recorder!r}, {len(self._waiting)} events wait>"
