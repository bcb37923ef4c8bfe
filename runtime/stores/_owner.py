"""Who has the lease of a session: which process, of which machine, and whether that is surely gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. ``host`` and ``pid`` are for people; the rest tells it from others that have the same.

    Two containers may have one host name, and have a process 1 each: ``machine`` is the boot of the kernel and the
    namespace of the process numbers, where the system tells them. ``started`` is when the process did, for its number
    is given again.
    """

    host: str
    pid: int
    machine: str
    started: str

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _machine(), _started(pid))

    @property
    def gone(self) -> bool:
        """Whether the process has surely ended. One on another machine may be there or not: False."""
        if os.name != "posix" or self.machine != _machine():  # elsewhere signal 0 is one that ends a process
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is another user's
            pass
        return self.started != "" and _started(self.pid) not in ("", self.started)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Owner:
        """The owner that `to_dict` wrote."""
        return cls(data["host"], data["pid"], data["machine"], data["started"])

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {os.name}"


def _started(pid: int) -> str:
    """When the process started, in clock ticks since the boot; empty where the system does not tell."""
    try:
        # Behind the name, which may have spaces and brackets in it. A zombie has ended.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return ""
