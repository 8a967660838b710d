"""The playground in Chromium: what a person sees and presses. Needs Debian's chromium.

OCTAVO_SCREENSHOTS names a folder for pictures of it, light, dark and narrow.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clients.conftest import KEY
from clients.environments import package, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.live_server import LiveServer

WAIT_S = 60
ENTER = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
ESCAPE = {"key": "Escape", "windowsVirtualKeyCode": 27}
UP = {"key": "ArrowUp", "windowsVirtualKeyCode": 38}
TAB = {"key": "Tab", "windowsVirtualKeyCode": 9}


class Page:
    """A page in a browser, over its DevTools protocol."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self._connection.recv(WAIT_S))).get("id") != number:
            if message["method"] == "Network.requestWillBeSent":
                self.hosts.add(message["params"]["request"]["url"].split("/")[2])
            elif message["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]))
        return dict(message.get("result", {}))

    def look(self, expression: str) -> Any:
        done = self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        return done["result"].get("value")

    def wait(self, expression: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self.look(expression):
            assert time.monotonic() < deadline, f"{expression}: {self.look('log.innerText')}"
            time.sleep(0.05)

    def press(self, key: dict[str, Any]) -> None:
        self.command("Input.dispatchKeyEvent", type="keyDown", **key)
        self.command("Input.dispatchKeyEvent", type="keyUp", **key)

    def write(self, text: str) -> None:
        self.command("Input.insertText", text=text)

    def fill(self, name: str, text: str) -> None:
        self.look(f"document.getElementById({name!r}).focus()")
        self.look(f"document.getElementById({name!r}).select()")
        self.write(text)

    def picture(self, name: str) -> None:
        if folder := os.environ.get("OCTAVO_SCREENSHOTS"):
            data = self.command("Page.captureScreenshot")["data"]
            (Path(folder) / f"playground-{name}.png").write_bytes(base64.b64decode(data))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    client = package("websockets.sync.client", "websockets")
    chromium = shutil.which("chromium")
    if chromium is None:
        require("chromium is not installed", only="all")
    process = subprocess.Popen(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
         f"--user-data-dir={tmp_path}", "--window-size=1100,800", "about:blank"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr, contextlib.ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.terminate)
        line = next(line for line in process.stderr if "DevTools listening on" in line)
        port = line.partition("127.0.0.1:")[2].partition("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        url = target["webSocketDebuggerUrl"]
        connection = stack.enter_context(client.connect(url, max_size=1 << 26))
        yield Page(connection)


ANSWER = "[...document.querySelectorAll('article.assistant .body')].pop().innerText"
FACTS = "[...document.querySelectorAll('.facts')].map(each => each.innerText)"


def ask(page: Page, text: str) -> str:
    before = len(page.look(FACTS))
    page.look("document.getElementById('prompt').focus()")
    page.write(text)
    page.press(ENTER)
    page.wait(f"{FACTS}.length > {before}")
    return str(page.look(FACTS)[-1])


def test_a_conversation(server: LiveServer, page: Page) -> None:
    page.command("Page.navigate", url=f"{server.url}/")
    page.wait("document.readyState === 'complete'")
    assert page.look("document.activeElement.id") == "prompt"
    page.fill("key", KEY)
    page.press(TAB)
    page.wait("document.getElementById('status').textContent.includes('tokens of context')")

    page.fill("temperature", "0")
    facts = ask(page, "What is the capital of France?")
    assert page.look(ANSWER) == "The capital of France is Paris."
    assert "8 out" in facts
    assert "tokens/s" in facts
    assert "first after" in facts
    page.picture("light")

    page.fill("max_tokens", "3")
    page.fill("system", "Answer in French.")
    facts = ask(page, "And of Italy?")
    assert "3 out" in facts
    assert "cut at the limit" in facts

    page.fill("max_tokens", "4000")
    page.fill("system", "")
    page.look("document.getElementById('prompt').focus()")
    page.write("Write the numbers from one to a thousand, one a line.")
    page.press(ENTER)
    page.wait(f"{ANSWER}.length > 20")
    assert page.look("document.getElementById('send').hidden") is True
    page.press(ESCAPE)
    page.wait(f"{FACTS}.length === 3")
    facts = page.look(FACTS)[-1]
    assert "stopped" in facts
    assert " out" in facts
    assert page.look("document.activeElement.id") == "prompt"
    page.press(UP)
    assert page.look("document.getElementById('prompt').value").startswith("Write the numbers")

    light = page.look("getComputedStyle(document.body).backgroundColor")
    page.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    dark = page.look("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    page.picture("dark")
    page.look("document.getElementById('theme').click()")
    assert page.look("getComputedStyle(document.body).backgroundColor") == light

    page.command("Emulation.setDeviceMetricsOverride", width=390, height=800,
                 deviceScaleFactor=1, mobile=True)  # fmt: skip
    assert page.look("document.documentElement.scrollWidth") <= 390
    page.picture("narrow")

    assert page.errors == []
    assert page.hosts == {server.url.partition("://")[2]}
