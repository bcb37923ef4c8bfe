"""Opening a stream: the session's lease, the core, the threads. If a step fails, the steps before it are undone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextvars import Context

from channels import CancelToken, ChannelClosed, Registration

from .._errors import StoreError
from .._log import enter
from ..agent._agent import Agent
from ..agent._budget import Budget
from ..agent._output import Output
from ..execution._calls import Calls
from ..execution._driver import Driver, Steps
from ..execution._threads import start
from ..session._journal import Journal
from ..session._session import Session, SessionLog
from ..stores._store import Parent, Store
from . import _at_exit, _crowd
from ._commands import obey
from ._core import Shared, StreamCore
from ._end_hooks import Cleanup
from ._ending import finished, leave, over, release
from ._event_stream import EventStream
from ._forwarder import forward, observing_calls
from ._quiet import QuietCore
from ._record_writer import Recorder
from ._worker import work


def open_stream(
    shared: Shared,
    agent: Agent,
    session: Session,
    *,
    interactive: bool,
    context: Context,
    budget: Budget | None = None,
    output: Output | None = None,
    record: Callable[[str, Session], Recorder] | None = None,
    parent: StreamCore | None = None,
    within: CancelToken | None = None,
    call_id: str | None = None,
    quiet: bool = False,
) -> EventStream:
    """Open a stream and start its worker. Raises `SessionBusy`, what `Store.open` raises, and `LookupError` if calls of
    an agent are left that is not there.

    With ``parent`` the stream is nested: it is cancelled when ``within`` is, asks the consumer of its parent, and is
    observed and recorded through its parent; ``call_id`` is the call that runs it. A ``quiet`` stream sends its
    consumer only what asks something of it, and the last event. Raises `OSError` if the file of the ``record`` cannot
    be written.
    """
    log = session.lease()
    recorder: Recorder | None = None
    try:
        if shared.store is not None:
            log.outbox.open(_open_stored(shared, shared.store, session, _parent(parent, call_id)))
            _leave_as_it_was(log, session)  # until the worker has begun
            _check_agent(shared, agent, session)
        if record is not None:  # not before the lease: it may be the file of the stream that has it
            recorder = record(agent.name, session)
        observed = parent is None and (bool(shared.observers) or recorder is not None)
        core = (QuietCore if quiet else StreamCore)(
            shared,
            agent,
            session,
            log,
            interactive=interactive,
            context=context,
            parent=parent,
            budget=budget,
            gone=CancelToken(within),
            observed=observed,
            output=output,
            recorder=recorder,
        )
        enter(core.context, core.tags)
        observing = observing_calls(core) if observed else None
        stream = EventStream(core, observing)
    except BaseException:
        with contextlib.suppress(StoreError):  # it could not be opened, most likely, and that is what is raised
            log.release(shared.grace)
        if recorder is not None:
            recorder.close()
        raise
    try:
        shared.cores.add(core)
        _at_exit.live.add(core)
        if shared.watch is not None:
            shared.watch.wake()
        if shared.closed:  # it did not see this one, so that nobody would end it
            raise RuntimeError("the runtime is closed")
        if shared.listen and shared.store is not None:
            obey(core, shared.store)  # what it was told before it was one of the cores
        shared.tracing.begin(core)
        steps, helpers = _work(core, Cleanup(core)), shared.helpers
        name, runs_in = f"lockgate-stream-{core.number}", core.context.copy()
        core.driver = Driver(name, steps, runs_in, core.threads, helpers, core.token)
        core.driver.start()
        if observing is not None:
            observe = functools.partial(core.context.copy().run, _forward, core, observing)
            core.threads.append(start(observe, f"lockgate-observe-{core.number}"))
    except BaseException:
        core.token.cancel("the stream could not be started")
        if not core.threads:  # the worker would have done all this
            release(core)
            core.finished.close()
            core.trace.end()
        with contextlib.suppress(ChannelClosed, TimeoutError):  # the session shall be free again
            core.finished.recv(timeout=shared.grace)
        core.out.close()  # the forwarder would have done this
        if recorder is not None:
            recorder.close()
        over(core)
        raise
    return stream


def _open_stored(shared: Shared, store: Store, session: Session, parent: Parent | None) -> Journal:
    """Take the session from its store; from then on, its stream is told what other processes want of it."""
    if not shared.listen or shared.listener is None:
        return store.open(session, parent=parent)
    shared.listener.listen()
    return store.open(session, parent=parent, listens=True)


def _leave_as_it_was(log: SessionLog, session: Session) -> None:
    """A stream that cannot be started does not take back the questions that an earlier one has left."""
    left = session._unfinished
    if session.waiting:
        log.status = "waiting"
    elif left is not None and left.calls:
        log.status = "interrupted"


def _check_agent(shared: Shared, agent: Agent, session: Session) -> None:
    """Another agent would not know the tools whose calls are left."""
    left, name = session._unfinished, session.agent_name
    roster = shared.roster.of(agent)
    if left is not None and left.calls and name is not None and roster.find(name) is None:
        known = ", ".join(roster.names)
        raise LookupError(
            f"session {session.id} waits with calls of agent {name!r}, which is not in this runtime (it has {known}):"
            " run it with that agent"
        )


def _parent(parent: StreamCore | None, call_id: str | None) -> Parent | None:
    return None if parent is None else Parent(parent.session.id, parent.root.session.id, call_id)


def _work(core: StreamCore, cleanup: Cleanup) -> Steps[None]:
    """The worker. It holds the core, never the consumer's `EventStream` nor the `Runtime`."""
    cancelled: Registration | None = None
    try:
        cancelled = core.stopping.on_cancel(_crowd.enter)
        yield from work(core, cleanup)
        if core.driver is not None:
            core.driver.settle()
    finally:  # `insist`, spelt out: nobody would call that a second time
        try:
            leave(core, cleanup)
        except BaseException:
            leave(core, cleanup)
            raise
        finally:
            try:
                finished(core)
            except BaseException:
                finished(core)
                raise
            finally:
                if cancelled is not None and not cancelled.remove():
                    _crowd.leave()


def _forward(core: StreamCore, calls: Calls) -> None:
    """The function of the forwarder's thread, which ends last."""
    try:
        forward(core, calls)
    finally:
        over(core)
