"""Forked children and ending interpreters. Each test is a program of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

HEAD = """
import os, sys, threading, time, warnings, signal, atexit
warnings.simplefilter("ignore")  # Python warns of any fork with threads
from channels import *

def parked(channel, n=1):
    while not repr(channel).endswith(f"{n} receiver{'s' * (n > 1)} waiting>") and not repr(channel).endswith(
        f"{n} sender{'s' * (n > 1)} waiting>"):
        time.sleep(0.0005)

def child(function):
    "Fork; the child prints what the function returns. Killed after 20 seconds."
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        try:
            print(function(), flush=True)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status:
        print("child died", status)

def in_the_middle(channel, n=1):
    "A thread that holds the channel's lock, for as long as this process lives."
    inside = threading.Event()
    def hold():
        channel._lock.acquire()
        inside.set()
        time.sleep(1000)
    threading.Thread(target=hold, daemon=True).start()
    inside.wait()
"""


def test_an_idle_channel_works_in_the_child(script):
    """With its contents; and what the child does is nobody else's business."""
    out = script(
        HEAD
        + """
channel = Channel(3)
channel.send(1); channel.send(2)
def work():
    channel.send(3)
    channel.close(final=4)
    return list(channel)
child(work)
print(len(channel), channel.closed, channel.recv(), channel.recv())
"""
    )
    assert out.split("\n")[:2] == ["[1, 2, 3, 4]", "2 False 1 2"]


@pytest.mark.parametrize("receivers", [True, False])
def test_waiters_of_threads_that_are_gone_are_gone(script, receivers):
    """The child has one thread: who else was parked is not, and takes nothing; in the parent all goes on."""
    out = script(
        HEAD
        + """
channel = Channel()
receivers = sys.argv[1] == "True"
threads = [threading.Thread(target=channel.recv if receivers else lambda: channel.send("parent's")) for _ in range(3)]
for thread in threads: thread.start()
parked(channel, 3)
def work():
    out = []
    for operation in (lambda: channel.try_send("x"), channel.try_recv, lambda: select(channel, block=False)):
        try: out.append(operation())
        except WouldBlock: out.append("would block")
    partner = threading.Thread(target=lambda: out.append(channel.recv(timeout=5)))
    partner.start()
    channel.send("child's", timeout=5)
    partner.join()
    return out, repr(channel)
child(work)
print(repr(channel))
for thread in threads: channel.send(1) if receivers else channel.recv()
for thread in threads: thread.join()
""",
        str(receivers),
    )
    first, second = out.splitlines()
    assert first == "(['would block', 'would block', 'would block', \"child's\"], '<Channel 0/0 open>')"
    assert "3 receivers waiting" in second or "3 senders waiting" in second


@pytest.mark.parametrize("final", [True, False])
def test_closing_in_the_child_gives_the_last_value_to_no_ghost(script, final):
    """The very first operation in the child may be the close."""
    out = script(
        HEAD
        + """
channel = Channel()
thread = threading.Thread(target=channel.recv); thread.start()
parked(channel)
def work():
    closed = channel.close(final="last") if sys.argv[1] == "True" else channel.close()
    return closed, list(channel)
child(work)
channel.send(1); thread.join()
""",
        str(final),
    )
    assert out.strip() == ("(True, ['last'])" if final else "(True, [])")


@pytest.mark.parametrize(
    "operation",
    [
        "channel.send(9)",
        "channel.recv()",
        "channel.try_send(9)",
        "channel.try_recv()",
        "select(channel, block=False).value",
        "select(channel, None).value",
        "channel.close()",
        "channel.close(final=9)",
        "repr(channel)",
        "len(channel)",
        "token.cancel()",
        "CancelToken(token).cancelled",
    ],
)
def test_a_lock_that_was_held_at_the_fork_is_free_in_the_child(script, operation):
    """By a thread that the child does not have. At once, not after a second of patience."""
    out = script(
        HEAD
        + """
channel, token = Channel(4), CancelToken()
channel.send(1)
in_the_middle(channel)
in_the_middle(token.done._channel)
def work():
    began = time.monotonic()
    value = eval(sys.argv[1])
    return repr(value), time.monotonic() - began < 0.5, not channel._closed or list(channel)
child(work)
os._exit(0)
""",
        operation,
    )
    assert "True, " in out
    assert "child died" not in out
    assert "Error" not in out


def test_a_close_that_another_thread_had_begun_is_completed_in_the_child(script):
    """Its record came along; its thread did not."""
    out = script(
        HEAD
        + """
from channels._rescue import closing
channel = Channel()
closing[id(channel)] = ["last", False, channel]  # a thread that is just about to close it
def work():
    return channel.close(final="mine"), list(channel), len(closing)
child(work)
"""
    )
    assert out.strip() == "(False, ['last'], 0)"


def test_a_new_thread_of_the_child_is_not_one_that_is_gone(script):
    """It may have the same identity, and must not be taken for the owner of the other's locks."""
    out = script(
        HEAD
        + """
channels = [Channel(1) for _ in range(20)]
for channel in channels: in_the_middle(channel)
idents = {thread.ident for thread in threading.enumerate()}
def work():
    got = []
    def use():
        got.append(threading.get_ident() in idents)
        for channel in channels:
            channel.try_send(1)
            got.append(channel.recv(timeout=0))
    thread = threading.Thread(target=use)
    thread.start(); thread.join()
    return got
child(work)
os._exit(0)
"""
    )
    assert out.strip() in [str([reused] + [1] * 20) for reused in (True, False)]


def test_a_handler_that_forks_in_the_middle_of_an_operation(script):
    """The operation goes on in the child as in the parent; and the child's handler must not change the busy channel."""
    out = script(
        HEAD
        + """
channel = Channel(4)
class During:
    def __init__(self, lock): self.lock, self.first = lock, True
    def acquire(self, *args):
        done = self.lock.acquire(*args)
        if self.first:
            self.first = False
            self.pid = os.fork()
            if not self.pid: signal.alarm(20)
            try: channel.try_send("nested")
            except WouldBlock: pass
        return done
    def release(self): self.lock.release()
    def _is_owned(self): return self.lock._is_owned()
lock = channel._lock = During(channel._lock)
channel.send("sent")
channel.close(final="last")
if lock.pid: os.waitpid(lock.pid, 0)
print(list(channel), flush=True)
os._exit(0)
"""
    )
    assert out == "['sent', 'last']\n" * 2


def test_forks_in_the_middle_of_everything(script):
    """Threads are busy on the channel while another forks: every child can use it."""
    out = script(
        HEAD
        + """
sys.setswitchinterval(1e-5)
channel, token, stop = Channel(8), CancelToken(), []
def busy():
    while not stop:
        channel.send(1, cancel=token); channel.recv(cancel=token)
        select(channel.sending(1), channel, block=False) if len(channel) else None
threads = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
def work():
    for _ in range(3):
        try: channel.try_recv()
        except WouldBlock: pass
    channel.send("x", timeout=1)
    token.cancel()
    channel.close(final="last")
    return list(channel)[-1], after(0.001).recv(timeout=2) > 0
for _ in range(25): child(work)
stop.append(1)
os._exit(0)
"""
    )
    assert out.splitlines() == ["('last', True)"] * 25


def test_timers_go_on_in_the_child(script):
    """On a thread of its own: deadlines and timers that were made before the fork come in both."""
    out = script(
        HEAD
        + """
before = after(0.05)
token = CancelToken(timeout=0.05)
def work():
    fired = after(0.1).recv(timeout=4) > 0
    return fired, len(before), token.cancelled, [t.name for t in threading.enumerate()]
child(work)
print(before.recv(timeout=5) > 0, token.done.closed or token.done)
"""
    )
    first, second = out.splitlines()
    assert first == "(True, 1, True, ['MainThread', 'channels-timer'])"
    assert second.startswith("True")


def test_a_group_does_not_wait_for_the_threads_of_the_parent(script):
    out = script(
        HEAD
        + """
stop = Channel()
with WorkerGroup() as group:
    group.spawn(stop.recv, cancel=group.token)
    parked(stop)
    pid = os.fork()
    if pid:
        print(os.waitpid(pid, 0)[1])
        stop.send(1)
    else:
        signal.alarm(20)
        group.spawn(print, "a thread of the child", flush=True).result()
if not pid:
    print("left", flush=True)
    os._exit(0)
print("left")
"""
    )
    assert out.splitlines() == ["a thread of the child", "left", "0", "left"]


# -- the end of the interpreter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        "channel.recv()",
        "channel.send(1)",
        "channel.recv(timeout=1000)",
        "channel.recv(cancel=CancelToken(timeout=1000))",
        "select(channel, channel.sending(1))",
        "select(None)",
        "select(tick(1000), cancel=CancelToken())",
        "list(channel)",
    ],
)
def test_the_interpreter_exits_with_a_daemon_parked(script, wait):
    """At once and in silence."""
    out = script(
        HEAD
        + """
channel = Channel()
thread = threading.Thread(target=lambda: eval(sys.argv[1]), daemon=True)
thread.start()
while "wait" not in sys._current_frames()[thread.ident].f_code.co_name: time.sleep(0.001)
atexit.register(print, "exited")
""",
        wait,
        timeout=20,
    )
    assert out == "exited\n"


def test_the_interpreter_exits_with_timers_pending(script):
    out = script(
        HEAD
        + """
timers = [after(1000), tick(0.0005), tick(1000), CancelToken(timeout=1000)]
time.sleep(0.01)
print("exited")
""",
        timeout=20,
    )
    assert out == "exited\n"


def test_channels_may_be_used_at_exit(script):
    """By atexit functions, by finalizers of globals, by what daemon threads still do."""
    out = script(
        HEAD
        + """
channel = Channel(8)
token = CancelToken(timeout=1000)
class Global:
    def __del__(self, channel=channel, token=token, gil=getattr(sys, "_is_gil_enabled", lambda: True)()):
        try:
            channel.try_send("global"); token.cancel(); channel.close()
        except Exception as error:  # without the GIL, this may run after the modules have been emptied
            if gil: print(error)
thing = Global()
def busy():
    while True:
        try: channel.send(1, timeout=0.001); channel.recv()
        except TimeoutError: pass
threading.Thread(target=busy, daemon=True).start()
@atexit.register
def last():
    print(token.cancel("exit"), token.cause)
    other = Channel(1)
    other.send(2); other.close(final=3)
    print(list(other))
""",
        timeout=20,
    )
    assert out.splitlines() == ["True exit", "[2, 3]"]


@pytest.mark.parametrize("used", [False, True], ids=["first used there", "used before"])
@pytest.mark.parametrize(
    "wait",
    [
        "after(0.02).recv() > 0",
        "next(iter(tick(0.02))) > 0",
        "select(Channel(), after(0.02)).index == 1",
        "expect(Cancelled, Channel().recv, cancel=CancelToken(timeout=0.02))",
        "expect(TimeoutError, Channel().recv, timeout=0.02)",
        "asyncio.run(one())",
    ],
)
def test_timers_serve_until_the_very_end(script, wait, used):
    """An atexit function that was registered before the import runs after everything that the import registered."""
    out = script(
        """
import atexit, sys
@atexit.register
def last():
    try:
        print(eval(sys.argv[1]))
    except RuntimeError as error:  # up to 3.12.2, no thread may be started any more
        assert (3, 12) <= sys.version_info < (3, 12, 3)
        print("no thread" in str(error) or "new thread" in str(error))
import asyncio, threading, time
from channels import *
from channels.aio import to_async
def expect(kind, function, **how):
    try: function(**how)
    except kind: return True
async def one():
    channel = Channel()
    asyncio.get_running_loop().call_later(0.02, channel.try_send, True)
    return await anext(to_async(channel))
if sys.argv[2] == "True": after(0.001).recv()
""",
        wait,
        str(used),
        timeout=10,
    )
    assert out == "True\n"


SUBINTERPRETER = r"""
#include <Python.h>
int run(const char *code) {
    PyThreadState *before = PyThreadState_Get(), *inside = Py_NewInterpreter();
    int failed = PyRun_SimpleString(code);
    Py_EndInterpreter(inside);
    PyThreadState_Swap(before);
    return failed;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler on this system")
def test_a_subinterpreter_ends_after_timers(script, tmp_path):
    """As mod_wsgi has them: a thread that is left would abort the process."""
    source, library = tmp_path / "sub.c", tmp_path / "sub.so"
    source.write_text(SUBINTERPRETER)
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(["cc", "-shared", "-fPIC", include, "-o", library, source], check=True, timeout=60)
    out = script(
        """
import ctypes, sys
code = '''
import atexit, sys
sys.path[:] = %r
def last():
    try: after(0.01)
    except RuntimeError as error: print(error, flush=True)
atexit.register(last)
from channels import *
after(0.01).recv()
called = Channel(1)
token = CancelToken(timeout=0.01)
token.on_cancel(lambda: called.try_send(1))
called.recv()
pending = [after(1000), CancelToken(timeout=1000)]
''' % sys.path
for _ in range(3): print(ctypes.PyDLL(sys.argv[1]).run(code.encode()), flush=True)
""",
        str(library),
        timeout=20,
    )
    assert out.splitlines() == ["a timer cannot be started any more: the interpreter is exiting", "0"] * 3


def test_importing_starts_nothing_and_imports_little(script):
    """No thread, and nothing of asyncio or janus, before it is asked for."""
    out = script(
        """
import sys, threading, channels
heavy = ("asyncio", "janus", "runtime", "logging.handlers")
print(threading.active_count(), [name for name in heavy if name in sys.modules])
channels.Channel(1).send(1); channels.CancelToken().cancel()
print(threading.active_count())
"""
    )
    assert out.splitlines() == ["1 []", "1"]
