"""Chromium without a window, driven: pages are opened, typed into, pressed and looked at, as a user does.

It speaks the DevTools protocol over a pipe: Chromium reads JSON from its file descriptor 3 and writes to 4, with a zero
byte after each message. Everything here is done on the thread of the test, and every wait is bounded.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from support.chromium import QUIET, chromium

LONG = 20.0  # seconds after which something will never happen
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "Backspace": (8, ""),
    "ArrowDown": (40, ""),
    " ": (32, " "),
}
#: Runs a program with the two pipes as its file descriptors 3 and 4.
_EXEC = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])"""


class Failed(AssertionError):
    """The page did not do what was waited for, or its script failed."""


def _pipe() -> tuple[int, int]:
    """A pipe with numbers above those that the other process is to have."""
    ends = os.pipe()
    try:
        return fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 10), fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(ends[0])
        os.close(ends[1])


class Browser:
    """A running Chromium. The tabs of one `context` share what a page stores, as those of one user do."""

    def __init__(self, directory: Path) -> None:
        read_there, self._write = _pipe()
        self._read, write_there = _pipe()
        command = [
            chromium(),
            *QUIET,
            "--remote-debugging-pipe",
            "--disable-dev-shm-usage",
            "--force-prefers-reduced-motion",
            f"--user-data-dir={directory}",
        ]
        command += ["--no-sandbox"] if os.getuid() == 0 else []
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _EXEC, str(read_there), str(write_there), *command, "about:blank"],
            pass_fds=(read_there, write_there),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self._held = b""
        self._ids = itertools.count(1)
        self.errors: list[str] = []  # of the scripts of all pages
        self.tell("Target.getTargets")

    def tell(self, method: str, session: str = "", *, patience: float = LONG, **parameters: Any) -> Any:
        """Give an order; its result."""
        id = next(self._ids)
        order: dict[str, Any] = {"id": id, "method": method, "params": parameters}
        if session:
            order["sessionId"] = session
        data = json.dumps(order).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        until = time.monotonic() + patience
        while True:
            said = self._next(until, method)
            if said.get("id") == id:
                if "error" in said:
                    raise Failed(f"{method}: {said['error']}")
                return said["result"]
            if said.get("method") == "Runtime.exceptionThrown":
                details = said["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["source"] == "security":
                self.errors.append(said["params"]["entry"]["text"])

    def _next(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium does not answer: {what}")
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise Failed(f"Chromium has ended: {what}")
            self._held += piece
        line, _, self._held = self._held.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def context(self) -> str:
        """A new user, who has stored nothing."""
        found: str = self.tell("Target.createBrowserContext")["browserContextId"]
        return found

    def tab(self, url: str, context: str, *, width: int = 1200, height: int = 800) -> Tab:
        """A tab with the page."""
        target = self.tell("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Log"):
            tab.tell(f"{domain}.enable")
        tab.resize(width, height)
        tab.tell("Emulation.setFocusEmulationEnabled", enabled=True)  # each tab as if it were in front
        tab.go(url)
        return tab

    def close(self) -> None:
        """End it."""
        try:
            self.tell("Browser.close")
            self._process.wait(LONG)
        except (Failed, OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(LONG)
        finally:
            os.close(self._write)
            os.close(self._read)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Tab:
    """A tab, and the hands and eyes of its user."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser = browser
        self._session = session
        self._target = target

    def tell(self, method: str, *, patience: float = LONG, **parameters: Any) -> Any:
        return self.browser.tell(method, self._session, patience=patience, **parameters)

    def go(self, url: str) -> None:
        self.tell("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.run("window.before = true")
        self.tell("Page.reload")
        self.wait("document.readyState === 'complete' && window.before === undefined")

    def close(self) -> None:
        self.browser.tell("Target.closeTarget", targetId=self._target)

    def run(self, script: str, *, patience: float = LONG) -> Any:
        """The value of an expression, or of a promise, in the page."""
        found = self.tell(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, patience=patience
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise Failed(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    def wait(self, condition: str, patience: float = LONG) -> Any:
        """Wait until the expression is true; its value. The page is asked again whenever it has changed."""
        until = time.monotonic() + patience
        script = """new Promise((done) => {
            let watcher, timer;
            const look = () => {
                let found;
                try { found = (CONDITION); } catch (error) { return false; }
                if (found || Date.now() > until) { watcher?.disconnect(); clearInterval(timer); done(Boolean(found)); }
                return found;
            };
            const until = Date.now() + 500;  // then the page is asked anew, which may be another one
            if (look()) return;
            watcher = new MutationObserver(look);
            watcher.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
            timer = setInterval(look, 20);
        })""".replace("CONDITION", condition)
        while time.monotonic() < until:
            try:
                if found := self.run(script):
                    return found
            except Failed as error:
                if not any(word in str(error) for word in ("context", "navigated", "Inspected target")):
                    raise
        raise Failed(
            f"never true: {condition}\n--- the page:\n{self.run('document.body.innerText')}\n{self.browser.errors}"
        )

    def see(self, text: str, where: str = "#log", patience: float = LONG) -> None:
        """Wait until the text is to be seen there."""
        self.wait(f"document.querySelector({json.dumps(where)})?.innerText.includes({json.dumps(text)})", patience)

    def text(self, where: str = "#log") -> str:
        """What is to be seen there."""
        found: str = self.run(f"document.querySelector({json.dumps(where)}).innerText")
        return found

    def count(self, selector: str) -> int:
        found: int = self.run(f"document.querySelectorAll({json.dumps(selector)}).length")
        return found

    def type(self, text: str) -> None:
        """Type where the focus is."""
        self.tell("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key, and let it go."""
        code, text = KEYS[key]
        same = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": code,
            "modifiers": 8 * shift,
        }
        self.tell("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **same)

    def click(self, selector: str, text: str = "") -> None:
        """Click on the first element that fits, can be used, and has the text, in its middle, as a mouse does; once
        nothing moves there any more, as people do.
        """
        find = f"""[...document.querySelectorAll({json.dumps(selector)})].find((each) => !each.disabled
            && each.getClientRects().length && each.innerText.includes({json.dumps(text)}))"""
        self.wait(f"Boolean({find})")
        found = self.run(f"""(async () => {{
            let before = "";
            for (const until = Date.now() + 5000; Date.now() < until;) {{
                const found = {find};
                found?.scrollIntoView({{block: "nearest"}});
                await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
                const box = found?.getBoundingClientRect();
                const now = box ? [box.x + box.width / 2, box.y + box.height / 2] : null;
                if (now && before === String(now) && found.contains(document.elementFromPoint(...now))) return now;
                before = String(now);
            }}
            return null;
        }})()""")
        if found is None:
            raise Failed(f"moves, or is below something else: {selector} {text}")
        x, y = found
        for kind in ("mousePressed", "mouseReleased"):
            self.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width: int, height: int) -> None:
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def colours(self, mode: str) -> None:
        """Prefer ``light`` or ``dark``."""
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])

    def picture(self, path: Path) -> None:
        """A picture of what is to be seen."""
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))
