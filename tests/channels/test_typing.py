"""What the type checker promises: Go's direction types (test/chan/perm.go, reflect's ChanDir), element types, cases.

Every line of `PROGRAM` that ends in ``# error: code`` must be refused for that reason, and no other line.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("mypy")

PROGRAM = """
from typing import Any, assert_type
from runtime import EventStream
from runtime.events import Event
from channels import CancelToken, Channel, Receiver, Selected, Sender, Sending, after, merge, select, tick

channel: Channel[int] = Channel(2)
named = Channel[str](0, name="n")

# elements
channel.send(1)
channel.send("x")  # error: arg-type
channel.try_send("x")  # error: arg-type
channel.sending("x")  # error: arg-type
assert_type(channel.recv(), int)
assert_type(channel.try_recv(), int)
assert_type(next(iter(channel)), int)
for value in channel:
    assert_type(value, int)
for text in named.receiver:
    assert_type(text, str)
channel.close(final=3)
channel.close(final="x")  # error: arg-type
channel.sender.close(final="x")  # error: arg-type
assert_type(next(channel.receiver), int)
assert_type(channel.statistics().waiting_to_send, int)
class Logged(Channel[int]):
    def recv(self, timeout: Any = None, cancel: Any = None) -> int:  # error: misc
        return 1

# directions: chan converts to chan<- and <-chan, never back
sender: Sender[int] = channel.sender
receiver: Receiver[int] = channel.receiver
sender.send(1)
sender.send("x")  # error: arg-type
sender.recv()  # error: attr-defined
sender.try_recv()  # error: attr-defined
for _ in sender:  # error: attr-defined
    pass
receiver.send(1)  # error: attr-defined
receiver.try_send(1)  # error: attr-defined
receiver.sending(1)  # error: attr-defined
receiver.close()  # error: attr-defined
assert_type(receiver.recv(), int)
back: Channel[int] = receiver  # error: assignment
other: Channel[int] = sender  # error: assignment
crossed: Sender[int] = receiver  # error: assignment

# variance: what sends objects sends ints; what receives bools receives ints
objects: Channel[object] = Channel()
wide: Sender[int] = objects.sender
narrow: Sender[object] = channel.sender  # error: assignment
bools: Channel[bool] = Channel()
ints: Receiver[int] = bools.receiver
none: Receiver[bool] = channel.receiver  # error: assignment

# select: receivers, channels, sends, nil; not a sender, not a value
done: Selected = select(channel, receiver, channel.sending(1), None, timeout=1.5, cancel=CancelToken())
assert_type(done.index, int)
assert_type(done.ok, bool)
match select(channel, receiver):
    case (0, number, True, _):
        undefined_name  # error: name-defined
    case Selected(index=1, ok=ok):
        assert_type(ok, bool)
        undefined_name  # error: name-defined
    case (_, _, False, closed):
        undefined_name  # error: name-defined
assert_type(Selected(0, "v", True, channel).index, int)
Selected("0", "v", True, channel)  # error: arg-type
select(sender)  # error: arg-type
select(3)  # error: arg-type
select(channel, block="no")  # error: arg-type
case: Sending[int] = sender.sending(1)
for index, item in merge(channel, receiver):
    assert_type(index, int)
    assert_type(item, int)
for index, either in merge(channel, named):
    assert_type(either, Any)
merge(sender)  # error: call-overload

# streams are receivers
def streams(one: EventStream, two: EventStream, token: CancelToken) -> None:
    chosen = select(one, two, token.done, timeout=1.0)
    assert_type(one.recv(), Event)
    for index, event in merge(one, two, cancel=token):
        assert_type(event, Event)

# cancel=, timeouts, timers
channel.recv(cancel=CancelToken())
channel.recv(cancel=channel)  # error: arg-type
channel.recv(timeout="1")  # error: arg-type
class Stop:
    def __init__(self) -> None:
        self.done = Channel[None]().receiver
channel.recv(cancel=Stop())
assert_type(after(1).recv(), float)
assert_type(tick(1).recv(), float)
Channel("3")  # error: arg-type
Channel(1, "name")  # error: call-arg
with channel as same:
    assert_type(same, Channel[int])
CancelToken().on_cancel(3)  # error: arg-type
CancelToken(CancelToken(), timeout=2)
"""


@pytest.mark.timeout(180)  # mypy reads everything, on a busy machine and without a cache
def test_types(tmp_path, pytestconfig):
    """mypy --strict agrees, line by line."""
    root = pytestconfig.rootpath
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty"),
            *("--disable-error-code=unused-coroutine", f"--cache-dir={root / '.mypy_cache' / 'tests'}", str(path)),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert run.stderr == ""
    found = {
        (int(line), code)
        for line, code in re.findall(r"program\.py:(\d+): error: .*\[([a-z-]+)\]$", run.stdout, re.MULTILINE)
    }
    expected = {
        (number, match[1])
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if (match := re.search(r"# error: ([a-z-]+)$", line))
    }
    assert found == expected, run.stdout
