"""Fault 1: a client goes away in every state; its blocks and slots are back within a second."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e.serving import Server, wait_for
from faults.wire import Baseline, connect, figures, post

if TYPE_CHECKING:
    import socket

LONG = {"max_tokens": 4000, "ignore_eos": True}
_unique = itertools.count(1)


def long_prompt() -> list[int]:
    """One that no earlier request has left in the prefix cache."""
    number = next(_unique)
    return [2 + number % 200, 2 + number // 200] * 2000


def send(server: Server, path: str, **fields: Any) -> socket.socket:
    connection = connect(server)
    connection.sendall(post(path, {"prompt": [5], **LONG, **fields}))
    return connection


CASES: dict[str, dict[str, Any]] = {
    "streaming": {"stream": True},
    "not streaming": {},
    "several choices": {"stream": True, "n": 8},
    "several prompts": {"prompt": [[5], [6], [7]], "n": 2},
    "log-probabilities": {"stream": True, "logprobs": 20},
    "chat": {"messages": [{"role": "user", "content": "x"}], "stream": True},
}


@pytest.mark.parametrize("name", CASES)
def test_running(server: Server, before: Baseline, name: str) -> None:
    fields = CASES[name]
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    connection = send(server, path, **fields)
    wait_for(lambda: server.metric("num_requests_running") > 0, "running")
    connection.close()
    figures(1, case=name, back_after_s=round(before.wait(), 3))


def test_in_prefill(server: Server, before: Baseline) -> None:
    fields = {"max_tokens": 8, "prompt_logprobs": 0}
    connections = [
        send(server, "/v1/completions", prompt=long_prompt(), **fields) for _ in range(16)
    ]
    wait_for(lambda: server.metric("num_requests_running") > 0, "prefill")
    for connection in connections:
        connection.close()
    figures(1, case="in prefill", back_after_s=round(before.wait(), 3))


def test_queued(server: Server, before: Baseline) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(contextlib.closing(send(server, "/v1/completions", stream=True)))
        wait_for(lambda: server.metric("num_requests_running") == 16, "a full engine")
        queued = [send(server, "/v1/completions", stream=bool(i % 2)) for i in range(10)]
        wait_for(lambda: server.metric("num_requests_waiting") == 10, "a queue")
        for connection in queued:
            connection.close()
        wait_for(lambda: server.metric("num_requests_waiting") == 0, "an empty queue", 5)
    figures(1, case="queued", back_after_s=round(before.wait(), 3))


def slow_grammar(number: int) -> dict[str, Any]:
    """One that nobody has asked for before, and that takes some 50 ms to compile, twice."""
    properties = {
        f"p{number}_{i}": {"type": "string", "pattern": f"[a-z]{{1,{i + 5}}}{i}"}
        for i in range(800)
    }
    return {"json": {"type": "object", "properties": properties}}


def test_in_grammar_compile(server: Server, before: Baseline) -> None:
    number = next(_unique)
    delays = [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
    for index, delay in enumerate(delays):
        fields = {"structured_outputs": slow_grammar(100 * number + index)}
        connection = send(server, "/v1/completions", stream=bool(index % 2), n=4, **fields)
        time.sleep(delay)
        connection.close()
    figures(1, case="in grammar compile", back_after_s=round(before.wait(), 3))
    answer = server.complete(structured_outputs={"choice": ["a", "b"]})
    assert answer.status == 200
    assert answer.json["choices"][0]["text"] in ("a", "b")
    answer = server.complete(structured_outputs=slow_grammar(100 * number + 99), max_tokens=1)
    assert answer.status == 200, "what was compiled above was no grammar"
    before.wait()
