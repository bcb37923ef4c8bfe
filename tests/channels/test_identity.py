"""A channel is one thing: not copied, not pickled, itself whatever a subclass says. And what of it does travel."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import pickle
import traceback

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed, Selected, WorkerGroup, WouldBlock, select


@dataclasses.dataclass
class Config:
    channel: Channel


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        lambda channel: copy.deepcopy(channel.receiver),
        lambda channel: pickle.dumps(channel.sender),
        lambda channel: dataclasses.asdict(Config(channel)),
    ],
)
def test_a_copy_is_refused_with_what_to_do_instead(copied):
    with pytest.raises(TypeError, match=r"'jobs'.* cannot be copied or .*Pass the channel itself.*multiprocessing"):
        copied(Channel(3, name="jobs"))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (CancelToken, "Pass the token itself, or make CancelToken.parent="),
        (WorkerGroup, "Pass the group itself to the code that spawns in it"),
    ],
)
def test_a_token_and_a_group_are_not_copied_either(copied, make, instead):
    with pytest.raises(TypeError, match=f"cannot be copied or pickled: .*{instead}"):
        copied(make())


def test_a_spawned_process_is_refused_it():
    process = multiprocessing.get_context("spawn").Process(target=print, args=(Channel(),))
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        process.start()


def test_a_replaced_dataclass_shares_it():
    config = Config(Channel())
    assert dataclasses.replace(config).channel is config.channel


def test_equal_channels_are_told_apart(threads):
    class Named(Channel):
        def __eq__(self, other):
            return self.name == other.name

        def __hash__(self):
            return hash(self.name)

    first, second = Named(name="jobs"), Named(name="jobs")
    task = threads.go(select, first, second)
    threads.parked(second, receivers=1)
    second.send("v")
    done = task.result()
    assert (done.index, done.value) == (1, "v")
    assert done.case is second
    assert first.close() is True
    assert not second.closed


def test_a_channel_without_a_hash_works():
    class Unhashable(Channel):
        def __eq__(self, other):
            return True

    channel = Unhashable(1)
    channel.send(1)
    assert select(channel).value == 1
    with pytest.raises(TimeoutError):
        select(channel, Unhashable(), timeout=0.01)
    assert channel.close(final=2) is True
    assert list(channel) == [2]


@pytest.mark.parametrize("name", ["send", "try_send", "recv", "try_recv", "close"])
def test_an_operation_is_not_overridden(name):
    with pytest.raises(TypeError, match=f"Logged overrides {name} of Channel.*in an object of your own"):
        type("Logged", (Channel,), {name: lambda self: None})


def test_a_subclass_may_add():
    class Counted(Channel):
        def double(self, value):
            self.send(value)
            self.send(value)

    channel = Counted(2)
    channel.double("v")
    assert [channel.recv(), channel.recv()] == ["v", "v"]


# -- what travels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_errors_survive_copying_and_pickling(through):
    for error in (Cancelled("why"), Cancelled(), Cancelled(ValueError("why")), ChannelClosed("c"), WouldBlock("w")):
        twin = through(through(error))
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert repr(getattr(twin, "cause", None)) == repr(getattr(error, "cause", None))


def test_a_selected_survives_copying_and_can_be_made():
    made = Selected(0, "v", True, None)
    assert made == pickle.loads(pickle.dumps(made)) == (0, "v", True, None)
    assert (made.index, made.value, made.ok, made.case) == tuple(made)
    match made:
        case (0, value, True, _):
            assert value == "v"


def test_cancelled_passes_a_robust_worker(threads):
    """``except Exception: continue`` around a receive would spin."""
    jobs, token, spins = Channel(), CancelToken(), []

    def work():
        while len(spins) < 100:
            try:
                jobs.recv(cancel=token)
            except Exception as error:
                spins.append(error)

    task = threads.go(work)
    threads.parked(jobs, receivers=1)
    token.cancel("enough")
    assert isinstance(task.raises(Cancelled), Cancelled)
    assert not spins


def test_a_cause_that_is_an_exception_is_the_cause():
    cause = ValueError("why")
    error = Cancelled(cause)
    assert error.__cause__ is error.cause is cause
    assert "ValueError: why" in "".join(traceback.format_exception(error))
    assert Cancelled("text").__cause__ is None


def test_a_cause_whose_text_fails_does_not_stand_in_the_way():
    class Bad(Exception):
        def __str__(self):
            raise RuntimeError

    assert str(Cancelled(Bad())) == "cancelled: a Bad"
