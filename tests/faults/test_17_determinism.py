"""Fault 17: the same seed, the same text: alone, among 8 and 64, streamed, cached, chunked.

Bitwise, with every option of the engine, it is in tests/parity/test_determinism.py.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from faults.wire import connect, figures, in_threads, post, read_all

if TYPE_CHECKING:
    from e2e.serving import Server

SEEDED = {
    "prompt": list(range(2, 160)), "max_tokens": 40, "temperature": 1.0, "seed": 7, "n": 2,
    "ignore_eos": True,
}  # fmt: skip


def texts(server: Server, **fields: Any) -> list[str]:
    answer = server.complete(**{**SEEDED, **fields})
    assert answer.status == 200, answer.text
    return [choice["text"] for choice in answer.json["choices"]]


def streamed(server: Server) -> list[str]:
    with connect(server) as connection:
        connection.sendall(post("/v1/completions", {**SEEDED, "stream": True}, "Connection: close"))
        received = read_all(connection)
    found = ["", ""]
    for line in received.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                found[choice["index"]] += choice["text"]
    return found


@pytest.fixture(scope="module")
def alone(server: Server) -> list[str]:
    first = texts(server, cache_salt="never seen")
    assert first[0] != first[1]
    return first


def test_streamed_or_not(server: Server, alone: list[str]) -> None:
    assert streamed(server) == alone


def test_prefix_hit_or_miss(server: Server, alone: list[str]) -> None:
    assert texts(server, cache_salt="another") == texts(server, cache_salt="another") == alone


@pytest.mark.parametrize("count", [8, 64])
def test_among_others(server: Server, alone: list[str], count: int) -> None:
    found: list[list[str]] = [[]] * count

    def run(index: int) -> None:
        # Half of them are the request, among as many that are not.
        found[index] = texts(server) if index % 2 else texts(server, seed=1000 + index)

    in_threads(count, run)
    assert found[1::2] == [alone] * (count // 2)
    assert all(other != alone for other in found[::2])
    figures(17, batch=count, same=count // 2)
