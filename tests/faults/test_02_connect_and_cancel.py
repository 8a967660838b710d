"""Fault 2: 10,000 connect-and-cancel in 60 s; blocks and descriptors are as at the start."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from faults.wire import IS_LONG, Baseline, connect, figures, in_threads, post

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.serving import Server

COUNT = 10_000 if IS_LONG else 400
PACE_S = 60 / 10_000
BODY = {"prompt": [5, 6], "max_tokens": 4000, "ignore_eos": True}

# What was sent when the client changed its mind.
CANCELS: list[bytes] = [
    b"",
    b"GET /v1/models HTTP/1.1\r\nHo",
    post("/v1/completions", {**BODY, "stream": True}),
    post("/v1/completions", BODY),
    post("/v1/completions", {**BODY, "n": 4}),
    post("/v1/completions", b"{" * 100, "Content-Length: 1000"),
    post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})[:-1],
]


def cancel_all(server: Server) -> Callable[[int], None]:
    began = time.monotonic()

    def work(first: int) -> None:
        for index in range(first, COUNT, 4):
            time.sleep(max(0.0, began + index * PACE_S - time.monotonic()))
            connection = connect(server)
            connection.sendall(CANCELS[index % len(CANCELS)])
            connection.close()

    return work


def test_nothing_is_left(server: Server, before: Baseline) -> None:
    began = time.monotonic()
    in_threads(4, cancel_all(server))
    took = time.monotonic() - began
    back = before.wait(5)
    before.wait_descriptors()
    figures(2, count=COUNT, seconds=round(took, 1), back_after_s=round(back, 2))
    assert server.complete().status == 200
