"""Background tasks, as the stream that they belong to knows them."""

from __future__ import annotations

import time
from collections.abc import Collection

from channels import Cancelled, CancelToken, ChannelClosed

from ..execution._calls import Call
from ._end_reason import Ending


class BackgroundTask:
    """A sub-agent that runs in the background."""

    def __init__(self, id: str, agent_name: str, ending: Ending, stopping: CancelToken, call: Call) -> None:
        self.id = id
        self.agent_name = agent_name
        self._ending = ending  # of its own stream, as is what stops it
        self._stopping = stopping
        self.call = call  # of its parent's: over when it has been read to its end
        self.text: list[str] = []  # said so far
        self.began = time.monotonic()
        self.ended: float | None = None

    @property
    def running(self) -> bool:
        """Whether the task has not ended."""
        return self.ended is None

    @property
    def status(self) -> str:
        """``running``, ``completed``, ``stopped`` or ``failed``."""
        reason = self._ending.reason
        return "running" if self.running else {"normal": "completed", "canceled": "stopped"}.get(reason, "failed")

    @property
    def seconds(self) -> float:
        """How many seconds the task has run."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def output(self) -> str:
        """The text of the sub-agent so far, and why it failed, if it did."""
        said = "".join(self.text)
        return f"{said}\n{self._ending.message}".strip() if self.status == "failed" else said

    def stop(self, cause: str) -> None:
        """Ask the task to end; does not wait."""
        self._stopping.cancel(cause)

    def wait(self, timeout: float | None, cancel: CancelToken | None) -> bool:
        """Wait for the end of the task. Returns False if it takes longer than ``timeout`` seconds. Raises
        `Cancelled`."""
        try:
            self.call.done.recv(timeout, cancel)
        except ChannelClosed:
            return True
        except TimeoutError:
            pass
        return False

    def __repr__(self) -> str:
        return f"<BackgroundTask {self.id} {self.agent_name}, {self.status}>"


def stop_all(tasks: Collection[BackgroundTask], token: CancelToken, grace: float) -> None:
    """Stop the tasks, and wait for their end, for at most ``grace`` seconds or until ``token`` is cancelled. Called by
    the worker of the stream that they belong to.
    """
    if not tasks:
        return
    for task in tasks:
        task.stop("the agent that started it has ended")
    deadline = CancelToken(token, timeout=grace)
    for task in tasks:
        try:
            task.wait(None, deadline)
        except Cancelled:
            return
