"""Records of a run say which it is of, and hold no secrets; there is one logger a package."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channels._lazy import lazy_logger
from runtime import Agent, HookInput, RunError, Runtime, Session, SessionFilter, ToolContext, tool
from runtime._log import LOGGERS
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
OURS = lazy_logger("runtime")
SECRET = "sk-abcdefghijklmnopqrstuvwx"


class Kept(logging.Handler):
    """A handler of the user's, which keeps what it formats."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(name)s %(session_id)s/%(agent_name)s %(levelname)s %(message)s"))
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        self.records.append(record)

    def about(self, text: str) -> list[tuple[str, str]]:
        """The session and agent of each record with this text."""
        return [(r.session_id, r.agent_name) for r in self.records if text in r.getMessage()]  # type: ignore[attr-defined]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """All that ``runtime`` and ``channels`` log."""
    handler = Kept()
    loggers = [logging.getLogger(name) for name in ("runtime", "channels")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_there_is_one_logger_a_package() -> None:
    """A name of a private module in a user's settings would go stale with the next move of a file."""
    names = {
        (path.relative_to(ROOT).parts[0], name)
        for package in ("runtime", "channels")
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r"(?:getLogger|lazy_logger)\((\"[^)]*)\)", path.read_text(encoding="utf-8"))
    }
    assert {package for package, _ in names} == {"runtime", "channels"}
    for package, name in names - {("runtime", '"waitress"')}:  # the server's own, which is made quieter
        assert name.strip('"') in LOGGERS, name
        assert name.strip('"').partition(".")[0] == package


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_each_record_of_a_run_has_its_session_and_agent(kept: Kept, model: type[Scripted]) -> None:
    """Whatever logs it: the worker, a helper, a task on the loop, a nested stream, the consumer's thread."""

    def hook(given: HookInput) -> None:
        raise LookupError("in the hook")

    @tool(read_only=True)
    def inner() -> str:
        """Fails."""
        raise LookupError("in the inner tool")

    @tool(read_only=True)
    async def async_() -> str:
        """Fails, on the loop."""
        raise LookupError("in the async tool")

    @tool(read_only=True, on="consumer")
    def here() -> str:
        """Fails, in the consumer's thread."""
        raise LookupError("in the consumer")

    inside = Session.from_user("sub")
    sub = Agent("sub", Scripted([call("inner")], [LookupError("in the model")]), tools=[inner])

    @tool(read_only=True)
    def outer(context: ToolContext) -> str:
        """Runs an agent that fails."""
        return context.run_agent(sub, inside).text

    turns = (
        [call("async_", id="1"), call("here", id="2", index=1), call("outer", id="3", index=2)],
        [call("handoff", '{"agent": "other"}', id="4")],
    )
    other = Agent("other", model(say("x")), hooks={"session_end": [hook]})
    agent = Agent("first", model(*turns), tools=[async_, here, outer], handoffs=[other], hooks={"session_end": [hook]})
    session = Session.from_user("go")
    with Runtime(agent) as runtime:
        runtime.run(session)

    def mine(name: str) -> list[tuple[str, str]]:
        return [(session.id, name)]

    assert kept.about("begins") == [*mine("first"), (inside.id, "sub")]
    assert kept.about("in the async tool") == mine("first")
    assert kept.about("in the consumer") == mine("first")
    assert kept.about("in the inner tool") == [(inside.id, "sub")]
    assert set(kept.about("in the model")) == {(inside.id, "sub"), *mine("first")}  # the tool fails of it
    assert kept.about("in the hook") == mine("other")
    assert kept.about("has ended: normal") == mine("other")
    assert all(record.name == "runtime" for record in kept.records)
    assert f"runtime {session.id}/first DEBUG" in "\n".join(kept.lines)


def test_records_of_other_loggers_too_where_the_handler_has_the_filter(kept: Kept) -> None:
    shop = logging.getLogger("tests of logging")
    shop.setLevel(logging.INFO)
    shop.propagate = False
    handler = Kept()
    handler.addFilter(SessionFilter())
    shop.addHandler(handler)

    @tool(read_only=True)
    def sell() -> str:
        """Sells."""
        shop.info("sold")
        return "ok"

    session = Session.from_user("go")
    try:
        with Runtime(Agent("clerk", Scripted([call("sell")], say("x")), tools=[sell])) as runtime:
            runtime.run(session)
        shop.info("closed")
    finally:
        shop.removeHandler(handler)
    assert handler.lines == [f"tests of logging {session.id}/clerk INFO sold", "tests of logging / INFO closed"]


def test_records_that_are_of_no_run_say_so(kept: Kept) -> None:
    lazy_logger("channels").warning("outside")
    lazy_logger("runtime.mcp").warning("outside")
    assert kept.about("outside") == [("", ""), ("", "")]


def test_runs_side_by_side_are_told_apart(kept: Kept) -> None:
    sessions = [Session.from_user("go") for _ in range(8)]
    line = threading.Barrier(8)

    @tool(read_only=True)
    def fail(context: ToolContext) -> str:
        """Fails."""
        line.wait(10)
        raise LookupError(f"in {context.session_id}")

    turns = [turn for _ in range(8) for turn in ([call("fail")],)] + [say("x")] * 8
    with Runtime(Agent("a", Scripted(*turns), tools=[fail])) as runtime:
        streams = [runtime.run_stream(session) for session in sessions]
        for stream in streams:
            for _ in stream:
                pass
    for session in sessions:
        assert set(kept.about(f"in {session.id}")) == {(session.id, "a")}


def test_what_is_said_in_the_consumers_thread_about_a_run_is_of_that(kept: Kept) -> None:
    with Stall() as stall:

        @tool(read_only=True, timeout=0.02)
        def stuck() -> str:
            """Stands still."""
            stall()
            return ""

        session = Session.from_user("go")
        with Runtime(Agent("a", Scripted([call("stuck")], say("x")), tools=[stuck]), grace=0.05) as runtime:
            result = runtime.run_stream(session).result()
            assert result.stuck is not None
            assert kept.about("did not end within") == [(session.id, "a")]
            stall.go_on.set()


def test_no_secrets_are_logged(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by their form, nor by their name, nor as the value of a variable; in a message, or in a traceback."""
    monkeypatch.setenv("SHOP_API_KEY", "a-value-of-no-form")

    @tool(read_only=True)
    def fail() -> str:
        """Fails."""
        raise LookupError(f"{SECRET} password=tulip a-value-of-no-form, and Mainz")

    turns = [call("fail")], [LookupError(f"{SECRET} in the model")]
    with Runtime(Agent("a", Scripted(*turns), tools=[fail])) as runtime, pytest.raises(RunError):
        runtime.run(Session.from_user("go"))
    try:
        raise ValueError(SECRET)
    except ValueError:
        OURS.exception("key %s", SECRET)
    said = "\n".join(kept.lines)
    assert "and Mainz" in said
    assert "ValueError: <redacted>" in said
    assert "key <redacted>" in said
    for secret in (SECRET, "tulip", "a-value-of-no-form"):
        assert secret not in said


def test_a_record_without_secrets_keeps_its_exception_and_arguments(kept: Kept) -> None:
    """Handlers that group by message, or send exceptions somewhere, find them."""
    try:
        raise ValueError("plain")
    except ValueError:
        OURS.exception("%s has failed", "it")
    [record] = kept.records
    assert record.msg == "%s has failed"
    assert record.args == ("it",)
    assert record.exc_info is not None


def test_a_message_without_end_is_cut(kept: Kept) -> None:
    OURS.warning("%s", "x" * 1_000_000)
    [line] = kept.lines
    assert len(line) < 30_000
    assert line.endswith("(1000000 characters)")


def test_nothing_is_said_of_a_run_that_goes_well(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO and above, which is what most programs show."""
    caplog.set_level(logging.INFO)
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        runtime.run(Session.from_user("go"))
    assert not [record for record in caplog.records if record.name.startswith(LOGGERS)]


def test_a_background_agent_is_told_apart(kept: Kept) -> None:
    @tool(read_only=True)
    def fail() -> str:
        """Fails."""
        raise LookupError("in the background")

    sub = Agent("sub", Scripted([call("fail")], say("x")), tools=[fail])
    turns: list[Any] = [
        [call("run_background_agent", '{"agent": "sub", "task": "go"}', id="1")],
        [call("wait_background_agent", '{"task_id": "task-1"}', id="2")],
        say("done"),
    ]
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(*turns), sub_agents=[sub], background_agents=True)) as runtime:
        runtime.run(session)
    assert eventually(lambda: kept.about("in the background"))
    [(inside, name)] = kept.about("in the background")
    assert name == "sub"
    assert inside != session.id
