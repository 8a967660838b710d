"""The HTTP API on the real server with the demo model."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from live_server import LiveServer, live_server

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = [
    "Repeat: 😀😃😄 👨‍👩‍👧 🇫🇷",
    "汉字、かな、한글:",
    "Cafe\u0301 nai\u0308ve A\u030a",
    "def f(x):\n    return",
    "The quick brown",
    "1, 2, 3,",
    "مرحبا שלום Привет",
    "\U0001d518\U0001d52b \U0001f9d1\U0001f3fd\u200d\U0001f4bb",
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.fixture(scope="module")
def free_blocks(server: LiveServer) -> float:
    return server.metric("kv_cache_free_blocks")


def complete(server: LiveServer, **body: Any) -> dict[str, Any]:
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: LiveServer, path: str = "/v1/completions", **body: Any) -> list[dict[str, Any]]:
    with server.client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["X-Accel-Buffering"] == "no"
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def streamed_text(server: LiveServer, **body: Any) -> str:
    chunks = stream(server, **body)
    assert not any("error" in chunk for chunk in chunks), chunks
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def test_answers(server: LiveServer) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 20,
    }
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
    chunks = stream(server, "/v1/chat/completions", **body)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(d.get("content", "") for d in deltas) == "The capital of France is Paris."


def test_64_streams_equal_serial_ones(server: LiveServer, free_blocks: float) -> None:
    bodies = [
        {"prompt": TEXTS[i % len(TEXTS)] * (1 + i % 5), "max_tokens": 12 + i % 7, "seed": i}
        for i in range(64)
    ]
    serial = [streamed_text(server, **body) for body in bodies[::8]]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda body: streamed_text(server, **body), bodies))
    assert together[::8] == serial
    assert all(len(text) > 0 for text in together)
    server.wait_idle(free_blocks)


def test_streams_equal_whole_answers(server: LiveServer) -> None:
    """200 prompts with split code points, every fourth with stop strings."""
    bodies = []
    for i in range(200):
        body = {
            "prompt": f"{TEXTS[i % len(TEXTS)]} {i}",
            "max_tokens": 16,
            "seed": i,
            "temperature": 1.5,
        }
        if i % 4 == 0:
            body["stop"] = [" the", "\n", "e", "\u0301"]
        bodies.append(body)
    with ThreadPoolExecutor(16) as pool:
        whole = list(pool.map(lambda body: complete(server, **body), bodies))
        streamed = list(pool.map(lambda body: streamed_text(server, **body), bodies))
    texts = [answer["choices"][0]["text"] for answer in whole]
    assert streamed == texts
    for body, text in zip(bodies, texts, strict=True):
        assert not any(string in text for string in body.get("stop", []))


class TestLogprobs:
    def test_greedy_is_identical_in_both_places(self, server: LiveServer) -> None:
        choice = complete(server, prompt="One, two,", temperature=0, max_tokens=8, logprobs=3)
        columns = choice["choices"][0]["logprobs"]
        for token, logprob, top in zip(
            columns["tokens"], columns["token_logprobs"], columns["top_logprobs"], strict=True
        ):
            assert top[token] == logprob == max(top.values())

    def test_echo_scores_agree_with_generation(self, server: LiveServer) -> None:
        """The logprobs of a generated text, scored again as a prompt."""
        prompt = "The capital of France is"
        made = complete(
            server, prompt=prompt, temperature=0, max_tokens=6, logprobs=1, return_token_ids=True
        )["choices"][0]
        ids = made["prompt_token_ids"] + made["token_ids"]
        scored = complete(
            server, prompt=[ids, ids[:-1]], echo=True, logprobs=1, max_tokens=1, temperature=0
        )["choices"]
        for choice, length in zip(scored, (len(ids), len(ids) - 1), strict=True):
            columns = choice["logprobs"]
            assert len(columns["tokens"]) == length + 1
            assert columns["token_logprobs"][0] is None
            begin = len(made["prompt_token_ids"])
            again = columns["token_logprobs"][begin:length]
            first = made["logprobs"]["token_logprobs"][: length - begin]
            assert again == pytest.approx(first, abs=0.02)
            assert choice["text"] == "".join(columns["tokens"])
        assert (
            scored[0]["logprobs"]["token_logprobs"][1 : len(ids) - 1]
            == (scored[1]["logprobs"]["token_logprobs"][1 : len(ids) - 1])
        )


class TestDisconnect:
    """A client that goes away frees what its request holds."""

    LONG = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True}  # noqa: RUF012

    def open(self, server: LiveServer, **body: Any) -> socket.socket:
        host, _, port = server.url.removeprefix("http://").partition(":")
        data = json.dumps({**self.LONG, **body}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        connection = socket.create_connection((host, int(port)))
        connection.sendall(head.encode() + data)
        return connection

    def wait_running(self, server: LiveServer, count: int) -> None:
        deadline = time.monotonic() + 30
        while server.metric("num_requests_running") < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 4}, {"prompt": ["a", "b", "c"]}])
    def test_running(self, server: LiveServer, free_blocks: float, body: dict) -> None:
        connection = self.open(server, **body)
        self.wait_running(server, 1)
        connection.close()
        server.wait_idle(free_blocks)

    def test_in_the_middle_of_a_stream(self, server: LiveServer, free_blocks: float) -> None:
        connection = self.open(server, stream=True)
        received = b""
        while received.count(b"data: ") < 3:
            received += connection.recv(4096)
        connection.close()
        server.wait_idle(free_blocks)

    def test_while_it_waits(self, server: LiveServer, free_blocks: float) -> None:
        """More sequences than run at once, all abandoned."""
        connections = [self.open(server, n=32) for _ in range(4)]
        self.wait_running(server, 64)
        for connection in connections:
            connection.close()
        server.wait_idle(free_blocks)


class TestHttp:
    def send(self, server: LiveServer, data: bytes) -> bytes:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(data)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
        return received

    def test_lying_length(self, server: LiveServer) -> None:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = self.send(server, head + b"Content-Length: 1000000000\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 413")

    def test_endless_chunks(self, server: LiveServer) -> None:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        answer = self.send(server, head + chunk * 33)
        assert answer.startswith(b"HTTP/1.1 413")

    def test_chunked_body(self, server: LiveServer) -> None:
        def pieces() -> Iterator[bytes]:
            yield b'{"prompt":"x",'
            yield b'"max_tokens":1}'

        headers = {"Content-Type": "application/json"}
        answer = server.client.post("/v1/completions", content=pieces(), headers=headers)
        assert answer.status_code == 200

    def test_keep_alive_after_errors(self, server: LiveServer) -> None:
        for _ in range(3):
            assert server.client.post("/v1/completions", json={}).status_code == 400
            assert server.client.get("/nothing").status_code == 404
            assert server.client.head("/health").status_code == 200
