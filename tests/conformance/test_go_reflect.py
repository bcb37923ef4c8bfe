"""Go's src/reflect/all_test.go: channels used through data, which is the nearest to `select` with a list of cases."""

from __future__ import annotations

import itertools

import pytest

from channels import Channel, ChannelClosed, WouldBlock, select


def test_reflect_chan():
    """TestChan: what Send, Recv, TrySend, TryRecv, Close, Len and Cap return."""
    channel = Channel(2)
    assert channel.send(2) is None
    assert channel.recv() == 2
    with pytest.raises(WouldBlock):
        channel.try_recv()
    assert channel.try_send(3) is None
    assert channel.try_recv() == 3
    channel.send(4)
    channel.send(5)
    with pytest.raises(WouldBlock):
        channel.try_send(6)
    assert (len(channel), channel.capacity) == (2, 2)
    assert channel.close() is True
    assert [channel.recv(), channel.try_recv()] == [4, 5]
    with pytest.raises(ChannelClosed):
        channel.try_recv()
    unbuffered = Channel()
    with pytest.raises(WouldBlock):
        unbuffered.try_send(7)
    with pytest.raises(WouldBlock):
        unbuffered.try_recv()
    assert (len(unbuffered), unbuffered.capacity) == (0, 0)


def test_reflect_select_nop():
    """TestSelectNop: only a default is chosen."""
    with pytest.raises(WouldBlock):
        select(block=False)


def test_reflect_select_many_cases():
    """TestSelectMaxCases: Go refuses more than 65,536; here there is no such limit."""
    channel = Channel()
    channel.close()
    assert select(*[channel.receiver] * 70_000).ok is False


class Info:
    """One case of the table, and what may become of it."""

    def __init__(self, text, case, *, ready=False, value=None, ok=True, panics=False, help_it=None, park=None):
        self.text, self.case, self.ready, self.value, self.ok = text, case, ready, value, ok
        self.panics, self.help_it, self.park = panics, help_it, park


def _ready_send():
    return Info("ready send", Channel(1).sending("sent"), ready=True)


def _ready_recv():
    channel = Channel(1)
    channel.send("received")
    return Info("ready recv", channel, ready=True, value="received")


def _blocking_send():
    channel = Channel()
    return Info("blocking send", channel.sending("sent"), help_it=channel.recv, park=(channel, "senders"))


def _blocking_recv():
    channel = Channel()
    return Info(
        "blocking recv",
        channel.receiver,
        value="received",
        help_it=lambda: channel.send("received"),
        park=(channel, "receivers"),
    )


def _full_send():
    channel = Channel(1)
    channel.send("in the way")
    return Info("send to a full buffer", channel.sending("sent"), help_it=channel.recv, park=(channel, "senders"))


def _nil():
    return Info("nil", None)


def _closed_send():
    channel = Channel()
    channel.close()
    return Info("closed send", channel.sending("no"), ready=True, panics=True)


def _closed_recv():
    channel = Channel()
    channel.close()
    return Info("closed recv", channel, ready=True, ok=False)


MAKERS = [_ready_send, _ready_recv, _blocking_send, _blocking_recv, _full_send, _nil, _nil, _closed_send, _closed_recv]


def _tables(permutations):
    """Every subset of the cases, in several orders."""
    for size in range(len(MAKERS) + 1):
        for makers in set(itertools.combinations(MAKERS, size)):
            orders = {makers, makers[::-1]}
            orders.update(makers[k:] + makers[:k] for k in range(size))
            if permutations:
                orders.update(itertools.islice(itertools.permutations(makers), 40))
            yield from orders


def _check(infos, done):
    """The chosen index, value and ok are as predicted for its case, and nothing else was touched."""
    chosen = infos[done.index]
    assert not chosen.panics, "a send to a closed channel should raise"
    assert done.case is chosen.case
    assert (done.value, done.ok) == (chosen.value, chosen.ok)
    for k, info in enumerate(infos):
        channel = getattr(info.case, "_channel", None)
        if channel is None or info is chosen:
            continue
        assert len(channel) == (info.text in ("ready recv", "send to a full buffer")), (k, info.text)
        assert "waiting" not in repr(channel), (k, info.text)


@pytest.mark.parametrize("permutations", [False, pytest.param(True, marks=pytest.mark.stress)], ids=["", "permuted"])
@pytest.mark.parametrize("default", [False, True], ids=["", "default"])
def test_reflect_select(threads, default, permutations):
    """TestSelect: the exhaustive table of ready, blocking, nil and closed cases, with and without default.

    Where all cases block and there is no default, each case that can is helped by another thread once the select is
    parked; where none can be, the select blocks.
    """
    jobs = Channel()

    def helper():
        for info in jobs:
            channel, side = info.park
            threads.parked(channel, **{side: 1})
            info.help_it()

    threads.go(helper)
    with jobs:
        tables = 0
        for makers in _tables(permutations):
            infos = [maker() for maker in makers]
            text = [info.text for info in infos]
            ready = [k for k, info in enumerate(infos) if info.ready]
            cases = [info.case for info in infos]
            tables += 1
            if ready:
                try:
                    done = select(*cases, block=False) if default else select(*cases, timeout=10)
                except ChannelClosed:
                    assert any(infos[k].panics for k in ready), text
                    continue
                assert done.index in ready, text
                _check(infos, done)
            elif default:
                with pytest.raises(WouldBlock):
                    select(*cases, block=False)
                assert not any("waiting" in repr(case) for case in cases)
            else:
                helpable = [k for k, info in enumerate(infos) if info.help_it]
                for k in helpable:
                    infos = [maker() for maker in makers]
                    jobs.send(infos[k], timeout=10)
                    done = select(*[info.case for info in infos], timeout=10)
                    assert done.index == k, text
                    _check(infos, done)
                if not helpable:
                    with pytest.raises(TimeoutError):
                        select(*cases, timeout=0.001)
    assert tables > 1000


def test_reflect_select_chooses_a_panicking_case_as_often_as_others():
    """A send to a closed channel is a ready case like any other: sometimes it is the one, sometimes not."""
    closed, ready = Channel(), Channel(300)
    closed.close()
    raised = 0
    for _ in range(300):
        try:
            select(closed.sending(1), ready.sending(2))
        except ChannelClosed:
            raised += 1
    assert 60 < raised < 240
    assert len(ready) == 300 - raised
