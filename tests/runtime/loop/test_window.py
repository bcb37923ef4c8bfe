"""A conversation that fills the model's window is shown shorter; the session keeps everything."""

from __future__ import annotations

import json
from types import SimpleNamespace
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
    Usage,
    UsageDelta,
    tool,
)
from runtime.agent import _view
from runtime.agent._view import recent, text_tokens, tokens
from runtime.events import (
    AgentChoice,
    Event,
    HookBlocked,
    SessionCompaction,
    SessionSummary,
    SessionTitle,
    Warning,
)
from runtime.loop import _compact
from runtime.models.replay import ReplayModel
from runtime.recording import Recording
from runtime.session import Compacted
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


def test_after_an_overflow_it_is_tried_again() -> None:
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
        ([[OVERFLOW], say("summary"), *[[OVERFLOW]] * 40], long_session(), {}),  # again and again
        ([[OVERFLOW]], Session.from_user("x"), {}),  # there is nothing to leave out
        ([[OVERFLOW]], long_session(), {"compaction": None}),
        ([[ModelError("overloaded", "busy")]], long_session(), {}),
        ([[TextDelta("I "), OVERFLOW]], long_session(), {}),  # it had begun to answer
    ],
)
def test_an_overflow_that_cannot_be_helped(turns: Any, session: Session, more: Any) -> None:
    """Ends the run, with the model's error as the cause."""
    model = Scripted(*turns)
    with Runtime(Agent("a", model, **more)) as runtime, pytest.raises(RunError) as caught:
        runtime.run(session)
    assert caught.value.code == "model_error"
    assert isinstance(caught.value.__cause__, ModelError)
    assert len(model.seen) <= 20


def test_what_is_too_long_by_itself_is_cut_and_asked_again() -> None:
    """Each time it is refused it becomes shorter. The session has all of it."""
    session = Session.from_user("begin " + "x" * 9000 + " end")
    events, model = run(session, [OVERFLOW], [OVERFLOW], say("fine"), model=Scripted)
    sizes = [tokens(seen) for seen in model.seen]
    assert sizes[0] > sizes[1] > sizes[2]
    assert model.seen[2][1].content.startswith("begin x")
    assert model.seen[2][1].content.endswith("x end")
    assert "are left out here" in model.seen[2][1].content
    assert len(session.messages[0].content) > 9000
    assert any("the middle of the longest" in event.message for event in events if isinstance(event, Warning))


def test_a_summary_that_fails_is_a_warning() -> None:
    """Before the call: it is made as it is, where it may fit all the same."""
    session = long_session()
    events, model = run(session, [LookupError("no")], say("fine"), compaction=Compaction(window=2200))
    [warning] = [event.message for event in events if isinstance(event, Warning)]
    assert "could not sum up" in warning
    assert of(events, SessionCompaction) == ["started", "failed"]
    assert list(model.seen[1][1:]) == list(session.messages[:-1])
    events, _ = run(long_session(), say(" "), say("fine"), compaction=Compaction(window=2200))
    assert of(events, SessionCompaction) == ["started", "failed"]


@pytest.mark.parametrize("turns", [([LookupError("no")],), ([OVERFLOW], [LookupError("no")])])
def test_what_nobody_sums_up_is_left_out_where_it_cannot_be_shown(turns: Any) -> None:
    """A session that is too long for its model can be asked all the same."""
    session = long_session()
    events, model = run(session, *turns, say("fine"), model=Small if len(turns) == 1 else Scripted)
    assert "could not be summed up" in model.seen[-1][1].content
    assert model.seen[-1][-1].content == "and now?"
    assert tokens(model.seen[-1]) < 1000
    assert session.messages[-1].content == "fine"
    assert any("not shown to the model any more" in event.message for event in events if isinstance(event, Warning))


# -- a thousand turns --------------------------------------------------------------------------------------------------


class Reader(Scripted):
    """Reads a page for each question, refuses what is longer than its window, and counts as we do, or ``dense``."""

    def __init__(self, window: int, dense: float = 1.0, tells: bool = True, known: bool = True) -> None:
        super().__init__()
        self.window, self.dense, self.tells = window, dense, tells
        if known:
            self.context_window = window
        self.sizes: list[int] = []
        self.sums = self.refused = self.calls = 0

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        size = int(tokens(messages, tools) * self.dense)
        if size > self.window:
            self.refused += 1
            raise ModelError("context_overflow", f"{size} tokens")
        if self.tells:
            yield UsageDelta(size, 20)
        if messages[0].content.startswith("You are given a conversation"):
            self.sums += 1
            yield TextDelta("A summary. " * 20)
            return
        self.sizes.append(size)
        made: set[str] = set()
        for message in messages:
            assert message.role != "tool" or message.tool_call_id in made, "a result without its call"
            made = {each.id for each in message.tool_calls} or made
        if messages[-1].role == "user":
            self.calls += 1
            yield call("read", json.dumps({"page": self.calls}), id=f"c{self.calls}")
        else:
            yield TextDelta("It says x. " * 10)


LENGTHS = [10, 300, 20_000, 3000, 100, 1_000_000, 50, 60_000]


@tool(read_only=True)
def read(page: int) -> str:
    """Read a page."""
    return f"page {page}: " + "x" * LENGTHS[page % len(LENGTHS)]


@pytest.mark.parametrize("window", [2000, 8000, 128_000])
def test_a_thousand_turns_stay_within_the_window(window: int) -> None:
    """Nothing that is shown is longer, the request for a summary included, and what came before is summed up."""
    model, session = Reader(window), Session.from_user("page 0?")
    with Runtime(Agent("a", model, "Read.", tools=[read]), result_limit=None) as runtime:
        for i in range(500):
            assert runtime.run(session).reason == "normal"
            session.add_user(f"page {i + 1}?")
    assert len(model.sizes) == 1000
    assert model.refused == 0
    assert max(model.sizes) <= window
    assert 10 <= model.sums <= 500
    assert len(session.messages) == 2001


@pytest.mark.parametrize(
    ("dense", "tells", "known"), [(3.0, True, True), (1.5, False, True), (1.0, True, False), (3.0, False, False)]
)
def test_a_session_can_always_be_asked_again(dense: float, tells: bool, known: bool) -> None:
    """Where the estimate is wrong, the model does not say what it has counted, or nobody knows the window: what it
    refuses is made shorter until it does not.
    """
    model, session = Reader(4000, dense, tells, known), Session.from_user("page 0?")
    with Runtime(Agent("a", model, "Read.", tools=[read])) as runtime:
        for i in range(100):
            assert runtime.run(session).reason == "normal"
            session.add_user(f"page {i + 1}?")
    assert model.sums
    assert max(model.sizes) <= 4000


def test_one_long_run_of_many_turns_is_summed_up() -> None:
    """A loop of tools without a question in between; the task is still shown."""

    class Loop(Reader):
        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            assert any("read the book" in message.content for message in messages)
            for delta in super().stream(messages, tools, cancel=cancel):
                if self.calls < 300 and isinstance(delta, TextDelta) and delta.text.startswith("It"):
                    self.calls += 1
                    yield call("read", json.dumps({"page": self.calls}), id=f"c{self.calls}")
                else:
                    yield delta

    model, session = Loop(4000), Session.from_user("read the book")
    with Runtime(Agent("a", model, tools=[read], max_iterations=400)) as runtime:
        runtime.run(session)
    assert model.sums
    assert model.refused == 0


def test_a_turn_estimates_what_is_new_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a turn costs does not grow with the session."""
    counted = 0
    estimate = _view.tokens

    def count(messages: Any, tools: Any = ()) -> int:
        nonlocal counted
        messages = list(messages)
        counted += len(messages)
        return estimate(messages, tools)

    monkeypatch.setattr(_view, "tokens", count)
    costs = []

    class Counting(Scripted):
        context_window = 10_000_000

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            nonlocal counted
            costs.append(counted)
            counted = 0
            page = len(costs)
            yield call("read", json.dumps({"page": 8 * page}), id=f"c{page}") if page < 200 else TextDelta("end")

    with Runtime(Agent("a", Counting(), tools=[read], max_iterations=300)) as runtime:
        runtime.run(Session.from_user("go"))
    assert max(costs[1:]) <= 4


@pytest.mark.parametrize(("more", "compacted"), [(0, False), (1, True)])
def test_a_window_is_full_when_there_is_more_in_it_than_that(more: int, compacted: bool) -> None:
    """Not before."""
    session = Session([Message("user", "x" * 2000), Message("assistant", "y" * 1000), Message("user", "z" * 400)])
    size = tokens(session.messages)
    model = Scripted(*([say("short")] if compacted else []), say("fine"))
    window = (size - more) * 2
    with Runtime(Agent("a", model, compaction=Compaction(at=0.5, keep=0.3, window=window))) as runtime:
        runtime.run(session)
    assert bool(session.compacted.summary) is compacted


def test_only_what_is_older_than_the_last_is_summed_up() -> None:
    """Where the last that was said is all that is left, nobody is asked for a summary of nothing."""
    session = Session([Message("user", "x" * 9000), Message("assistant", "y"), Message("user", "z" * 3600)])
    _, model = run(session, say("short"), say("fine"))
    assert len(model.seen) == 2
    assert session.compacted.start == 2
    session = Session(
        [Message("user", "x"), Message("user", "z" * 3600)], compacted=Compacted("short", start=1, shortened=1, at=2)
    )
    events, model = run(session, say("fine"))
    assert len(model.seen) == 1
    assert of(events, SessionCompaction) == []


def test_what_the_model_counted_before_a_compaction_counts_no_more() -> None:
    """Its call showed what is summed up now, and the one after the compaction may have failed."""
    counted = Message("assistant", "y" * 400, usage=Usage(4000, 100))
    session = Session(
        [Message("user", "x"), counted, Message("user", "z" * 400)], compacted=Compacted("short", 1, 1, at=3)
    )
    events, model = run(session, say("fine"))
    assert len(model.seen) == 1
    assert of(events, SessionCompaction) == []


# -- the arithmetic, at its bounds -------------------------------------------------------------------------------------


def core_of(session: Session, density: float = 1.0) -> Any:
    return SimpleNamespace(session=session, density=density)


def size_of(session: Session, fixed: int = 96) -> tuple[float, float]:
    """The size of the conversation, and the density that was found out on the way."""
    core = core_of(session)
    return _compact._size(core, Compaction(), fixed), core.density


def test_the_size_is_what_the_model_counted_and_what_came_since() -> None:
    """In tokens as they are counted here, without the overhead of the provider and what is not the conversation."""
    asked, reply, more = Message("user", "x" * 400), "y" * 40, Message("user", "z" * 80)
    session = Session([asked, Message("assistant", reply, usage=Usage(1400, 10)), more])
    assert size_of(session) == (1400 / 2 - 96 + 14 + 24, 2.0)  # 400 tokens of the model for 200 that are counted here
    densest = Session([asked, Message("assistant", reply, usage=Usage(9000, 10)), more])
    assert size_of(densest) == (9000 / 8 - 96 + 14 + 24, 8.0)
    little = Session([asked, Message("assistant", reply, usage=Usage(1100, 10)), more])
    assert size_of(little) == (1100 - 96 + 14 + 24, 1.0)


@pytest.mark.parametrize("usage", [None, Usage(0, 10)])
def test_a_reply_that_was_not_counted_is_estimated(usage: Usage | None) -> None:
    session = Session([Message("user", "x" * 400), Message("assistant", "y" * 40, usage=usage)])
    assert size_of(session) == (104 + 14, 1.0)


@pytest.mark.parametrize(("start", "at", "counts"), [(0, 1, True), (0, 2, False), (2, 0, False), (1, 1, True)])
def test_only_a_count_of_what_is_shown_now_counts(start: int, at: int, counts: bool) -> None:
    """The reply is message 1: one that came before the compaction was decided, or that is not shown, counts no more."""
    said = [Message("user", "x" * 400), Message("assistant", "y" * 40, usage=Usage(9000, 10)), Message("user", "z")]
    session = Session(said, compacted=Compacted("s" * 40, start, start, at))
    assert (size_of(session)[1] > 1) is counts


def test_instructions_may_fill_nearly_all_of_the_window() -> None:
    """A tenth of it is left to the conversation all the same."""
    core, compaction = core_of(Session()), Compaction(at=0.8, keep=0.2)
    assert _compact._room(core, compaction, 1000, 950) == _compact._Room(100, 25, 100)
    assert _compact._room(core, compaction, 1000, 100) == _compact._Room(700, 175, 900)


def test_what_is_exactly_as_much_as_can_be_shown_is_shown() -> None:
    """Also where nobody sums it up: nothing is left out, and nothing cut."""
    session = Session([Message("user", "x" * 2000), Message("assistant", "y" * 1000), Message("user", "z" * 400)])
    model = Scripted([], say("fine"))
    with Runtime(Agent("a", model, compaction=Compaction(window=tokens(session.messages)))) as runtime:
        events = list(runtime.run_stream(session))
    assert of(events, SessionCompaction) == ["started", "failed"]
    assert [each.content for each in model.seen[1]] == [each.content for each in session.messages[:3]]


def test_a_count_of_what_was_cut_counts_no_more() -> None:
    """The model has counted less than what there is."""
    session = Session.from_user("x" * 8000)
    run(session, [*say("fine"), UsageDelta(50, 1)])
    assert session.compacted.at == 2, "the reply, which has the count, is message 1"
    assert size_of(session)[0] > 2000


@pytest.mark.parametrize("letter", ["s ", "漢"])
def test_a_summary_is_as_long_as_there_is_room_for(letter: str) -> None:
    """In tokens, whatever the script: or the window would be full again at once."""
    session = long_session()
    run(session, say(letter * 5000), say("fine"))
    assert 200 < text_tokens(session.compacted.summary) <= 250  # five sixteenths of 800 tokens


def test_a_summary_has_some_room_where_the_last_messages_take_nearly_all() -> None:
    session = long_session()
    run(session, say("s" * 500), say("fine"), compaction=Compaction(keep=0.79))
    assert len(session.compacted.summary) == 80


def test_an_overflow_is_followed_by_much_less() -> None:
    """How much too long it was nobody says: also a window that was said to be large enough was not."""
    session = long_session(12)
    _, model = run(session, [OVERFLOW], say("short"), say("fine"), compaction=Compaction(window=10_000))
    refused, shown = model.seen[0], model.seen[-1]
    assert tokens(shown) < 0.25 * tokens(refused)


def test_a_request_for_a_summary_fits_whatever_the_lengths() -> None:
    """With the note about what it leaves out."""
    for size in range(300, 420, 7):
        session = long_session(40, size)
        _, model = run(session, say("short"), say("fine"))
        assert "older messages are left out" in model.seen[0][1].content
        assert tokens(model.seen[0]) <= 800


def test_a_request_for_a_summary_that_is_refused_is_made_much_shorter() -> None:
    _, model = run(long_session(12), [OVERFLOW], say("short"), say("fine"))
    first, second = (len(model.seen[i][1].content) for i in (0, 1))
    assert second < 0.45 * first


def test_what_is_to_be_summed_up_is_as_much_as_there_is_room_for() -> None:
    exact = Message("user", "x" * 94)  # with its role, and what stands between it and the next
    room = _compact._characters("user: " + "x" * 94)
    assert _compact._to_sum_up("", [exact], room) == "user: " + "x" * 94
    many = [Message("user", "x" * 200)] * 100
    text = _compact._to_sum_up("", many, 1000)
    assert text.startswith("[88 older messages are left out here]"), "80 characters of each, or it says nothing"
    assert len(text) <= 1000 + len("[88 older messages are left out here]")
    text = _compact._to_sum_up("b" * 5000, many, 1200)
    assert text.startswith("Summed up before: b")
    assert 1000 < len(text) <= 1200 + len("[88 older messages are left out here]")
    assert len(text.partition("\n\n")[0]) <= 400 + len("Summed up before: "), "a third of the room"


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
