"""Runs the command of a hook: what it is told goes to its standard input, what it says is read within bounds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from channels import CancelToken
from channels._lazy import lazy

from .._dataclasses import dataclass
from .._errors import HookFailed

if TYPE_CHECKING:
    import json
    import signal
    import subprocess
else:
    json = lazy("json")
    signal = lazy("signal")

MOST: Final = 1_000_000  # bytes of each output: a command that writes without end shall not fill the memory


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """How a command ended."""

    status: int
    out: str
    err: str


def run_command(
    command: str | Sequence[str], told: Mapping[str, Any], cwd: str, timeout: float, cancel: CancelToken | None
) -> CompletedCommand:
    """Run ``command``, for ``timeout`` seconds at most; ``cancel`` ends it. All that it has started is killed with it.

    Raises `HookFailed` where it writes too much, `subprocess.TimeoutExpired`, and `OSError` where it cannot be run.
    """
    import subprocess  # a tenth of what importing this package takes, and few agents have commands

    from .._orphans import tied_with_children

    shell = isinstance(command, str) and os.name != "posix"
    if isinstance(command, str) and not shell:
        command = ["/bin/sh", "-c", command]
    process = subprocess.Popen(
        command if isinstance(command, str) else tied_with_children(command),
        shell=shell,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd or None,
        start_new_session=True,  # so that what the shell started dies with it
    )
    with process, contextlib.ExitStack() as stack:
        if cancel is not None:
            stack.enter_context(cancel.on_cancel(lambda: _kill(process)))
        try:
            out, err = _talk(process, json.dumps(told, default=str).encode(), timeout)
        except BaseException:
            _kill(process)
            raise
    return CompletedCommand(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def _talk(process: subprocess.Popen[bytes], told: bytes, timeout: float) -> tuple[bytes, bytes]:
    if os.name != "posix":  # elsewhere a pipe cannot be waited for
        return process.communicate(told, timeout=timeout)
    import selectors
    import subprocess

    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = time.monotonic() + timeout
    read: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    left = memoryview(told)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        for stream in read:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise subprocess.TimeoutExpired(process.args, timeout)
            for key, _ in selector.select(remaining):
                if key.fileobj is process.stdin:
                    try:
                        left = left[os.write(key.fd, left) :]
                    except BrokenPipeError:  # it does not care what it is told
                        left = left[:0]
                    if not left:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                piece = os.read(key.fd, 65_536)
                if not piece:
                    selector.unregister(key.fileobj)
                read[key.fileobj] += piece
                if len(read[key.fileobj]) > MOST:
                    raise HookFailed(f"it writes more than {MOST:,} bytes")
        process.wait(max(0.0, deadline - time.monotonic()))
    return bytes(read[process.stdout]), bytes(read[process.stderr])


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
