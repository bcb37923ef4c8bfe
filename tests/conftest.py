"""The net under the whole suite, and the tools for tests with threads.

`nothing_left_behind` fails every test that leaves a thread behind or loses an exception in one. The other fixtures
wait for what happens, never for time to pass, and all their waits are bounded: a law that is broken fails its test,
it does not hang the suite.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from channels._park import StandingWaiter, Waiter
from support import figures
from support.interrupts import uncalled_by_collections
from support.postgres import pooled, postgres, postgres_server

__all__ = ["pooled", "postgres", "postgres_server"]  # fixtures for all tests

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRACE = 10.0  # seconds that a thread a test has told to end may take
LONG = 30.0  # seconds after which something will never happen
PARKS = Waiter.wait.__code__, Waiter._wait_until.__code__, StandingWaiter.collect.__code__

# Threads that belong to the process, not to a test.
SERVICES = {
    "channels-timer",
    "channels-callback",  # ends when idle
    "lockgate-idle",  # of the cache of threads; ends when idle for long
    "explored",  # the explorer's own, idle between runs
}


def _is_service(thread: threading.Thread) -> bool:
    if thread.name in SERVICES or isinstance(thread, threading._DummyThread):
        return True
    aio: Any = sys.modules.get("channels.aio._loop")  # the process's own loop; any other has to be closed
    default = getattr(aio, "_default", None)
    life = getattr(default, "_life", None)
    return life is not None and (thread is life.thread or thread.name == f"{life.thread.name} helper")


def _where(threads: list[threading.Thread]) -> str:
    frames = sys._current_frames()
    lines = []
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "  (just ended)\n"
        lines.append(f"{thread!r}:\n{stack}")
    return "\n".join(lines)


def pytest_configure() -> None:
    """A shell starts what it puts in the background with Ctrl-C ignored, and nohup ignores the end of the terminal;
    Python leaves it so: tests that send these signals would wait for ever, here and in the processes they start.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    # What tests start writes as it does for most people: output that is left in a buffer counts as it ends.
    os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands over what its tests have counted."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = figures.packed()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Such a process has ended. One that has crashed has handed nothing over."""
    found = getattr(node, "workeroutput", {}).get("figures")
    if found is not None:
        figures.add(found)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was counted and measured, after the tests."""
    figures.write(terminalreporter)


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector, which many tests call, shall not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a thread behind, or an exception in a thread, a finalizer or a callback of the garbage
    collector.
    """
    before = set(threading.enumerate())
    lost: list[str] = []

    def in_thread(args: Any) -> None:
        lost.append(
            f"in {args.thread}: "
            + "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        )

    def unraisable(args: Any) -> None:
        lost.append(
            f"{args.err_msg or 'ignored'} in {args.object!r}: "
            + "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        )

    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = in_thread, unraisable
    try:
        yield
        deadline = time.monotonic() + GRACE
        left = [thread for thread in threading.enumerate() if thread not in before and not _is_service(thread)]
        if left:
            gc.collect()  # what ends a thread when it is dropped may hang in a cycle
        for thread in left:
            while thread.is_alive() and not _is_service(thread) and time.monotonic() < deadline:
                thread.join(0.001)  # or until it is idle, which is to be seen by its name
        left = [thread for thread in left if thread.is_alive() and not _is_service(thread)]
    finally:
        threading.excepthook, sys.unraisablehook = hooks
    if left:
        pytest.fail(f"{len(left)} thread(s) left behind\n{_where(left)}", pytrace=False)
    if lost:
        pytest.fail("exceptions that reached nobody:\n" + "\n".join(lost), pytrace=False)


class Task:
    """A thread of a test, and what its function returned or raised."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call: Any = (function, args, kwargs)
        self._value: Any = None
        self.error: BaseException | None = None
        self._seen = False
        name = getattr(function, "__qualname__", repr(function))
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        function, args, kwargs = self._call
        self._call = None
        try:
            self._value = function(*args, **kwargs)
        except BaseException as error:
            self.error = error
        finally:
            del function, args, kwargs

    @property
    def running(self) -> bool:
        return self.thread.is_alive()

    def result(self, timeout: float = LONG) -> Any:
        """What the function returned; raises what it raised."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"still running after {timeout} s\n{_where([self.thread])}"
        self._seen = True
        value, self._value = self._value, None
        if self.error is not None:
            raise self.error
        return value

    def raises(self, kind: type[BaseException], timeout: float = LONG) -> BaseException:
        """The exception, of type ``kind``, that the function raised."""
        with pytest.raises(kind) as caught:
            self.result(timeout)
        return caught.value


class Threads:
    """Starts the threads of a test and waits for them."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def go(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
        """Call the function in a thread of its own."""
        task = Task(function, args, kwargs)
        self.tasks.append(task)
        return task

    def all(self, *functions: Callable[[], Any], timeout: float = LONG) -> list[Any]:
        """Call the functions at the same moment, each in a thread; what they returned, once all have."""
        line = threading.Barrier(len(functions))

        def at_once(function: Callable[[], Any]) -> Any:
            line.wait(timeout)
            return function()

        tasks = [self.go(at_once, function) for function in functions]
        deadline = time.monotonic() + timeout
        for task in tasks:
            task.thread.join(max(0.0, deadline - time.monotonic()))
        for task in tasks:
            task._seen = True
        for task in tasks:  # an error first: it is why the others are stuck
            if task.error is not None:
                raise task.error
        stuck = [task.thread for task in tasks if task.running]
        assert not stuck, f"{len(stuck)} of {len(tasks)} still running after {timeout} s\n{_where(stuck)}"
        return [task.result(0) for task in tasks]

    @staticmethod
    def parked(channel: Any, receivers: int | None = None, senders: int | None = None, timeout: float = LONG) -> None:
        """Wait until so many live receivers and senders are in the queues of ``channel``."""
        channel = channel._channel if hasattr(channel, "_channel") else channel
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(RuntimeError):  # a queue changed while we looked
                waiting = (
                    sum(not waiter.done for waiter in list(channel._receivers)),
                    sum(not entry[0].done for entry in list(channel._senders)),
                )
                if receivers in (None, waiting[0]) and senders in (None, waiting[1]):
                    return
            assert time.monotonic() < deadline, (
                f"{channel!r} has not {receivers} receivers and {senders} senders parked"
            )
            time.sleep(0.0002)

    def asleep(self, task: Task | threading.Thread, timeout: float = LONG) -> None:
        """Wait until the thread sleeps in its park, beyond the yields before it."""
        thread = task.thread if isinstance(task, Task) else task
        deadline = time.monotonic() + timeout
        while True:
            frame = sys._current_frames().get(thread.ident or 0)
            if frame is not None and frame.f_code in PARKS:
                line = _source_line(frame.f_code.co_filename, frame.f_lineno)
                if "park.acquire(" in line and _is_sleeping(thread):
                    return
            assert time.monotonic() < deadline, f"not asleep\n{_where([thread])}"
            time.sleep(0.0002)

    def ctrl_c(self) -> None:
        """Press it once the main thread sleeps in its park. A signal that comes in the last steps before is handled
        when the thread wakes, as in any call of Python that blocks, and without the GIL these steps can be met.
        """
        self.asleep(threading.main_thread())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def finish(self) -> None:
        deadline = time.monotonic() + GRACE
        for task in self.tasks:
            task.thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [task.thread for task in self.tasks if task.running]
        lost = [task for task in self.tasks if task.error is not None and not task._seen]
        self.tasks = []
        if stuck:
            pytest.fail(f"{len(stuck)} thread(s) of the test still running\n{_where(stuck)}", pytrace=False)
        for task in lost:
            raise AssertionError(f"{task.thread.name} raised, and the test never asked") from task.error


def _is_sleeping(thread: threading.Thread) -> bool:
    """Whether the system says so, where it can be asked."""
    try:
        state = pathlib.Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    except OSError:
        return True
    return state.rpartition(")")[2].split()[0] == "S"


def _source_line(filename: str, number: int) -> str:
    import linecache

    return linecache.getline(filename, number)


@pytest.fixture(scope="session", autouse=True)
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the command keeps for its user is not kept for the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("LOCKGATE_STORE", raising=False)
        yield


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Threads that the test starts, joined at its end."""
    threads = Threads()
    yield threads
    threads.finish()


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cache of threads is empty: the first threads of the test are new ones."""
    from runtime.execution import _threads

    monkeypatch.setattr(_threads, "_idle", _threads._Idle())
    yield
    _threads.end_idle(GRACE)


@pytest.fixture
def interrupt() -> Iterator[Callable[..., None]]:
    """Throw an exception into a thread: it arrives when that thread next runs Python code, as Ctrl-C would."""

    def throw(thread: Any, kind: type[BaseException] = KeyboardInterrupt) -> None:
        ident = getattr(thread, "thread", thread).ident
        hit = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind))
        assert hit == 1

    with uncalled_by_collections():
        yield throw


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads take turns every 10 us, not every 5 ms: five hundred times as many interleavings."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def script() -> Callable[..., str]:
    """Run a program in a Python of its own; it has to end well and keep stderr empty. What it printed."""

    def run(source: str, *args: str, timeout: float = LONG, status: int | None = 0, stderr: str | None = "") -> str:
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        done = subprocess.run(
            [sys.executable, "-c", source, *args],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            cwd=ROOT,
        )
        if status is not None:
            assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        if stderr is not None:
            assert done.stderr == stderr
        return done.stdout

    return run
