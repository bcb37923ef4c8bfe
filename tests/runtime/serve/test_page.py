"""The page, in a real Chromium, driven as its user does, against a real server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Agent, Image, ReasoningDelta, TextDelta, ToolCallDelta, ToolContext, tool
from runtime.serve import Application
from runtime.serve._page import page, page_headers
from runtime.stores import SQLiteStore
from support.browser import Browser, Tab
from support.serving import Client, listening
from support.waiting import eventually

pytest.importorskip("werkzeug")

EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\u202e\x1b]0;x\x07'
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
BASIL = {"const": "b", "title": "Basil"}
FORM = {
    "type": "object",
    "$defs": {"Size": {"type": "string", "enum": ["small", "large"]}},
    "properties": {
        "name": {"type": "string", "title": f"Your name {EVIL}", "description": f"As on the bell {EVIL}"},
        "size": {"$ref": "#/$defs/Size"},
        "pieces": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
        "price": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
        "mail": {"type": "string", "format": "email"},
        "day": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "extras": {"type": "array", "maxItems": 2, "items": {"anyOf": [{"const": "o", "title": "Olives"}, BASIL]}},
        "cash": {"type": "boolean", "default": True},
        "gift": {"type": "boolean"},
        "how": {"type": "string", "oneOf": [{"const": "fast", "title": "At once"}, {"const": "slow"}]},
    },
    "required": ["name", "size", "pieces"],
}  # fmt: skip


class Talker:
    """Calls the tools that the user names after a ``!``; says the other words, those with a ``?`` as reasoning. Before
    the word ``wait`` it waits until it is let go on.
    """

    id = "talker"

    def __init__(self) -> None:
        self.goes_on = threading.Semaphore(0)
        self.breaks = 0  # so many times at the word `break`

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        last = messages[-1]
        if last.role == "tool":
            yield TextDelta(f"It said: {last.content}")
            return
        for number, word in enumerate(last.content.replace("EVIL", EVIL.replace(" ", "\xa0")).split(" ")):
            if word == "wait":
                while not self.goes_on.acquire(timeout=0.01) and not cancel.cancelled:
                    pass
            elif word == "break" and self.breaks:
                self.breaks -= 1
                raise RuntimeError("the wire is cut")
            elif word.startswith("!"):
                name, _, arguments = word[1:].partition(":")
                yield ToolCallDelta(number, f"call-{len(messages)}-{number}", name, arguments or "{}")
            elif word.startswith("?"):
                yield ReasoningDelta(f"{word[1:]} ")
            else:
                yield TextDelta(f"{word} ")


class Place:
    """A server, the model of its agent, and the browser before it."""

    def __init__(self, browser: Browser, application: Application, client: Client, model: Talker, tools: Tools) -> None:
        self.browser = browser
        self.application = application
        self.client = client
        self.model = model
        self.tools = tools
        self.context = browser.context()
        self.url = f"http://127.0.0.1:{client.port}/"

    def tab(self, path: str = "", **size: int) -> Tab:
        tab = self.browser.tab(self.url + path, self.context, **size)
        # The page has put the focus somewhere: on the prompt, or on a question that was there as soon.
        tab.wait("document.activeElement !== document.body || document.querySelector('dialog[open]')")
        return tab


class Tools:
    """The tools of the agent, and what they were called with."""

    def __init__(self) -> None:
        self.paid = 0
        self.goes_on = threading.Event()
        self.stands = threading.Event()

    def all(self) -> list[Any]:
        @tool
        def pay(to: str = "", by: str = "") -> str:
            """Pay."""
            self.paid += 1
            return f"paid {to}"

        @tool(read_only=True, resumable=True)
        def order(context: ToolContext) -> str:
            """Order."""
            answer = context.elicit(f"What? {EVIL}", FORM)
            return f"{answer.action} {json.dumps(dict(answer.content))}"

        @tool(read_only=True)
        def visit(context: ToolContext, url: str = "https://example.org/sign?in=1") -> str:
            """Visit."""
            return context.elicit("Please sign in", url=url).action

        @tool(read_only=True)
        def work(context: ToolContext) -> str:
            """Work."""
            context.progress("half of it", 1, 2)
            self.stands.set()
            self.goes_on.wait(20)
            return "all of it"

        @tool(read_only=True)
        def book(context: ToolContext) -> str:
            """Book."""
            form = {"type": "object", "properties": {"seat": {"type": "integer"}}}
            answer = context.elicit("Which seat?", form)
            self.goes_on.wait(20)
            return f"{answer.action} {answer.content.get('seat')}"

        @tool(read_only=True)
        def fail() -> str:
            """Fail."""
            raise ValueError(f"it broke {EVIL}")

        @tool(read_only=True)
        def draw() -> list[Any]:
            """Draw."""
            return ["a picture", Image(PNG), Image(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")]

        return [pay, order, visit, work, book, fail, draw]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def serve(browser: Browser) -> Iterator[Callable[..., Place]]:
    """A function that serves the agent and opens the browser; everything ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(turns: int = 50, **settings: Any) -> Place:
            model, tools = Talker(), Tools()
            below = Agent("below", model, tools=tools.all())
            agent = Agent(
                "helper",
                model,
                tools=tools.all(),
                sub_agents=[below],
                description=f"Helps {EVIL}",
                max_iterations=turns,
            )
            application = Application(agent, **settings)
            client = stack.enter_context(listening(application))
            place = Place(browser, application, client, model, tools)
            stack.callback(browser.tell, "Target.disposeBrowserContext", browserContextId=place.context)
            stack.callback(tools.goes_on.set)
            stack.callback(model.goes_on.release, 100)
            return place

        yield start
        errors, browser.errors = browser.errors, []
    assert errors == []  # no script has failed, and the policy has refused nothing


def say(tab: Tab, text: str) -> None:
    """Type a message, and send it."""
    tab.run("document.querySelector('#prompt').focus()")
    tab.type(text)
    tab.press("Enter")


def idle(tab: Tab) -> None:
    """Wait until what was said last has been taken, and the run has ended."""
    tab.wait(
        "!view.running && document.querySelector('#stop').hidden && document.querySelector('#state').innerText === ''"
        " && !document.querySelector('.mine.sent, [aria-busy]') && !document.querySelector('#prompt').value"
    )


def hear(tab: Tab, text: str) -> None:
    """Wait until the agent's last words have the text."""
    tab.wait(f"[...document.querySelectorAll('#log > .text')].at(-1)?.innerText.includes({json.dumps(text)})")


def test_a_chat(serve: Callable[..., Place]) -> None:
    tab = serve().tab()
    tab.see("Helps", "#log .hello")
    tab.type("?first ?a ?thought **bold**")
    tab.press("Enter", shift=True)
    tab.type("and `code`")
    assert tab.run("document.querySelector('#prompt').value.includes('\\n')")
    tab.press("Enter")
    idle(tab)
    tab.see("?first ?a ?thought **bold**\nand `code`", ".mine")
    assert tab.run("document.querySelector('.thought').open") is False  # it was open until the reply began
    assert tab.run("document.querySelector('.thought div').textContent") == "first a thought "
    assert tab.text(".text strong") == "bold"
    assert tab.text(".text code") == "code"
    tab.see("?first ?a ?thought **bold**", "#sessions .name")
    tab.see("The agent says: bold", "#said")  # to those who listen
    tab.click(".thought summary")
    assert tab.run("document.querySelector('.thought').open") is True

    tab.reload()
    tab.see("bold", ".text strong")
    assert tab.count(".mine") == 1


def test_markdown_is_made_of_nodes(serve: Callable[..., Place]) -> None:
    tab = serve().tab()
    text = (
        "# Title\n\n- one\n- two\n  more\n\n3. three\n4. four\n\n```py\na = 1\n\nb = '**'\n```\n\n> said\n\n"
        "[link](https://example.org/a_(b)) see![picture](https://example.org/p.png) [bad](javascript:alert(1)) "
        "https://example.com/x. *slanted* 2*3*4 `a*b*c`\n\n---\n\nend"
    )
    tab.type(text)
    tab.press("Enter")
    idle(tab)
    found = tab.run(
        """[...document.querySelectorAll(".text :is(h3, li, pre, blockquote, a, em, hr)")]
        .map((each) => each.tagName + " " + (each.href || each.textContent))"""
    )
    assert found == [
        "H3 Title", "LI one", "LI two\nmore", "LI three", "LI four", "PRE a = 1\n\nb = '**'", "BLOCKQUOTE said",
        "A https://example.org/a_(b)", "A https://example.org/p.png", "A https://example.com/x", "EM slanted", "HR ",
    ]  # fmt: skip
    assert tab.run("document.querySelector('.text ol').start") == 3
    assert tab.text(".text").rstrip().endswith("end")
    assert "[bad](javascript:alert(1))" in tab.text(".text")  # no link
    assert all(tab.run("[...document.querySelectorAll('.text a')].map((a) => a.rel === 'noopener noreferrer')"))


def test_lists_within_lists_and_tables(serve: Callable[..., Place]) -> None:
    """A table that is wider than the page is moved in its own place, and the page is not."""
    tab = serve().tab()
    text = (
        "- one\n  - two\n    - three\n  goes on\n- four\n\n  ```\n  x = 1\n\n  y\n  ```\n1. a\n   - b\n2. c\n\n"
        "> - said\n\n"
        "Text:\n| n\\|m | `b` |\n|---|--:|\n| 1 | <b>2</b> |\n| only\n- after\n\n"
        "a | b\n--- | :-:\n1 | 2 | 3\n\n"
        f"| {'long' * 100} | x |\n|-|-|\n\n| no | table |\n|---|\n\n~~struck~~"
    )
    tab.type(text)
    tab.press("Enter")
    idle(tab)
    shown = tab.run("""(function shown(at) {
        return at.nodeType === 3 ? at.data : at.tagName.toLowerCase() + (at.className && "." + at.className)
            + "(" + [...at.childNodes].map(shown).join("") + ")";
    })(document.querySelector(".text"))""")
    assert shown == (
        "div.text(div.text("
        "ul(li(oneul(li(twoul(li(three\ngoes on)))))li(fourpre(code(x = 1\n\ny))))ol(li(aul(li(b)))li(c))"
        "blockquote(ul(li(said)))p(Text:)"
        "div.table(table(thead(tr(th(n|m)th.right(code(b))))"
        "tbody(tr(td(1)td.right(<b>2</b>))tr(td(only)td()))))ul(li(after))"
        "div.table(table(thead(tr(th(a)th.middle(b)))tbody(tr(td(1)td.middle(2)))))"
        f"div.table(table(thead(tr(th({'long' * 100})th(x)))tbody()))p(| no | table |\n|---|)"
        ")div.text(p(del(struck) )))"
    )
    assert tab.run("document.querySelector('#log').scrollWidth <= document.querySelector('#log').clientWidth")


def test_a_call_is_approved(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    say(tab, '!pay:{"to":"Ann"}')
    tab.see("Run pay?")
    tab.see("waits for you", "#state")
    tab.see('"to": "Ann"', ".call pre")
    tab.see("waits for you", "#sessions")
    tab.click(".asked button", "Approve")
    tab.see("It said: paid Ann")
    idle(tab)
    assert place.tools.paid == 1
    tab.see("Approved.")
    tab.see("done", ".call .how")
    tab.see("4 messages", "#sessions")

    tab.reload()
    tab.see("It said: paid Ann")
    tab.click(".call summary")
    tab.see("paid Ann", ".call .more")
    assert tab.count(".asked") == 0


def test_a_call_is_rejected_with_a_reason(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    say(tab, "!pay")
    tab.see("Run pay?")
    tab.click(".reason input")
    tab.type("use cash")
    tab.click(".asked button", "Reject")
    tab.see("It said: this call was rejected: use cash")
    tab.see("Rejected: use cash.")
    assert place.tools.paid == 0


def test_a_tool_is_approved_for_the_rest_of_the_session(serve: Callable[..., Place]) -> None:
    place = serve(token="secret")
    tab = place.tab()
    tab.type("secret")
    tab.press("Enter")
    tab.wait("document.activeElement.id === 'prompt'")
    say(tab, "!pay")
    tab.click(".asked button", "Always approve this tool")
    idle(tab)
    say(tab, "!pay")
    tab.wait("document.querySelectorAll('.call .how.good').length === 2")
    assert place.tools.paid == 2


def test_a_form_with_wrong_answers_first(serve: Callable[..., Place]) -> None:
    """What is wrong stands beside its field, where the focus is then; what was typed stays."""
    tab = serve().tab()
    say(tab, "!order")
    tab.see("order asks")
    assert tab.run("document.querySelector('.asked').contains(document.activeElement)")
    hints = tab.run("[...document.querySelectorAll('.field')].map((each) => each.querySelector('.hint')?.innerText)")
    assert hints[2:4] == ["a whole number, 1 to 9", "a number"]
    assert hints[7] == "2 of these or less"
    tab.click(".asked button", "Answer")
    tab.see("name is missing", ".field .problem:not([hidden])")
    labels = """[...document.querySelectorAll("[aria-invalid]")]
        .map((each) => each.closest(".field").querySelector("label").innerText)"""
    assert [each.split()[0] for each in tab.run(labels)] == ["Your", "size"]
    assert tab.run("document.activeElement.closest('.field').innerText").startswith("Your name")
    tab.type("Ann")
    fill = """((index, text) => {
        const field = document.querySelectorAll(".field")[index].querySelector("input, select");
        field.focus();
        field.select?.();
    })"""
    for index, text in ((2, "ten"), (4, "ann")):
        tab.run(f"{fill}({index})")
        tab.type(text)
    tab.run("document.querySelectorAll('.field select')[0].value = '1'")
    tab.press("Enter")  # from within a field
    tab.see("pieces must be a whole number, not 'ten'")
    tab.see("mail must be an e-mail address, not 'ann'")
    assert tab.count("[aria-invalid]") == 2
    for index, text in ((2, "3"), (3, "4.5"), (4, "ann@example.org")):
        tab.run(f"{fill}({index})")
        tab.type(text)
    tab.run("document.querySelector('[type=date]').value = '2026-12-24'")
    tab.run("document.querySelector('[type=datetime-local]').value = '2026-12-24T18:30:00'")
    tab.click(".field .option", "Basil")
    tab.run("document.querySelectorAll('.field select')[1].value = '1'")
    tab.run("document.querySelectorAll('.field select')[2].value = '0'")
    tab.click(".asked button", "Answer")
    tab.see("It said: accept")
    found = json.loads(tab.text().rpartition("It said: accept ")[2].splitlines()[0])
    assert found.pop("at").startswith("2026-12-2")
    assert found == {
        "name": "Ann", "size": "large", "pieces": 3, "price": 4.5, "mail": "ann@example.org", "day": "2026-12-24",
        "extras": ["b"], "cash": True, "gift": False, "how": "fast",
    }  # fmt: skip
    tab.wait("!document.querySelector('.asked form')")


@pytest.mark.parametrize("how", ["Decline", "Cancel"])
def test_a_question_is_not_answered(serve: Callable[..., Place], how: str) -> None:
    tab = serve().tab()
    say(tab, "!order")
    tab.click(".asked button", how)
    tab.see(f"It said: {how.lower()}")


def test_a_page_is_opened_only_by_the_user(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    say(tab, "!visit")
    tab.see("https://example.org/sign?in=1", ".asked .url")
    assert tab.run("[...document.querySelectorAll('.asked a')].every((each) => each.hidden)")
    before = len(place.browser.tell("Target.getTargets")["targetInfos"])
    tab.click(".asked button", "Visit example.org")
    assert len(place.browser.tell("Target.getTargets")["targetInfos"]) == before
    tab.click(".asked button", "Yes, open example.org")
    tab.see("It said: accept")
    found = [each["url"] for each in place.browser.tell("Target.getTargets")["targetInfos"]]
    assert len(found) == before + 1

    say(tab, '!visit:{"url":"javascript:window.pwned=1"}')
    tab.see("This is not a web address")
    buttons = tab.run("[...document.querySelectorAll('.asked:not(.done) button')].map((each) => each.innerText)")
    assert buttons == ["Decline", "Cancel"]
    tab.click(".asked button", "Decline")
    tab.see("It said: decline")
    assert tab.run("window.pwned") is None


def test_a_tool_shows_its_progress_and_its_error(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    say(tab, "!work")
    tab.see("50 %", ".call .how")
    tab.click(".call summary")
    tab.see("half of it", ".call .more")
    assert tab.run("document.querySelector('.call progress').position") == 0.5
    place.tools.goes_on.set()
    tab.see("all of it", ".call .more")
    assert tab.count(".call progress") == 0
    idle(tab)
    say(tab, "!fail")
    tab.see("failed", ".call .how.bad")
    idle(tab)


def test_the_newest_is_in_sight_unless_the_user_looks_at_something_else(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    log = "document.querySelector('#log')"
    away = f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight"
    say(tab, "\n\n".join(map(str, range(80))))
    idle(tab)
    say(tab, "a wait b !pay")
    tab.wait(f"{away} < 2")
    place.model.goes_on.release()
    tab.click(".asked button", "Approve")  # the card gets smaller
    idle(tab)
    tab.wait(f"{away} < 2 && document.querySelector('#below').hidden")
    say(tab, "c wait " + "\n\n".join(map(str, range(80))))
    hear(tab, "c")
    tab.tell("Input.dispatchMouseEvent", type="mouseWheel", x=700, y=300, deltaX=0, deltaY=-600)
    tab.wait(f"{away} > 500 && !document.querySelector('#below').hidden")
    top = tab.run(f"{log}.scrollTop")
    place.model.goes_on.release()
    idle(tab)
    assert tab.run(f"{log}.scrollTop") == top
    tab.click("#below")
    tab.wait(f"{away} < 2")


def test_a_reload_in_the_middle_of_a_stream(serve: Callable[..., Place]) -> None:
    """Nothing is missing, and nothing is there twice: neither of the reply, nor of what was before."""
    place = serve()
    tab = place.tab()
    say(tab, "before")
    idle(tab)
    say(tab, "?hm one wait two wait three")
    hear(tab, "one")
    for word in ("two", "three"):
        tab.reload()
        tab.see("one")
        tab.see("working", "#state")
        place.model.goes_on.release()
        tab.see(word)
    idle(tab)
    assert tab.run("[...document.querySelectorAll('#log > .text')].map((each) => each.innerText.trim())") == [
        "before", "one two three"
    ]  # fmt: skip
    assert tab.run("[...document.querySelectorAll('.mine > div')].map((each) => each.innerText)") == [
        "before", "?hm one wait two wait three"
    ]  # fmt: skip
    assert tab.count(".thought") == 1


def test_a_reload_while_it_is_asked(serve: Callable[..., Place]) -> None:
    """What was answered is not asked again; what was not, is."""
    place = serve()
    tab = place.tab()
    say(tab, "!pay !order")
    tab.see("Run pay?")
    tab.see("order asks")
    tab.click(".asked button", "Approve")
    tab.see("Approved.")
    tab.reload()
    tab.see("order asks")
    assert tab.count(".asked:not(.done)") == 1
    tab.click(".asked button", "Decline")
    idle(tab)
    assert place.tools.paid == 1


def test_a_log_that_lacks_the_beginning(serve: Callable[..., Place]) -> None:
    """A client that comes late to a long run sees its messages, and what comes."""
    place = serve()
    tab = place.tab()
    say(tab, "!work")
    tab.see("50 %", ".call .how")
    with pytest.MonkeyPatch.context() as patch:
        ring = next(iter(place.application._backend.log._rings.values()))  # type: ignore[attr-defined]
        patch.setattr(ring, "entries", ring.entries[-1:])
        tab.reload()
        tab.see("!work", ".mine")
        place.tools.goes_on.set()
        tab.see("It said: all of it")
    idle(tab)
    assert tab.count(".mine") == 1


def test_a_run_that_has_failed_is_tried_again(serve: Callable[..., Place]) -> None:
    """Also after a reload, and in another tab."""
    place = serve()
    place.model.breaks = 2
    tab = place.tab()
    say(tab, "break in")
    tab.see("the wire is cut")
    other = place.tab(tab.run("location.hash"))
    tab.click(".note button", "Try again")
    tab.wait("document.querySelectorAll('.note.bad').length === 2")
    tab.wait("document.querySelectorAll('.note button').length === 1")
    other.see("the wire is cut")
    assert tab.run("document.activeElement.id") == "prompt"
    tab.reload()
    tab.see("The last run ended without a reply.")
    tab.click(".note button", "Try again")
    hear(tab, "break in")
    assert (tab.count(".note button"), tab.count(".mine")) == (0, 1)
    hear(other, "break in")
    assert (other.count(".note button"), other.count(".mine")) == (0, 1)


def test_two_tabs(serve: Callable[..., Place]) -> None:
    """What is said, approved and answered in one is seen in the other."""
    place = serve()
    one = place.tab()
    say(one, "first")
    idle(one)
    two = place.tab(one.run("location.hash"))
    two.see("first", ".text")
    say(one, "!pay !order")
    for tab in (one, two):
        tab.see("Run pay?")
        tab.see("order asks")
    two.click(".asked button", "Approve")
    one.wait("document.querySelectorAll('.call .asked.done').length === 1")
    one.click(".asked button", "Decline")
    two.wait("document.querySelectorAll('.asked.done').length === 2")
    for tab in (one, two):
        idle(tab)
        assert tab.count(".mine") == 2
    assert place.tools.paid == 1
    assert one.text(".call .asked.done .from") == "Approved elsewhere."
    assert two.text(".call .asked.done .from") == "Approved."
    say(two, "second wait third")
    one.see("second")
    say(one, "meanwhile")
    place.model.goes_on.release()
    for tab in (one, two):
        idle(tab)
        tab.wait("document.querySelectorAll('.mine').length === 4")


def test_an_answer_in_one_tab_closes_the_form_in_the_other(serve: Callable[..., Place]) -> None:
    """At once, and not with the next event: the tool works on silently. The question stands where its call does."""
    place = serve()
    one = place.tab()
    say(one, "hello")
    idle(one)
    two = place.tab(one.run("location.hash"))
    two.see("hello", ".text")
    say(one, "!book")
    for tab in (one, two):
        tab.see("Which seat?", ".call .asked")
        assert tab.text(".call .how") == "asks you"
        assert tab.count("#log > .asked") == 0
    one.run("document.querySelector('.asked input').focus()")
    one.type("5")
    one.click(".asked button", "Answer")
    one.see("Answered - seat: 5.", ".call .asked.done")
    two.see("Answered elsewhere.", ".call .asked.done")
    two.see("Answered elsewhere.", "#said")
    two.wait("document.querySelector('#state').innerText === 'working'")
    for tab in (one, two):
        assert tab.count(".asked :is(button, input)") == 0
        assert tab.text(".call .how") == "runs"
    two.reload()  # which is then no news
    two.see("Answered.", ".call .asked.done")
    place.tools.goes_on.set()
    for tab in (one, two):
        idle(tab)
        tab.see("It said: accept 5")


def test_a_question_whose_time_is_over_is_closed(serve: Callable[..., Place]) -> None:
    place = serve(answer_timeout=1.0)
    tab = place.tab()
    say(tab, "!book")
    tab.see("Declined: nobody answered within 1 s.", ".call .asked.done")
    assert tab.count(".asked :is(button, input)") == 0
    place.tools.goes_on.set()
    idle(tab)


def test_a_tab_is_told_of_one_of_two_answers_to_a_parked_run(serve: Callable[..., Place]) -> None:
    """Nothing runs, so no event comes before the last answer."""
    place = serve(linger=0.2)
    one = place.tab()
    say(one, "!pay !pay")
    one.wait("document.querySelectorAll('.asked:not(.done)').length === 2")
    id = one.run("location.hash.slice(1)")
    [run] = [place.application._backend.runs.get(id)]
    run.stream.park()
    one.see("The run waits for an answer.")
    two = place.browser.tab(place.url + one.run("location.hash"), place.context)  # the focus goes to a question
    two.wait("document.querySelectorAll('.asked:not(.done)').length === 2")
    one.click(".asked button", "Reject")
    two.see("Rejected elsewhere.", ".asked.done")
    assert two.count(".asked:not(.done)") == 1
    two.click(".asked:not(.done) button", "Approve")
    for tab in (one, two):
        idle(tab)
        assert tab.count(".asked:not(.done)") == 0
    assert place.tools.paid == 1


@pytest.mark.parametrize("how", ["Escape", "Stop"])
def test_a_run_is_stopped(serve: Callable[..., Place], how: str) -> None:
    tab = serve().tab()
    say(tab, "one wait two")
    tab.see("one", ".text")
    if how == "Stop":
        tab.click("#stop")
    else:
        tab.press("Escape")
    tab.see("Stopped.")
    idle(tab)
    say(tab, "again")
    hear(tab, "again")


def test_it_is_steered_while_it_works(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    say(tab, "one wait two")
    tab.see("one", ".text")
    tab.see("Steer", "#send")
    say(tab, "three")
    tab.see("three", ".mine.sent")
    place.model.goes_on.release()
    tab.wait("[...document.querySelectorAll('#log > .text')].at(-1).innerText.trim() === 'three'")
    idle(tab)
    assert tab.run("[...document.querySelectorAll('.mine > div')].map((each) => each.innerText)") == [
        "one wait two", "three"
    ]  # fmt: skip
    assert tab.count(".sent") == 0


def test_what_a_stopped_run_has_not_heard_is_in_the_session(serve: Callable[..., Place]) -> None:
    tab = serve().tab()
    say(tab, "one wait two")
    hear(tab, "one")
    say(tab, "three")
    tab.see("three", ".mine.sent")
    tab.wait("!document.querySelector('[aria-busy]')")
    tab.press("Escape")
    tab.see("Stopped.")
    idle(tab)
    for _ in range(2):
        assert tab.count(".mine") == 2
        tab.reload()
        tab.see("three", "#log")


def test_with_the_keyboard_alone(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    tab.type("!pay")
    tab.press("Enter")
    tab.see("Run pay?")
    tab.wait("document.activeElement.matches('.asked')")  # not a button: what is typed now approves nothing
    tab.press("Enter")
    tab.press(" ")
    assert place.tools.paid == 0
    tab.press("Tab")
    assert tab.run("document.activeElement.innerText") == "Approve"
    tab.press("Enter")
    tab.see("It said: paid")
    assert tab.run("document.activeElement.id") == "prompt"
    idle(tab)
    tab.type("!order")
    tab.press("Enter")
    tab.see("order asks")
    tab.press("Tab")
    tab.type("Ann")
    tab.press("Enter")
    tab.see("size is missing")
    tab.press("Escape")
    tab.see("Stopped.")
    idle(tab)

    tab.run("document.querySelector('#skip').focus()")
    tab.press("Tab")
    for id in ("new", "find"):
        assert tab.run("document.activeElement.id") == id
        tab.press("Tab")
    assert tab.run("document.activeElement.className") == "name"
    tab.press("Tab")
    assert tab.run("document.activeElement.ariaLabel") == "Delete !pay"
    tab.press("Enter")
    tab.see("Delete?", "#sessions")
    tab.press("Enter")
    tab.see("No chats yet", "#sessions")
    assert place.client.get("/api/sessions") == []


def test_a_session_is_opened_branched_and_deleted(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    say(tab, "first")
    idle(tab)
    say(tab, "second")
    idle(tab)
    tab.run("[...document.querySelectorAll('.mine button')].at(-1).click()")
    tab.wait("document.querySelectorAll('#sessions .name').length === 2")
    tab.wait("document.querySelector('#prompt').value === 'second' && document.querySelectorAll('.mine').length === 1")
    tab.type(" thoughts")
    tab.press("Enter")
    hear(tab, "second thoughts")
    idle(tab)
    tab.click("#sessions li:not(.open) .name")
    tab.wait("document.querySelectorAll('.mine').length === 2")
    tab.run("history.back()")
    tab.see("second thoughts")
    tab.click("#sessions li.open .plain")
    tab.click("#sessions li.open .plain", "Delete?")
    tab.wait("document.querySelectorAll('#sessions .name').length === 1")
    assert tab.text("#title") == "New chat"
    tab.click("#sessions .name")
    tab.see("second")
    place.client.ask("DELETE", tab.run("'/api/sessions/' + location.hash.slice(1)"))
    tab.see("does not have this chat any more")


def test_the_list_is_searched(serve: Callable[..., Place]) -> None:
    """By what was said, and by the beginning of a title that is still being typed."""
    place = serve()
    tab = place.tab()
    for text in ("apples and pears", "bread"):
        if tab.run("view.id"):
            tab.click("#new")
        say(tab, text)
        idle(tab)
    place.client.post("/api/sessions", {"title": f"Cheese {EVIL}"})
    names = "[...document.querySelectorAll('#sessions .name span:first-child')].map((each) => each.innerText)"
    tab.run("document.querySelector('#find').focus()")
    for typed, wanted in (("pears", ["apples and pears"]), ("brea", ["bread"]), ("chee", ["Cheese"]), ("x9", [])):
        tab.run("document.querySelector('#find').select()")
        tab.type(typed)
        tab.wait(f"{names}.map((each) => each.split(' <')[0]).join() === {json.dumps(','.join(wanted))}")
        tab.see(f"{len(wanted)} chat{'' if len(wanted) == 1 else 's'} found", "#said")
    tab.see("No chat has these words", "#sessions")
    say_nothing_is_stopped = (
        "document.querySelector('#find').value === '' && document.querySelectorAll('#sessions li').length === 3"
    )
    tab.press("Escape")
    tab.wait(say_nothing_is_stopped)
    tab.press("Escape")
    tab.wait("document.activeElement.id === 'prompt'")


def test_a_chat_is_renamed(serve: Callable[..., Place]) -> None:
    """With the keyboard; other tabs see it; while a run has the session, it keeps its title."""
    place = serve()
    tab = place.tab(width=400)
    assert not tab.run("document.querySelector('#rename').checkVisibility()")
    say(tab, "first")
    idle(tab)
    other = place.tab(tab.run("location.hash"))
    tab.click("#rename")
    assert tab.run("document.activeElement.id + document.activeElement.value") == "namefirst"
    tab.type(f"Bills {EVIL}")
    assert tab.run("document.documentElement.scrollWidth") == 400
    tab.press("Enter")
    tab.see("Bills <img", "#title")
    tab.see("Renamed.", "#said")
    assert tab.run("document.activeElement.id") == "prompt"
    other.run("list()")
    other.see("Bills <img", "#title")
    other.see("Bills <img", "#sessions")
    tab.click("#rename")
    tab.type("another")
    tab.press("Escape")
    tab.wait("document.activeElement.id === 'rename'")
    tab.see("Bills", "#title")
    say(tab, "second wait third")
    tab.wait("view.running && document.querySelector('#rename').hidden")
    place.model.goes_on.release()
    idle(tab)
    tab.wait("!document.querySelector('#rename').hidden")
    assert tab.run("window.pwned") is None


def test_foreign_text_is_text(serve: Callable[..., Place]) -> None:
    place = serve()
    tab = place.tab()
    tab.see("<img src=x", ".hello")
    link = '[EVIL](https://example.org/"onclick="window.pwned=1)'
    say(tab, f'?EVIL EVIL `EVIL` **EVIL** {link} !EVIL !fail !pay:{{"to":"<script>"}} !order')
    tab.see("order asks")
    tab.see("Run pay?")
    tab.click(".asked button", "Answer")
    tab.see("is missing")
    tab.click(".asked button", "Decline")
    tab.see("Declined.")  # then nothing moves under the mouse
    tab.click(".asked button", "Reject")
    idle(tab)
    say(tab, EVIL)
    idle(tab)
    tab.reload()
    tab.see("It said")
    place.client.ask("PATCH", tab.run("'/api/sessions/' + location.hash.slice(1) + '/title'"), {"title": EVIL})
    tab.reload()
    tab.see("<img", "#sessions")
    assert tab.run("window.pwned") is None
    assert tab.count("img, iframe, object, embed, svg, body script ~ script") == 0
    assert "\u202e" not in tab.run("document.documentElement.textContent.replace(/<script>[^]*<\\/script>/, '')")
    assert "\\u202e" in tab.text("#sessions")


def test_the_token_is_asked_for_once(serve: Callable[..., Place]) -> None:
    place = serve(token="secret")
    tab = place.tab()
    assert "This is not the token" not in tab.text("dialog")
    for wrong in ("wrong", "\N{ROCKET}"):  # which no header can have
        tab.type(wrong)
        tab.press("Enter")
        tab.see("This is not the token of the server.", "dialog[open]")
        tab.wait("document.querySelector('#token').value === ''")
    tab.type("secret\N{ZERO WIDTH SPACE}")  # as it comes from some pages
    tab.press("Enter")
    tab.wait("document.activeElement.id === 'prompt'")
    say(tab, "hello")
    idle(tab)
    tab.reload()
    tab.see("hello", ".text")
    assert tab.count("dialog[open]") == 0
    assert tab.run("localStorage.length") == 0
    assert "secret" not in tab.run("location.href + document.cookie")


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_what_it_looks_like(serve: Callable[..., Place], tmp_path: Path, width: int, mode: str) -> None:
    """In the colours of its reader, no wider than the window, and with the message in sight."""
    place = serve()
    tab = place.tab(width=width)
    tab.colours(mode)
    say(tab, "?hm " + "long" * 60 + ' `code` !pay:{"to":"' + "x" * 200 + '"} !order !fail')
    tab.see("Run pay?")
    tab.see("order asks")
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.run("document.querySelector('#log').scrollWidth <= document.querySelector('#log').clientWidth")
    paper, ink = tab.run(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color].map((each) =>"
        " each.match(/\\d+/g).reduce((sum, part) => sum + Number(part), 0))"
    )
    assert (paper > ink) == (mode == "light")
    box = tab.run(
        "(({top, bottom, width}) => [top, bottom, width])(document.querySelector('#prompt').getBoundingClientRect())"
    )
    assert 0 < box[0] < box[1] <= 800
    assert box[2] > 200
    if width == 400:
        assert not tab.run("document.querySelector('#new').checkVisibility({visibilityProperty: true})")
        tab.click("#menu")
        assert tab.run("document.activeElement.id") == "new"
        tab.press("Escape")
        assert tab.run("document.activeElement.id") == "menu"
        assert not tab.run("document.querySelector('#side').classList.contains('shown')")
    if folder := os.environ.get("LOCKGATE_PICTURES"):  # to be looked at by people
        tab.picture(Path(folder) / f"page-{width}-{mode}.png")


def test_the_policy_allows_the_page_and_nothing_else() -> None:
    headers = dict(page_headers())
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert b"innerHTML" not in page()
    assert page().count(b"<script") == page().count(b"<script>") == 1
    assert b'<link rel="icon" href="data:,">' in page()


def test_the_call_of_an_agent_inside_is_approved(serve: Callable[..., Place]) -> None:
    """What an agent inside says and asks is shown as its own, and answered through the session of the user."""
    place = serve()
    tab = place.tab()
    say(tab, '!transfer_task:{"agent":"below","task":"!pay"}')
    tab.see("Run pay?")
    tab.see("agent below", ".asked .from")
    tab.see("below", "#log .who")
    tab.click(".asked button", "Approve")
    tab.see("It said: paid", ".text.inside")
    idle(tab)
    assert place.tools.paid == 1
    hear(tab, "It said: It said: paid")
    assert tab.count("#log > .text.inside") == 1


def test_a_run_gets_more_turns(serve: Callable[..., Place]) -> None:
    tab = serve(turns=1).tab()
    for how, expected in (("Go on", "It said: accept"), ("Stop", "Stopped: all turns are used.")):
        say(tab, "!order")
        tab.click(".asked button", "Decline")
        tab.see("its turn limit of 1.")
        tab.click(".asked:not(.done) button", how)
        tab.see(expected.replace("accept", "decline"))
        idle(tab)


def test_the_pictures_of_a_result_are_shown(serve: Callable[..., Place]) -> None:
    tab = serve().tab()
    say(tab, "!draw")
    idle(tab)
    for _ in range(2):
        tab.click(".call summary")
        tab.wait("document.querySelector('.call img')?.naturalWidth === 1")
        assert tab.count(".call img") == 1  # the other is no kind of picture that is loaded
        tab.reload()
        tab.see("draw", ".call")


def test_a_server_without_a_free_place(serve: Callable[..., Place]) -> None:
    """The user is told, and the page looks again."""
    place = serve(max_streams=1)
    id = place.client.session()
    with place.client.events(id):
        tab = place.tab(f"#{id}")
        tab.see("no free place", "#state")
    tab.wait("document.querySelector('#state').innerText === ''")
    say(tab, "hello")
    hear(tab, "hello")


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page with shorter times."""
    quick = page().replace(b"SILENCE = 45000", b"SILENCE = 1500").replace(b"HIDDEN = 30000", b"HIDDEN = 50")
    policy = page_headers()
    monkeypatch.setattr("runtime.serve._page.page", lambda: quick)
    monkeypatch.setattr("runtime.serve._application.page", lambda: quick)
    headers = page_headers.__wrapped__()
    assert headers != policy
    monkeypatch.setattr("runtime.serve._application.page_headers", lambda: headers)


def test_a_tab_that_nobody_sees_gives_its_place_back(serve: Callable[..., Place], faster: None) -> None:
    """Unless its session has a run. It comes back, and has missed nothing."""
    place = serve()
    tab = place.tab()
    say(tab, "one wait two")
    hear(tab, "one")
    hide = """Object.defineProperty(document, "hidden", {value: %s, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"))"""
    tab.run(hide % "true")
    assert place.application._backend.streams == 1
    place.model.goes_on.release()
    hear(tab, "two")
    assert eventually(lambda: place.application._backend.streams == 0)
    id = tab.run("location.hash.slice(1)")
    with place.client.run(id, "three", "helper") as events:
        events.until("stream_stopped")
    assert "three" not in tab.text()
    tab.run(hide % "false")
    hear(tab, "three")


def test_a_connection_that_says_nothing_is_given_up(serve: Callable[..., Place], faster: None) -> None:
    """A proxy may have lost it: the page connects again, and nothing is missing or there twice."""
    place = serve(ping=60)
    tab = place.tab()
    say(tab, "one wait two")
    hear(tab, "one")
    seen = "performance.getEntriesByType('resource').filter((each) => each.name.includes('/events')).length"
    tab.wait(f"{seen} >= 2")
    place.model.goes_on.release()
    hear(tab, "two")
    idle(tab)
    assert tab.run("[...document.querySelectorAll('#log > .text')].map((each) => each.innerText.trim())") == ["one two"]


def test_the_page_of_an_application_that_is_mounted(browser: Browser, serve: Callable[..., Place]) -> None:
    """Its addresses are below the mount, also where the slash at the end of it was left out."""
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.wrappers import Response

    place = serve()
    site: Any = DispatcherMiddleware(Response("my site"), {"/agents": place.application})
    site.close = lambda: None
    with listening(site) as client:
        tab = browser.tab(f"http://127.0.0.1:{client.port}/agents", place.context)
        tab.wait("document.activeElement.id === 'prompt'")
        assert tab.run("location.pathname") == "/agents/"
        say(tab, "hello")
        hear(tab, "hello")
        tab.close()


#: A server that keeps its sessions, on a port, whose model stops in the middle of each reply until a file is there.
KEPT = """
import sys, time
from pathlib import Path
from runtime import Agent, TextDelta, ToolCallDelta, tool
from runtime.serve import Application
from runtime.stores import SQLiteStore
from werkzeug.serving import make_server

port, folder = int(sys.argv[1]), Path(sys.argv[2])

class Model:
    id = "slow"
    def stream(self, messages, tools, *, cancel):
        if messages[-1].role == "tool":
            yield TextDelta("one ")
            while not (folder / "go").exists() and not cancel.cancelled:
                time.sleep(0.01)
            yield TextDelta("two")
        else:
            yield ToolCallDelta(0, f"call-{len(messages)}", "look", "{}")

@tool(read_only=True)
def look() -> str:
    "Look."
    return "seen"

with SQLiteStore(folder / "sessions.db") as store:
    agent = Agent("helper", Model(), tools=[look])
    make_server("127.0.0.1", port, Application(agent, store=store), threaded=True).serve_forever()
"""


def test_a_run_whose_process_has_died_goes_on(serve: Callable[..., Place]) -> None:
    """Also where the page is told so by the events, because it looked as the next process found out."""
    tab = serve().tab()
    say(tab, "hello")
    idle(tab)
    tab.run("""
        view.on({type: "error", code: "interrupted", error: "the process that had the run has died"});
        view.on({type: "stream_stopped", reason: "error"});
        view.unfinished({status: "interrupted"});
    """)
    tab.see("The run was interrupted.")
    assert tab.run("[...document.querySelectorAll('.note')].map((note) => note.innerText)") == [
        "The run was interrupted.Continue"
    ]
    tab.run("""
        view.on({type: "error", code: "model_error", error: "the wire is cut"});
        view.on({type: "stream_stopped", reason: "error"});
    """)
    tab.see("The run ended with an error.")
    assert tab.run("[...document.querySelectorAll('.note button')].map((button) => button.innerText)") == ["Try again"]


def test_the_server_is_killed_and_started_again(browser: Browser, tmp_path: Path, free_port: int) -> None:
    """The page connects again by itself, shows what there is, and lets the user go on with the run."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", KEPT, str(free_port), str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    server = start()
    context = browser.context()
    try:
        for _ in range(1000):
            try:
                socket.create_connection(("127.0.0.1", free_port), 20).close()
                break
            except ConnectionRefusedError:
                threading.Event().wait(0.01)
        tab = browser.tab(f"http://127.0.0.1:{free_port}/", context)
        tab.wait("document.activeElement.id === 'prompt'")
        say(tab, "begin")
        tab.see("one")
        server.kill()
        server.wait()
        tab.see("connecting again", "#state")
        (tmp_path / "go").touch()
        server = start()
        tab.see("The run was interrupted.")
        assert tab.count(".mine") == 1
        tab.see("done", ".call .how")
        tab.click(".note button", "Continue")
        tab.see("one two")
        idle(tab)
        assert tab.count(".mine") == 1
    finally:
        server.kill()
        server.wait()
        browser.tell("Target.disposeBrowserContext", browserContextId=context)
        browser.errors.clear()  # of connections that were refused


@pytest.mark.parametrize("how", ["Approve", "Reject", "Stop"])
def test_the_server_is_restarted_while_it_asks(browser: Browser, tmp_path: Path, how: str) -> None:
    """The run was parked; the question is there again, and its answer is what the run goes on with."""
    context = browser.context()
    tools = Tools()
    agent = Agent("helper", Talker(), tools=tools.all())
    with SQLiteStore(tmp_path / "sessions.db") as store:
        with listening(Application(agent, store=store)) as client:
            tab = browser.tab(f"http://127.0.0.1:{client.port}/", context)
            tab.wait("document.activeElement.id === 'prompt'")
            say(tab, "!pay")
            tab.see("Run pay?")
        tab.see("connecting again", "#state")
        with listening(Application(agent, store=store), port=client.port):
            tab.wait("document.querySelector('#state').innerText === 'waits for you'")
            assert tab.count(".asked:not(.done)") == 1
            tab.click("#stop" if how == "Stop" else ".asked button", how)
            tab.see({"Approve": "It said: paid", "Reject": "this call was rejected", "Stop": "Stopped."}[how])
            idle(tab)
            assert tab.count(".mine") == 1
            browser.tell("Target.disposeBrowserContext", browserContextId=context)
    assert tools.paid == (how == "Approve")
    browser.errors.clear()
