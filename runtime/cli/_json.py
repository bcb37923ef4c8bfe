"""`lockgate run --json`: the events of a run for another program, a line of JSON for each."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator

from ..events import Event
from ._terminal import CannotWrite, Terminal


class JsonLines:
    """Gives ``write`` the events in their wire form, each as soon as it comes. Takes the place of a `Screen`."""

    def __init__(self, write: Callable[[str], object], terminal: Terminal) -> None:
        self._write = write
        self._terminal = terminal

    def write(self, event: Event) -> None:
        """Write the event. In ASCII: nothing in it is anything to a terminal, whatever the locale."""
        self._write(json.dumps(event.to_dict(), default=repr) + "\n")

    def show(self, event: Event) -> None:
        """Nothing is shown."""

    def wait(self) -> None:
        """Say on standard error, when it takes long, that the run goes on."""
        self._terminal.waiting("running")


@contextlib.contextmanager
def standard_output() -> Iterator[Callable[[str], object]]:
    """A function that writes to standard output, which is the caller's alone: what tools print goes to standard error
    meanwhile, and so does what the programs print that they start. It would spoil a line of JSON.
    """
    out, err = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(err):
        try:
            number, other = out.fileno(), err.fileno()
        except (AttributeError, OSError, ValueError):  # no files of the system
            yield out.write
            return
        out.flush()
        own = os.dup(number)
        os.dup2(other, number)

        def write(text: str) -> None:
            left = text.encode("ascii")
            try:
                while left:
                    left = left[os.write(own, left) :]
            except BrokenPipeError:
                raise
            except OSError as error:
                raise CannotWrite(error) from error

        try:
            yield write
        finally:
            os.dup2(own, number)
            os.close(own)
