"""Mistakes that a reader could make in ``channels``, as patches; each must be caught. The explorer's own test."""

from __future__ import annotations

from dataclasses import dataclass

CHANNEL, RESCUE, SELECT, MERGE, CANCEL, PARK = (
    f"channels/_{name}.py" for name in ("channel", "rescue", "select", "merge", "cancel", "park")
)


@dataclass(frozen=True)
class Mutant:
    """In that function, replace ``old``, which is there once: one of the scenarios whose names begin so has to fail."""

    name: str
    file: str
    function: str
    old: str
    new: str
    caught_by: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


MUTANTS = [
    Mutant(
        "a batch that was sent is not over where the channel closes",
        CHANNEL,
        "send_many",
        "if sent == len(given):  # a channel that has closed since has taken all of them",
        "if False:",
        ("a_batch_that_was_taken_is_sent",),
    ),
    Mutant(
        "the value that a batch has waited to send is not counted",
        CHANNEL,
        "send_many",
        "sent += 1",
        "pass",
        ("a_cancel_ends_a_batch", "all_that_is_sent_comes"),
    ),
    Mutant(
        "select does not look again before it queues",
        CHANNEL,
        "_enlist",
        "ready = self._closed or self._buffer or self._another_sender(waiter)",
        "ready = False",
        ("select_and_senders", "select_and_close"),
    ),
    Mutant(
        "select looks again for buffered values only",
        CHANNEL,
        "_enlist",
        "self._another_sender(waiter)",
        "False",
        ("select_and_senders", "crossed_selects"),
    ),
    Mutant(
        "close does not wake receivers",
        CHANNEL,
        "_complete_close",
        "while (waiter := self._first_receiver()) is not None:",
        "while False and (waiter := self._first_receiver()) is not None:",
        ("send_recv_close",),
    ),
    Mutant(
        "close does not refuse senders",
        CHANNEL,
        "_complete_close",
        "while (entry := self._first_sender(False)) is not None:",
        "while False and (entry := self._first_sender(False)) is not None:",
        ("send_recv_close", "final_value"),
    ),
    Mutant(
        "the last to come is served first",
        CHANNEL,
        "_first_receiver",
        "waiter: Waiter = queue[0]\n",
        "queue.rotate(1)\n            waiter: Waiter = queue[0]\n",
        ("two_receivers",),
    ),
    Mutant(
        "a receiver is woken to take the value himself",
        CHANNEL,
        "_serve_receiver",
        "waiter.value = value\n",
        "self._buffer = deque(self._buffer)\n        self._buffer.append(value)\n        waiter.park.release()\n"
        "        return True\n",
        ("a_receiver_is_not_overtaken",),
    ),
    Mutant(
        "a parked sender is not let in",
        CHANNEL,
        "_refill",
        "entry[0].park.release()",
        "pass",
        ("a_sender_is_not_overtaken", "timeout_of_a_send"),
    ),
    Mutant(
        "select's default is judged by the looks before",
        SELECT,
        "_decide",
        "    taken: list[Any] = []  # a channel and the value that left it\n",
        '    raise WouldBlock("select: no case is ready")\n',
        ("default_is_judged_at_one_moment",),
    ),
    Mutant(
        "a ticket is checked, then taken",
        CHANNEL,
        "_first_receiver",
        "                    del waiter.ticket[0]\n",
        "                    if not waiter.ticket:\n                        raise IndexError\n"
        "                    waiter.ticket.clear()\n",
        ("select_and_senders",),
    ),
    Mutant(
        "done before the value is there",
        CHANNEL,
        "_serve_receiver",
        "waiter.value = value\n",
        "waiter.done = True\n        waiter.value = value\n",
        ("a_receiver_is_not_overtaken", "timeout_of_a_receive"),
    ),
    Mutant(
        "a receive that timed out stays in the queue",
        CHANNEL,
        "_wait",
        "self._withdraw(waiter)",
        "pass",
        ("timeout_of_a_receive", "timeout_frees"),
    ),
    Mutant(
        "withdrawing does not wait for a server that is at it",
        PARK,
        "withdraw",
        "self.park.acquire()",
        "pass",
        ("timeout_of_a_select", "cancelled_receive"),
    ),
    Mutant(
        "the second to close does not help the first",
        CHANNEL,
        "close",
        "            self._attention = True",
        "            if not first:\n                return False\n            self._attention = True",
        ("closed_means_closed", "two_finals"),
    ),
    Mutant(
        "closed as soon as it is on record",
        CHANNEL,
        "closed",
        "self._attention and self._lock._is_owned()",
        "self._attention",
        ("seen_closed",),
    ),
    Mutant(
        "a late close stays on record",
        CHANNEL,
        "_complete_close",
        "if id(self) in closing:",
        "if False:",
        ("closed_means_closed",),
    ),
    Mutant(
        "the final value is lost on a rendezvous",
        CHANNEL,
        "_complete_close",
        "self._buffer = buffer\n",
        "pass\n",
        ("final_value",),
    ),
    Mutant(
        "registering does not look whether the token was cancelled meanwhile",
        CANCEL,
        "on_cancel",
        "if core.verdict:",
        "if False:",
        ("callback_runs_once",),
    ),
    Mutant(
        "what a callback cancels is closed, and its callbacks are forgotten",
        CANCEL,
        "_tell",
        "            round.due.extend(due)",
        "            pass",
        ("callbacks_that_cancel_each_other",),
    ),
    Mutant(
        "the callbacks of a deadline are forgotten",
        CANCEL,
        "_tell",
        "call_apart(_Round(cores, due).carry_out)",
        "pass",
        ("callback_of_a_deadline",),
    ),
    Mutant(
        "a callback is looked up, then taken",
        CANCEL,
        "run",
        "function = entry[0]\n            del entry[0]",
        "function = entry[0]\n            entry.clear()",
        ("callback_runs_once", "callbacks_that_cancel_each_other", "callback_is_removed_or_runs"),
    ),
    Mutant(
        "a send does not see that a receiver waits",
        CHANNEL,
        "recv",
        "self._room = 0",
        "pass",
        ("a_receiver_is_not_overtaken", "send_recv_close", "two_receivers"),
    ),
    Mutant(
        "a send does not see that a select waits",
        CHANNEL,
        "_enlist",
        "self._room = 0",
        "pass",
        ("select_and_senders", "crossed_selects"),
    ),
    Mutant(
        "a send does not see that a merge waits",
        CHANNEL,
        "_stand",
        "self._room = 0",
        "pass",
        ("merged_while_all_are_open[1]",),
    ),
    Mutant(
        "a send does not see the close",
        CHANNEL,
        "_complete_close",
        "self._room = 0",
        "pass",
        ("send_recv_close", "closed_means_closed"),
    ),
    # With exceptions:
    Mutant(
        "an exception between the callbacks ends their round",
        CANCEL,
        "carry_out",
        "self.raised.append(error)",
        "raise error",
        ("interrupted_callbacks",),
    ),
    Mutant(
        "an interrupted cancel leaves what is below",
        CANCEL,
        "cancel",
        "if self.verdict:",
        "if False:",
        ("interrupted_callbacks", "interrupted_cancel"),
    ),
    Mutant(
        "a merge that does not wait is taken out of a queue without a word",
        CHANNEL,
        "_first_receiver",
        "if left is not None:",
        "if left is not None and waiter.ticket:",
        ("merged",),
    ),
    Mutant(
        "a merge does not look who came before it waited",
        MERGE,
        "_wait",
        "if waiter.left:",
        "if False:",
        ("merged",),
    ),
    Mutant(
        "a server looks whether a merge waits, then says that it was there",
        CHANNEL,
        "_first_receiver",
        "if left is not None:\n                left.append(self)  # before it looks for the ticket (StandingWaiter)\n"
        "            if not waiter.done:\n",
        "armed = bool(waiter.ticket)\n            if left is not None:\n                left.append(self)\n"
        "            if not waiter.done and (armed or left is None):\n",
        ("merged",),
    ),
    Mutant(
        "an interrupted merge keeps what it was served",
        MERGE,
        "_let_go",
        "waiter.channel._put_back(waiter)",
        "pass",
        ("interrupted_merge",),
    ),
    Mutant(
        "a value is taken by popleft",
        CHANNEL,
        "recv",
        "value = buffer[0]\n                buffer.popleft()",
        "value = buffer.popleft()",
        ("interrupted_receive[1]",),
    ),
    Mutant(
        "a select takes a value by popleft",
        SELECT,
        "select",
        "value = buffer[0]\n                    buffer.popleft()",
        "value = buffer.popleft()",
        ("interrupted_select_of_a_receiver[1]",),
    ),
    Mutant(
        "a sender's value is let in by a call",
        CHANNEL,
        "_refill",
        "buffer += (entry[1],)",
        "buffer.append(entry[1])",
        ("interrupted_receive_of_parked_senders[1]",),
    ),
    Mutant(
        "an interrupted receive keeps what it was served",
        RESCUE,
        "_let_go",
        "waiter.channel._put_back(waiter)",
        "pass",
        ("interrupted_receive",),
    ),
    Mutant(
        "an interrupted operation keeps the lock",
        RESCUE,
        "_let_go",
        "                if lock._is_owned():\n                    lock.release()\n                if",
        "                if",
        ("interrupted_trying", "interrupted_send"),
    ),
    Mutant(
        "a value is returned through a call",
        CHANNEL,
        "recv",
        "        if value is not NOTHING:\n            return value\n",
        "        if value is not NOTHING:\n            return max((value,))\n",
        ("interrupted_receive",),
    ),
    Mutant(
        "an interrupted close stays on record",
        RESCUE,
        "_resume_close",
        "if id(self) in closing:",
        "if False:",
        ("interrupted_close_beside_another", "interrupted_close"),
    ),
    # With nested operations:
    Mutant(
        "a nested cancel goes ahead of what is due",
        CANCEL,
        "_tell",
        "            round.due.extend(due)",
        "            round.due[:0] = due",
        ("cancel_of_another_in_a_cancel", "callbacks_that_cancel_each_other"),
    ),
    Mutant(
        "a nested operation goes ahead on a busy channel",
        CHANNEL,
        "_try_take",
        "if lock._is_owned():\n            return NOTHING",
        "if False:\n            return NOTHING",
        ("try_recv in",),
    ),
    Mutant(
        "a batch that is received lets no senders in",
        CHANNEL,
        "_take_many",
        "self._let_in()",
        "pass",
        ("many_received_and_senders", "some_received_and_a_sender"),
    ),
    Mutant(
        "a batch that is received lets one sender in",
        CHANNEL,
        "_take_many",
        "self._let_in()",
        "self._refill()",
        ("a_batch_makes_room",),
    ),
    Mutant(
        "a batch that is sent passes by those who wait",
        CHANNEL,
        "_put_many",
        "if self._receivers:",
        "if False:",
        ("many_sent_and_receivers",),
    ),
    Mutant(
        "a batch that is sent does not look at the capacity",
        CHANNEL,
        "_put_many",
        "values[sent : sent + room]",
        "values[sent:]",
        ("many_sent_and_receivers", "many_and_close"),
    ),
    Mutant(
        "a value of a batch is taken in two steps",
        CHANNEL,
        "_take_some",
        "taken += (buffer[0],)  # not a call, between which and the `del` an exception could come\n"
        "            del buffer[0]",
        "taken += (buffer.popleft(),)",
        ("interrupted_receive_of_some",),
    ),
    Mutant(
        "a batch that comes back is kept from those who wait",
        RESCUE,
        "_let_go_of_many",
        "self._hand_out()",
        "pass",
        ("interrupted_receive_of_many_beside",),
    ),
    Mutant(
        "a batch comes back behind the others",
        RESCUE,
        "_let_go_of_many",
        "room = deque(taken[0])\n                    room.extend(self._buffer)",
        "room = deque(self._buffer)\n                    room.extend(taken[0])",
        ("interrupted_receive_of_some", "interrupted_receive_of_many"),
    ),
]
