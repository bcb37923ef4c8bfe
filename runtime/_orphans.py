"""Child processes that end with this process, whatever signal ended it: SIGKILL leaves no time to end them.

On Linux the kernel kills them. The child has to ask for that itself before it becomes the program that is wanted,
which `setpriv` does; code of ours cannot, between a fork and an exec in a process with threads. Elsewhere, and where
there is no such `setpriv`, programs are started as they are, and see the end of their input.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final


def tied(command: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """``command``, so that its process is killed when the thread that starts it ends, with its process or before.

    A program that cannot be found is left as it is: the error shall name it.
    """
    path = None if env is None else env.get("PATH")
    wrapper = _wrapper() if shutil.which(command[0], path=path) else []
    return [*wrapper, *command]


def tied_with_children(command: Sequence[str]) -> list[str]:
    """The same for what the command starts as well, as far as it stays in its process group. The caller gives it a
    session of its own.

    The kernel ends the first process only. That is a shell here, which is asked to end and then kills its group. It
    keeps none of the pipes to itself, so whoever writes to one still hears that nobody reads.
    """
    wrapper = _wrapper() if shutil.which(command[0]) and shutil.which("sh") else []
    if not wrapper:
        return list(command)
    return [*wrapper[:-2], "TERM", "--", "sh", "-c", _LEADER, "sh", *command]


#: In a shell, what runs in the background reads from nowhere unless it is told otherwise.
_LEADER: Final = """trap 'kill -9 0' TERM; exec 3<&0 </dev/null; "$@" <&3 3<&- & exec 3<&-; wait "$!\""""


@functools.cache
def _wrapper() -> list[str]:
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return []
    wrapper = [setpriv, "--pdeathsig", "KILL", "--"]
    try:  # one of busybox, or an old one, does not know the option
        worked = subprocess.run([*wrapper, "true"], capture_output=True, timeout=5).returncode == 0
    except (OSError, subprocess.SubprocessError):
        worked = False
    return wrapper if worked else []
