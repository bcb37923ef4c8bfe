"""A conversation that fills the model's window is shown shorter; the session keeps everything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import (
    Agent,
    Compaction,
    HookInput,
    HookResult,
    Message,
    ModelError,
    Permissions,
    RunError,
    Runtime,
    Session,
    TextDelta,
    ToolCall,
    UsageDelta,
    tool,
)
from runtime._view import recent, tokens
from runtime.events import (
    AgentChoice,
    Event,
    HookBlocked,
    SessionCompaction,
    SessionSummary,
    SessionTitle,
    Warning,
)
from runtime.models.replay import ReplayModel
from runtime.recording import Recording
from support.scripted import Scripted, call, say


class Small(Scripted):
    """A model with a small window, and a note on how much it was shown."""

    context_window = 1000


OVERFLOW = ModelError("context_overflow", "too long")


def long_session(turns: int = 6, size: int = 600) -> Session:
    """About 150 tokens for each of twice as many messages."""
    said = []
    for i in range(turns):
        said += [Message("user", f"question {i} " + "x" * size), Message("assistant", f"answer {i} " + "y" * size)]
    return Session([*said, Message("user", "and now?")])


def tool_session(size: int = 2000) -> Session:
    """A long result of a tool that is old, and one that is new."""
    said = [Message("user", "look")]
    for i in range(2):
        said.append(Message("assistant", "", (ToolCall(f"c{i}", "look", "{}"),)))
        said.append(Message("tool", f"result {i} " + "z" * (size if i == 0 else 40), tool_call_id=f"c{i}"))
    return Session([*said, Message("assistant", "seen"), Message("user", "and now?")])


def run(session: Session, *turns: Any, model: type[Scripted] = Small, **more: Any) -> tuple[list[Event], Scripted]:
    scripted = model(*turns)
    with Runtime(Agent("a", scripted, "Be good.", **more)) as runtime:
        return list(runtime.run_stream(session)), scripted


def of(events: list[Event], *kinds: type) -> list[str]:
    """How the compactions went, and their summaries."""
    return [getattr(each, "status", "") or getattr(each, "summary", "") for each in events if isinstance(each, kinds)]


# -- before the call ---------------------------------------------------------------------------------------------------


def test_a_full_window_is_summed_up_before_the_call() -> None:
    """The older messages become a summary, the recent ones stay, the session has all of it."""
    session = long_session()
    before = session.messages
    events, model = run(session, say("the ", "summary"), say("fine"))
    asked, shown = model.seen
    assert "question 0" in asked[1].content
    assert "question 5" in asked[1].content
    assert "answer 5" not in asked[1].content
    assert [message.role for message in shown][:2] == ["system", "user"]
    assert "the summary" in shown[1].content
    assert shown[-1].content == "and now?"
    assert "question 0" not in "".join(message.content for message in shown)
    assert "answer 5" in "".join(message.content for message in shown)
    assert session.messages[: len(before)] == before
    assert session.messages[-1].content == "fine"
    assert of(events, SessionCompaction, SessionSummary) == ["started", "the summary", "completed"]
    assert [event.content for event in events if isinstance(event, AgentChoice)] == ["fine"]


def test_old_tool_results_are_cut_first() -> None:
    """Where that is enough nobody is asked for a summary, and the session has the whole result."""
    session = tool_session(4000)
    events, model = run(session, say("fine"), compaction=Compaction(keep=0.1))
    [shown] = model.seen
    old, new = [message for message in shown if message.role == "tool"]
    assert old.content.startswith("result 0 zzz")
    assert len(old.content) < 500
    assert "characters more" in old.content
    assert len(new.content) > 40
    assert len(session.messages[2].content) > 4000
    assert of(events, SessionCompaction, SessionSummary) == ["started", "completed"]


def test_what_fits_is_shown_as_it_is() -> None:
    """Also where nobody knows the window, and where there is to be no compaction."""
    for model, more in ((Small, {}), (Scripted, {}), (Small, {"compaction": None})):
        session = long_session(1) if model is Small and not more else long_session()
        events, scripted = run(session, say("fine"), model=model, **more)
        assert list(scripted.seen[0][1:]) == list(session.messages[:-1])
        assert of(events, SessionCompaction) == []


def test_what_the_model_has_counted_counts() -> None:
    """Its own number is right where the estimate is not: here, a text of few characters and many tokens."""
    session = Session([Message("user", "one " * 30), Message("assistant", "x"), Message("user", "two")])
    model = Small([*say("x"), UsageDelta(900, 10)], say("summary"), say("y"))
    with Runtime(Agent("a", model, compaction=Compaction(keep=0.01))) as runtime:
        runtime.run(session)
        session.add_user("three")
        runtime.run(session)
    assert len(model.seen) == 3
    assert "summary" in model.seen[2][0].content
    assert session.compacted.summary == "summary"


def test_a_summary_is_summed_up_with_what_came_after_it() -> None:
    """And what was shown shorter stays so in the next stream."""
    session = long_session()
    run(session, say("first summary"), say("fine"))
    session.add_user("more " + "z" * 2800)
    session.add_user("and more")
    _, model = run(session, say("second summary"), say("fine"))
    assert "Summed up before: first summary" in model.seen[0][1].content
    assert "question 0" not in model.seen[0][1].content
    assert "second summary" in model.seen[1][1].content
    session.add_user("thanks")
    _, model = run(session, say("bye"))
    assert "second summary" in model.seen[0][1].content


def test_a_summary_model() -> None:
    """It is asked in place of the agent's; what it uses counts."""
    other = Scripted([*say("short"), UsageDelta(50, 5)])
    session = long_session()
    _, model = run(session, say("fine"), compaction=Compaction(model=other))
    assert len(other.seen) == len(model.seen) == 1
    assert session.usage.input_tokens == 50


def test_calls_keep_their_results() -> None:
    """Whatever is kept begins with no result of a tool; the task that is worked on is not lost."""
    said = [Message("user", "the task")]
    for i in range(8):
        calls = tuple(ToolCall(f"c{i}{j}", "look", "{}") for j in range(2))
        said += [Message("assistant", "", calls), *(Message("tool", "r" * 200, tool_call_id=each.id) for each in calls)]
    for budget in range(0, 1200, 7):
        begin = recent(said, budget)
        assert begin < len(said)
        assert said[begin].role != "tool"
    session = Session(said)
    _, model = run(session, say("summary"), say("fine"), compaction=Compaction(at=0.5, keep=0.2, result_limit=200))
    assert "the task" in model.seen[-1][1].content
    made = {each.id for message in model.seen[-1] for each in message.tool_calls}
    assert made == {message.tool_call_id for message in model.seen[-1] if message.role == "tool"}


# -- after an overflow -------------------------------------------------------------------------------------------------


def test_after_an_overflow_it_is_tried_once_more() -> None:
    """Where nobody knew the window."""
    session = long_session()
    events, model = run(session, [OVERFLOW], say("the summary"), say("fine"), model=Scripted)
    assert len(model.seen) == 3
    assert tokens(model.seen[2]) < tokens(model.seen[0]) / 2
    assert session.messages[-1].content == "fine"
    assert of(events, SessionCompaction) == ["started", "completed"]


@pytest.mark.parametrize(
    ("turns", "session", "more"),
    [
        ([[OVERFLOW], say("summary"), [OVERFLOW]], long_session(), {}),  # again
        ([[OVERFLOW]], Session.from_user("x" * 9000), {}),  # there is nothing to leave out
        ([[OVERFLOW]], long_session(), {"compaction": None}),
        ([[ModelError("overloaded", "busy")]], long_session(), {}),
        ([[TextDelta("I "), OVERFLOW]], long_session(), {}),  # it had begun to answer
        ([[OVERFLOW], [LookupError("no")]], long_session(), {}),  # nobody sums it up
    ],
)
def test_an_overflow_that_cannot_be_helped(turns: Any, session: Session, more: Any) -> None:
    """Ends the run, with the model's error as the cause."""
    model = Scripted(*turns)
    with Runtime(Agent("a", model, **more)) as runtime, pytest.raises(RunError) as caught:
        runtime.run(session)
    assert caught.value.code == "model_error"
    assert isinstance(caught.value.__cause__, ModelError)
    assert model.turns == []


def test_a_summary_that_fails_is_a_warning() -> None:
    """Before the call: it is made as it is, for it may fit all the same."""
    session = long_session()
    events, model = run(session, [LookupError("no")], say("fine"))
    [warning] = [event.message for event in events if isinstance(event, Warning)]
    assert "could not sum up" in warning
    assert of(events, SessionCompaction) == ["started", "failed"]
    assert list(model.seen[1][1:]) == list(session.messages[:-1])
    events, _ = run(long_session(), say(" "), say("fine"))
    assert of(events, SessionCompaction) == ["started", "failed"]


# -- hooks, persistence, records ---------------------------------------------------------------------------------------


def test_hooks_see_it_and_may_block_it() -> None:
    """Before, with the reason; after, with the summary."""
    seen = []

    def note(given: HookInput) -> None:
        seen.append((given.hook_event_name, given.reason, given.response))

    run(long_session(), say("short"), say("x"), hooks={"before_compaction": [note], "after_compaction": [note]})
    assert seen == [("before_compaction", "full", ""), ("after_compaction", "full", "short")]

    def block(given: HookInput) -> HookResult:
        return HookResult(block=True, reason="keep it")

    session = long_session()
    events, model = run(session, say("x"), hooks={"before_compaction": [block]})
    assert [event.reason for event in events if isinstance(event, HookBlocked)] == ["keep it"]
    assert list(model.seen[0][1:]) == list(session.messages[:-1])


def test_a_session_is_written_with_what_its_model_is_shown() -> None:
    """And its title, permissions and usage; it comes back as it was."""
    session = long_session()
    session._permissions = Permissions(allow=["read_*"], deny=["shell:cmd=rm *"], approve_all=True)
    run(session, [*say("the summary"), UsageDelta(3, 4)], say("fine"))
    again = Session.from_dict(json.loads(json.dumps(session.to_dict())))
    assert again.to_dict() == session.to_dict()
    assert again.messages == session.messages
    assert again.permissions == session.permissions
    assert again.usage == session.usage
    assert again.compacted == session.compacted
    assert again.compacted.summary == "the summary"


def test_a_compaction_is_replayed(tmp_path: Any) -> None:
    """The call for the summary is in the record like any other."""
    path = tmp_path / "run.jsonl"
    with Runtime(Agent("a", Small(say("short"), say("fine")))) as runtime:
        runtime.run(long_session(), record=path)
    model = ReplayModel(path)
    compaction = Compaction(window=1000)
    with Runtime(Agent("a", model, compaction=compaction)) as runtime:
        assert runtime.run(Recording(path).session()).text == "fine"
    assert model.left == 0


@pytest.mark.parametrize("more", [{"at": 0.2}, {"keep": 0}, {"at": 1.5}, {"window": 0}, {"result_limit": -1}])
def test_what_a_compaction_cannot_be(more: Any) -> None:
    """It says so when it is made."""
    with pytest.raises(ValueError, match=r"keep|window|result_limit"):
        Compaction(**more)


# -- titles ------------------------------------------------------------------------------------------------------------


def test_a_session_gets_the_first_words_as_its_title() -> None:
    """Where the runtime is told so, once, and only where there is none."""

    @tool(read_only=True)
    def look() -> str:
        """Looks."""
        return "x"

    session = Session.from_user("Book a table\nfor two people at the quiet place around the corner, please, on Friday")
    with Runtime(Agent("a", Scripted([call("look")], say("x"), say("y")), tools=[look]), titles=True) as runtime:
        events = list(runtime.run_stream(session))
        assert session.title == "Book a table for two people at the quiet place around ..."
        assert [event.title for event in events if isinstance(event, SessionTitle)] == [session.title]
        session.add_user("thanks")
        assert not any(isinstance(event, SessionTitle) for event in runtime.run_stream(session))
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        runtime.run(session := Session.from_user("Hello"))
    assert session.title == ""
