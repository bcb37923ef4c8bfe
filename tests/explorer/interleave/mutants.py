"""Mistakes that a reader could make in ``channels``, as patches; each must be caught. The explorer's own test."""

from __future__ import annotations

from dataclasses import dataclass

CHANNEL, SELECT, CANCEL, PARK = (f"channels/_{name}.py" for name in ("channel", "select", "cancel", "park"))


@dataclass(frozen=True)
class Mutant:
    """Replace ``old``, which is there once, with ``new``: one of the scenarios whose names begin so has to fail."""

    name: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


MUTANTS = [
    Mutant(
        "select does not look again before it queues",
        CHANNEL,
        "ready = self._closed or self._buffer or any(",
        "ready = False and any(",
        ("select_and_senders", "select_and_close"),
    ),
    Mutant(
        "select looks again for buffered values only",
        CHANNEL,
        "or any(e[0] is not waiter and not e[0].done for e in self._senders)",
        "",
        ("crossed_selects", "meeting_selects", "select_and_senders"),
    ),
    Mutant(
        "close does not wake receivers",
        CHANNEL,
        "while (waiter := self._first_receiver()) is not None:",
        "while False and (waiter := self._first_receiver()) is not None:",
        ("send_recv_close",),
    ),
    Mutant(
        "close does not refuse senders",
        CHANNEL,
        "while (entry := self._first_sender(False)) is not None:",
        "while False and (entry := self._first_sender(False)) is not None:",
        ("send_recv_close", "final_value"),
    ),
    Mutant(
        "the last to come is served first",
        CHANNEL,
        """            waiter: Waiter = queue[0]
            if not waiter.done:
                if waiter.ticket is None:
                    del queue[0]
""",
        """            waiter: Waiter = queue[-1]
            if not waiter.done:
                if waiter.ticket is None:
                    del queue[-1]
""",
        ("two_receivers",),
    ),
    Mutant(
        "a value goes past the parked receiver, who is woken to take it himself",
        CHANNEL,
        """        waiter.value = value
        waiter.ok = True
        waiter.channel = self
        waiter.done = True
        waiter.park.release()
        return True
""",
        """        self._buffer = deque(self._buffer)
        self._buffer.append(value)
        waiter.park.release()
        return True
""",
        ("a_receiver_is_not_overtaken",),
    ),
    Mutant(
        "a parked sender is not let in",
        CHANNEL,
        "if len(buffer) < self._capacity and (entry := self._first_sender(True)) is not None:",
        "if False and (entry := self._first_sender(True)) is not None:",
        ("a_sender_is_not_overtaken", "timeout_of_a_send"),
    ),
    Mutant(
        "select's default is judged by the looks before",
        SELECT,
        "    if not block:\n        return _decide(cases, channels)\n",
        '    if not block:\n        raise WouldBlock("select: no case is ready")\n',
        ("default_is_judged_at_one_moment",),
    ),
    Mutant(
        "a ticket is checked, then taken",
        CHANNEL,
        """                try:
                    del waiter.ticket[0]
                    del queue[0]
                    return waiter
                except IndexError:
                    pass  # another channel is serving it
""",
        """                if waiter.ticket:
                    waiter.ticket.clear()
                    del queue[0]
                    return waiter
""",
        ("select_and_senders",),
    ),
    Mutant(
        "done before the value is there",
        CHANNEL,
        """        waiter.value = value
        waiter.ok = True
        waiter.channel = self
        waiter.done = True
""",
        """        waiter.done = True
        waiter.value = value
        waiter.ok = True
        waiter.channel = self
""",
        ("timeout_of_a_receive", "a_receiver_is_not_overtaken"),
    ),
    Mutant(
        "a receive that timed out stays in the queue",
        CHANNEL,
        "        if waiter.done or waiter.wait(deadline):\n            return\n        self._withdraw(waiter)\n",
        "        if waiter.done or waiter.wait(deadline):\n            return\n",
        ("timeout_of_a_receive", "timeout_frees"),
    ),
    Mutant(
        "withdrawing does not wait for a server that is at it",
        PARK,
        "            if not self.done:\n                self.park.acquire()",
        "            if False:\n                self.park.acquire()",
        ("cancelled_receive", "timeout_of_a_select", "cancelled_select"),
    ),
    Mutant(
        "the second to close does not help the first",
        CHANNEL,
        "            self._attention = True  # also where another call was first",
        "            if not first:\n                return False\n            self._attention = True  #",
        ("closed_means_closed", "two_finals"),
    ),
    Mutant(
        "closed as soon as it is on record",
        CHANNEL,
        "return self._closed or (self._attention and self._lock._is_owned())",
        "return self._closed or self._attention",
        ("seen_closed",),
    ),
    Mutant(
        "the final value is lost on a rendezvous",
        CHANNEL,
        "                buffer += record[:1]\n                self._buffer = buffer\n",
        "                buffer += record[:1]\n",
        ("final_value",),
    ),
    Mutant(
        "registering does not look whether the token was cancelled meanwhile",
        CANCEL,
        "        if core.verdict:  # the canceller may have looked before the callback stood there",
        "        if False:",
        ("callback_runs_once",),
    ),
    # With exceptions:
    Mutant(
        "a value is taken by popleft",
        CHANNEL,
        """                value = buffer[0]
                del buffer[0]
                if self._senders:
                    self._refill()
            elif self._senders and (value""",
        """                value = buffer.popleft()
                if self._senders:
                    self._refill()
            elif self._senders and (value""",
        ("interrupted_receive[1]",),
    ),
    Mutant(
        "a sender's value is let in before the sender is marked",
        CHANNEL,
        """        if len(buffer) < self._capacity and (entry := self._first_sender(True)) is not None:
            buffer += (entry[1],)""",
        """        if len(buffer) < self._capacity and any(not e[0].done for e in self._senders):
            buffer.append(next(e for e in self._senders if not e[0].done)[1])
            entry = self._first_sender(True)""",
        ("interrupted_receive_of_parked_senders[1]",),
    ),
    Mutant(
        "an interrupted receive keeps what it was served",
        CHANNEL,
        "waiter.channel._put_back(waiter)",
        "pass",
        ("interrupted_receive",),
    ),
    Mutant(
        "an interrupted operation keeps the lock",
        CHANNEL,
        """                if lock._is_owned():
                    lock.release()
                if waiter is None and value""",
        """                if waiter is None and value""",
        ("interrupted_trying", "interrupted_send"),
    ),
    Mutant(
        "a value is returned through a call",
        CHANNEL,
        "        if value is not NOTHING:\n            return value\n        if waiter is None:",
        "        if value is not NOTHING:\n            return max((value,))\n        if waiter is None:",
        ("interrupted_receive",),
    ),
    Mutant(
        "an interrupted close stays on record",
        CHANNEL,
        "            self._insist()\n            raise\n",
        "            raise\n",
        ("interrupted_close_beside_another",),
    ),
    # With nested operations:
    Mutant(
        "a nested operation goes ahead on a busy channel",
        CHANNEL,
        """        lock = self._lock
        if lock._is_owned():
            return NOTHING
""",
        """        lock = self._lock
""",
        ("try_recv in",),
    ),
]
