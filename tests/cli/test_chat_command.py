"""`octavo chat` against a server of the test's making: pipes, a real terminal, and faults."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from cli.chat_server import END, HEAD, ChatServer, chunk, delta, event
from octavo.cli import chat
from octavo.cli.openai_client import Health, OpenAIClient, ServerError
from octavo.cli.waiting import describe
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    chat.add_parser(parser.add_subparsers())
    return parser.parse_args(["chat", *words])


def run(*words: str) -> int:
    arguments = parse(*words)
    return int(arguments.run(arguments))


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def pipe(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    pipe("")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return pipe


# --- One answer ----------------------------------------------------------------------------------


def test_a_message_gets_one_answer(piped: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer() as server:
        code = run("Hi there", "--url", server.url, "--system", "Be brief.", "--temperature", "0",
                   "--max-tokens", "9", "--stop", "x", "--stop", "y", "--stats")  # fmt: skip
    assert code == 0
    output = capsys.readouterr()
    assert output.out == "Hello, world!\n"
    assert "12 prompt tokens (4 cached) · 4 tokens" in output.err
    [body] = server.asked
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi there"},
    ]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("demo/model", 0.0, 9)
    assert (body["stop"], body["stream"]) == (["x", "y"], True)
    assert "top_p" not in body


def test_piped_text_is_the_message_or_goes_below_it(piped: Any) -> None:
    with ChatServer() as server:
        piped("Some text\n")
        assert run("--url", server.url) == 0
        piped("Some text\n")
        assert run("Summarise this:", "--url", server.url) == 0
    texts = [body["messages"][-1]["content"] for body in server.asked]
    assert texts == ["Some text", "Summarise this:\n\nSome text"]


def test_an_empty_message_is_refused(piped: Any) -> None:
    with pytest.raises(ConfigError, match="empty"):
        run("--url", "http://127.0.0.1:1")


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1(piped: Any, suffix: str) -> None:
    with ChatServer() as server:
        assert run("Hi", "--url", server.url + suffix, "--model", "other", "--api-key", "k") == 0
    assert server.asked[0]["model"] == "other"
    assert "POST /v1/chat/completions HTTP/1.1" in server.heads[-1]
    assert "Authorization: Bearer k" in server.heads[-1]


def test_the_key_of_the_environment_goes_to_its_own_server_only(
    piped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with ChatServer() as server:
        assert run("Hi", "--url", server.url) == 0
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
        assert run("Hi") == 0
    posts = [head for head in server.heads if head.startswith("POST")]
    assert ["secret" in head for head in posts] == [False, True]


# --- Servers that are not ready, not there, or fail ----------------------------------------------


def test_a_loading_server_is_waited_for(piped: Any, capsys: pytest.CaptureFixture[str]) -> None:
    loading = {"status": "loading", "phase": "loading_weights", "progress": 0.42, "elapsed_s": 3.1}
    with ChatServer() as server:
        server.healths = [("503 Service Unavailable", loading)] * 2
        assert run("Hi", "--url", server.url) == 0
    output = capsys.readouterr()
    assert output.out == "Hello, world!\n"
    assert output.err.count("The server is loading weights, 42 %, 3.1 s") == 1
    assert server.heads[0].startswith("GET /health")


def test_the_phase_is_shown_in_words() -> None:
    health = Health(ready=False, phase="loading_weights", progress=0.42, elapsed_s=3.12)
    assert describe(health) == "loading weights, 42 %, 3.1 s"


@pytest.mark.parametrize(
    ("body", "words", "message"),
    [
        ({"status": "unhealthy", "reason": "engine died"}, [], "unhealthy: engine died"),
        ({"status": "draining"}, [], "is draining"),
        ({"status": "loading", "phase": "warming_up"}, ["--wait", "0"], r"loading \(warming_up\)"),
    ],
)
def test_a_server_that_will_not_be_ready(
    piped: Any, body: dict[str, str], words: list[str], message: str
) -> None:
    with ChatServer() as server:
        server.healths = [("503 Service Unavailable", body)] * 9
        with pytest.raises(ServerError, match=message):
            run("Hi", "--url", server.url, *words)


def test_a_server_without_health_is_taken_as_ready(piped: Any) -> None:
    with ChatServer() as server:
        server.healths = [("404 Not Found", {})]
        assert run("Hi", "--url", server.url) == 0


def test_an_absent_server_is_said_to_be_absent(piped: Any) -> None:
    with ChatServer() as server:
        url = server.url
    with pytest.raises(ServerError, match=r"No server answers at .*\nStart one with: octavo serve"):
        run("Hi", "--url", url)


class Faulty(ChatServer):
    def __init__(self, *parts: bytes) -> None:
        super().__init__()
        self.parts = parts

    def reply(self, request: dict[str, Any]) -> Iterator[bytes]:
        yield from self.parts


REFUSAL = b'{"error": {"message": "max_tokens is too large", "param": "max_tokens"}}'


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL), REFUSAL),
         "max_tokens is too large"),
        ((HEAD, delta("Hel"), chunk(event({"error": {"message": "engine failed"}})), END),
         "engine failed"),
        ((HEAD, delta("Hel")), "broke inside|before it was whole"),
        ((HEAD, delta("Hel"), b"0\r\n\r\n"), "before it was whole"),
        ((HEAD, chunk(b"data: {oops}\n\n")), "no JSON"),
        ((), "closed the connection"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_words(piped: Any, parts: tuple[bytes, ...], message: str) -> None:
    with Faulty(*parts) as server, pytest.raises(ServerError, match=message):
        run("Hi", "--url", server.url)


@pytest.mark.parametrize("url", ["ftp://host", "http://"])
def test_an_odd_url_is_refused(piped: Any, url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        run("Hi", "--url", url)


def test_leaving_an_answer_hangs_up() -> None:
    """What Ctrl-C does: the server sees the end of the connection and can stop."""

    class Endless(ChatServer):
        hung_up = False

        def reply(self, request: dict[str, Any]) -> Iterator[bytes]:
            yield HEAD
            try:
                while True:
                    yield delta("more ")
                    time.sleep(0.001)
            finally:
                Endless.hung_up = True

    with Endless() as server:
        client = OpenAIClient(server.url)
        with client.stream("/v1/chat/completions", {}) as answer:
            pieces = answer.texts()
            assert [next(pieces) for _ in range(3)] == ["more "] * 3
        deadline = time.monotonic() + 5
        while not Endless.hung_up and time.monotonic() < deadline:
            time.sleep(0.01)
    assert Endless.hung_up


def test_reasoning_is_kept_apart() -> None:
    class Thinking(ChatServer):
        def reply(self, request: dict[str, Any]) -> Iterator[bytes]:
            yield HEAD
            for field, text in (("reasoning_content", "hmm"), ("content", "yes")):
                yield chunk(event({"choices": [{"delta": {field: text}}]}))
            yield END

    with (
        Thinking() as server,
        OpenAIClient(server.url).stream("/v1/chat/completions", {}) as answer,
    ):
        assert list(answer.texts()) == ["yes"]
    assert (answer.text, answer.reasoning) == ("yes", "hmm")
    assert answer.usage.completion_tokens == 2  # counted here, as the server sent no usage


# --- A conversation in a terminal ----------------------------------------------------------------


class Keyboard:
    """`octavo chat` in a pseudo-terminal of its own."""

    def __init__(self, *words: str) -> None:
        script = (
            "import argparse, fcntl, signal, sys, termios\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "from octavo.cli import chat\n"
            "parser = argparse.ArgumentParser()\n"
            "chat.add_parser(parser.add_subparsers())\n"
            "arguments = parser.parse_args(['chat', *sys.argv[1:]])\n"
            "sys.exit(arguments.run(arguments))\n"
        )
        self.fd, inside = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *words],
            stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(inside)
        self.seen = ""

    def expect(self, pattern: str, timeout_s: float = 20.0) -> str:
        """Read on until the pattern shows; returns what was shown since the last one."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            left_s = deadline - time.monotonic()
            ready = left_s > 0 and select.select([self.fd], [], [], left_s)[0]
            assert ready, f"{pattern!r} did not show up in {self.seen!r}"
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C at the prompt until there is a new one.

        More than once because readline misses a signal between showing a prompt and waiting.
        """
        for _ in range(20):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.expect(r">>> ", timeout_s=1.0)
                return
        self.expect(r">>> ", timeout_s=0.0)

    def ask(self, line: str) -> str:
        """Type a line; returns everything up to the next prompt."""
        self.type(line + "\r")
        return self.expect(r">>> ")

    def exit_code(self) -> int:
        code = self.process.wait(20)
        os.close(self.fd)
        return code


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer("Hello", ", **wor", "ld**!\n\n", "```\nx = 1\n\n", "y = 2\n```\n") as running:
        yield running


def test_a_conversation(server: ChatServer, tmp_path: Path) -> None:
    keys = Keyboard("--url", server.url)
    assert "demo/model" in keys.expect(r">>> ")
    shown = keys.ask("Hi")
    assert "world" in shown
    assert "**" not in shown.rpartition("Hello")[2]  # set as Markdown in the end
    assert "12 prompt tokens" in shown
    assert "temperature = 0.5" in keys.ask("/set temperature 0.5")
    assert "System message set" in keys.ask("/system You are terse.")
    keys.ask("And again")
    bodies = server.asked
    assert [m["role"] for m in bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert bodies[1]["messages"][2]["content"] == "".join(server.pieces)
    assert bodies[1]["temperature"] == 0.5
    path = tmp_path / "chat.json"
    assert "Saved 5 messages" in keys.ask(f"/save {path}")
    assert len(json.loads(path.read_text())["messages"]) == 5
    assert "No command /rest. Did you mean reset?" in keys.ask("/rest")
    keys.ask("/reset")
    keys.ask("Fresh")
    assert [m["role"] for m in server.asked[-1]["messages"]] == ["system", "user"]
    keys.type("/exit\r")
    assert keys.exit_code() == 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ('"""one\rtwo\r\rthree"""\r', "one\ntwo\n\nthree"),
        ("one\\\rtwo\r", "one\ntwo"),
    ],
)
def test_a_message_of_several_lines(server: ChatServer, typed: str, message: str) -> None:
    keys = Keyboard("--url", server.url, "--plain")
    keys.expect(r">>> ")
    keys.type(typed)
    keys.expect("prompt tokens")
    keys.expect(r">>> ")
    assert server.asked[0]["messages"][-1]["content"] == message
    keys.type("\x04")
    assert keys.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on() -> None:
    class Slow(ChatServer):
        def reply(self, request: dict[str, Any]) -> Iterator[bytes]:
            yield HEAD + delta("Partial answer ")
            if len(self.asked) == 1:
                for _ in range(200):
                    time.sleep(0.05)
                    yield delta(".")
            yield delta("done") + END

    with Slow() as slow:
        keys = Keyboard("--url", slow.url, "--plain")
        keys.expect(r">>> ")
        keys.type("Hi\r")
        keys.expect("Partial answer")
        keys.type("\x03")
        keys.expect("Stopped")
        keys.expect(r">>> ")
        assert "done" in keys.ask("Go on")
        kept = slow.asked[1]["messages"]
        assert [m["role"] for m in kept] == ["user", "assistant", "user"]
        assert kept[1]["content"].startswith("Partial answer ")
        keys.interrupt()  # at the prompt it only clears the line
        keys.type("/exit\r")
        assert keys.exit_code() == 0
