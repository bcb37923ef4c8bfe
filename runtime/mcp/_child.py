"""A child process, with its pipes on an event loop.

A process and its pipes always have an owner that ends them, wherever a start is cut off. (`asyncio`'s own
``create_subprocess_exec`` connects the pipes in tasks of its own. Whoever closes a loop cancels those too, and the
pipes that they have not connected yet are left to the garbage collector.)

- Until the process is made, it belongs to the helper thread that makes it, which ends it if it was given up meanwhile.
- From then on it belongs to the `Child`, whose `kill` and `close` can be called at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

from channels import _timer

if sys.platform == "win32":
    from asyncio.windows_utils import Popen  # whose pipes an event loop can read
else:
    from subprocess import Popen

# Seconds until the end of a process that was killed is seen. On a busy machine that takes its time.
KILLED: Final = 1.0


class Child:
    """A process in a session of its own. Used on the thread of one event loop, but for `kill` and `signal`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: str | None, limit: int) -> None:
        self._command = command
        self._env = env
        self._cwd = cwd
        self._limit = limit  # bytes of a line of its output
        self._process: Popen[bytes] | None = None
        self._fate = [None]  # whoever takes it decides: the helper thread that the process goes on, `kill` that it ends
        self._given_up = False
        self._transports: list[asyncio.ReadTransport | asyncio.WriteTransport] = []
        self._parent = os.getpid()
        self.stdin: asyncio.StreamWriter
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader

    async def start(self) -> None:
        """Make the process and connect its pipes. If that fails or is cancelled, nothing of it is left."""
        # On a thread that lives as long as the loop: the kernel kills a process of `tied` with the thread that made it.
        making = asyncio.get_running_loop().run_in_executor(None, self._make)
        try:
            await asyncio.wait([making])
            process = making.result()
            if process is None:  # it was killed
                raise ProcessLookupError(self._command[0])
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            self.stdout = await self._reader(process.stdout)
            self.stderr = await self._reader(process.stderr)
            self.stdin = await self._writer(process.stdin)
        except BaseException as error:
            self.kill()
            try:
                if not isinstance(error, GeneratorExit):  # the loop is over, and nothing can be awaited
                    await asyncio.wait([making], timeout=KILLED)
                    await self.exits(KILLED)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    if not making.cancel() and not making.cancelled():
                        making.exception()  # which asyncio would log
                self.close()
            raise

    def _make(self) -> Popen[bytes] | None:
        """On a helper thread, as the system takes its time."""
        if not self._fate:
            return None
        pipe = subprocess.PIPE
        process = Popen(
            self._command,
            bufsize=0,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=self._env,
            cwd=self._cwd,
            start_new_session=True,  # a Ctrl-C in the terminal is ours, and signals reach its children too
        )
        self._process = process
        with contextlib.suppress(IndexError):
            self._fate.pop()
            return process
        self.signal(_KILL)
        for each in _pipes(process):
            each.close()
        process.wait()
        return None

    async def _reader(self, pipe: IO[bytes]) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(self._limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        self._transports.append(transport)
        return reader

    async def _writer(self, pipe: IO[bytes]) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())  # for its flow control
        transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)

    @property
    def returncode(self) -> int | None:
        """None while it runs, and where it was never made."""
        return None if self._process is None else self._process.poll()

    async def exits(self, seconds: float) -> bool:
        """Whether it ends. What it has started may have its pipes still."""
        process = self._process
        if process is None:
            return True
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def on_end() -> None:
            if not ended.done():
                ended.set_result(None)

        try:
            descriptor = os.pidfd_open(process.pid)  # which can be read once the process has ended
        except (AttributeError, OSError):  # the system, or its sandbox, has none
            return await _looked_for(process, seconds)
        try:
            if process.poll() is not None:  # before the descriptor was opened, and it may be that of another process
                return True
            loop.add_reader(descriptor, on_end)
            try:
                await asyncio.wait([ended], timeout=seconds)
            finally:
                loop.remove_reader(descriptor)
        finally:
            os.close(descriptor)
        if ended.done():
            process.wait()  # at once. `poll` knows nothing while another thread is asking
        return process.poll() is not None

    def kill(self) -> None:
        """Kill the process, with what it started, if it has not ended; as soon as it is made, if it is being made. Any
        thread, and a finalizer too.
        """
        with contextlib.suppress(IndexError):
            self._fate.pop()
            self._given_up = True
            return
        self.signal(_KILL)
        process = self._process
        if process is not None and process.returncode is None and os.getpid() == self._parent:
            # Its loop may stand still, or be closed before it sees the end: the process would stay as a zombie.
            _timer.call_soon(functools.partial(_reap, process))  # not from here: this may be a finalizer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and what it started, if it has not ended. Any thread."""
        process = self._process
        if process is None or os.getpid() != self._parent or process.poll() is not None:
            return  # a forked child leaves its parent's processes alone
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                process.terminate()
            else:
                os.killpg(process.pid, number)

    def close(self) -> None:
        """Close its pipes, which stay open else as long as a child of the process has them."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            for transport in self._transports:
                transport.close()
                if isinstance(transport, asyncio.WriteTransport) and transport.get_write_buffer_size():
                    transport.abort()  # what is not written yet would keep it open
        # A transport closes its pipe in the next step of the loop, which may not come.
        if self._process is not None and not self._given_up:
            for pipe in _pipes(self._process):
                pipe.close()


_KILL: Final = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL


def _reap(process: Popen[bytes]) -> None:
    with contextlib.suppress(RuntimeError):  # no thread begins while the interpreter exits, and no zombie outlives that
        threading.Thread(target=process.wait, name="lockgate-reaper", daemon=True).start()


def _pipes(process: Popen[bytes]) -> list[Any]:
    return [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe is not None]


async def _looked_for(process: Popen[bytes], seconds: float) -> bool:
    """Whether a process ends, by looking now and then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = 0.001
    while process.poll() is None:
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.02)
    return True
